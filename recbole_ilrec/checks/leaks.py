"""Checks of the split: whether a row of training or a history holds what only the future can tell.

Everything is counted anew from rows and whole sequences, not taken from the code that made them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recbole_ilrec.checks.finding import Finding, Level, of

Array = np.ndarray

GUESSED = 0.5
"""Share of test rows that a guess without a model gets right above which the split is no test any more."""


@dataclass(frozen=True)
class SplitRows:
    """Rows of one part of the split.

    Attributes:
        user: ``[R]`` user ids.
        history: ``[R, L]`` item ids, left-aligned, zeros behind.
        history_time: ``[R, L]`` their times.
        length: ``[R]`` items of each history.
        target: ``[R]`` the next item.
        time: ``[R]`` when it came; any numbers that order a user's items, the same as in the :class:`Timeline`.
    """

    user: Array
    history: Array
    history_time: Array
    length: Array
    target: Array
    time: Array

    def __len__(self) -> int:
        return len(self.target)

    @property
    def inside(self) -> Array:
        """``[R, L]`` bool, which entries of the histories are items."""
        return np.arange(self.history.shape[1]) < self.length[:, None]

    @property
    def items(self) -> Array:
        """Every item id that occurs, sorted."""
        return np.unique(np.r_[self.target, self.history[self.inside]])


@dataclass(frozen=True)
class Timeline:
    """Whole sequences: user u owns the entries ``start[u] .. start[u + 1] - 1`` of ``items`` and ``times``."""

    start: Array
    items: Array
    times: Array

    @cached_property
    def user(self) -> Array:
        """``[M]`` whose entry it is."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @cached_property
    def moments(self) -> Array:
        """Every time that occurs, sorted."""
        return np.unique(self.times)

    @property
    def across_users(self) -> bool:
        """Whether times order the interactions of different users too."""
        return len(self.moments) == len(self.times)

    def place(self, rows: SplitRows) -> Array:
        """``[R]`` entry of each row's target: the first one of its user that is not earlier than the row's time."""
        span = len(self.moments) + 1  # the keys order by user first and by time within a user
        keys = self.user * span + np.searchsorted(self.moments, self.times)
        return np.searchsorted(keys, rows.user.astype(np.int64) * span + np.searchsorted(self.moments, rows.time))

    def seen_before(self, rows: SplitRows) -> Array:
        """``[R]`` bool, whether the user had the target's item before, however long ago."""
        width = int(self.items.max(initial=0)) + 1
        pairs, first = np.unique(self.user * width + self.items, return_index=True)
        wanted = rows.user.astype(np.int64) * width + rows.target
        at = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
        return (pairs[at] == wanted) & (first[at] < self.place(rows))


def wrong_histories(timeline: Timeline, rows: SplitRows) -> Array:
    """``[R]`` bool: a history with a time not before the target's, or that is not what the user did just before.

    A row whose target is not in the timeline at that time counts as well.
    """
    inside = rows.inside
    late = (inside & (rows.history_time >= rows.time[:, None])).any(1)
    place = timeline.place(rows)
    first = place - rows.length
    entry = (first[:, None] + np.arange(rows.history.shape[1])).clip(0, len(timeline.items) - 1)
    other = (inside & (timeline.items[entry] != rows.history)).any(1) | (first < timeline.start[rows.user])
    at = place.clip(max=len(timeline.items) - 1)
    misplaced = (timeline.items[at] != rows.target) | (timeline.user[at] != rows.user)
    return late | other | misplaced


def held_out_in_training(train: SplitRows, held_out: SplitRows) -> Array:
    """``[R]`` bool for training rows: target or history of a time at or after the user's first held-out target."""
    users = int(max(train.user.max(initial=0), held_out.user.max(initial=0))) + 1
    border = np.full(users, np.inf)
    np.minimum.at(border, held_out.user, held_out.time)
    newest = np.where(train.inside, train.history_time, -np.inf).max(axis=1, initial=-np.inf)
    return np.maximum(train.time, newest) >= border[train.user]


def later_share(train: SplitRows, test: SplitRows) -> float:
    """Mean share of the training targets, of whatever user, that are later than a test target."""
    times = np.sort(train.time)
    return float(1 - (np.searchsorted(times, test.time, side="right") / max(len(times), 1)).mean())


def split_findings(
    timeline: Timeline, parts: Mapping[str, SplitRows], *, positions: bool, exclude_history: bool
) -> list[Finding]:
    """All checks of the split.

    Args:
        timeline: whole sequences.
        parts: rows of ``train``, ``valid`` and ``test``.
        positions: times are places in a sequence, so users cannot be compared.
        exclude_history: items of the history are left out of rankings.
    """
    train, test = parts["train"], parts["test"]
    findings = [_history_finding(timeline, parts), _training_finding(parts)]
    findings += [_repeat_finding(timeline, test, exclude_history), _unseen_finding(train, test)]
    findings += [_again_finding(test), _window_finding(timeline, test)]
    across = timeline.across_users and not positions
    if not across:
        text = "cannot be seen: the times do not order the interactions of different users"
        return [*findings, Finding("split", "others' future", Level.OK, text)]
    share = later_share(train, test)
    text = (
        f"on average {share:.1%} of the training interactions are later than a user's test item: a model sees what "
        "others did after it, as with every leave-one-out split"
    )
    level = Level.NOTE if share else Level.OK
    return [*findings, Finding("split", "others' future", level, text, {"share": share})]


