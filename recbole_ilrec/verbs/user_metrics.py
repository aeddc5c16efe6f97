"""Hit and NDCG of each test user, from the places of the true items that a run kept; tables take means and tests of it.

Knows records and the files of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import hit_and_ndcg
from recbole_ilrec.metrics.rank_metrics import POLICIES
from recbole_ilrec.verbs.archive import places_in_test

OF_A_USER = ("hit", "ndcg")
"""Metrics of one user, in the order of :func:`~recbole_ilrec.evaluation.topk.hit_and_ndcg`."""
_ROUNDING = 0.51e-4
"""Half of the last of the four digits that RecBole rounds to."""


@dataclass(frozen=True)
class ByUser:
    """A metric of each user in some runs.

    Attributes:
        user: ``[users]`` internal ids, ascending, each once.
        values: ``[seeds, users]``; of a user with several test rows their mean.
        data: hash of the data; ids mean the same people where it is equal.
    """

    user: np.ndarray
    values: np.ndarray
    data: str | None

    def same_users(self, other: "ByUser") -> bool:
        """Whether the columns of both are the same people."""
        return self.data == other.data and np.array_equal(self.user, other.user)


def by_user(records: Sequence[Mapping[str, Any] | None], metric: str) -> ByUser | None:
    """The metric of each user in all runs; ``None`` unless all kept their places, of the same users."""
    found: list[ByUser] = []
    for record in records:
        rows = _of_rows(record or {}, metric)
        if record is None or rows is None:
            return None
        user, place, count = np.unique(rows[0], return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=rows[1]) / count
        found.append(ByUser(user, means, record["evaluation"].get("data")))
    if not all(found[0].same_users(other) for other in found):
        return None
    return replace(found[0], values=np.stack([each.values for each in found]))


def unrounded(metric: str, record: Mapping[str, Any]) -> float | None:
    """A test metric of a run, which its result holds in four digits: the mean over its rows, where that is the same.

    Where it is not (``torch.topk`` orders items of equal score), or no places were kept, the number of the result.

    Raises:
        UserError: places of a policy that settles every order, and another number than theirs.
    """
    results = record["result"]["test_result"]
    value = results.get(metric)
    rows = None if value is None else _of_rows(record, metric)
    if rows is None:
        return value
    mean = float(rows[1].mean())
    if abs(mean - value) <= _ROUNDING:
        return mean
    digits = min(4, max(len(f"{number:.9f}".rstrip("0").partition(".")[2]) for number in results.values()))
    if record["evaluation"]["collisions"] in POLICIES and abs(mean - value) > 0.51 * 10**-digits:
        raise UserError(
            f"{record.get('model')} on {record.get('dataset')}, seed {record.get('seed')}: {metric} is {value} in its "
            f"record and {mean:.{digits}f} by the places of its true items: one of the two was changed, so make the "
            "run again."
        )
    return value


def _of_rows(record: Mapping[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """``[rows]`` users and their metric; ``None`` where it is none of a user, or the places are not kept."""
    name, _, k = metric.partition("@")
    kept = places_in_test(record) if name in OF_A_USER else None
    if kept is None:
        return None
    user, places = kept
    policy = record["evaluation"]["collisions"]
    values = hit_and_ndcg(places, int(k), policy if policy in POLICIES else "expected")[OF_A_USER.index(name)]
    return user.numpy(), values.numpy()
