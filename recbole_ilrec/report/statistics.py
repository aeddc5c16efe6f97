"""Means over seeds, and paired tests of two methods on the same users or seeds. Knows arrays only."""

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
TEST = "paired two-sided t-test over users"
_ROUNDING = 1e-12
"""Differences below it come from the order of a sum."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and sample standard deviation (``None`` for one seed)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def paired_p(ours: np.ndarray, other: np.ndarray) -> float:
    """Chance of so large a mean difference between two methods that do not differ.

    Choice: the paper tests nothing. Users are the sample: a user's metric is averaged over the seeds, which are no
    independent users, and the differences go into a paired t-test, which Smucker, Allan and Carterette (CIKM 2007)
    found to agree with the randomisation test where the signed-rank test misleads. With one seed it says nothing about
    other seeds; more are asked for by ``--seeds``.

    Args:
        ours: ``[seeds, users]`` metric of each user.
        other: ``[seeds, users]`` of the same users.

    Returns:
        the p-value; 1 where no user differs, 0 where all differ by the same. One user says nothing of others: 1.
    """
    from scipy.stats import ttest_rel

    a, b = ours.mean(0), other.mean(0)
    if len(a) < 2 or np.abs(a - b).max() < _ROUNDING:
        return 1.0
    if np.ptp(a - b) < _ROUNDING:  # no spread to compare with: the same difference for every user
        return 0.0
    return float(ttest_rel(a, b).pvalue)


def paired_over_seeds(ours: np.ndarray, other: np.ndarray) -> float | None:
    """Chance of so large a mean difference between two methods whose trainings differ by nothing but chance.

    Args:
        ours: ``[seeds]`` metric of each training.
        other: ``[seeds]`` of the same seeds.

    Returns:
        the p-value of a paired two-sided t-test; 1 where no seed differs; ``None`` where there is no spread to compare
        with: one seed, or all differ by the same, which rounded numbers do by chance.
    """
    from scipy.stats import ttest_rel

    difference = ours - other
    if len(ours) < 2 or (np.ptp(difference) < _ROUNDING and difference.any()):
        return None
    if not difference.any():
        return 1.0
    return float(ttest_rel(ours, other).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the order given.

    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted
