"""From a generated title to a ranking of all items: the nearest titles in an embedding space (BIGRec's grounding).

Knows vectors and identifiers; never texts or models. Source: BIGRec (arXiv:2308.08434).
"""

import torch
from torch import Tensor

from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.schema import Ranking

_ENTRIES_AT_ONCE = 1 << 23


def nearest(
    queries: Tensor,
    items: Tensor,
    count: int,
    *,
    statistic: Tensor | None = None,
    gamma: float = 0.0,
    closed: Tensor | None = None,
) -> Ranking:
    """Identifiers by L2 distance to each query, the nearest first; equal distances in the order of identifiers.

    With ``gamma`` the distance d of a user, scaled to [0, 1], is multiplied by (1 + c)^(-gamma), where c is the
    user's statistic scaled to [0, 1].

    Choice: BIGRec chooses gamma on validation anew for each metric and each cut-off, which flatters the result. Here
    one gamma holds for a model: a number (``bigrec.gamma``, 0 by default), or the best of a few by ``valid_metric``
    (``bigrec.gamma: auto``).

    Args:
        queries: ``[B, H]`` vector of each user's generated title.
        items: ``[J, H]`` vector of each identifier.
        count: W, identifiers wanted.
        statistic: ``[J]`` or ``[B, J]``, e.g. popularity; used when ``gamma`` is above 0.
        gamma: its strength.
        closed: ``[B, J]`` bool, identifiers that may not be recommended to each user.

    Returns:
        ``[B, min(W, J)]``; the score is the negative distance.
    """
    width = min(count, len(items))
    leaf = torch.empty(len(queries), width, dtype=torch.long)
    score = torch.empty(len(queries), width)
    weight = _unit(statistic.double()) if gamma and statistic is not None else None
    items = items.double()  # a generated title that is an item's must come out at distance 0
    step = max(1, _ENTRIES_AT_ONCE // len(items))
    for low in range(0, len(queries), step):
        rows = slice(low, low + step)
        distance = torch.cdist(queries[rows].double(), items)
        if weight is not None:
            distance = _unit(distance) * (1 + (weight if weight.dim() == 1 else weight[rows])) ** -gamma
        if closed is not None:
            distance = distance.masked_fill(closed[rows], torch.inf)
        ordered = distance.sort(dim=1, stable=True)
        score[rows] = -ordered.values[:, :width].float()
        leaf[rows] = ordered.indices[:, :width]
    return Ranking(leaf=leaf.where(score > -torch.inf, -1), score=score)


def beams_first(beams: Ranking, others: Ranking, count: int) -> Ranking:
    """The beams, then what else there is, none twice.

    Args:
        beams: ``[B, W]`` found by search.
        others: ``[B, W']`` in another order.
        count: length of the result.

    Returns:
        ``[B, count]`` (shorter where there are fewer); scores go on falling after the beams' own.
    """
    repeated = (others.leaf[:, :, None] == beams.leaf[:, None, :]).any(-1)
    leaf = torch.cat([beams.leaf, others.leaf.masked_fill(repeated, -1)], dim=1)
    last = beams.score.masked_fill(beams.leaf < 0, torch.inf).min(1, keepdim=True).values
    below = last.where(last < torch.inf, 0.0) + others.score
    score = torch.cat([beams.score, below], dim=1).masked_fill(leaf < 0, -torch.inf)
    order = (leaf < 0).int().argsort(dim=1, stable=True)[:, :count]
    return Ranking(leaf=leaf.gather(1, order), score=score.gather(1, order))


def closed_identifiers(catalog: Catalog, banned: Tensor) -> Tensor:
    """``[B, leaves]`` bool: identifiers all of whose items are banned.

    Args:
        catalog: which items carry which identifier.
        banned: ``[B, X]`` positions as :func:`~recbole_ilrec.decoding.users.banned_positions` gives them.
    """
    bounds = catalog.leaf_start.expand(len(banned), -1).contiguous()
    taken = torch.searchsorted(banned, bounds).diff(dim=1)
    return taken >= catalog.group_size


def best_of_group(catalog: Catalog, values: Tensor) -> Tensor:
    """``[..., leaves]``: the largest of the values of each identifier's items.

    Args:
        catalog: which items carry which identifier.
        values: ``[..., I]`` of items 1 .. I.
    """
    leaf = catalog.leaf_of_item[1:].expand(values.shape)
    best = torch.full((*values.shape[:-1], catalog.num_leaves), -torch.inf, dtype=values.dtype)
    return best.scatter_reduce(-1, leaf, values, "amax")


def _unit(values: Tensor) -> Tensor:
    """Scaled to [0, 1] along the last dimension; a constant row becomes 0."""
    low, high = values.min(-1, keepdim=True).values, values.max(-1, keepdim=True).values
    return (values - low) / (high - low).where(high > low, 1.0)
