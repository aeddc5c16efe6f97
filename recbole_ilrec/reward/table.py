"""Rewards of every training target, computed once: the CF model is frozen, so r_v never changes while training.

A target needs one number for each child of each node on its item's path. A node has one path to it, so the place of its
children inside a target's numbers depends on the node alone. Knows scores and the trie; never RecBole.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.reward.token_reward import token_rewards
from recbole_ilrec.schema import LegalTokens

Probabilities = Callable[[np.ndarray], Tensor]
"""Numbers of training targets ``[E]`` -> R of Eq. 10 over real items, ``[E, I]`` float64."""

CHUNK_ENTRIES = 2**21
"""Probabilities computed together: 16 MB, which come from the heap again and again (``runtime/allocator.py``). Above
32 MB each table is new pages from the system, which takes twice the time."""


class RewardTable:
    """r_v (Eq. 10) at every node on the path of every training target.

    Args:
        catalog: identifiers of all items.
        targets: ``[R]`` item id of each training target.
        probabilities: R of a chunk of targets.
        chunk: targets computed together; default: as many as fit into 16 MB of probabilities.
        progress: wraps the chunks, e.g. in a progress bar.
    """

    def __init__(
        self,
        catalog: Catalog,
        targets: np.ndarray,
        probabilities: Probabilities,
        *,
        chunk: int | None = None,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ):
        self.catalog = catalog
        self._offset = _offsets(catalog)
        size = entries(catalog, targets)
        self._start = torch.from_numpy(np.concatenate([[0], np.cumsum(size)]))
        self._values = torch.empty(int(self._start[-1]), dtype=torch.float32)
        chunk = chunk or max(1, min(1024, CHUNK_ENTRIES // catalog.num_items))
        for low in progress(range(0, len(targets), chunk)):
            numbers = np.arange(low, min(low + chunk, len(targets)))
            items = torch.from_numpy(targets[numbers])
            node = catalog.path[items]
            example = torch.arange(len(items))[:, None].expand_as(node)[node >= 0]
            reward = token_rewards(probabilities(numbers), catalog, example, node[node >= 0]).reward
            assert reward is not None
            self._values[self._start[low] : self._start[numbers[-1] + 1]] = reward

    def legal(self, target: Tensor, node: Tensor) -> LegalTokens:
        """Children and rewards at supervised tokens.

        Args:
            target: ``[N]`` number of the training target.
            node: ``[N]`` trie node before the token, -1 outside the trie.
        """
        trie = self.catalog.trie
        row, edge = trie.edges(node)
        at = self._start[target[row]] + self._offset[node[row]] + (edge - trie.indptr[node[row]])
        return LegalTokens(row=row, token=trie.token[edge].long(), reward=self._values[at])


def entries(catalog: Catalog, targets: np.ndarray) -> np.ndarray:
    """``[R]`` numbers that each target needs: the children along its item's path."""
    _, count = catalog.trie.fan_out(catalog.path.flatten())
    return count.view_as(catalog.path).sum(1).numpy()[targets]


def _offsets(catalog: Catalog) -> Tensor:
    """``[nodes]`` int64: children of all proper ancestors of each node."""
    trie = catalog.trie
    offset = torch.zeros(trie.num_nodes, dtype=torch.long)
    _, count = trie.fan_out(catalog.path.clamp_min(0).flatten())
    before = count.view_as(catalog.path).cumsum(1) - count.view_as(catalog.path)
    inside = catalog.path >= 0
    offset[catalog.path[inside]] = before[inside]
    return offset
