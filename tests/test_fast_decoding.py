"""The small model's own decoding beside the one of every backbone, which is the reference."""

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone import fast_decoding
from recbole_ilrec.backbone.base import Backbone, DecodeState
from recbole_ilrec.backbone.fast_decoding import FastBackbone
from recbole_ilrec.decoding.beam import beam_search
from recbole_ilrec.settings import BackboneSettings
from tests.worlds import random_identifiers, small_backbone, small_catalog

TOKENS, VOCABULARY = 9, 13
SIZES = {"hidden_size": 24, "intermediate_size": 40, "layers": 3, "dropout": 0.3}


class Stock:
    """The same weights, decoded as every backbone is."""

    def __init__(self, backbone: FastBackbone):
        self.backbone, self.head = backbone, backbone.head

    def prefill(self, ids, mask):
        return Backbone.prefill(self.backbone, ids, mask)

    def extend(self, state, tokens, parent):
        return Backbone.extend(self.backbone, state, tokens, parent)


def sharp_backbone(heads: int = 4) -> FastBackbone:
    """A model whose attention, norms and answers are far from even."""
    backbone = small_backbone(TOKENS, BackboneSettings(**SIZES, heads=heads)).eval()
    assert isinstance(backbone, FastBackbone)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.25)
    return backbone


def prompts(users: int, length: int, ragged: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    real = torch.randint(1, length + 1, (users,)) if ragged else torch.full((users,), length)
    return torch.randint(VOCABULARY, (users, length)), torch.arange(length) >= length - real[:, None]


def walk(stepper, ids, mask, widths=(5, 7, 2, 4)):
    """States after the prompts and after each step of random beams, as many as ``widths`` says."""
    chance = torch.Generator().manual_seed(8)
    states, state = stepper.prefill(ids, mask)
    found, before = [states], 1
    for width in widths:
        shape = (len(ids), width)
        tokens = torch.randint(VOCABULARY, shape, generator=chance)
        found.append(stepper.extend(state, tokens, torch.randint(before, shape, generator=chance)))
        before = width
    return found, state


def assert_same_walk(backbone: FastBackbone, ids: torch.Tensor, mask: torch.Tensor) -> None:
    (got, state), (wanted, _) = walk(backbone, ids, mask), walk(Stock(backbone), ids, mask)
    assert not isinstance(state, DecodeState)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("users", "length", "ragged"), [(1, 1, False), (3, 6, False), (7, 9, True)])
def test_states_of_any_beams_are_those_of_the_stock_code(heads, users, length, ragged):
    assert_same_walk(sharp_backbone(heads=heads), *prompts(users, length, ragged))


@pytest.mark.parametrize("rows", [1, 20])
def test_how_many_users_are_taken_together_does_not_matter(monkeypatch, rows):
    monkeypatch.setattr(fast_decoding, "ROWS", rows)
    assert_same_walk(sharp_backbone(), *prompts(7, 9, ragged=True))


@pytest.mark.parametrize("limits", [{}, {"renormalise": True}, {"banned": True}], ids=str)
@pytest.mark.parametrize("width", [1, 6, 40])
def test_a_search_finds_what_it_finds_with_the_stock_code(limits, width):
    backbone = sharp_backbone()
    identifiers = random_identifiers(np.random.default_rng(1), 40, TOKENS, (1, 2, 3, 4))
    catalog = small_catalog(backbone, identifiers)
    ids, mask = prompts(6, 8, ragged=True)
    if "banned" in limits:
        limits = {"banned": torch.tensor([[1, 2, 5, 40]] * 6)}
    got, wanted = (
        beam_search(stepper, catalog.trie, ids, mask, num_beams=width, **limits)
        for stepper in (backbone, Stock(backbone))
    )
    assert got.leaf.tolist() == wanted.leaf.tolist()
    torch.testing.assert_close(got.score, wanted.score, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.bound, wanted.bound, atol=1e-5, rtol=1e-5)


def test_weights_that_were_trained_or_loaded_since_are_those_that_decode():
    backbone, (ids, mask) = sharp_backbone(), prompts(3, 6, ragged=True)
    start = {name: value.clone() for name, value in backbone.state_dict().items()}
    before = walk(backbone, ids, mask)[0][-1]
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1)
    backbone.train().layer_states(ids, torch.arange(18)).final.square().sum().backward()
    optimizer.step()
    assert_same_walk(backbone.eval(), ids, mask)
    assert not torch.allclose(walk(backbone, ids, mask)[0][-1], before, atol=1e-2)
    backbone.load_state_dict(start)
    assert torch.equal(walk(backbone, ids, mask)[0][-1], before)


def test_what_has_been_decoded_can_be_trained_on():
    backbone, (ids, mask) = sharp_backbone(), prompts(2, 4, ragged=False)
    states, _ = backbone.prefill(ids, mask)
    backbone.head(states[:, 0]).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in backbone.parameters())


@pytest.mark.parametrize("why", ["bfloat16", "autocast", "training"])
def test_other_precisions_and_training_go_through_the_stock_code(why):
    backbone = sharp_backbone().to(torch.bfloat16 if why == "bfloat16" else torch.float32)
    backbone.train(why == "training")
    ids, mask = prompts(3, 5, ragged=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        torch.manual_seed(1)
        got, state = walk(backbone, ids, mask)
        torch.manual_seed(1)
        wanted, _ = walk(Stock(backbone), ids, mask)
    assert isinstance(state, DecodeState)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
