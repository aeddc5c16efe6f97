"""Checks of the interactions as they stand in the file: counts, order of equal times, rows that stand twice."""

import time as clock
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from recbole_ilrec.checks.finding import Finding, Level, of, some_or_note

Array = np.ndarray

_EARLIEST, _DAY = 631_152_000, 86_400
"""The first second of 1990, and seconds of a day."""
_UNITS = (1, 10**3, 10**6, 10**9)
"""Parts of a second in which times are counted."""
_FAR = 30
"""Times so often today's are of a finer unit."""


@dataclass(frozen=True)
class TimeOrder:
    """How well the times of a table of interactions decide the order of each user's items.

    Attributes:
        rows: interactions.
        users: users.
        tied_rows: interactions with the time of the one before them in their user's sequence.
        tied_users: users with such an interaction.
        held_out_by_rule: users whose last or last but one item is only decided by the rule for equal times.
        same_rows: further copies of a row with equal user, item and time.
        repeats: further rows of a (user, item) pair at other times.
        positions: the times of every user are 0, 1, 2, ..., or counted from another number, the same for all: places
            in a sequence, not times.
        outside: times before 1990 or after tomorrow, in the unit (seconds, milliseconds, ...) of most of them.
        other_unit: those among them that would be within it by a factor of 1,000 or more.
    """

    rows: int
    users: int
    tied_rows: int
    tied_users: int
    held_out_by_rule: int
    same_rows: int
    repeats: int
    positions: bool
    outside: int = 0
    other_unit: int = 0


def time_order(users: Array, items: Array, times: Array) -> TimeOrder:
    """Count ties and repeats.

    Args:
        users: ``[R]`` a number for each user.
        items: ``[R]`` a number for each item.
        times: ``[R]`` float64, exact times.
    """
    order = np.lexsort((items, times, users))
    user, item, time = users[order], items[order], times[order]
    same_user = user[1:] == user[:-1]
    tie = same_user & (time[1:] == time[:-1])
    first = np.flatnonzero(np.r_[True, ~same_user])
    last = np.r_[first[1:], len(user)] - 1
    before = np.r_[False, tie]  # before[r]: row r has the time of row r - 1, of the same user
    # The row before a user's first is another user's: its own tie must not count.
    earlier = np.where(last > first, before[np.maximum(last - 1, 0)], False)
    place = np.arange(len(user)) - np.repeat(first, np.diff(np.r_[first, len(user)]))
    same = int((tie & (item[1:] == item[:-1])).sum())
    pairs = len(np.unique(user.astype(np.int64) * (int(items.max(initial=0)) + 1) + item))
    return TimeOrder(
        rows=len(user),
        users=len(first),
        tied_rows=int(tie.sum()),
        tied_users=len(np.unique(user[1:][tie])),
        held_out_by_rule=int((before[last] | earlier).sum()),
        same_rows=same,
        repeats=len(user) - pairs - same,
        positions=bool((time - place == time[:1]).all()),
        **_unusual(time),
    )


def _unusual(times: Array) -> dict[str, int]:
    """How many times are no date of the data's days, and how many would be one in another unit."""
    low, high = _EARLIEST, clock.time() + _DAY
    middle = float(np.median(times)) if len(times) else 0.0
    unit = next((unit for unit in _UNITS if middle < high * unit * _FAR), _UNITS[-1])
    outside = times[(times < low * unit) | (times > high * unit)]
    other = np.zeros(len(outside), dtype=bool)
    for each in _UNITS:
        other |= (outside >= low * each) & (outside <= high * each)
    return {"outside": len(outside), "other_unit": int(other.sum())}


def count_finding(name: str, found: Sequence[int], expected: Sequence[int] | None) -> Finding:
    """Users, items (both with ``[PAD]``, as RecBole counts), interactions; against Table 3 where it has the dataset."""
    text = "{:,} users, {:,} items (each with [PAD]), {:,} interactions".format(*found)
    numbers = dict(zip(("users", "items", "interactions"), found, strict=True))
    if expected is None:
        return Finding("data", "counts", Level.OK, text, numbers)
    if tuple(found) == tuple(expected):
        return Finding("data", "counts", Level.OK, f"{text}, as in Table 3", numbers)
    told = "/".join(f"{count:,}" for count in expected)
    text = f"{text}; Table 3 has {told} for {name}: other raw files, filters or a part of the data"
    return Finding("data", "counts", Level.ATTENTION, text, numbers)


