"""The comparison of two runs as a whole: put together from :mod:`recbole_ilrec.checks.paired`, and told as text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

import numpy as np
from tabulate import tabulate

from recbole_ilrec.checks.paired import (
    METRICS,
    Difference,
    Part,
    Places,
    by_size,
    difference,
    furthest_apart,
    higher,
    sign_test,
)

Array = np.ndarray

SMALLEST = 1e-4
"""p-value below which only that is told: what the permutation test can give at least."""
TITLE = 60
"""Characters of a title in an example."""


@dataclass(frozen=True)
class UserRanks:
    """Where the true item of each user stands in the lists of a run.

    Attributes:
        name: of the run: its folder's name.
        user: ``[U]`` int64 internal user ids, ascending, each once.
        places: of their true items, under the run's own rule for items that share an identifier.
        about: what the file says of itself: ``dataset``, ``model``, ``split``.
    """

    name: str
    user: Array
    places: Places
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Users:
    """The users of both runs; all arrays are ``[U]`` and in the order of :attr:`user`.

    Attributes:
        user: internal user ids.
        a: places in run A.
        b: places in run B.
        only_a: how many users only run A has.
        only_b: how many users only run B has.
    """

    user: Array
    a: Places
    b: Places
    only_a: int
    only_b: int


def common_users(first: UserRanks, second: UserRanks) -> Users:
    """Users that both runs ranked; there may be none."""
    user, at_first, at_second = np.intersect1d(first.user, second.user, assume_unique=True, return_indices=True)
    lost = len(first.user) - len(user), len(second.user) - len(user)
    return Users(user, first.places[at_first], second.places[at_second], *lost)


@dataclass(frozen=True)
class Example:
    """A user for whom the two runs are far apart, in words."""

    user: str
    target: str
    history: Sequence[str]
    rank_a: float
    rank_b: float


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        names: of A and B.
        users: users in both.
        only: users in A only, in B only.
        metrics: one entry for each metric and list length.
        higher: users whose true item stands higher in A, and in B, within the shorter list.
        sign_p: p-value of the sign test of these two numbers.
        k: list length of the parts.
        by_history: by items in the user's history.
        by_popularity: by how often the true item occurs among the training targets.
        rows: ``a`` and ``b`` -> rows of the users where that run wins by most.
        remarks: what makes the runs differ beside their lists, a sentence each.
    """

    names: tuple[str, str]
    users: int
    only: tuple[int, int]
    metrics: Sequence[Difference]
    higher: tuple[int, int]
    sign_p: float
    k: int
    by_history: Sequence[Part]
    by_popularity: Sequence[Part]
    rows: dict[str, Sequence[int]]
    remarks: Sequence[str]


def compared(
    names: tuple[str, str],
    users: Users,
    history_length: Array,
    popularity: Array,
    ks: Sequence[int],
    *,
    examples: int = 3,
    seed: int = 0,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Everything that is told about two runs.

    Args:
        names: of A and B.
        users: users of both and their places.
        history_length: ``[U]`` items before the true one.
        popularity: ``[U]`` how often the true item occurs among the training targets.
        ks: list lengths; the longest one is used for the parts.
        examples: users to show for each run.
        seed: of the permutation test.
        remarks: in what the runs differ beside their lists.
    """
    a, b, longest = users.a, users.b, max(ks)
    above = higher(a, b)
    counts = int((above > 0).sum()), int((above < 0).sum())
    return Comparison(
        names=names,
        users=len(a),
        only=(users.only_a, users.only_b),
        metrics=[difference(metric, a, b, k, seed) for metric in METRICS for k in sorted(ks)],
        higher=counts,
        sign_p=sign_test(*counts),
        k=longest,
        by_history=by_size(history_length, a, b, longest),
        by_popularity=by_size(popularity, a, b, longest),
        rows=dict(furthest_apart(a.rank, b.rank, examples)),
        remarks=remarks,
    )


def as_plain(comparison: Comparison, examples: dict[str, list[Example]]) -> dict[str, Any]:
    """The comparison as JSON holds it."""
    plain = asdict(comparison)
    del plain["rows"]
    return {**plain, "examples": {run: [asdict(example) for example in found] for run, found in examples.items()}}


def render(comparison: Comparison, examples: dict[str, list[Example]]) -> str:
    """Tables of metrics and parts, then the examples."""
    c = comparison
    blocks = [
        f"A = {c.names[0]}\nB = {c.names[1]}\n"
        f"{c.users:,} users in both, {c.only[0]:,} in A only, {c.only[1]:,} in B only",
        *(["\n".join(c.remarks)] if c.remarks else []),
        _table(
            ("metric", "A", "B", "A - B", "95% interval", "better in A", "in B", "p", "test"),
            [
                (d.metric, *_values(d.a, d.b, d.low, d.high), f"{d.better:,}", f"{d.worse:,}", _told(d.p), d.test)
                for d in c.metrics
            ],
        ),
        f"The true item stands higher in A for {c.higher[0]:,} users, in B for {c.higher[1]:,}, "
        f"as high for {c.users - sum(c.higher):,} (p of the sign test: {_told(c.sign_p)}).",
        _parts(f"ndcg@{c.k} by length of the history", "items", c.by_history),
        _parts(f"ndcg@{c.k} by training rows with the true item as target", "rows", c.by_popularity),
    ]
    for run, name in (("a", "A"), ("b", "B")):
        if examples[run]:
            lines = [line for example in examples[run] for line in _example_lines(example)]
            blocks.append("\n".join([f"Where {name} wins by most (1 / rank)", *lines]))
    return "\n\n".join(blocks)


def _values(a: float, b: float, low: float, high: float) -> tuple[str, str, str, str]:
    return f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}", f"[{low:+.4f}, {high:+.4f}]"


def _told(p: float) -> str:
    return f"{p:.4f}" if p >= SMALLEST else f"<{SMALLEST:.4f}"


def _parts(title: str, unit: str, parts: Sequence[Part]) -> str:
    head = (unit, "users", "A", "B", "A - B", "95% interval", "higher in A", "in B")
    rows = [
        (part.label, f"{part.users:,}", *_values(part.a, part.b, part.low, part.high), part.better, part.worse)
        for part in parts
    ]
    return f"{title}\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    align = ["left", *["right"] * (len(head) - 1)]
    if head[-1] == "test":
        align[-1] = "left"
    return tabulate(rows, head, tablefmt="plain", colalign=align, disable_numparse=True)


def _example_lines(example: Example) -> list[str]:
    ranks = [f"rank {rank:g}" if np.isfinite(rank) else "not listed" for rank in (example.rank_a, example.rank_b)]
    return [
        f"  user {example.user}: {shorten(example.target, TITLE)}  (A: {ranks[0]}, B: {ranks[1]})",
        *(f"    after {shorten(title, TITLE)}" for title in example.history),
    ]
