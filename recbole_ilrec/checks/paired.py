"""Two runs on the same users: how often which is better, by how much, and whether that is more than chance.

Knows places of true items; never models or files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Array = np.ndarray

RESAMPLES = 9_999
_AT_ONCE = 256


@dataclass(frozen=True)
class Places:
    """Where the true item of each user stands; both are ``[U]`` float64.

    Attributes:
        before: items before it for certain, inf when it is not listed.
        group: items that share the places from there on, in each order equally likely; 1 for itself alone.
        length: items of a list, inf when all are ranked; ``None`` when nobody says.
    """

    before: Array
    group: Array
    length: float | None = None

    def __len__(self) -> int:
        return len(self.before)

    def __getitem__(self, users: Array) -> "Places":
        return Places(self.before[users], self.group[users], self.length)

    @property
    def rank(self) -> Array:
        """Expected place, 1 is the best, inf when not listed."""
        return self.before + (self.group + 1) / 2


def hit(places: Places, k: int) -> Array:
    """Hit@k of each user: 1 or 0, or the share of the group's places within the first k."""
    return np.clip(k - places.before, 0, places.group) / places.group


def ndcg(places: Places, k: int) -> Array:
    """NDCG@k of each user with one true item: the mean of 1 / log2(rank + 1), 0 past k, over its possible ranks."""
    gain = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(k) + 2))]
    first, end = (np.minimum(place, k).astype(np.int64) for place in (places.before, places.before + places.group))
    return (gain[end] - gain[first]) / places.group


METRICS = {"hit": hit, "ndcg": ndcg}


@dataclass(frozen=True)
class Difference:
    """A metric of two runs over the same users.

    Attributes:
        metric: e.g. ``"hit@10"``.
        a: mean of run A.
        b: mean of run B.
        difference: A minus B.
        low: lower end of its 95% confidence interval.
        high: upper end.
        test: name of the paired test.
        p: its two-sided p-value.
        better: users for whom A is better.
        worse: users for whom B is better.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    test: str
    p: float
    better: int
    worse: int


def difference(metric: str, a: Places, b: Places, k: int, seed: int = 0) -> Difference:
    """One metric with interval and test.

    Hit@k: McNemar's exact test, that is the sign test over users whom only one run hits; where shared places make
    parts of a hit, the test of NDCG@k. That is a permutation test, in which each user's two values are exchanged at
    random. The interval of the mean difference is Student's.

    Args:
        metric: ``"hit"`` or ``"ndcg"``.
        a: ``[U]`` places in run A.
        b: ``[U]`` places in run B for the same users.
        k: length of the list.
        seed: of resampling.
    """
    first, second = METRICS[metric](a, k), METRICS[metric](b, k)
    delta = first - second
    better, worse = int((delta > 0).sum()), int((delta < 0).sum())
    low, high = interval(delta)
    if metric == "hit" and np.isin([first, second], (0, 1)).all():
        test, p = "McNemar, exact", sign_test(better, worse)
    else:
        test, p = "paired permutation", permutation_test(delta, seed)
    means = float(first.mean()), float(second.mean())
    return Difference(f"{metric}@{k}", *means, float(delta.mean()), low, high, test, p, better, worse)


def sign_test(better: int, worse: int) -> float:
    """Two-sided p-value of the exact sign test; ties are left out."""
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def permutation_test(delta: Array, seed: int) -> float:
    """Two-sided p-value of a mean difference when each user's two values may be exchanged, i.e. each sign be turned.

    Users without a difference are left out: to exchange equal values changes nothing. What was observed counts as one
    of the resamples. SciPy's ``permutation_test`` is the reference; for thousands of users it takes minutes.
    """
    delta = delta[delta != 0]
    if not len(delta):
        return 1.0
    chance = np.random.default_rng(seed)
    observed, as_far = abs(float(delta.sum())), 0
    for begin in range(0, RESAMPLES, _AT_ONCE):
        count = min(_AT_ONCE, RESAMPLES - begin)
        turned = chance.integers(2, size=(count, len(delta)), dtype=np.int8).astype(np.float64)
        sums = np.abs(delta.sum() - 2 * (turned @ delta))
        as_far += int((sums >= observed * (1 - 1e-12)).sum())
    return (1 + as_far) / (1 + RESAMPLES)


def interval(delta: Array) -> tuple[float, float]:
    """95% confidence interval of a mean over users, by Student's t; of one user nothing is known."""
    if len(delta) < 2:
        return -np.inf, np.inf
    if not np.ptp(delta):
        return float(delta.mean()), float(delta.mean())
    found = stats.ttest_1samp(delta, 0.0).confidence_interval()
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Part:
    """Users of one kind.

    Attributes:
        label: the kind, e.g. ``"5-8"``.
        users: how many there are.
        a: mean NDCG@k of run A.
        b: mean NDCG@k of run B.
        low: lower end of the 95% confidence interval of A minus B.
        high: its upper end.
        better: users whose true item stands higher in run A.
        worse: users whose true item stands higher in run B.
    """

    label: str
    users: int
    a: float
    b: float
    low: float
    high: float
    better: int
    worse: int


