"""The prefix trie over all item identifiers, as flat arrays.

It is both the constraint of decoding (which token may follow) and the index sets of Eq. 10 (which items lie below a
prefix). Items are sorted by token sequence, so every node owns an interval of item positions, and nodes are numbered
level by level, so the children of a node are neighbours and the edge into node ``n`` is edge ``n - 1``. The structure
knows token ids only; never items' names, prompts or models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROOT = 0
OUTSIDE = -1


@dataclass(frozen=True)
class Trie:
    """Compressed rows of children; node 0 is the root.

    Attributes:
        indptr: ``[nodes + 1]`` int32; the edges of node n are ``indptr[n] : indptr[n + 1]``, tokens ascending.
        token: ``[nodes - 1]`` int32; token of edge e, which leads to node ``e + 1``.
        low: ``[nodes]`` int32; first item position (in trie order) below the node.
        high: ``[nodes]`` int32; one past the last.
        leaf: ``[nodes]`` int32; number of the complete identifier that ends here, -1 for inner nodes. Identifiers
            are numbered in trie order.
    """

    indptr: Tensor
    token: Tensor
    low: Tensor
    high: Tensor
    leaf: Tensor

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.low)

    def to(self, device: torch.device | str) -> "Trie":
        """The same trie with its arrays on ``device``."""
        return Trie(**{name: value.to(device) for name, value in vars(self).items()})

    def only_leaf(self) -> Tensor:
        """``[nodes]`` int64: the node that ends the only identifier below each node; itself where there are several."""
        ends = (self.leaf >= 0).nonzero().squeeze(1)
        node_of_leaf = ends[self.leaf[ends].argsort()]
        start = self.low[node_of_leaf].contiguous()
        first = torch.searchsorted(start, self.low, right=True) - 1
        last = torch.searchsorted(start, self.high - 1, right=True) - 1
        itself = torch.arange(self.num_nodes, device=start.device)
        return torch.where(first == last, node_of_leaf[first], itself)

    def fan_out(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """First edge and number of children of each node; ``node == -1`` has none.

        Args:
            node: ``[...]`` int64.

        Returns:
            first edge ``[...]`` and count ``[...]``, both int64.
        """
        inside = node.clamp_min(0)
        first = self.indptr[inside].long()
        count = self.indptr[inside + 1].long() - first
        return first, count.masked_fill(node < 0, 0)

    def edges(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """All edges of several nodes as one ragged list.

        Args:
            node: ``[N]`` int64; -1 contributes nothing.

        Returns:
            row ``[M]`` int64, the index into ``node``, and edge ``[M]`` int64; rows do not decrease.
        """
        first, count = self.fan_out(node)
        row = torch.repeat_interleave(torch.arange(len(node), device=node.device), count)
        start = count.cumsum(0) - count
        within = torch.arange(len(row), device=node.device) - start[row]
        return row, first[row] + within

    def step(self, node: Tensor, token: Tensor) -> Tensor:
        """The node after ``token``, -1 when no item continues that way. (Bisection over the sorted children.)

        Args:
            node: ``[N]`` int64, -1 stays -1.
            token: ``[N]`` int64.

        Returns:
            ``[N]`` int64.
        """
        low, count = self.fan_out(node)
        end = low + count
        high = end
        for _ in range(int(count.max().item()).bit_length() if len(count) else 0):
            middle = (low + high) // 2
            smaller = (low < high) & (self.token[middle.clamp_max(len(self.token) - 1)] < token)
            low = torch.where(smaller, middle + 1, low)
            high = torch.where(smaller | (low >= high), high, middle)
        found = (low < end) & (self.token[low.clamp_max(len(self.token) - 1)] == token)
        return torch.where(found, low + 1, torch.full_like(low, OUTSIDE))


def build_trie(sequences: np.ndarray) -> tuple[Trie, np.ndarray]:
    """Sort identifiers and build their trie, one vectorised pass per level.

    Args:
        sequences: ``[I, D]`` int; token ids of each item, rows of fewer than D tokens end in -1. No sequence may
            begin another one (an end token sees to that); equal sequences share a leaf.

    Returns:
        the trie and ``order [I]``, the row index at each item position.

    Raises:
        ValueError: a row is empty, or one identifier begins another.
    """
    sequences = np.ascontiguousarray(sequences, dtype=np.int32)
    items, depth = sequences.shape
    if not items or (sequences[:, 0] < 0).any():
        raise ValueError("every item needs at least one token")
    order = np.lexsort(sequences.T[::-1])
    rows = sequences[order]
    owner = np.zeros(items, dtype=np.int64)  # node of each sorted row at the current level
    alive = np.arange(items)  # rows with a token at this level
    tokens, lows, highs, parents = [], [np.zeros(1, np.int64)], [np.full(1, items)], []
    nodes = 1
    ended = np.zeros(items, dtype=np.int64)  # node in which each row ends
    for level in range(depth):
        column, parent = rows[alive, level], owner[alive]
        fresh = np.ones(len(alive), dtype=bool)
        fresh[1:] = (column[1:] != column[:-1]) | (parent[1:] != parent[:-1])
        starts = np.flatnonzero(fresh)
        ends = np.append(starts[1:], len(alive))
        tokens.append(column[starts])
        parents.append(parent[starts])
        lows.append(alive[starts])
        highs.append(alive[ends - 1] + 1)
        owner[alive] = nodes + np.cumsum(fresh) - 1
        nodes += len(starts)
        last = np.full(len(alive), True) if level + 1 == depth else rows[alive, level + 1] < 0
        ended[alive[last]] = owner[alive[last]]
        alive = alive[~last]
        if not len(alive):
            break
    return _assemble(nodes, parents, tokens, lows, highs, ended), order


def _assemble(nodes, parents, tokens, lows, highs, ended) -> Trie:
    children = np.bincount(np.concatenate(parents), minlength=nodes)
    indptr = np.zeros(nodes + 1, dtype=np.int64)
    np.cumsum(children, out=indptr[1:])
    terminal = np.unique(ended)
    low = np.concatenate(lows)
    if children[terminal].any():
        raise ValueError("an item identifier begins another one; append the end token")
    leaf = np.full(nodes, OUTSIDE, dtype=np.int64)
    leaf[terminal[np.argsort(low[terminal], kind="stable")]] = np.arange(len(terminal))
    arrays = (indptr, np.concatenate(tokens), low, np.concatenate(highs), leaf)
    return Trie(*(torch.from_numpy(array.astype(np.int32)) for array in arrays))
