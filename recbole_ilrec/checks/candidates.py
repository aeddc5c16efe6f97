"""Whether candidate lists give their answer away: by its place, its popularity, its history, or the other candidates.

A candidate list is one true item among items drawn for it. Whoever can find the true one without reading the history
needs no recommender, so each check is a guess that reads no history's order, and says how often it is right.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from recbole_ilrec.checks.finding import Finding, Level, of

Array = np.ndarray

SIGNIFICANT = 0.001
"""p-value below which a pattern is no accident."""
GIVEN_AWAY = 0.5
"""Share of rows that a guess without a model gets right from which on a list is no test any more."""
TELLING = 0.05
"""Share of rows (or, between lists, of candidates) above what chance gives from which on something needs attention."""
FEW = 20
"""Comparisons of lists below which nothing is concluded from them."""


def candidate_findings(
    histories: Sequence[Array], targets: Array, candidates: Sequence[Array], train_count: Array, trained: Array
) -> list[Finding]:
    """All checks of candidate lists.

    Args:
        histories: items before each row's target.
        targets: ``[R]`` true items.
        candidates: item ids of each row in the order shown.
        train_count: ``[I + 1]`` how often each item is the target of a training row.
        trained: ``[I + 1]`` bool, items that stand in some training row, as target or in its history.

    Returns:
        One finding a check. Where a list lacks its target, holds it twice or has an item twice, only that is told: the
        other checks would be of no use.
    """
    targets = np.asarray(targets)
    malformed = _malformed(targets, candidates)
    if malformed.level is not Level.OK:
        return [malformed]
    shown = np.bincount(np.concatenate(candidates), minlength=len(train_count))
    return [
        malformed,
        _position(targets, candidates),
        _guess("popularity", "the most popular candidate", targets, candidates, lambda row: train_count[row]),
        _guess("unpopularity", "the least popular candidate", targets, candidates, lambda row: -train_count[row]),
        _guess("often shown", "the candidate shown in most lists", targets, candidates, lambda row: shown[row]),
        _guess("seldom shown", "the candidate shown in fewest lists", targets, candidates, lambda row: -shown[row]),
        _alone("unseen", "in no training row", targets, candidates, [~trained] * len(targets)),
        _alone("seen", "in a training row", targets, candidates, [trained] * len(targets)),
        _in_history(histories, targets, candidates),
        _sorted(targets, candidates),
        _seeding(targets, candidates),
    ]


def _finding(name: str, level: Level, text: str, **numbers: float) -> Finding:
    return Finding("candidates", name, level, text, numbers)


def _malformed(targets: Array, candidates: Sequence[Array]) -> Finding:
    times = np.array([np.count_nonzero(row == target) for row, target in zip(candidates, targets, strict=True)])
    twice = sum(len(np.unique(row)) < len(row) for row in candidates)
    missing, several = int((times == 0).sum()), int((times > 1).sum())
    sizes = sorted({len(row) for row in candidates})
    if missing or twice:
        text = (
            f"{of(missing, len(targets))} lists lack their true item, {of(several, len(targets))} hold it more than "
            f"once, {of(twice, len(targets))} have some item twice: make the lists again"
        )
        return _finding("lists", Level.ATTENTION, text, missing=missing, several=several, twice=twice)
    told = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return _finding("lists", Level.OK, f"{len(targets):,} lists of {told} items, the true one in each once")


def _position(targets: Array, candidates: Sequence[Array]) -> Finding:
    """Chi-square test of the true item's places against every place being as likely, or by the number of the row."""
    place = np.array([int(np.argmax(row == target)) for row, target in zip(candidates, targets, strict=True)])
    size = np.array([len(row) for row in candidates])
    found = np.bincount(place, minlength=size.max())
    expected = np.array([(1 / size[size > at]).sum() for at in range(size.max())])
    if expected.min() < 5:  # the usual limit below which the test's distribution is off
        text = f"too few lists to test the places of the true item ({expected.min():.1f} expected at one, 5 needed)"
        return _finding("position", Level.NOTE, text)
    statistic, p = stats.chisquare(found, expected)
    best = int(np.argmax(found / expected))
    text = f"chi-square over {len(found)} places: {statistic:.1f}, p = {p:.2g}; place {best + 1} has the true item most"
    text += f" often, in {of(int(found[best]), len(targets))} lists"
    steps = np.bincount((place - np.arange(len(place))) % size)  # as many of each, unless the places go round
    by_row = stats.binomtest(int(steps.max()), len(place), 1 / size.min(), alternative="greater").pvalue * len(steps)
    level = Level.ATTENTION if p < SIGNIFICANT or p > 1 - SIGNIFICANT or by_row < SIGNIFICANT else Level.OK
    if p > 1 - SIGNIFICANT:
        text += ", more even than chance makes it"
    if by_row < SIGNIFICANT:
        text += f"; it goes on by one from list to list in {of(int(steps.max()), len(place))}"
    if level is Level.ATTENTION:
        text += ": shuffle each list"
    return _finding("position", level, text, statistic=float(statistic), p=float(p))


