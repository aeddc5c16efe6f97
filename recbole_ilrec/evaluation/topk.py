"""Where the true item stands in a ranking of identifiers, with one rule for items that share an identifier.

A generated identifier stands for all items that carry it, which follow each other in the list. Three readings:
``strict`` puts them in item order, ``expected`` takes every order as equally likely (the headline), ``optimistic``
counts the identifier as one place and credits every item of it (what most public code of this field does).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.schema import Ranking

MISSING = torch.iinfo(torch.int64).max // 2


@dataclass(frozen=True)
class TargetPlaces:
    """Places of the true item of each user; all ``[B]`` int64, 0 is the best place.

    Attributes:
        before: items that stand before the identifier of the true item; ``MISSING`` when it was not generated.
        group: items that share that identifier (banned ones left out), at least 1.
        within: place of the true item among them, in item order.
        beam: identifiers before it; ``MISSING`` when it was not generated.
    """

    before: Tensor
    group: Tensor
    within: Tensor
    beam: Tensor

    @staticmethod
    def cat(parts: "list[TargetPlaces]") -> "TargetPlaces":
        """Users of several batches, in order."""
        return TargetPlaces(*(torch.cat(column) for column in zip(*(vars(p).values() for p in parts), strict=True)))

    def ranks(self, policy: str, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Ranks to average over.

        Args:
            policy: ``strict``, ``expected`` or ``optimistic``.
            most: so many places of a group at most, where later ones are no hits: equal scores make groups of
                thousands.

        Returns:
            rank ``[B, G]`` and weight ``[B, G]`` float64 that sums to 1 for each user, to less where places are left
            out; G is 1 but for ``expected``.
        """
        if policy == "strict":
            rank = torch.where(self.before < MISSING, self.before + self.within, MISSING)[:, None]
        elif policy == "optimistic":
            rank = self.beam[:, None]
        else:
            widest = int(self.group.max())
            place = torch.arange(widest if most is None else min(widest, most), device=self.group.device)
            rank = torch.where(self.before < MISSING, self.before, MISSING)[:, None] + place
            weight = (place < self.group[:, None]).double() / self.group[:, None]
            return rank, weight
        return rank, torch.ones_like(rank, dtype=torch.float64)


def locate(ranking: Ranking, catalog: Catalog, target: Tensor, banned: Tensor | None = None) -> TargetPlaces:
    """Find the true items in a ranking.

    Args:
        ranking: ``[B, W]`` identifiers, on the CPU.
        catalog: which items carry which identifier.
        target: ``[B]`` true item ids.
        banned: ``[B, X]`` item positions left out of the list, as in
            :func:`~recbole_ilrec.decoding.beam.beam_search`; a banned target is never found.
    """
    leaf = ranking.leaf
    size = torch.where(leaf >= 0, catalog.group_size[leaf.clamp_min(0)], 0)
    within = catalog.group_rank()[target]
    own = catalog.leaf_of_item[target]
    found_banned = torch.zeros_like(target, dtype=torch.bool)
    if banned is not None:
        size = size - _banned_in(catalog, leaf, banned)
        position = catalog.leaf_start[own] + within
        found_banned = (banned == position[:, None]).any(1)
        earlier = (banned >= catalog.leaf_start[own][:, None]) & (banned < position[:, None])
        within = within - earlier.sum(1)
    hit = leaf == own[:, None]
    found = hit.any(1) & ~found_banned
    beam = hit.int().argmax(1)
    before = (size.cumsum(1) - size).gather(1, beam[:, None])[:, 0]
    group = size.gather(1, beam[:, None])[:, 0]
    return TargetPlaces(
        before=torch.where(found, before, MISSING),
        group=torch.where(found, group, 1).clamp_min(1),
        within=torch.where(found, within, 0),
        beam=torch.where(found, beam, MISSING),
    )


def _banned_in(catalog: Catalog, leaf: Tensor, banned: Tensor) -> Tensor:
    low = catalog.leaf_start[leaf.clamp_min(0)]
    high = catalog.leaf_start[leaf.clamp_min(0) + 1]
    count = torch.searchsorted(banned, high) - torch.searchsorted(banned, low)
    return torch.where(leaf >= 0, count, 0)


def unroll(ranking: Ranking, catalog: Catalog, k: int, banned: Tensor | None = None) -> Tensor:
    """The first k items of each list in ``strict`` order.

    Returns:
        ``[B, k]`` int64 item ids; 0 where the list is shorter.
    """
    items = torch.zeros(len(ranking.leaf), k, dtype=torch.long)
    filled = torch.zeros(len(ranking.leaf), dtype=torch.long)
    rows = torch.arange(len(items))
    for leaf in ranking.leaf.T:
        for place in range(int(torch.where(leaf >= 0, catalog.group_size[leaf.clamp_min(0)], 0).max())):
            position = catalog.leaf_start[leaf.clamp_min(0)] + place
            real = (leaf >= 0) & (position < catalog.leaf_start[leaf.clamp_min(0) + 1]) & (filled < k)
            if banned is not None:
                real &= ~(banned == position[:, None]).any(1)
            items[rows[real], filled[real]] = catalog.item_order[position[real]]
            filled += real
    return items


@dataclass(frozen=True)
class ListQuality:
    """How full the lists of a ranking are.

    Attributes:
        length: places of a list.
        valid: share of all places that hold an identifier of an item.
        distinct: share of all places that hold one which the list does not hold before.
        exact: share of users whose first places (as many as the metrics look at) are proven to be those of a search
            through all identifiers; ``None`` where that is not known.
    """

    length: int
    valid: float
    distinct: float
    exact: float | None


def list_quality(ranking: Ranking, places: int) -> ListQuality:
    """See :class:`ListQuality`; a trie search that is full has 1.0 for both shares."""
    leaf = ranking.leaf.sort(1).values
    new = leaf >= 0
    valid = new.double().mean()
    new[:, 1:] &= leaf[:, 1:] != leaf[:, :-1]
    exact = None if ranking.bound is None else round(float(ranking.certified(places).double().mean()), 6)
    return ListQuality(leaf.shape[1], float(valid), float(new.double().mean()), exact)


def hit_and_ndcg(places: TargetPlaces, k: int, policy: str) -> tuple[Tensor, Tensor]:
    """Per-user Hit@k and NDCG@k (one relevant item: 1 / log2(rank + 2)), both ``[B]`` float64."""
    rank, weight = places.ranks(policy, k)
    inside = (rank < k).double() * weight
    return inside.sum(1), (inside / torch.log2(rank.double() + 2)).sum(1)
