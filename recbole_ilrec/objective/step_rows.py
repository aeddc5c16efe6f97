"""What ILRec's loss knows of each supervised token of a step, and the part of it that a block of tokens needs."""

from typing import NamedTuple

from torch import Tensor

from recbole_ilrec.objective.distribution import Distribution, distribution
from recbole_ilrec.objective.ragged import RowLists
from recbole_ilrec.objective.sft import at_least_float32
from recbole_ilrec.schema import LegalTokens


class BlockRows(NamedTuple):
    """The ``n`` tokens of a block.

    Attributes:
        final: the last layer's distribution.
        targets: ``[n]``.
        active: ``[n]`` bool, where ILRec's terms apply; ``None``: everywhere.
        rewarded: ``[n]`` bool, where Eq. 11 does; ``None``: everywhere.
        legal: trie children, where any part needs them.
        outside: ``[n]`` bool, tokens without a legal one; empty where ``legal`` is ``None``.
    """

    final: Distribution
    targets: Tensor
    active: Tensor | None
    rewarded: Tensor | None
    legal: LegalTokens | None
    outside: Tensor


class StepRows(NamedTuple):
    """All ``N`` tokens of a step, those of Eq. 8 first; columns as in :class:`BlockRows`.

    Attributes:
        scale: factor of the sum of Eq. 8.
    """

    targets: Tensor
    active: Tensor | None
    rewarded: Tensor | None
    legal: RowLists | None
    scale: float

    def block(self, low: int, high: int, logits: Tensor) -> BlockRows:
        """Tokens ``low .. high - 1``, whose last layer gives ``logits [n, V]``."""
        own = slice(low, high)
        return BlockRows(
            distribution(at_least_float32(logits)),
            self.targets[own],
            None if self.active is None else self.active[own],
            None if self.rewarded is None else self.rewarded[own],
            None if self.legal is None else self.legal.rows(low, high),
            self.targets.new_zeros(0) if self.legal is None else self.legal.empty[own],
        )
