"""A pass over all users, batch by batch: with a bar, in smaller batches where memory is short, and kept while it lasts.

Knows tables with a row for each user; never what stands in them, nor where they are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_ilrec.decoding.memory import each_batch


class Keeper(Protocol):
    """Keeps a pass that may be interrupted, so that the next one goes on where it was."""

    def restore(self, name: str, tables: Mapping[str, Tensor], done: Tensor) -> None:
        """Fill in what an earlier process computed; ``done``, ``[users]`` bool, becomes true there."""

    def keep(self, name: str, tables: Mapping[str, Tensor], done: Tensor, *, now: bool = False) -> None:
        """Called after each batch, and with ``now`` where the pass ends before all is done."""


def each_user(
    batches: Sequence[np.ndarray],
    compute: Callable[[np.ndarray], None],
    tables: Mapping[str, Tensor],
    *,
    name: str,
    progress: str | None = None,
    keeper: Keeper | None = None,
) -> None:
    """:func:`~recbole_ilrec.decoding.memory.each_batch` of the users whose rows are not there yet.

    Args:
        batches: arrays of row numbers.
        compute: fills some rows of the tables.
        tables: by name, ``[users, ...]``, on the CPU.
        name: of the pass; a keeper may have several.
        progress: label of a progress bar, none without.
        keeper: keeps the rows meanwhile.
    """
    done = torch.zeros(len(next(iter(tables.values()))), dtype=torch.bool)
    if keeper is not None:
        keeper.restore(name, tables, done)
    left = [some for rows in batches if len(some := rows[~done[rows].numpy()])]
    users, waiting = sum(map(len, batches)), sum(map(len, left))
    bar = tqdm(total=users, initial=users - waiting, desc=progress, disable=progress is None, ncols=100, unit="user")

    def advance(rows: np.ndarray) -> None:
        compute(rows)
        done[rows] = True
        bar.update(len(rows))
        if keeper is not None:
            keeper.keep(name, tables, done)

    with bar:
        try:
            each_batch(left, advance)
        except BaseException:
            if keeper is not None and bool(done.any()):
                keeper.keep(name, tables, done, now=True)
            raise
