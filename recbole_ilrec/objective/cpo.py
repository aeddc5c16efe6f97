"""Cross-layer preference optimisation: cross-entropy with penalised negatives (Eq. 7)."""

import torch
from torch import Tensor

from recbole_ilrec.objective.ragged import row_sum
from recbole_ilrec.objective.split import SplitLogits, split_logits


def penalised_logits(logits: Tensor, weights: Tensor, beta: float, penalty: str = "multiplicative") -> Tensor:
    """Logits in the denominator of Eq. 7.

    Choice: p^L is called a probability; with literal probabilities the loss could not fall below about log |V|, so we
    read logits.

    Choice: z (1 + beta w), as printed, pushes a negative *up* when z < 0 and depends on a constant added to all
    logits. We keep it and monitor the share of weight on z < 0. The setting ``penalty`` changes it: ``sign_safe``
    z + beta w |z| (equal where z >= 0); ``additive`` z + beta w (scale 1, so beta is a margin in nats); ``log1p``
    z + log(1 + beta w), i.e. the negative's unnormalised probability times 1 + beta w. The last two do not depend on
    a constant added to all logits.

    Args:
        logits: any shape, z.
        weights: same shape, w of Eq. 6.
        beta: strength, >= 0.
        penalty: ``multiplicative``, ``sign_safe``, ``additive`` or ``log1p``.

    Returns:
        same shape.
    """
    scaled = beta * weights
    if penalty == "multiplicative":
        return logits * (1 + scaled)  # Eq. 7
    if penalty == "sign_safe":
        return logits + scaled * logits.abs()
    if penalty == "additive":
        return logits + scaled
    return logits + torch.log1p(scaled)


def penalised_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, beta: float, penalty: str = "multiplicative"
) -> Tensor:
    """Eq. 7 of each supervised token, from a full table of weights.

    Args:
        logits: ``[N, V]`` of the last layer.
        targets: ``[N]`` int64.
        weights: ``[N, V]``, w of Eq. 6; a weight at the target is not looked at.
        beta: strength; 0 gives plain cross-entropy.
        penalty: see :func:`penalised_logits`.

    Returns:
        ``[N]``, nats.
    """
    row, token = (weights.detach() != 0).scatter(1, targets[:, None], False).nonzero(as_tuple=True)
    split = split_logits(logits, targets, row, token)
    return split_penalised_cross_entropy(split, weights[row, token].to(split.listed.dtype), beta, penalty)


def split_penalised_cross_entropy(
    split: SplitLogits, weights: Tensor, beta: float, penalty: str = "multiplicative"
) -> Tensor:
    """Eq. 7 from logits split by their negatives; ``weights [M]`` belong to the listed tokens. Returns ``[N]``."""
    return split.cross_entropy(penalised_logits(split.listed, weights, beta, penalty))  # Eq. 7


def frac_negative_logit(split: SplitLogits, weights: Tensor) -> Tensor:
    """Share of each row's weight that lies on logits below 0, where the printed penalty has the wrong sign.

    Args:
        split: final logits split by the negatives.
        weights: ``[M]``, w of Eq. 6.

    Returns:
        ``[N]`` in [0, 1]; 0 for a row without negatives.
    """
    return row_sum((weights * (split.listed < 0)).detach(), split.row, len(split.truth))
