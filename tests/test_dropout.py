"""Dropout of ``tiny``: masks that depend on the row and the place alone, and are as good as drawn."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone.dropout import add_dropped, dropout
from recbole_ilrec.chance import below, fresh_numbers, keys_of_rows, numbers
from recbole_ilrec.prompt.answers import AnswerExample, collate_answers, encode_answers
from recbole_ilrec.prompt.encode import Example
from recbole_ilrec.prompt.rows import TrainRows
from recbole_ilrec.training.micro_batches import MicroBatches
from tests.worlds import SMALL, compact_encoder, pairs_of, small_backbone, small_catalog

ROWS, PLACES = 200, 400


def keys(epoch: int = 0, *, seed: int = 1, stream: int = 5, rows: int = ROWS) -> torch.Tensor:
    return keys_of_rows(seed, epoch, stream, np.arange(rows))


def masks(row_keys: torch.Tensor, site: int, rate: float) -> torch.Tensor:
    """``[rows, PLACES]`` standardised: mean 0 and variance 1 if entries are dropped at ``rate``."""
    kept = dropout(torch.ones(len(row_keys), PLACES), rate, site=site, row_keys=row_keys).ne(0).double()
    return (kept - (1 - rate)) / (rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.9])
def test_the_rate_is_met_overall_in_every_row_and_at_every_place(rate):
    drawn = masks(keys(), 0, rate)
    assert abs(drawn.mean()) < 4 / (ROWS * PLACES) ** 0.5
    for axis, size in ((0, ROWS), (1, PLACES)):
        by = drawn.mean(axis) * size**0.5
        assert by.abs().max() < 5.5 and by.var() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_masks_of_rows_sites_epochs_seeds_streams_and_neighbours_are_uncorrelated(rate):
    here = masks(keys(), 1, rate)
    pairs = {"site": masks(keys(), 2, rate), "epoch": masks(keys(1), 1, rate), "seed": masks(keys(seed=2), 1, rate)}
    pairs |= {"stream": masks(keys(stream=6), 1, rate), "row": here.roll(1, 0)}
    pairs |= {f"{lag} on": here.roll(lag, 1) for lag in (1, 2, 3, 4, 8, 32)}
    for name, other in pairs.items():
        assert abs((here * other).mean()) < 4.5 / (ROWS * PLACES) ** 0.5, name
    between = here @ here.T / PLACES**0.5
    apart = between[~torch.eye(ROWS, dtype=torch.bool)]
    assert apart.abs().max() < 6.5 and apart.var() == pytest.approx(1, abs=0.05)


def test_all_bits_of_the_numbers_are_even_and_independent():
    found = numbers(keys()[:, None], 3, torch.arange(100)).flatten()
    bits = ((found[:, None] >> torch.arange(64)) & 1).double() * 2 - 1
    assert bits.mean(0).abs().max() < 4.5 / len(bits) ** 0.5
    assert (bits.T @ bits).fill_diagonal_(0).abs().max() < 5 * len(bits) ** 0.5
    assert len(found.unique()) == len(found)
    assert (found < below(0.3)).double().mean() == pytest.approx(0.3, abs=0.02)


def test_keys_are_those_of_the_rows_whatever_stands_beside_them():
    some = np.array([7, 3, 150])
    assert torch.equal(keys_of_rows(1, 0, 5, some), keys()[some])
    kinds = product((0, 1), (1, 2), (5, 6))
    every = torch.cat([keys(epoch, seed=seed, stream=stream) for epoch, seed, stream in kinds])
    assert len(every.unique()) == len(every)


def test_a_rows_mask_does_not_depend_on_other_rows_or_on_padding():
    states = torch.randn(5, 6, 7)
    row_keys = keys(rows=5)
    together = dropout(states, 0.4, site=2, row_keys=row_keys)
    assert torch.equal(dropout(states[[3, 1]], 0.4, site=2, row_keys=row_keys[[3, 1]]), together[[3, 1]])
    padded = torch.cat([states, torch.randn(5, 4, 7)], dim=1)
    assert torch.equal(dropout(padded, 0.4, site=2, row_keys=row_keys)[:, :6], together)


@pytest.mark.parametrize("shape", [(3, 5), (1, 7, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_added_to_a_residual_is_dropout_and_a_sum(shape, dtype):
    states, update = torch.randn(2, *shape, dtype=dtype, requires_grad=True).unbind()
    where = {"site": 1, "row_keys": keys(rows=shape[0])}
    wanted, got = states + dropout(update, 0.4, **where), add_dropped(states, update, 0.4, **where)
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=4 * torch.finfo(dtype).eps)
    for one, two in zip(*(torch.autograd.grad(x.sum(), [states, update]) for x in (got, wanted)), strict=True):
        torch.testing.assert_close(one, two)


def test_states_of_another_precision_than_the_update_are_added_too():
    states, update = torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bfloat16)
    assert set(add_dropped(states, update, 0.5, site=1, row_keys=None).flatten().tolist()) <= {0.0, 2.0}


def test_rows_without_keys_get_other_masks_each_time_by_torchs_generator():
    states = torch.ones(20, 20)
    torch.manual_seed(3)
    one, two = (dropout(states, 0.5, site=0, row_keys=None) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(dropout(states, 0.5, site=0, row_keys=None), one) and not torch.equal(one, two)
    first, again = (fresh_numbers(3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, again)


def world(checkpointing: bool = False):
    """A backbone with dropout in training, and an encoder of its rows."""
    settings = SMALL.model_copy(update={"dropout": 0.3, "gradient_checkpointing": checkpointing})
    backbone = small_backbone(6, settings).train()
    return backbone, compact_encoder(backbone, small_catalog(backbone, [[0, 1], [2, 3], [4, 5], [0, 2], [3, 1]]))


def token_batch(encoder, rows):
    """Rows of 2 to 4 items; the keys are those of their numbers."""
    items = [np.array([1 + (row + at) % 5 for at in range(2 + row % 3)]) for row in rows]
    batch = encoder.collate([encoder.row(Example(own, np.array([0]))) for own in items])
    return replace(batch, row_keys=keys_of_rows(0, 0, 5, np.array(rows)))


def answer_batch(encoder, rows):
    """Histories of 1 to 3 items with three answers, the last one missing in some rows."""

    def answers(row):
        return np.array([1 + row % 5, 1 + (row + 2) % 5, (row % 2) * 3])

    examples = [AnswerExample(np.arange(1, 2 + row % 3), answers(row)) for row in rows]
    batch = collate_answers([encode_answers(encoder, example) for example in examples], encoder.pad_id)
    return replace(batch, row_keys=keys_of_rows(0, 0, 6, np.array(rows)))


def gradients(backbone, batches, states_of):
    """Of a sum over the states of all batches."""
    backbone.zero_grad()
    sum((states_of(batch).square() * torch.arange(1, 33)).sum() for batch in batches).backward()
    return [parameter.grad.clone() for parameter in backbone.parameters()]


@pytest.mark.parametrize("make", [token_batch, answer_batch])
def test_states_and_gradients_do_not_depend_on_how_rows_are_shared_out_or_on_checkpointing(make):
    def states_of(batch):
        if make is answer_batch:
            inputs = (batch.input_ids, batch.position_ids, batch.segment, batch.select)
            return backbone.answer_states(*inputs, batch.row_keys)
        return backbone.layer_states(batch.input_ids, batch.select, row_keys=batch.row_keys).final

    found = []
    for parts, checkpointing in [([[0, 1, 2, 3]], False), ([[3, 0], [2], [1]], False), ([[1, 3], [0, 2]], True)]:
        backbone, encoder = world(checkpointing)
        torch.manual_seed(len(found))  # what torch's own generator does is of no matter
        found.append(gradients(backbone, [make(encoder, rows) for rows in parts], states_of))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert (one - two).norm() <= 1e-5 * one.norm()


def test_rows_have_other_keys_in_another_epoch():
    rows = TrainRows(pairs_of([[1, 2, 3, 4, 5]], 4), rows="prefix", window=4)
    batches = MicroBatches(rows, world()[1])
    first, again, later = (batches[epoch, np.array([3, 1])]["batch"].row_keys for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not (first == later).any()


def test_the_keys_matter_in_training_only():
    backbone, encoder = world()
    batch = token_batch(encoder, [0, 1, 2])

    def states(row_keys):
        return backbone.layer_states(batch.input_ids, batch.select, 2, row_keys=row_keys)

    drawn, others = states(batch.row_keys), states(batch.row_keys + 1)
    assert torch.equal(drawn.final, states(batch.row_keys).final) and not torch.equal(drawn.final, others.final)
    assert not torch.equal(drawn.candidates[0], others.candidates[0])
    backbone.eval()
    assert torch.equal(states(batch.row_keys).final, states(None).final)
