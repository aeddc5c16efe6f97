"""Lists of (row, token) pairs: legal tokens are few beside the vocabulary, so they travel as flat lists.

``row [M]`` says to which of N rows entry m belongs.
"""

import torch
from torch import Tensor

from recbole_ilrec.schema import LegalTokens


def row_sum(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum of the entries of each row: ``[M]`` to ``[rows]``, 0 for an empty row."""
    return values.new_zeros(rows).index_add(0, row, values)


def row_softmax(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Softmax over the entries of each row.

    Args:
        values: ``[M]``.
        row: ``[M]`` int64.
        rows: N.

    Returns:
        ``[M]``; the entries of a row sum to 1.
    """
    largest = values.new_full((rows,), -torch.inf).scatter_reduce(0, row, values.detach(), "amax")
    unnormalised = (values - largest[row]).exp()
    return unnormalised / row_sum(unnormalised, row, rows)[row]


def pair_mask(legal: LegalTokens, table: Tensor) -> Tensor:
    """A table like ``table [N, V]`` that is 1 at the listed pairs and 0 elsewhere."""
    mask = torch.zeros_like(table)
    mask.view(-1)[flat_index(legal, table)] = 1.0
    return mask


def flat_index(legal: LegalTokens, table: Tensor) -> Tensor:
    """``[M]`` int64, where the listed pairs stand in ``table.view(-1)``; with it torch reads and writes fastest."""
    return torch.add(legal.token, legal.row, alpha=table.shape[1])


class RowLists:
    """The lists of N rows, ready to be cut.

    Args:
        legal: entries of the N rows.
        rows: N.

    Attributes:
        empty: ``[N]`` bool, rows without an entry.
    """

    def __init__(self, legal: LegalTokens, rows: int):
        self._legal = legal
        first = torch.searchsorted(legal.row, torch.arange(rows + 1, device=legal.row.device))
        self.empty = first.diff() == 0
        self._first: list[int] = first.tolist()

    def rows(self, low: int, high: int) -> LegalTokens:
        """The entries of the rows ``low : high``, renumbered from 0."""
        legal, own = self._legal, slice(self._first[low], self._first[high])
        return LegalTokens(legal.row[own] - low, legal.token[own], None if legal.reward is None else legal.reward[own])


def select_rows(legal: LegalTokens, chosen: Tensor, rows: int) -> LegalTokens:
    """The entries of some rows, renumbered in the order of ``chosen``.

    Args:
        legal: entries over ``rows`` rows.
        chosen: ``[A]`` int64, distinct and ascending.
        rows: N.
    """
    place = torch.full((rows,), -1, dtype=torch.long, device=chosen.device)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    row = place[legal.row]
    kept = row >= 0
    return LegalTokens(row[kept], legal.token[kept], None if legal.reward is None else legal.reward[kept])
