"""The one tokenisation of every item.

Labels, histories, the decoding constraint and the reward all read an item's tokens here, so they cannot disagree.
Items are numbered as RecBole numbers them: 1 .. I, with 0 for padding. Knows token ids; not how they were made.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.identifiers.trie import ROOT, build_trie


class Catalog:
    """Token ids of all items, their trie, and the maps between items, identifiers and trie order.

    Args:
        identifiers: token ids of items 1 .. I in that order, without the end token; as ``[I, D]`` integers, the tails
            of short rows -1, they are not copied into Python's objects on the way.
        eos_id: appended to every identifier when given; needed when one identifier begins another.

    Attributes:
        tokens: ``[I + 1, D]`` int64; row 0 (padding) and the tails of short rows are -1.
        length: ``[I + 1]`` int64; tokens of each item, 0 for padding.
        path: ``[I + 1, D]`` int64; trie node reached *before* each token, -1 where there is no token.
        trie: see :class:`~recbole_ilrec.identifiers.trie.Trie`.
        item_order: ``[I]`` int64; item at each trie position.
        leaf_of_item: ``[I + 1]`` int64; number of the item's identifier, -1 for padding.
        leaf_start: ``[leaves + 1]`` int64; identifier j belongs to the items
            ``item_order[leaf_start[j] : leaf_start[j + 1]]``.

    Raises:
        ValueError: an identifier is empty or begins another one.
    """

    def __init__(self, identifiers: Sequence[Sequence[int]] | np.ndarray, eos_id: int | None = None):
        sequences = identifiers if isinstance(identifiers, np.ndarray) else _padded(identifiers)
        if eos_id is not None:
            sequences = _ended(sequences, eos_id)
        self.eos_id = eos_id
        self.trie, order = build_trie(sequences)
        self.item_order = torch.from_numpy(order) + 1
        self.tokens = torch.full((len(order) + 1, sequences.shape[1]), -1)
        self.tokens[1:] = torch.from_numpy(sequences)
        self.length = (self.tokens >= 0).sum(1)
        leaf_low = self.trie.low[self.trie.leaf >= 0].long().sort().values
        self.leaf_start = torch.cat([leaf_low, torch.tensor([len(order)])])
        leaf_at_position = torch.repeat_interleave(torch.arange(len(leaf_low)), self.leaf_start.diff())
        self.leaf_of_item = torch.full((len(order) + 1,), -1)
        self.leaf_of_item[self.item_order] = leaf_at_position
        self.path = self._paths()

    @property
    def num_items(self) -> int:
        """Real items I."""
        return len(self.item_order)

    @property
    def num_leaves(self) -> int:
        """Distinct identifiers."""
        return len(self.leaf_start) - 1

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens of all items: equal where a token stands for the same items."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()

    @property
    def depth(self) -> int:
        """Tokens D of the longest identifier."""
        return self.tokens.shape[1]

    @property
    def group_size(self) -> Tensor:
        """``[leaves]`` int64: items that share each identifier (1 when it is unique)."""
        return self.leaf_start.diff()

    def items_of(self, leaf: int) -> Tensor:
        """``[n]`` int64: the items with identifier ``leaf``, ascending."""
        return self.item_order[self.leaf_start[leaf] : self.leaf_start[leaf + 1]]

    def group_rank(self) -> Tensor:
        """``[I + 1]`` int64: place of each item among those that share its identifier, in item order; 0 for padding."""
        order = torch.argsort(self.leaf_of_item[1:], stable=True)
        place = torch.arange(self.num_items) - self.leaf_start[self.leaf_of_item[1:][order]]
        rank = torch.zeros(self.num_items + 1, dtype=torch.long)
        rank[order + 1] = place
        return rank

    def item_token_mask(self, vocab_size: int) -> Tensor:
        """``[V]`` bool: tokens that occur in some identifier."""
        mask = torch.zeros(vocab_size, dtype=torch.bool)
        mask[self.trie.token.long()] = True
        return mask

    def _paths(self) -> Tensor:
        """A level's nodes stand one after the other, each before the tokens of the items in its interval."""
        path, trie = torch.full_like(self.tokens, -1), self.trie
        first, last = ROOT, ROOT + 1
        for level in range(self.depth):
            inner = first + (trie.leaf[first:last] < 0).nonzero()[:, 0]
            below = trie.high[inner].long() - trie.low[inner]
            start = below.cumsum(0) - below
            place = (trie.low[inner] - start).repeat_interleave(below).add_(torch.arange(int(below.sum())))
            path[self.item_order[place], level] = inner.repeat_interleave(below)
            first, last = int(trie.indptr[first]) + 1, int(trie.indptr[last]) + 1
        return path


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if not lengths.any():
        raise ValueError("a catalogue needs at least one item, and an item a token")
    padded = np.full((len(rows), int(lengths.max())), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.fromiter(
        (token for row in rows for token in row), dtype=np.int64, count=int(lengths.sum())
    )
    return padded


def _ended(rows: np.ndarray, eos_id: int) -> np.ndarray:
    ended = np.full((len(rows), rows.shape[1] + 1), -1, dtype=np.int64)
    ended[:, :-1] = rows
    ended[np.arange(len(rows)), (rows >= 0).sum(1)] = eos_id
    return ended