def published_finding(same: bool) -> Finding:
    """Whether the file of interactions is, byte for byte, the one that the paper's baseline publishes."""
    if same:
        return Finding("data", "published file", Level.OK, "the sequences are those that LC-Rec publishes, to the byte")
    text = (
        "another file than the sequences that LC-Rec publishes, which are behind the numbers of docs/study.md: equal "
        "counts may hide another order of equal times, or other names of users and items"
    )
    return Finding("data", "published file", Level.NOTE, text)


def order_findings(order: TimeOrder, tie_rule: str | None) -> list[Finding]:
    """Ties, and rows that stand twice.

    Args:
        order: from :func:`time_order`.
        tie_rule: how ``prepare`` ordered equal times, where it wrote the files.
    """
    return [_tie_finding(order, tie_rule), _copy_finding(order), _repeat_finding(order), _date_finding(order)]


def _date_finding(order: TimeOrder) -> Finding:
    numbers = {"outside": order.outside, "other_unit": order.other_unit}
    if order.positions or not order.outside:
        text = "times are places in a sequence" if order.positions else "every time is between 1990 and tomorrow"
        return Finding("data", "dates", Level.OK, text, numbers)
    text = f"{of(order.outside, order.rows)} times are before 1990 or after tomorrow"
    if order.other_unit:
        text += f", {order.other_unit:,} of them for being in another unit (seconds, milliseconds) than most"
    if order.outside == order.rows:
        return Finding("data", "dates", Level.NOTE, f"{text}: a clock of the data's own, or no times", numbers)
    return Finding("data", "dates", Level.ATTENTION, f"{text}: they order and split wrongly, mend them", numbers)


def _tie_finding(order: TimeOrder, tie_rule: str | None) -> Finding:
    numbers = asdict(order)
    if order.positions:
        rule = f"prepare used: {tie_rule}" if tie_rule else "by which rule cannot be seen any more"
        text = f"times are places 0, 1, 2, ... in a sequence; equal times were ordered before ({rule})"
        return Finding("data", "equal times", Level.OK, text, numbers)
    if not order.tied_rows:
        return Finding("data", "equal times", Level.OK, "no user has two interactions at the same time", numbers)
    text = (
        f"{of(order.tied_rows, order.rows)} interactions of {of(order.tied_users, order.users)} users have the time "
        "of the one before; the line of the file decides. So the held-out items of "
        f"{of(order.held_out_by_rule, order.users)} users hang on the order of the file"
    )
    level = some_or_note(order.held_out_by_rule, order.users)
    if level is Level.ATTENTION:
        text += ": check that it is meant, and say it when numbers are compared with other work"
    return Finding("data", "equal times", Level.NOTE if level is Level.OK else level, text, numbers)


def _copy_finding(order: TimeOrder) -> Finding:
    if not order.same_rows:
        return Finding("data", "copied rows", Level.OK, "no row stands twice")
    text = f"{of(order.same_rows, order.rows)} rows are copies (same user, item and time): "
    if order.repeats:
        also = f"also drops the later repeats of an item at other times ({order.repeats:,})"
        text += f"remove them from the file; --rm_dup_inter=first {also}"
    else:
        text += "remove them from the file, or set --rm_dup_inter=first"
    return Finding("data", "copied rows", Level.ATTENTION, text, {"rows": order.same_rows})


def _repeat_finding(order: TimeOrder) -> Finding:
    if not order.repeats:
        return Finding("data", "repeats", Level.OK, "no user has an item twice")
    text = f"{of(order.repeats, order.rows)} interactions repeat an item that the user had at another time"
    return Finding("data", "repeats", Level.NOTE, text, {"rows": order.repeats})
