"""Rejected items without a model: by chance, evenly or by popularity, or those most like the right one.

Knows item ids, which items share an identifier, and item vectors; never tokens or models.
"""

import numpy as np

from recbole_ilrec.prompt.rows import Pairs

Array = np.ndarray
_ROWS = 4096
_TRIES = 20


def draw_rejected(
    pairs: Pairs, group: Array, count: int, *, seed: int, draw: int, weights: Array | None = None
) -> Array:
    """Distinct items for each pair, none of its history, none that shares the target's identifier.

    The result follows from the pairs, ``seed`` and ``draw``.

    Args:
        pairs: the training pairs.
        group: ``[I + 1]`` identifier of each item, entry 0 unused.
        count: R, items of a pair; a pair has fewer where fewer items are left.
        seed: of the run.
        draw: number of this draw, e.g. the epoch.
        weights: ``[I + 1]`` how often an item is drawn, entry 0 unused, never where it is 0; evenly without.

    Returns:
        ``[rows, R]`` int32; 0 where no item is left.
    """
    weights = np.ones(len(group)) if weights is None else weights.astype(np.float64)
    weights[0] = 0.0
    edges = np.cumsum(weights)
    seen = pairs.seen()
    found = np.zeros((len(pairs), count), dtype=np.int32)
    for low in range(0, len(pairs), _ROWS):
        rows = np.arange(low, min(low + _ROWS, len(pairs)))
        chance = np.random.Generator(np.random.Philox([seed, draw, 3, low]))
        found[rows] = _draw(chance, [seen[row] for row in rows], pairs.target[rows], group, edges, weights, count)
    return found


def _draw(
    chance: np.random.Generator,
    seen: list[Array],
    target: Array,
    group: Array,
    edges: Array,
    weights: Array,
    count: int,
) -> Array:
    """Rejection: whatever may not be is drawn again; rows that stay unlucky choose among what they may have."""
    rows, items = len(seen), len(group)
    owner = np.repeat(np.arange(rows), [len(past) for past in seen])
    taken = np.unique(owner * items + np.concatenate(seen))
    found = np.zeros((rows, count), dtype=np.int64)
    wrong = np.ones((rows, count), dtype=bool)
    for _ in range(_TRIES):
        found[wrong] = np.searchsorted(edges, chance.random(int(wrong.sum())) * edges[-1], side="right")
        code = np.arange(rows)[:, None] * items + found
        at = np.searchsorted(taken, code).clip(max=max(len(taken) - 1, 0))
        wrong = (taken[at] == code) if len(taken) else np.zeros_like(wrong)
        wrong |= group[found] == group[target][:, None]
        for column in range(1, count):
            wrong[:, column] |= (found[:, :column] == found[:, column : column + 1]).any(1)
        if not wrong.any():
            return found
    for row in np.flatnonzero(wrong.any(1)):
        allowed = (weights > 0) & (group != group[target[row]])
        allowed[seen[row]] = False
        left, found[row] = np.flatnonzero(allowed), 0
        if len(left):
            some = chance.choice(left, min(count, len(left)), replace=False, p=weights[left] / weights[left].sum())
            found[row, : len(some)] = some
    return found


def similar_items(pairs: Pairs, group: Array, vectors: Array, count: int) -> Array:
    """The items most like the target that are neither it nor in the history.

    Args:
        pairs: the training pairs.
        group: ``[I + 1]`` identifier of each item, entry 0 unused.
        vectors: ``[I, d]`` of items 1 .. I, compared by the cosine.
        count: R, items of a pair.

    Returns:
        ``[rows, R]`` int32, the most similar first; 0 where no item is left.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    seen, found = pairs.seen(), np.zeros((len(pairs), count), dtype=np.int32)
    order = np.argsort(pairs.target, kind="stable")
    targets, starts = np.unique(pairs.target[order], return_index=True)
    for target, rows in zip(targets, np.split(order, starts[1:]), strict=True):
        near = np.argsort(-(unit @ unit[target - 1]), kind="stable") + 1
        near = near[group[near] != group[target]]
        for row in rows:
            few = near[: count + len(seen[row])]  # at most so many of them are in the history
            left = few[~np.isin(few, seen[row])][:count]
            found[row, : len(left)] = left
    return found
