"""Collaborative reward regularisation: soft labels from the rewards of tokens (Eq. 11)."""

import torch
from torch import Tensor

from recbole_ilrec.objective.ragged import pair_list, rewards_at, row_logsumexp, row_sum
from recbole_ilrec.objective.split import SplitLogits, split_logits
from recbole_ilrec.schema import LegalTokens


def soft_labels(
    rewards: Tensor, truth_rewards: Tensor, row: Tensor, *, label: str = "softmax", temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The label distribution q over H of Eq. 11, without gradient.

    Choice: Eq. 11 takes a softmax of rewards in [0, 1], which is nearly flat when H is large. We keep it;
    ``crr_temperature`` sharpens it and ``crr_label: normalised`` takes the rewards themselves, divided by their sum
    over H. Where that sum is 0, all of the label is the truth's.

    Args:
        rewards: ``[M]``, r_v of the tokens of H other than the truth.
        truth_rewards: ``[N]``, r of the truth.
        row: ``[M]`` int64.
        label: ``softmax`` or ``normalised``.
        temperature: of the softmax.

    Returns:
        q ``[M]`` and the truth's q ``[N]``; together they sum to 1 in each row.
    """
    if label == "softmax":
        own, others = truth_rewards / temperature, rewards / temperature
        normaliser = row_logsumexp(own, others, row)
        return (others - normaliser[row]).exp(), (own - normaliser).exp()  # Eq. 11
    total = truth_rewards + row_sum(rewards, row, len(truth_rewards))
    empty = total <= torch.finfo(total.dtype).tiny
    total = total.masked_fill(empty, 1.0)
    return (rewards / total[row]).masked_fill(empty[row], 0.0), (truth_rewards / total).masked_fill(empty, 1.0)


def split_collaborative_regularisation(
    split: SplitLogits,
    targets: Tensor,
    legal: LegalTokens,
    vocab_size: int,
    *,
    in_scope: Tensor | None = None,
    label: str = "softmax",
    temperature: float = 1.0,
    truth_floor: float = 0.0,
) -> Tensor:
    """Eq. 11 of each row, ``[N]``, from logits split by H; see :func:`collaborative_regularisation`.

    ``in_scope [M]`` says which of the listed tokens are in H; ``None`` means all.
    """
    rows = len(targets)
    every = torch.arange(rows, device=targets.device)
    row, token, listed = split.row, split.token, split.listed
    if in_scope is not None:
        row, token, listed = row[in_scope], token[in_scope], listed[in_scope]
    rewards = rewards_at(legal, row, token, vocab_size).to(listed.dtype)
    truth_rewards = rewards_at(legal, every, targets, vocab_size).to(listed.dtype)
    # A prefix that the trie does not know has no rewards at all: all of it goes to the truth.
    truth_rewards = torch.where(outside_trie(legal, rows), 1.0, truth_rewards).clamp_min(truth_floor)
    q, q_truth = soft_labels(rewards, truth_rewards, row, label=label, temperature=temperature)
    cross_entropy = split.cross_entropy()  # -log p(y), not penalised
    log_p = listed - split.truth[row] - cross_entropy[row]
    return q_truth * cross_entropy - row_sum(q * log_p, row, rows)  # Eq. 11


def collaborative_regularisation(
    logits: Tensor,
    targets: Tensor,
    scope: Tensor,
    legal: LegalTokens,
    *,
    label: str = "softmax",
    temperature: float = 1.0,
    truth_floor: float = 0.0,
) -> Tensor:
    """Cross-entropy of the last layer against the soft labels of Eq. 11.

    The log-probabilities are those of the unpenalised logits over the whole vocabulary; gradient flows through them
    only. A token of H that may not follow here has reward 0 (and so still some label under the softmax).

    Choice: a prefix outside the trie has no rewards; then r is 1 for the truth and 0 elsewhere.

    Choice: ``r_truth_floor`` lifts a reward of the truth that is below it; as printed there is no floor (0).

    Args:
        logits: ``[N, V]`` of the last layer.
        targets: ``[N]`` int64.
        scope: ``[N, V]`` bool, H; the target is added to it.
        legal: legal tokens of the N rows, with rewards.
        label: see :func:`soft_labels`.
        temperature: see :func:`soft_labels`.
        truth_floor: lower bound of the truth's reward.

    Returns:
        ``[N]``, nats.
    """
    row, token = pair_list(scope.scatter(1, targets[:, None], False))
    return split_collaborative_regularisation(
        split_logits(logits, targets, row, token),
        targets,
        legal,
        logits.shape[1],
        label=label,
        temperature=temperature,
        truth_floor=truth_floor,
    )


def outside_trie(legal: LegalTokens, rows: int) -> Tensor:
    """``[N]`` bool, rows without a legal token."""
    outside = torch.ones(rows, dtype=torch.bool, device=legal.row.device)
    outside[legal.row] = False
    return outside
