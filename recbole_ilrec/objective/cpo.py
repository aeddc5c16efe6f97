"""Cross-layer preference optimisation: cross-entropy with penalised negatives (Eq. 7)."""

import torch
from torch import Tensor

from recbole_ilrec.objective.distribution import distribution


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
    if penalty == "multiplicative":
        return torch.addcmul(logits, logits, weights, value=beta)  # Eq. 7
    if penalty == "sign_safe":
        return torch.addcmul(logits, logits.abs(), weights, value=beta)
    if penalty == "additive":
        return logits.add(weights, alpha=beta)
    return logits + torch.log1p(beta * weights)


def penalised_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    beta: float,
    penalty: str = "multiplicative",
    *,
    by_weights: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Eq. 7 of each supervised token, and its derivatives in closed form.

    Args:
        logits: ``[N, V]`` of the last layer, float32 or float64.
        targets: ``[N]`` int64.
        weights: ``[N, V]``, w of Eq. 6; 0 outside the negatives and at the target.
        beta: strength; 0 gives plain cross-entropy.
        penalty: see :func:`penalised_logits`.
        by_weights: whether the derivative by the weights is wanted too.

    Returns:
        values ``[N]`` in nats, their derivatives by the logits ``[N, V]`` and, if wanted, by the weights.
    """
    penalised = distribution(penalised_logits(logits, weights, beta, penalty))
    values = penalised.mass - logits.gather(1, targets[:, None]).squeeze(1)  # Eq. 7
    p = penalised.p
    gradient = None
    if by_weights:
        slope = {
            "multiplicative": lambda: beta * logits,
            "sign_safe": lambda: beta * logits.abs(),
            "additive": lambda: torch.full_like(logits, beta),
            "log1p": lambda: beta / (1 + beta * weights),
        }[penalty]
        gradient = p * slope()
    if penalty == "multiplicative":
        p.addcmul_(p, weights, value=beta)
    elif penalty == "sign_safe":
        p.addcmul_(p * logits.sign(), weights, value=beta)
    return values, p.scatter_add_(1, targets[:, None], p.new_full((len(p), 1), -1.0)), gradient


def frac_negative_logit(logits: Tensor, weights: Tensor) -> Tensor:
    """Share of each row's weight that lies on logits below 0, where the printed penalty has the wrong sign.

    Args:
        logits: ``[N, V]``.
        weights: ``[N, V]``, w of Eq. 6.

    Returns:
        ``[N]`` in [0, 1]; 0 for a row without negatives.
    """
    return torch.lt(logits, 0, out=torch.empty_like(logits)).mul_(weights).sum(1)
