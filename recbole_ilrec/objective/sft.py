"""Supervised fine-tuning: cross-entropy of the next token (Eq. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_ilrec.objective.base import Needs
from recbole_ilrec.schema import LayerStates, LegalTokens, LossTerms, TokenBatch
from recbole_ilrec.settings import ILRecSettings


def at_least_float32(logits: Tensor) -> Tensor:
    """``logits`` in the precision in which losses are computed: float32, or float64 where that came in."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log P(y_t | X, y_<t) of each supervised token (Eq. 1).

    Args:
        logits: ``[N, V]``.
        targets: ``[N]`` int64.

    Returns:
        ``[N]``, nats.
    """
    return F.cross_entropy(at_least_float32(logits), targets, reduction="none")  # Eq. 1


class SFT:
    """Plain cross-entropy over every supervised token."""

    needs = Needs()

    def __init__(self, settings: ILRecSettings, item_tokens: Tensor | None = None, *, eos_id: int | None = None):
        del settings, item_tokens, eos_id  # the signature all objectives share

    def __call__(
        self,
        states: LayerStates,
        batch: TokenBatch,
        legal: LegalTokens | None,
        *,
        epoch: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """See :class:`~recbole_ilrec.objective.base.Objective`; the only part is ``ce``."""
        ce = cross_entropy(states.head(states.final), batch.targets).sum()
        return LossTerms(parts={"ce": ce}, weights={"ce": 1.0})
