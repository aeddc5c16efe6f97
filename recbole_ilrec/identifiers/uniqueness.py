"""Codes to identifiers that no two items share.

LC-Rec leaves a few items with the same semantic ID; a ranking of identifiers cannot tell those apart. Here every item
ends with its own: first by other codes of the last level, and where a prefix has more items than codes, by one token
more. Knows codes and distances; nothing of texts or interactions.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.identifiers.quantizer import fit_quantizer, level_epsilons
from recbole_ilrec.identifiers.semantic_id import Identifier, token_name
from recbole_ilrec.identifiers.sinkhorn import transport_plan
from recbole_ilrec.settings import IndexSettings

logger = logging.getLogger(__name__)

Codes = tuple[int, ...]
Distances = Callable[[list[int]], Tensor]
"""Items' numbers (n of them) -> ``[n, C]``, the distance of each to the C last-level codes under its own prefix."""


def make_unique(
    codes: Tensor, distances: Distances, *, epsilon: float = 0.0, iterations: int = 50, rounds: int = 0
) -> list[Codes]:
    """Codes of every item, made unique and prefix-free.

    Items that share all codes are moved on the last level only: (1) LC-Rec's way, an optimal transport plan of the
    group over all codes, for up to ``rounds`` rounds; (2) whoever still shares goes to the nearest free code of its
    prefix; (3) when none is free, to the nearest of the least shared ones, and *all* items of a shared code get one
    more code 0, 1, 2, ... So no identifier is the beginning of another one, though depths may differ.

    Choice: LC-Rec stops after (1) and accepts what still collides. Its plan must use all codes alike, so a
    small group is sent to far ones: on MovieLens-100K's tf-idf vectors (1) left the moved items at a mean squared
    distance of 2.5 to their last code, hardly better than chance (2.7), and (2) alone at 1.5 (1.3 before the move).
    ``index.reassign_rounds=0`` goes to (2) at once.

    Args:
        codes: ``[I, L]`` int64, codes in ``0 .. C-1``.
        distances: see :data:`Distances`; asked only for items that share their codes.
        epsilon: entropy of the plan of (1), after scaling the distances to [-1, 1]; 0 skips (1).
        iterations: of Sinkhorn's algorithm.
        rounds: of (1).

    Returns:
        One tuple per item: L codes, or L + 1 where (3) was needed.
    """
    prefixes = [tuple(row) for row in codes[:, :-1].tolist()]
    last = codes[:, -1].tolist()
    for _ in range(rounds if epsilon else 0):
        before = list(last)
        for group in _shared(prefixes, last):
            plan = transport_plan(distances(group), epsilon, iterations)
            for item, code in zip(group, plan.argmax(1).tolist(), strict=True):
                last[item] = code
        if last == before:
            break
    shared_prefixes = {prefixes[group[0]] for group in _shared(prefixes, last)}
    members = defaultdict(list)
    for item, prefix in enumerate(prefixes):
        if prefix in shared_prefixes:
            members[prefix].append(item)
    for items in members.values():
        _spread(items, last, distances)
    unique = [(*prefix, code) for prefix, code in zip(prefixes, last, strict=True)]
    for group in _shared(prefixes, last):
        for number, item in enumerate(group):
            unique[item] = (*unique[item], number)
    return unique


def learn_identifiers(vectors: Tensor, settings: IndexSettings, seed: int, progress: bool = False) -> list[Identifier]:
    """Unique semantic IDs of item vectors ``[I, D]``: RQ-VAE, nearest codes, :func:`make_unique`, token names.

    Args:
        vectors: one row per item, finite; equal rows are allowed.
        settings: the ``index`` section.
        seed: of every random choice.
        progress: show a bar on stderr.

    Returns:
        One tuple of tokens per item, e.g. ``("<a_12>", "<b_7>", "<c_200>", "<d_3>")``.

    Raises:
        UserError: when a vector is not finite or there is none.
    """
    model = fit_quantizer(vectors, settings, seed, progress)
    vectors = vectors.detach().cpu().float()
    codes = model.encode(vectors)
    unique = make_unique(
        codes,
        lambda items: model.last_level_distances(vectors[torch.tensor(items)]),
        epsilon=level_epsilons(settings)[-1],
        iterations=settings.sinkhorn_iterations,
        rounds=settings.reassign_rounds,
    )
    moved = sum(code != row[settings.levels - 1] for code, row in zip(codes[:, -1].tolist(), unique, strict=True))
    longer = sum(len(row) > settings.levels for row in unique)
    logger.info("Telling %d items apart: %d took another last code, %d an extra token", len(unique), moved, longer)
    return [tuple(token_name(level, code) for level, code in enumerate(row)) for row in unique]


def _shared(prefixes: list[Codes], last: list[int]) -> list[list[int]]:
    """Groups of two or more items with all codes in common, each in the order of the items."""
    groups = defaultdict(list)
    for item, key in enumerate(zip(prefixes, last, strict=True)):
        groups[key].append(item)
    return [group for group in groups.values() if len(group) > 1]


def _spread(items: list[int], last: list[int], distances: Distances) -> None:
    """Give each item of one prefix its own last code, or share codes as evenly as possible when there are too few.

    Of the items on one code the nearest stays; the others choose in the order of their distance to it.
    """
    holders = defaultdict(list)
    for item in items:
        holders[last[item]].append(item)
    crowd = sorted(chain.from_iterable(group for group in holders.values() if len(group) > 1))
    cost = dict(zip(crowd, distances(crowd).numpy(), strict=True))
    leaving = _leaving(holders.values(), last, cost)
    load = np.zeros(len(cost[crowd[0]]), dtype=np.int64)
    load[list(holders)] = 1
    for item in leaving:
        open_codes = np.flatnonzero(load == load.min())
        last[item] = int(open_codes[cost[item][open_codes].argmin()])
        load[last[item]] += 1


def _leaving(groups: Iterable[list[int]], last: list[int], cost: dict[int, np.ndarray]) -> list[int]:
    """Items that have to give up their code, those nearest to it first; ties go by the order of the items."""
    leaving = []
    for group in groups:
        if len(group) > 1:
            by_distance = sorted(group, key=lambda item: (cost[item][last[item]], item))
            leaving += by_distance[1:]
    return sorted(leaving, key=lambda item: (cost[item][last[item]], item))
