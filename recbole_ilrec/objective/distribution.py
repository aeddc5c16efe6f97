"""Softmaxes with what else is needed of them, written for speed on a CPU.

There a masked fill costs twenty times a product with a mask of numbers, and exp twice a softmax. Sets of tokens
are therefore tables of 0 and 1, and log-probabilities are never written out. Between passes over tables even a small
call costs some ten microseconds, so as little as possible is computed that way.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FAR = 1e30
"""Taken from the logits of tokens outside a set: exp of the difference is exactly 0. (0 times infinity is not.)"""


class Distribution(NamedTuple):
    """softmax(logits) of each row.

    Attributes:
        logits: ``[N, V]``, float32 or float64.
        p: ``[N, V]``.
        mass: ``[N]``, log of the sum of exp(logits).
    """

    logits: Tensor
    p: Tensor
    mass: Tensor

    def first(self, count: int) -> "Distribution":
        """That of the first rows."""
        return Distribution(*(x[:count] for x in self))

    def cross_entropy(self, targets: Tensor) -> Tensor:
        """-log p of ``targets [N]``, nats."""
        return self.mass - self.logits.gather(1, targets[:, None]).squeeze(1)


def distribution(logits: Tensor) -> Distribution:
    """The softmax of ``logits [N, V]``. Its greatest entry is at least 1 / V, so its logarithm gives the mass."""
    p = logits.softmax(-1)
    return Distribution(logits, p, logits.amax(-1) - p.amax(-1).log())


def barrier(members: Tensor) -> Tensor:
    """What to add to logits so that only tokens at which ``members`` is 1 keep a probability: 0 there, else -FAR."""
    return torch.add(members.new_full((), -FAR), members, alpha=FAR)


def restricted_softmax(logits: Tensor, members: Tensor) -> Tensor:
    """Softmax over the tokens of each row at which ``members [N, V]`` is 1; all 0 in a row without any."""
    return barrier(members).add_(logits).softmax(-1) * members