def _guess(
    name: str, what: str, targets: Array, candidates: Sequence[Array], score: Callable[[Array], Array]
) -> Finding:
    """How often the candidate of the highest score is the true one; equal scores share the hit."""
    right = np.zeros(len(targets))
    for number, (row, target) in enumerate(zip(candidates, targets, strict=True)):
        values = score(row)
        best = row[values == values.max()]
        right[number] = (target in best) / len(best)
    chance = float(np.mean([1 / len(row) for row in candidates]))
    rate = float(right.mean())
    spread = float(right.std()) / np.sqrt(len(right))
    p = float(stats.norm.sf((rate - chance) / spread)) if spread else float(rate <= chance)
    text = f"{what} is the true one in {rate:.1%} of the lists (by chance {chance:.1%}, p = {p:.2g})"
    level = Level.NOTE if p < SIGNIFICANT and rate > chance else Level.OK
    if level is Level.NOTE and rate >= GIVEN_AWAY:
        level = Level.ATTENTION
        text += ": draw the other candidates in another way"
    return _finding(name, level, text, rate=rate, chance=chance, p=p)


def _alone(name: str, kind: str, targets: Array, candidates: Sequence[Array], marked: Sequence[Array]) -> Finding:
    """Lists in which the true item is the only one that is marked; ``marked`` holds a ``[I + 1]`` mask for each row."""
    alone = sum(
        bool(mask[target]) and int(mask[row].sum()) == 1
        for mask, row, target in zip(marked, candidates, targets, strict=True)
    )
    text = f"in {of(alone, len(targets))} lists the true item alone is {kind}"
    level = Level.ATTENTION if alone >= TELLING * len(targets) else Level.NOTE if alone else Level.OK
    return _finding(f"only {name}", level, text, rows=alone)


def _in_history(histories: Sequence[Array], targets: Array, candidates: Sequence[Array]) -> Finding:
    alone = seen = only_new = 0
    for history, target, row in zip(histories, targets, candidates, strict=True):
        inside = np.isin(row, history)
        seen += bool(inside.any())
        alone += int(inside.sum()) == 1 and target in history
        only_new += len(row) > 1 and int(inside.sum()) == len(row) - 1 and target not in history
    text = (
        f"{of(seen, len(targets))} lists hold an item of the history; in {of(alone, len(targets))} that is the true "
        "item alone"
    )
    if only_new:
        text += f"; in {of(only_new, len(targets))} all but the true item are from the history"
    most = max(alone, only_new)
    level = Level.ATTENTION if most >= TELLING * len(targets) else Level.NOTE if most else Level.OK
    return _finding("history", level, text, rows=alone, seen=seen, only_new=only_new)


def _sorted(targets: Array, candidates: Sequence[Array]) -> Finding:
    """Lists in which the other candidates are sorted by id and the true item stands anywhere among them."""
    told, chance = 0, 0.0
    for row, target in zip(candidates, targets, strict=True):
        others = row[row != target]
        told += bool((np.diff(others) > 0).all() and not (np.diff(row) > 0).all())
        chance += (1 - 1 / len(row)) / math.factorial(len(others))
    text = f"in {of(told, len(targets))} lists the other candidates are sorted by id and the true item is out of order"
    level = Level.ATTENTION if told >= TELLING * len(targets) + chance else Level.OK
    return _finding("order", level, f"{text}: shuffle each list" if level is Level.ATTENTION else text, rows=told)


def _seeding(targets: Array, candidates: Sequence[Array]) -> Finding:
    """Whether a true item brings its place and its other candidates along, as when lists are seeded by it.

    Each later list of a true item is compared with its first one: by the true item's place, and by the others they have
    in common, which is also counted for neighbouring lists of different true items.
    """
    place = [int(np.argmax(row == target)) for row, target in zip(candidates, targets, strict=True)]
    first: dict[int, int] = {}
    again = [(first[t], r) for r, t in enumerate(targets.tolist()) if first.setdefault(t, r) != r]
    if len(again) < FEW:
        return _finding("seeding", Level.OK, f"only {len(again)} lists have an earlier one with the same true item")
    same = sum(place[one] == place[other] for one, other in again)
    chance = float(np.mean([1 / len(candidates[other]) for _, other in again]))
    p = float(stats.binomtest(same, len(again), chance, alternative="greater").pvalue)
    neighbours = [(r - 1, r) for r in range(1, len(targets)) if targets[r - 1] != targets[r]]
    common, usual = (_common_others(targets, candidates, pairs) for pairs in (again, neighbours))
    text = (
        f"lists whose true item had an earlier list put it at the same place in {of(same, len(again))} cases (by "
        f"chance {chance:.1%}, p = {p:.2g}) and share {common:.1%} of the other candidates with it (other lists "
        f"{usual:.1%})"
    )
    level = Level.ATTENTION if p < SIGNIFICANT or common >= usual + TELLING else Level.OK
    if level is Level.ATTENTION:
        text += ": a model can learn which lists go with which answer; draw and shuffle by row, not by true item"
    return _finding("seeding", level, text, lists=len(again), same_place=same, common=common, usual=usual)


def _common_others(targets: Array, candidates: Sequence[Array], pairs: Sequence[tuple[int, int]]) -> float:
    """Mean share of candidates that two lists have in common, true items left out."""
    shares = []
    for one, other in pairs:
        both = np.setdiff1d(np.intersect1d(candidates[one], candidates[other]), targets[[one, other]])
        shares.append(len(both) / max(1, min(len(candidates[one]), len(candidates[other])) - 1))
    return float(np.mean(shares)) if shares else 0.0
