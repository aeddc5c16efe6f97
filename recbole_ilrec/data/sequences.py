"""All interactions of all users in order of time, and what each did before a given moment."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_ilrec.prompt.rows import Pairs


@dataclass(frozen=True)
class Sequences:
    """All interactions, grouped by user in time order.

    Attributes:
        start: ``[user_num + 1]`` int64; user u owns the entries ``start[u] .. start[u + 1] - 1``.
        items: ``[interactions]`` int64 internal item ids.
        times: ``[interactions]`` ranks in time, increasing for each user.
    """

    start: Tensor
    items: Tensor
    times: Tensor

    @classmethod
    def build(cls, rows: Interaction, user: str, item: str, time: str, user_num: int) -> "Sequences":
        """From interactions sorted by user and time."""
        counts = torch.bincount(rows[user], minlength=user_num)
        start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return cls(start, rows[item].clone(), rows[time].clone())

    def before(self, users: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """What each user did before a time, the whole history and not only the last items of a row.

        Args:
            users: ``[B]`` int64.
            times: ``[B]`` ranks, as in the time column of a row.

        Returns:
            ``(row, item)``, each ``[M]`` int64: entry m says that row ``row[m]`` has ``item[m]`` in its history.
        """
        first, last = self.interval(users, times).T
        count = last - first
        row = torch.repeat_interleave(torch.arange(len(users)), count)
        offset = torch.arange(len(row)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        return row, self.items[first[row] + offset]

    def interval(self, users: Tensor, times: Tensor) -> Tensor:
        """Bounds in ``items`` of what each user did before a time, ``[B, 2]`` int64; arguments as in :meth:`before`."""
        first, high = self.start[users], self.start[users + 1]
        low = first
        while bool((low < high).any()):  # bisection of all users at once
            middle = (low + high) // 2
            earlier = (low < high) & (self.times[middle.clamp_max(len(self.times) - 1)] < times)
            low, high = torch.where(earlier, middle + 1, low), torch.where(earlier | (low >= high), high, middle)
        return torch.stack([first, low], dim=1)


class Rows(Interaction):
    """RecBole's columns. Its own turns every index into a list, which torch reads anew for each column."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            index = torch.tensor(index, dtype=None if index else torch.int64)
        if isinstance(index, Tensor | np.ndarray):
            return Rows({name: column[index] for name, column in self.interaction.items()})
        return super().__getitem__(index)


def as_rows(pairs: Pairs, dataset: Any) -> Interaction:
    """Histories as the columns that RecBole's sequential models read, the inverse of :func:`as_pairs`."""
    columns = {
        dataset.uid_field: pairs.user,
        dataset.history_field: pairs.history,
        dataset.item_list_length_field: pairs.length,
        dataset.iid_field: pairs.target,
    }
    return Interaction({name: torch.from_numpy(column) for name, column in columns.items()})


def as_pairs(
    rows: Interaction,
    sequences: Sequences | None,
    user: str,
    history: str,
    length: str,
    target: str,
    time: str,
    candidates: str | None = None,
) -> Pairs:
    """RecBole's augmented rows as arrays, with the whole past of each where it is known; the rest are names of columns.

    Args:
        rows: on the CPU.
        sequences: of the data set that the rows are of.
        user: of users.
        history: of the items before the target.
        length: of their number.
        target: of the items to predict.
        time: of the ranks in time; the past is known where the rows have it.
        candidates: of the items to choose among, where there is a choice.
    """
    timeline, past = None, None
    if sequences is not None and time in rows:
        timeline = sequences.items.numpy()
        past = sequences.interval(rows[user], rows[time]).numpy()
    return Pairs(
        user=rows[user].numpy(),
        history=rows[history].numpy(),
        length=rows[length].numpy(),
        target=rows[target].numpy(),
        timeline=timeline,
        past=past,
        candidates=None if candidates is None else rows[candidates].numpy(),
    )
