"""Training rows and the plan of an epoch: which rows make which step, the same for any number of processes.

RecBole gives one (history, target) pair for each position; ``prefix`` rows are those pairs, ``sequence`` rows join the
pairs of a user into windows whose every later item is a target. Knows item ids; never tokens or models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from recbole_ilrec.errors import UserError
from recbole_ilrec.prompt.encode import Example

Array = np.ndarray


@dataclass(frozen=True)
class Pairs:
    """RecBole's augmented data set, rows of a user adjacent and in order of time.

    Attributes:
        user: ``[R]`` user ids.
        history: ``[R, L]`` item ids, left-aligned, zeros behind.
        length: ``[R]`` items of each history.
        target: ``[R]`` the next item.
        timeline: ``[M]`` all items of all users, a user's in order of time; ``None`` when only windows are known.
        past: ``[R, 2]`` bounds in ``timeline`` of all that the user did before the target.
        candidates: ``[R, C]`` items to choose among, the target one of them, 0 where a row has fewer; ``None`` where
            the choice is among all items.
    """

    user: Array
    history: Array
    length: Array
    target: Array
    timeline: Array | None = None
    past: Array | None = None
    candidates: Array | None = None

    def __len__(self) -> int:
        return len(self.target)

    def histories(self, rows: Array) -> list[Array]:
        """The histories of some rows, without padding."""
        return [self.history[row, : self.length[row]] for row in rows]

    def seen(self) -> list[Array]:
        """All items of each row before its target, also those older than its window, where they are known."""
        if self.timeline is None or self.past is None:
            return self.histories(np.arange(len(self)))
        return [self.timeline[low:high] for low, high in self.past]

    def repeats(self) -> Array:
        """``[rows]`` bool, whether the user has had the target before."""
        return np.array([target in past for target, past in zip(self.target, self.seen(), strict=True)], dtype=bool)

    def take(self, rows: Array) -> "Pairs":
        """Some of the rows."""
        past, offered = (None if column is None else column[rows] for column in (self.past, self.candidates))
        user, history, length, target = (c[rows] for c in (self.user, self.history, self.length, self.target))
        return Pairs(user, history, length, target, timeline=self.timeline, past=past, candidates=offered)

    def choices(self, rows: Array) -> list[Array] | None:
        """The candidates of some rows, without padding; ``None`` where the choice is among all items."""
        return None if self.candidates is None else [row[row > 0] for row in self.candidates[rows]]

    def some(self, count: int) -> "Pairs":
        """A fixed random part of the rows, the same in every run and for every seed; all where there are no more."""
        if count >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(0).choice(len(self), count, replace=False)))


class TrainRows:
    """Rows of one data set under one way of cutting it.

    Args:
        pairs: the training pairs; their row number is the number of the target.
        rows: ``"prefix"`` or ``"sequence"``.
        window: history items a position may see (RecBole's ``MAX_ITEM_LIST_LENGTH``).
        variants: prompt templates to draw from, one for each row and epoch.
        item_dropout: chance of each history item to be left out of a row while training. In sequence rows a dropped
            item is left out as a target too.
        seed: decides templates and dropped items, together with the epoch.
        shuffle: show the candidates of a row in another order in each epoch.

    Raises:
        UserError: ``"sequence"`` rows of pairs that do not follow each other.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        rows: str,
        window: int,
        variants: int = 1,
        item_dropout: float = 0.0,
        seed: int = 0,
        shuffle: bool = False,
    ):
        self.pairs = pairs
        self.variants = variants
        self.item_dropout = item_dropout
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        cut = _prefix_rows if rows == "prefix" else _sequence_rows
        self._items, self._start, self._split, self._first = cut(pairs, window)
        self._draw(0)

    def __len__(self) -> int:
        return len(self._split)

    @property
    def num_items(self) -> Array:
        """``[rows]`` items in each row."""
        return np.diff(self._start)

    @property
    def num_targets(self) -> Array:
        """``[rows]`` targets in each row, before any item dropout."""
        return self.num_items - self._split

    def sizes(self, epoch: int) -> tuple[Array, Array]:
        """``[rows]`` items and targets of each row after the item dropout of an epoch."""
        if not self.item_dropout:
            return self.num_items, self.num_targets
        self._draw(epoch)
        whole, keep = self.num_items, self._keep.copy()
        keep[self._start[1:] - 1] |= self.num_targets == 1
        is_target = np.ones(len(keep), dtype=bool)
        is_target[_runs(self._start[:-1], self._split)] = False
        items, targets = (np.add.reduceat(kept.astype(np.int64), self._start[:-1]) for kept in (keep, keep & is_target))
        as_it_is = (items <= 1) | (targets == 0)  # as in :meth:`example`
        items = np.where(as_it_is, whole, items)
        targets = np.where(as_it_is, self.num_targets, targets)
        return items, np.minimum(targets, items - 1)

    def _draw(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._epoch = epoch
        chance = np.random.Generator(np.random.Philox([self.seed, epoch]))
        self._variant = chance.integers(self.variants, size=len(self))
        self._keep = chance.random(len(self._items)) >= self.item_dropout
        if self.shuffle and self.pairs.candidates is not None:
            self._order = chance.random(self.pairs.candidates.shape).argsort(1)

    def example(self, epoch: int, row: int) -> Example:
        """Row ``row`` as it is in epoch ``epoch``; the same whoever asks, in whatever order."""
        self._draw(epoch)
        low, high, split = self._start[row], self._start[row + 1], int(self._split[row])
        items, first = self._items[low:high], self._first[row]
        targets = first + np.arange(high - low - split)
        if self.item_dropout:
            keep = self._keep[low:high].copy()
            keep[-1] |= len(targets) == 1
            if keep.sum() > 1 and keep[split:].any():
                items, targets = items[keep], targets[keep[split:]]
                targets = targets[len(targets) == len(items) :]  # the first item kept has no past
        return Example(items, targets, int(self._variant[row]), self._offered(int(first)))

    def _offered(self, number: int) -> Array | None:
        """What a prefix row chooses among; its number is that of its pair."""
        offered = self.pairs.candidates
        if offered is None:
            return None
        row = offered[number][self._order[number]] if self.shuffle else offered[number]
        return row[row > 0]


def _prefix_rows(pairs: Pairs, window: int) -> tuple[Array, Array, Array, Array]:
    length = np.minimum(pairs.length, window)
    start = np.concatenate([[0], np.cumsum(length + 1)])
    items = np.empty(start[-1], dtype=np.int64)
    row = np.repeat(np.arange(len(pairs)), length)
    items[_runs(start[:-1], length)] = pairs.history[row, _runs(pairs.length - length, length)]
    items[start[1:] - 1] = pairs.target
    return items, start, length, np.arange(len(pairs))


def _sequence_rows(pairs: Pairs, window: int) -> tuple[Array, Array, Array, Array]:
    """Windows of ``window + 1`` items; a later window starts half a window earlier, to give its targets a past."""
    bounds = np.flatnonzero(np.diff(pairs.user, prepend=-1))
    newest = pairs.history[np.arange(len(pairs)), pairs.length - 1]
    if ((newest[1:] != pairs.target[:-1]) & (pairs.user[1:] == pairs.user[:-1])).any():
        raise UserError(
            "train_rows=sequence needs every item of a user as a target, and this data set's rows leave some out: "
            "use --train_rows=prefix."
        )
    lead, ahead, half = pairs.length[bounds], np.diff(bounds, append=len(pairs)), max(window // 2, 1)
    size, stride = lead + ahead, window + 1 - half
    offset = np.cumsum(size) - size
    timeline = np.empty(size.sum(), dtype=np.int64)  # each user's lead and targets
    timeline[_runs(offset, lead)] = pairs.history[np.repeat(bounds, lead), _runs(np.zeros_like(lead), lead)]
    timeline[_runs(offset + lead, ahead)] = pairs.target
    windows = 1 - np.minimum(window + 1 - size, 0) // stride
    user = np.repeat(np.arange(len(size)), windows)
    begin = stride * _runs(np.zeros_like(windows), windows)
    length = np.minimum(window + 1, size[user] - begin)
    split = np.where(begin > 0, half, lead[user])
    first = bounds[user] + begin + split - lead[user]
    return timeline[_runs(offset[user] + begin, length)], np.concatenate([[0], np.cumsum(length)]), split, first


def _runs(start: Array, count: Array) -> Array:
    """``start[r], start[r] + 1, ...``, ``count[r]`` numbers for each ``r``, one after the other."""
    return np.repeat(start - np.cumsum(count) + count, count) + np.arange(count.sum())


@dataclass(frozen=True)
class StepPlan:
    """Cuts an epoch into steps of about ``batch`` targets with rows of like length, and steps into micro-batches.

    Lengths are those of the epoch where they are known: under item dropout, rows that are put together by their whole
    lengths are a fifth padding.

    The number of steps is the same in every epoch. ``parts`` (micro-batches times processes) only decides how a step's
    rows are shared out, not which rows a step has, unless a step would have fewer rows than parts.

    Attributes:
        size: ``[rows]`` length that decides which rows go together.
        targets: ``[rows]`` targets of each row.
        batch: targets of a step.
        parts: micro-batches of a step over all processes.
        seed: decides the order together with the epoch.
        sizes: ``size`` and ``targets`` of the rows as an epoch leaves them; default: the same in every epoch.
        group: ``[rows]`` kind of each row, or ``None`` for one kind. Rows of each kind are spread evenly over the
            steps, so no step is of one kind only; ``size`` then compares rows of a kind.

    Raises:
        UserError: fewer rows than parts.
    """

    size: Array
    targets: Array
    batch: int
    parts: int
    seed: int
    sizes: Callable[[int], tuple[Array, Array]] | None = None
    group: Array | None = None

    def __post_init__(self) -> None:
        if len(self.size) < self.parts:
            raise UserError(
                f"a step of {self.parts} micro-batches (gradient_accumulation_steps times processes) needs as many "
                f"training rows, the data give {len(self.size)}: lower --gradient_accumulation_steps."
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        wanted = max(1, round(int(self.targets.sum()) / self.batch))
        return min(wanted, max(1, len(self.size) // self.parts))

    def epoch(self, epoch: int) -> Iterator[list[Array]]:
        """Steps of an epoch; each is a list of ``parts`` arrays of row numbers."""
        chance = np.random.Generator(np.random.Philox([self.seed, epoch, 1]))
        size, targets = self.sizes(epoch) if self.sizes else (self.size, self.targets)
        order = chance.permutation(len(size))
        order = order[np.argsort(size[order], kind="stable")]
        if self.group is not None:
            order = order[np.argsort(_even_spread(self.group[order]), kind="stable")]
        done = np.cumsum(targets[order])
        cuts = np.searchsorted(done, done[-1] * np.arange(1, self.steps) / self.steps)
        # Every step needs a row for each part: push a cut back where two are too close, forward near the end.
        spacing = self.parts * np.arange(self.steps)
        low = np.maximum.accumulate(np.concatenate([[0], cuts]) - spacing) + spacing
        low = np.minimum(low, len(order) - self.parts * np.arange(self.steps, 0, -1))
        high = np.append(low[1:], len(order))
        for step in chance.permutation(self.steps):
            rows = order[low[step] : high[step]]
            yield [rows[part :: self.parts] for part in range(self.parts)]


def _even_spread(group: Array) -> Array:
    """``[rows]`` places between 0 and 1, those of each kind in the given order and at equal distances."""
    place = np.empty(len(group))
    for kind in np.unique(group):
        inside = np.flatnonzero(group == kind)
        place[inside] = (np.arange(len(inside)) + 0.5) / len(inside)
    return place