def higher(a: Places, b: Places) -> Array:
    """1 for each user whose true item stands higher in run A, -1 where it does in run B, else 0.

    Past the end of the shorter list both are unlisted: what a list of 20 does not hold may stand on place 21 or 9,000,
    and a run that ranks all items is not better by saying which. A list whose length nobody says ends at the last place
    where an item was found.

    Args:
        a: ``[U]`` places in run A.
        b: ``[U]`` places in run B.
    """
    first, second = a.rank, b.rank
    end = min(_end(a), _end(b))
    first, second = (np.where(rank <= end, rank, np.inf) for rank in (first, second))
    return (first < second).astype(np.int64) - (second < first)


def _end(places: Places) -> float:
    if places.length is not None:
        return places.length
    rank = places.rank
    found = np.isfinite(rank)
    return np.inf if found.all() else float(rank[found].max(initial=0.0))


def by_size(values: Array, a: Places, b: Places, k: int) -> list[Part]:
    """Users in about four parts of equal size by a whole number each has, such as the length of the history.

    Args:
        values: ``[U]`` non-negative whole numbers; zeros get a part of their own.
        a: ``[U]`` places in run A.
        b: ``[U]`` places in run B.
        k: length of the list.
    """
    parts, above = [], higher(a, b)
    for low, high in _bounds(values):
        inside = (values >= low) & (values <= high)
        first, second = a[inside], b[inside]
        gain_a, gain_b = ndcg(first, k), ndcg(second, k)
        left, right = interval(gain_a - gain_b)
        parts.append(
            Part(
                label=f"{low:,}" if low == high else f"{low:,}-{high:,}",
                users=len(first),
                a=float(gain_a.mean()),
                b=float(gain_b.mean()),
                low=left,
                high=right,
                better=int((above[inside] > 0).sum()),
                worse=int((above[inside] < 0).sum()),
            )
        )
    return parts


def _bounds(values: Array) -> list[tuple[int, int]]:
    """Smallest and largest value of each part; equal values stay together."""
    positive = values[values > 0]
    edges = np.unique(np.quantile(positive, [0.25, 0.5, 0.75], method="lower")) if len(positive) else np.array([])
    group = np.where(values > 0, np.searchsorted(edges, values, side="left") + 1, 0)
    return [(int(values[group == g].min()), int(values[group == g].max())) for g in np.unique(group)]


def furthest_apart(a: Array, b: Array, count: int) -> Mapping[str, Sequence[int]]:
    """``a``, ``b``: rows of the users where that run is better by most, in 1 / rank; the first of equals first."""
    gain = 1 / a - 1 / b
    order = np.argsort(-gain, kind="stable")
    reverse = np.argsort(gain, kind="stable")
    return {
        "a": [int(row) for row in order[:count] if gain[row] > 0],
        "b": [int(row) for row in reverse[:count] if gain[row] < 0],
    }
