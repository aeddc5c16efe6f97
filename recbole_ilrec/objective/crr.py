"""Collaborative reward regularisation: soft labels from the rewards of tokens (Eq. 11)."""

import torch
from torch import Tensor

from recbole_ilrec.objective.distribution import Distribution, barrier
from recbole_ilrec.objective.ragged import flat_index
from recbole_ilrec.schema import LegalTokens


def soft_labels(
    targets: Tensor,
    scope: Tensor,
    legal: LegalTokens,
    outside: Tensor,
    *,
    label: str = "softmax",
    temperature: float = 1.0,
    truth_floor: float = 0.0,
) -> Tensor:
    """The label distribution q over H of Eq. 11, without gradient.

    A token of H that may not follow here has reward 0 (and so still some label under the softmax).

    Choice: Eq. 11 takes a softmax of rewards in [0, 1], which is nearly flat when H is large. We keep it;
    ``crr_temperature`` sharpens it and ``crr_label: normalised`` takes the rewards themselves, divided by their sum
    over H. Where that sum is 0, all of the label is the truth's.

    Choice: a prefix outside the trie has no rewards; then r is 1 for the truth and 0 elsewhere. (An answer that is no
    item after a history has none either; there Eq. 11 is left out.)

    Choice: ``r_truth_floor`` lifts a reward of the truth that is below it; as printed there is no floor (0).

    Args:
        targets: ``[N]`` int64.
        scope: ``[N, V]`` of 0 and 1, H; the target is added to it.
        legal: legal tokens of the N rows, with rewards.
        outside: ``[N]`` bool, rows whose prefix is outside the trie: those without a legal token.
        label: ``softmax`` or ``normalised``.
        temperature: of the softmax.
        truth_floor: lower bound of the truth's reward.

    Returns:
        ``[N, V]`` in the dtype of ``scope``, 0 outside H; a row sums to 1.

    Raises:
        ValueError: ``legal`` carries no rewards.
    """
    if legal.reward is None:
        raise ValueError("Eq. 11 needs rewards; these legal tokens carry none")
    truth, at, reward = targets[:, None], flat_index(legal, scope), legal.reward.to(scope.dtype)
    if label == "softmax":
        exponents = barrier(scope).scatter_(1, truth, 0.0)
        exponents.view(-1).scatter_add_(0, at, reward / temperature)
        own = _lifted(exponents.gather(1, truth), outside, truth_floor / temperature, 1 / temperature)
        return exponents.scatter_(1, truth, own).softmax(-1)  # Eq. 11
    rewards = torch.zeros_like(scope)
    rewards.view(-1).scatter_(0, at, reward)
    rewards.scatter_(1, truth, _lifted(rewards.gather(1, truth), outside, truth_floor, 1.0))
    rewards.mul_(scope.scatter(1, truth, 1.0))
    total = rewards.sum(1, keepdim=True)
    empty = total <= torch.finfo(scope.dtype).tiny
    rewards.div_(total.masked_fill(empty, 1.0)).mul_(~empty)
    return rewards.scatter_add_(1, truth, empty.to(scope.dtype))


def _lifted(own: Tensor, outside: Tensor, floor: float, whole: float) -> Tensor:
    """The truth's reward ``[N, 1]``: not below the floor, and the ``whole`` where nothing else has one."""
    return torch.where(outside[:, None], whole, own.clamp_min_(floor))


def collaborative_regularisation(final: Distribution, labels: Tensor) -> Tensor:
    """Eq. 11 of each row: cross-entropy of the last layer against soft labels.

    The log-probabilities are those of the unpenalised logits over the whole vocabulary. The derivative by the logits
    is p - q.

    Args:
        final: of the last layer.
        labels: ``[N, V]``, q of :func:`soft_labels`.

    Returns:
        ``[N]``, nats.
    """
    return final.mass - torch.linalg.vecdot(labels, final.logits)  # Eq. 11
