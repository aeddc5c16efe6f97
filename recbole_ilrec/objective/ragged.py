"""Lists of (row, token) pairs: legal tokens are few beside the vocabulary, so they travel as flat lists.

``row [M]`` says to which of N rows entry m belongs.
"""

import torch
from torch import Tensor

from recbole_ilrec.schema import LegalTokens


def row_sum(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum of the entries of each row: ``[M]`` to ``[rows]``, 0 for an empty row."""
    return values.new_zeros(rows).index_add(0, row, values)


def row_log_softmax(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Logarithm of the softmax over the entries of each row, exact however small a probability is.

    Args:
        values: ``[M]``.
        row: ``[M]`` int64.
        rows: N.

    Returns:
        ``[M]``; the exponentials of a row sum to 1.
    """
    largest = values.new_full((rows,), -torch.inf).scatter_reduce(0, row, values.detach(), "amax")
    shifted = values - largest[row]
    return shifted - row_sum(shifted.exp(), row, rows)[row].log()


def pair_mask(legal: LegalTokens, table: Tensor) -> Tensor:
    """A table of the shape and dtype of ``table [N, V]`` that is 1 at the listed pairs and 0 elsewhere."""
    mask = torch.zeros_like(table)
    mask.view(-1)[flat_index(legal, table)] = 1.0
    return mask


def flat_index(legal: LegalTokens, table: Tensor) -> Tensor:
    """``[M]`` int64, where the listed pairs stand in any ``[N, V]`` like ``table``, seen as one row: torch reads and
    writes fastest so."""
    return torch.add(legal.token, legal.row, alpha=table.shape[1])


def in_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """``rows`` rearranged: row ``order[0]`` first; ``None`` leaves them as they are."""
    return rows if order is None else rows.index_select(0, order)


class RowLists:
    """The lists of N rows, ready to be cut.

    Args:
        legal: entries of the N rows.
        rows: N.
        order: ``[N]`` int64, the row that comes first, second, ...; ``None`` leaves them as they are.

    Attributes:
        empty: ``[N]`` bool, rows without an entry.
    """

    def __init__(self, legal: LegalTokens, rows: int, order: Tensor | None = None):
        first = torch.searchsorted(legal.row, torch.arange(rows + 1, device=legal.row.device))
        if order is not None:
            old, size = first[order], first.diff()[order]
            first = torch.nn.functional.pad(size.cumsum(0), (1, 0))
            row = torch.repeat_interleave(torch.arange(rows, device=order.device), size)
            at = (old - first[:-1]).index_select(0, row).add_(torch.arange(len(row), device=order.device))
            reward = None if legal.reward is None else legal.reward.index_select(0, at)
            legal = LegalTokens(row, legal.token.index_select(0, at), reward)
        self._legal = legal
        self.empty = first.diff() == 0
        self._first: list[int] = first.tolist()

    def rows(self, low: int, high: int) -> LegalTokens:
        """The entries of the rows ``low : high``, renumbered from 0."""
        legal, own = self._legal, slice(self._first[low], self._first[high])
        return LegalTokens(legal.row[own] - low, legal.token[own], None if legal.reward is None else legal.reward[own])
