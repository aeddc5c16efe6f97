"""Lists of candidates for a choice: the true item among others, by chance. Knows item ids; never tokens or models."""

import numpy as np

from recbole_ilrec.prompt.rejected import draw_rejected
from recbole_ilrec.prompt.rows import Pairs

Array = np.ndarray
_STREAM = 10_000  # apart from the draws of rejected items


def draw_candidates(pairs: Pairs, group: Array, count: int, *, seed: int, part: int, by: str = "row") -> Array:
    """The target of each pair at a random place among items that are neither in its history nor called as it is.

    Choice: S-DPO's published preparation seeds its generator with the target. Every list of a target then has the same
    other items, but for the history's, in the same order: who remembers lists finds the answer without looking at the
    history. Here a list depends on its row (``candidates.seeding: row``); ``target`` draws them their way.

    Args:
        pairs: histories and targets.
        group: ``[I + 1]`` what each item is called, entry 0 unused; no other candidate is called as the target is.
        count: C, candidates of a list, the target included.
        seed: of the run; not looked at with ``by="target"``.
        part: number of the part of the data, so that its rows get lists of their own.
        by: ``"row"`` or ``"target"``.

    Returns:
        ``[rows, C]`` int64; 0 where too few items are left.
    """
    if by == "target":
        return _by_target(pairs, group, count)
    others = draw_rejected(pairs, group, count - 1, seed=seed, draw=_STREAM + part)
    lists = np.concatenate([pairs.target[:, None], others], axis=1).astype(np.int64)
    chance = np.random.Generator(np.random.Philox([seed, part, 6]))
    return np.take_along_axis(lists, chance.random(lists.shape).argsort(1), axis=1)


def draw_offered(pairs: Pairs, group: Array, count: int, *, seed: int, draw: int) -> Array:
    """Rejected items from each pair's own candidates (S-DPO): distinct, none called as the target is.

    Args:
        pairs: training pairs with candidates.
        group: ``[I + 1]`` what each item is called, entry 0 unused.
        count: R, items of a pair.
        seed: of the run.
        draw: number of this draw, e.g. the epoch.

    Returns:
        ``[rows, R]`` int32; 0 where a pair has fewer other candidates.
    """
    assert pairs.candidates is not None
    chance = np.random.Generator(np.random.Philox([seed, draw, 7]))
    wrong = (pairs.candidates > 0) & (group[pairs.candidates] != group[pairs.target][:, None])
    order = np.where(wrong, chance.random(wrong.shape), 2.0).argsort(1)[:, :count]
    found = np.take_along_axis(np.where(wrong, pairs.candidates, 0), order, axis=1)
    return np.pad(found, ((0, 0), (0, count - found.shape[1]))).astype(np.int32)


def _by_target(pairs: Pairs, group: Array, count: int) -> Array:
    lists, seen = np.zeros((len(pairs), count), dtype=np.int64), pairs.seen()
    for target in np.unique(pairs.target):
        chance = np.random.Generator(np.random.Philox([int(target), 6]))
        others = 1 + chance.permutation(len(group) - 1)
        others = others[group[others] != group[target]]
        order = chance.permutation(count)
        for row in np.flatnonzero(pairs.target == target):
            few = others[: count + len(seen[row])]  # at most so many of them are in the history
            few = few[~np.isin(few, seen[row])][: count - 1]
            lists[row, : 1 + len(few)] = [target, *few]
            lists[row] = lists[row, order]
    return lists
