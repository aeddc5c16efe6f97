"""Random numbers that are a function of a training row and a place in it, and of nothing else.

A generator hands its numbers out in turn: what a row gets depends on which rows came before it, hence on the number of
processes and micro-batches. Here a number is a hash of what it is for (counter-based random numbers: Salmon et al., SC
2011), so a row finds the same ones with whatever other rows, in whatever process and however often it is computed. The
hash is made of integer products and shifts of torch, which are exact on every device.
"""

import numpy as np
import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Increment and multipliers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""


def keys_of_rows(seed: int, epoch: int, stream: int, rows: np.ndarray) -> Tensor:
    """A key for each row.

    Args:
        seed: of the run.
        epoch: number of it; a row has other keys in other epochs.
        stream: of what kind the rows are; the same number of another kind is another row.
        rows: ``[B]`` their numbers.

    Returns:
        ``[B]`` int64.
    """
    base = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)
    return torch.from_numpy((base + rows.astype(np.uint64)).view(np.int64))


def fresh_numbers(count: int, generator: torch.Generator | None = None) -> Tensor:
    """``[count]`` int64, all equally likely, from a generator (torch's own by default): keys of rows that have none."""
    device = "cpu" if generator is None else generator.device
    return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)


def numbers(row_keys: Tensor, site: int, places: Tensor) -> Tensor:
    """A random number for each row and place.

    Args:
        row_keys: int64, of :func:`keys_of_rows`.
        site: what the numbers are used for; the same place has another number at another site.
        places: int64, within the row; broadcasts with ``row_keys``.

    Returns:
        int64 of the common shape, evenly spread; the shifts keep the sign, so not every int64 occurs.
    """
    # Mixed twice before they meet: keys of neighbouring rows and neighbouring places differ in a few bits only.
    by_row = _mixed(_mixed(row_keys + _signed(site * GOLDEN)))
    by_place = _mixed(_mixed(places * _signed(GOLDEN)))
    return _mixed(by_row ^ by_place)


def below(chance: float) -> int:
    """The bound under which a share ``chance`` (below 1) of all int64 lies."""
    return round(chance * 2**64) - 2**63


def _mixed(x: Tensor) -> Tensor:
    """Two rounds of shift and product, in place; the last shift of SplitMix64 is left to the next call."""
    x.bitwise_xor_(x >> 32).mul_(_signed(FIRST))
    return x.bitwise_xor_(x >> 29).mul_(_signed(SECOND))


def _signed(number: int) -> int:
    """The int64 with the bits of ``number``."""
    return (number + 2**63) % 2**64 - 2**63
