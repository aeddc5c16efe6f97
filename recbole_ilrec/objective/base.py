"""What an objective is, and what it may ask of the rest."""

from dataclasses import dataclass
from typing import Protocol

import torch

from recbole_ilrec.schema import LayerStates, LegalTokens, LossTerms, TokenBatch


@dataclass(frozen=True)
class Needs:
    """What must be prepared for an objective; everything else is left out to save time.

    Attributes:
        layers: number K of candidate layers in :class:`~recbole_ilrec.schema.LayerStates`.
        legal: whether the trie children of each supervised token are needed.
        rewards: whether those children need rewards (Eq. 10), hence a collaborative model.
    """

    layers: int = 0
    legal: bool = False
    rewards: bool = False


class Objective(Protocol):
    """A loss over the supervised tokens of a micro-batch."""

    needs: Needs

    def __call__(
        self,
        states: LayerStates,
        batch: TokenBatch,
        legal: LegalTokens | None,
        *,
        epoch: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """Sums over the supervised tokens of each part of the loss.

        Args:
            states: states at the N supervised tokens of ``batch``, with ``needs.layers`` candidates.
            batch: targets and the marks of each supervised token.
            legal: trie children of each supervised token when ``needs.legal`` or ``needs.rewards``, else ``None``.
            epoch: epochs done so far, fractions included.
            generator: source of any random choice; ``None`` draws from torch's own.
        """
        ...