def ready_made_findings(parts: Mapping[str, SplitRows]) -> list[Finding]:
    """What can be seen of rows that come ready made, without whole sequences and times.

    Args:
        parts: rows of ``train``, ``valid`` and ``test``; their times are not read.
    """
    known = frozenset(_keys(parts["train"]))
    text = "rows that come ready made (benchmark_filename) are taken as they are: there are no sequences to check by"
    findings = [Finding("split", "histories", Level.NOTE, text)]
    counts = {name: sum(key in known for key in _keys(parts[name])) for name in ("valid", "test")}
    told = ", ".join(f"{of(count, len(parts[name]))} rows of {name}" for name, count in counts.items())
    text = f"{told} stand in the training part too (same user, history and target)"
    level = Level.ATTENTION if any(counts.values()) else Level.OK
    if level is Level.ATTENTION:
        text += ": take them out of its file"
    findings.append(Finding("split", "held-out rows", level, text, counts))
    return [*findings, _unseen_finding(parts["train"], parts["test"]), _again_finding(parts["test"])]


def _keys(rows: SplitRows) -> list[tuple[int, bytes, int]]:
    columns = rows.user.tolist(), rows.history, rows.length, rows.target.tolist()
    return [(user, items[:length].tobytes(), target) for user, items, length, target in zip(*columns, strict=True)]


def _history_finding(timeline: Timeline, parts: Mapping[str, SplitRows]) -> Finding:
    wrong = {name: int(wrong_histories(timeline, rows).sum()) for name, rows in parts.items()}
    total = sum(map(len, parts.values()))
    if not any(wrong.values()):
        text = f"every history of {total:,} rows is what its user did just before the target"
        return Finding("split", "histories", Level.OK, text, {"wrong": wrong})
    told = ", ".join(f"{count:,} of {name}" for name, count in wrong.items() if count)
    text = f"{of(sum(wrong.values()), total)} rows hold something that is not the user's past ({told})"
    return Finding("split", "histories", Level.ATTENTION, text, {"wrong": wrong})


def _training_finding(parts: Mapping[str, SplitRows]) -> Finding:
    name = "held-out rows"
    counts = {part: int(held_out_in_training(parts["train"], parts[part]).sum()) for part in ("valid", "test")}
    if not any(counts.values()):
        return Finding("split", name, Level.OK, "no training row reaches a validation or test item", counts)
    text = (
        f"{of(max(counts.values()), len(parts['train']))} training rows reach or pass a held-out item of their user: "
        "a split by time for each user (eval_args.split={LS: valid_and_test}) has none"
    )
    return Finding("split", name, Level.ATTENTION, text, counts)


def _repeat_finding(timeline: Timeline, test: SplitRows, exclude_history: bool) -> Finding:
    seen = int(timeline.seen_before(test).sum())
    text = f"{of(seen, len(test))} test items are in their user's history"
    if exclude_history and seen:
        text += ": exclude_history=true makes a hit impossible there; use --exclude_history=false"
    level = Level.ATTENTION if exclude_history and seen else Level.NOTE if seen else Level.OK
    return Finding("split", "repeated targets", level, text, {"rows": seen, "share": seen / max(len(test), 1)})


def _unseen_finding(train: SplitRows, test: SplitRows) -> Finding:
    unseen = int((~np.isin(test.target, train.items)).sum())
    text = f"{of(unseen, len(test))} test items occur in no training row"
    level = Level.NOTE if unseen else Level.OK
    return Finding("split", "unseen targets", level, text, {"rows": unseen, "share": unseen / max(len(test), 1)})


def _again_finding(test: SplitRows) -> Finding:
    last = test.history[np.arange(len(test)), np.maximum(test.length - 1, 0)]
    again = int(((last == test.target) & (test.length > 0)).sum())
    text = f"{of(again, len(test))} test items are the last item of the history once more"
    level = Level.ATTENTION if again > GUESSED * len(test) else Level.OK
    if level is Level.ATTENTION:
        text += ": who repeats it is right most often; drop repeats that follow each other"
    return Finding("split", "last item again", level, text, {"rows": again})


def _window_finding(timeline: Timeline, test: SplitRows) -> Finding:
    past = timeline.place(test) - timeline.start[test.user]
    longer = past > test.length
    text = f"MAX_ITEM_LIST_LENGTH cuts the histories of {of(int(longer.sum()), len(test))} users"
    if longer.any():
        text += f", by {(past - test.length)[longer].mean():.1f} items on average"
    return Finding("split", "long histories", Level.OK, text, {"rows": int(longer.sum())})
