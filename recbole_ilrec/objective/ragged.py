"""Sums and softmaxes over lists of (row, token) pairs.

Hard negatives and legal tokens are few beside the vocabulary, so they travel as flat lists: ``row [M]`` says to which
of N rows entry m belongs. Each function also takes one *own* value per row (in this package the true token's), which
keeps every row non-empty. All are differentiable in the values.
"""

import torch
from torch import Tensor

from recbole_ilrec.schema import LegalTokens


def row_sum(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum of the entries of each row: ``[M]`` to ``[rows]``, 0 for an empty row."""
    return values.new_zeros(rows).index_add(0, row, values)


def row_logsumexp(own: Tensor, values: Tensor, row: Tensor) -> Tensor:
    """``log(exp(own[n]) + sum of exp(values[m]) over the entries m of row n)``.

    Args:
        own: ``[N]``, finite.
        values: ``[M]``, of the same dtype.
        row: ``[M]`` int64.

    Returns:
        ``[N]``.
    """
    largest = own.detach().scatter_reduce(0, row, values.detach(), "amax")
    total = (own - largest).exp().index_add(0, row, (values - largest[row]).exp())
    return largest + total.log()


def row_softmax(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Softmax over the entries of each row, without an own value.

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


def pair_mask(row: Tensor, token: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[N, V]`` bool, True at the listed pairs."""
    mask = torch.zeros(shape, dtype=torch.bool, device=row.device)
    mask[row, token] = True
    return mask


def pair_list(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and tokens at which an ``[N, V]`` bool mask is True, both ``[M]`` int64; rows do not decrease."""
    row, token = mask.nonzero(as_tuple=True)
    return row, token


def rewards_at(legal: LegalTokens, row: Tensor, token: Tensor, vocab_size: int) -> Tensor:
    """Reward r_v of given pairs, 0 where the token is not legal there.

    Args:
        legal: with rewards.
        row: ``[M]`` int64.
        token: ``[M]`` int64.
        vocab_size: V.

    Returns:
        ``[M]``, dtype of the rewards.

    Raises:
        ValueError: ``legal`` carries no rewards.
    """
    if legal.reward is None:
        raise ValueError("Eq. 11 needs rewards; these legal tokens carry none")
    if not len(legal.row):
        return legal.reward.new_zeros(len(row))
    known, reward = legal.row * vocab_size + legal.token, legal.reward
    if not (known[1:] > known[:-1]).all():  # a trie hands them out in order
        known, order = known.sort()
        reward = reward[order]
    wanted = row * vocab_size + token
    place = torch.searchsorted(known, wanted).clamp_max(len(known) - 1)
    return torch.where(known[place] == wanted, reward[place], 0.0)


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
