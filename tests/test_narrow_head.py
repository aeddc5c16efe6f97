"""Eq. 8 on the tokens of the items alone: a head of these columns gives what the whole head gives."""

import pytest
import torch

from recbole_ilrec.objective import blocks, build_objective
from recbole_ilrec.schema import LayerStates
from recbole_ilrec.settings import ILRecSettings
from tests.objective_cases import EOS, random_step
from tests.worlds import small_backbone


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spared", [False, True])
@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)], ids=str
)
def test_a_head_of_the_items_tokens_gives_what_the_whole_head_gives(monkeypatch, dtype, exact, spared, bias):
    """Values and gradients, over several blocks and chunks, with positions that are not distilled."""
    monkeypatch.setattr(blocks, "BLOCK", {"cpu": 40})
    monkeypatch.setattr(blocks, "CHUNK_ROWS", 5)
    settings = ILRecSettings(cpd_support="item_tokens", lambda_=0.7, mu=0.2, cpd_share=0.6, cpd_detach_head=spared)
    found = []
    for narrow in (False, True):
        step = random_step(rows=23, vocab=19, dtype=dtype)
        offset = torch.linspace(-1, 1, 19, dtype=dtype).requires_grad_() if bias else None
        widths = []

        def head(x, step=step, offset=offset):
            return torch.nn.functional.linear(x, step.head, offset)

        def rows(tokens, step=step, offset=offset, widths=widths):
            widths.append(len(tokens))
            return tuple(x.index_select(0, tokens) for x in (step.head, offset) if x is not None)

        states = LayerStates(step.final, tuple(step.candidates), head, rows if narrow else None)
        objective = build_objective("ilrec", settings, step.item_tokens, eos_id=EOS)
        terms = objective(states, step.batch(), step.legal, generator=torch.Generator().manual_seed(3))
        leaves = [*step.leaves, *([offset] if bias else [])]
        gradients = torch.autograd.grad(terms.total, leaves)
        found.append([terms.total, *terms.parts.values(), *gradients])
        assert widths == ([int(step.item_tokens.sum())] if narrow else [])
    assert widths[0] < 19
    for wide, narrowed in zip(*found, strict=True):
        scale = wide.abs().max().clamp_min(1e-6)
        assert ((wide - narrowed).abs().max() / scale).item() < exact


def test_a_backbones_own_head_is_narrowed_and_one_with_an_adapter_is_not():
    backbone = small_backbone(6)
    ids = torch.tensor([[1, 3, 2, 4]])
    states = backbone.layer_states(ids, torch.tensor([0, 2]), 1)
    tokens = torch.tensor([1, 4])
    weights, *offset = states.head_rows(tokens)
    assert torch.allclose(
        torch.nn.functional.linear(states.final, weights, *offset), states.head(states.final)[:, tokens]
    )
    wrapped = torch.nn.Sequential(backbone.model.get_output_embeddings())
    backbone.model.set_output_embeddings(wrapped)
    assert backbone.layer_states(ids, torch.tensor([0, 2]), 1).head_rows is None
