"""Eq. 11 and the lists of (row, token) pairs under it."""

import math

import pytest
import torch

from recbole_ilrec.objective.crr import collaborative_regularisation, soft_labels
from recbole_ilrec.objective.distribution import distribution
from recbole_ilrec.objective.ragged import RowLists, pair_mask, row_log_softmax
from recbole_ilrec.objective.sft import cross_entropy
from recbole_ilrec.schema import LegalTokens
from tests import reference
from tests.objective_cases import random_legal


def labels(y, scope, legal, **options):
    return soft_labels(y, scope, legal, RowLists(legal, len(y)).empty, **options)


def regularisation(z, y, scope, legal, **options):
    return collaborative_regularisation(distribution(z), labels(y, scope.to(z.dtype), legal, **options))


def close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected).expand_as(actual), atol=1e-6, rtol=0)


@pytest.mark.parametrize("label", ["softmax", "normalised"])
@pytest.mark.parametrize(("temperature", "floor"), [(1.0, 0.0), (0.2, 0.0), (1.0, 0.5)])
@pytest.mark.parametrize("shape", [(1, 5), (3, 31), (9, 40)])
def test_regularisation_equals_the_slow_reference(shape, label, temperature, floor):
    rows, vocab = shape
    source = torch.Generator().manual_seed(vocab + rows)
    z = (torch.randn(shape, generator=source, dtype=torch.float64) * 3).requires_grad_()
    y = torch.randint(vocab, (rows,), generator=source)
    scope = torch.rand(shape, generator=source) < 0.3
    legal, table = random_legal(y, torch.arange(vocab), source)
    options = {"label": label, "temperature": temperature, "truth_floor": floor}
    got = regularisation(z, y, scope, legal, **options)
    wanted = torch.stack(
        [
            reference.crr(z[n], int(y[n]), scope[n].nonzero().squeeze(1).tolist(), table[n], **options)
            for n in range(rows)
        ]
    )
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), z)[0] for x in (got, wanted)))


def test_label_falls_on_the_truth_when_no_reward_lies_in_scope():
    z, y = torch.randn(1, 5), torch.tensor([2])
    legal = LegalTokens(torch.tensor([0]), torch.tensor([4]), torch.tensor([1.0]))
    scope = torch.tensor([[True, False, False, False, False]])
    got = regularisation(z, y, scope, legal, label="normalised")
    torch.testing.assert_close(got, cross_entropy(z, y))


def test_illegal_negatives_get_reward_zero_but_some_label():
    """exp(0) = 1 and exp(1) = e, so the illegal token has 1 / (1 + e) of the label (Eq. 11 as printed)."""
    z, y = torch.zeros(1, 4), torch.tensor([2])
    z[0, 0] = math.log(3)
    legal = LegalTokens(torch.tensor([0]), torch.tensor([2]), torch.tensor([1.0]))
    scope = torch.tensor([[True, False, False, False]])
    q = 1 / (1 + math.e)
    close(regularisation(z, y, scope, legal), q * math.log(2) + (1 - q) * math.log(6))


@pytest.mark.parametrize(
    ("tokens", "truth", "other"), [(20, 0.0858, 0.0480), (100, 0.0180, 0.0099), (256, 0.0071, 0.0039)]
)
def test_printed_labels_are_nearly_flat(tokens, truth, other):
    """A reward of .6, the rest shared out; a token of H that leads to no item still gets its part of the label."""
    legal = LegalTokens(torch.zeros(tokens).long(), torch.arange(tokens), torch.full((tokens,), 0.4 / (tokens - 1)))
    legal.reward[0] = 0.6
    y, scope = torch.tensor([0]), torch.ones(1, tokens)
    assert labels(y, scope, legal)[0, 0].item() == pytest.approx(truth, abs=5e-5)
    alone = LegalTokens(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.6]))
    assert labels(y, scope, alone)[0, 1].item() == pytest.approx(other, abs=5e-5)


def test_labels_are_those_of_the_rewards_and_their_gradient_is_known():
    """p - q is what :class:`ILRec` adds to the gradient."""
    z = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    scope = torch.rand(2, 5) > 0.5
    legal = LegalTokens(torch.tensor([0, 0]), torch.tensor([3, 1]), torch.tensor([0.3, 0.7]))
    q = labels(torch.tensor([1, 0]), scope.double(), legal)
    torch.testing.assert_close(q.sum(1), torch.ones(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(collaborative_regularisation(distribution(z), q).sum(), z)
    torch.testing.assert_close(gradient, z.detach().softmax(-1) - q)


def test_rows_of_a_list_are_selected_and_renumbered():
    legal = LegalTokens(torch.tensor([0, 0, 2, 2]), torch.tensor([1, 3, 0, 3]), torch.tensor([0.7, 0.3, 0.2, 0.8]))
    for part in (RowLists(legal, 3).rows(1, 3), RowLists(legal, 3, torch.tensor([1, 2, 0])).rows(0, 2)):
        assert (part.row.tolist(), part.token.tolist()) == ([1, 1], [0, 3])
        close(part.reward, torch.tensor([0.2, 0.8]))
    assert pair_mask(legal, torch.ones(3, 4)).nonzero().tolist() == [[0, 1], [0, 3], [2, 0], [2, 3]]


def test_ragged_log_softmax_equals_a_dense_one():
    z = torch.randn(4, 6, dtype=torch.float64) * 50
    mask = torch.rand(4, 6) > 0.5
    row, token = mask.nonzero(as_tuple=True)
    wanted = z.masked_fill(~mask, -torch.inf).log_softmax(1)[row, token]
    torch.testing.assert_close(row_log_softmax(z[row, token], row, 4), wanted)
    large = row_log_softmax(torch.tensor([1000.0, 1001.0, -2000.0]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(large, torch.cat([torch.tensor([0.0, 1.0]).log_softmax(0), torch.zeros(1)]))
