"""The prefix trie over all item identifiers, as flat arrays.

It is both the constraint of decoding (which token may follow) and the index sets of Eq. 10 (which items lie below a
prefix). Items are sorted by token sequence, so every node owns an interval of item positions, and nodes are numbered
level by level, so the children of a node are neighbours and the edge into node ``n`` is edge ``n - 1``. The structure
knows token ids only; never items' names, prompts or models.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROOT = 0
OUTSIDE = -1
LARGEST = np.iinfo(np.int32).max


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
        edge = (first - start).index_select(0, row)  # a third of the time of plain indexing
        return row, edge.add_(torch.arange(len(row), device=node.device))

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
        the trie and ``order [I]`` int64, the row index at each item position.

    Raises:
        ValueError: a row is empty, one identifier begins another, or there are more items, more nodes or greater token
            ids than the trie's int32 can hold.
    """
    sequences = np.asarray(sequences)
    items = len(sequences)
    if not items or (sequences[:, 0] < 0).any():
        raise ValueError("every item needs at least one token")
    _check_range("items", items)
    _check_range("token ids", int(sequences.max()))
    sequences = sequences.astype(np.int32, copy=False)
    order = _order(sequences)
    low, high, token, leaf = _levels(sequences[order])
    _check_range("nodes", sum(map(len, low)))
    arrays = (_first_edges(low), *map(np.concatenate, (token, low, high, leaf)))
    trie = Trie(*map(torch.from_numpy, arrays))
    if ((trie.leaf >= 0) & (trie.indptr.diff() > 0)).any():
        raise ValueError("an item identifier begins another one; append the end token")
    return trie, order


def _check_range(what: str, number: int) -> None:
    if number > LARGEST:
        raise ValueError(f"a trie of int32 holds {what} up to {LARGEST:,}, not {number:,}")


def _order(rows: np.ndarray) -> np.ndarray:
    """Stable order of the rows by their tokens.

    A token's halves are two keys: NumPy sorts 16 bits by radix, which is ten times as fast as comparing.
    """
    halves = ((column.astype(np.uint16), (column >> 16).astype(np.int16)) for column in rows.T[::-1])
    return np.lexsort([half for pair in halves for half in pair])


def _levels(rows: np.ndarray) -> tuple[list[np.ndarray], ...]:
    """``low``, ``high``, ``token`` and ``leaf`` of the nodes of each level; the root, which no token leads to, first.

    Args:
        rows: ``[I, D]`` int32, sorted.
    """
    items, depth = rows.shape
    low, high, token = [np.zeros(1, np.int32)], [np.full(1, items, np.int32)], [np.empty(0, np.int32)]
    fresh = np.arange(items) == 0  # rows whose tokens so far are not those of the row above
    for level in range(depth):
        column = rows[:, level]
        fresh[1:] |= column[1:] != column[:-1]
        start = np.flatnonzero(fresh).astype(np.int32)
        here = column[start] >= 0
        low.append(start[here])
        high.append(np.append(start[1:], np.int32(items))[here])
        token.append(column[low[-1]])
    number = np.cumsum(fresh, dtype=np.int32) - 1
    ends = [rows[first, level] < 0 for level, first in enumerate(low[:-1])] + [np.full(len(low[-1]), True)]
    leaf = [np.where(end, number[first], np.int32(OUTSIDE)) for first, end in zip(low, ends, strict=True)]
    return low, high, token, leaf


def _first_edges(low: list[np.ndarray]) -> np.ndarray:
    """``indptr``: a node's children are the nodes of the next level that start no earlier than it, in its interval."""
    first, last = [], -1  # the edge into the last node of the levels so far
    for own, following in itertools.pairwise([*low, np.empty(0, np.int32)]):
        last += len(own)
        first.append((np.searchsorted(following, own) + last).astype(np.int32))
    return np.concatenate([*first, np.full(1, last, np.int32)])
