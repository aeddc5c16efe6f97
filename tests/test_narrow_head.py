"""Eq. 8 on the tokens of the items alone: a head of these columns gives what the whole head gives."""

import pytest
import torch

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.objective import blocks, build_objective
from recbole_ilrec.schema import LayerStates, TokenBatch
from recbole_ilrec.settings import BackboneSettings, ILRecSettings
from tests.objective_cases import EOS, random_step
from tests.test_adapter import LORA, save_model
from tests.test_backbone import ITEM_TOKENS
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
        step.item_tokens = torch.arange(19) % 3 == 1
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
        assert widths == ([6] if narrow else [])
    for wide, narrowed in zip(*found, strict=True):
        scale = wide.abs().max().clamp_min(1e-6)
        assert ((wide - narrowed).abs().max() / scale).item() < exact


def test_a_backbones_own_head_is_narrowed_and_one_of_another_kind_is_not():
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


def test_rows_of_an_adapter_on_bfloat16_weights_are_trained_as_precisely_by_either_head(tmp_path, monkeypatch):
    """Their gradient is summed over the chunks in the rows' own float32; the reference has weights of float64."""
    monkeypatch.setattr(blocks, "BLOCK", {"cpu": 400})
    monkeypatch.setattr(blocks, "CHUNK_ROWS", 4)
    path = save_model(tmp_path / "model", "Llama", tied=False)
    found = {}
    for dtype, narrow in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float64, False)):
        backbone = build_backbone(BackboneSettings(path=path), ITEM_TOKENS, [], 0, LORA)
        head = backbone.model.get_output_embeddings()
        (delta,) = {id(p): p for name, p in head.named_parameters() if "trainable_tokens_delta" in name}.values()
        head.token_adapter.base_layer.to(dtype)
        delta.data = delta.data.to(torch.float64 if dtype == torch.float64 else torch.float32)
        source = torch.Generator().manual_seed(1)
        final, *candidates = torch.randn(3, 300, 32, generator=source, dtype=torch.float64).to(torch.bfloat16).to(dtype)
        mask = torch.zeros(backbone.vocab_size, dtype=torch.bool)
        mask[backbone.tokenizer.convert_tokens_to_ids(ITEM_TOKENS)] = True
        targets = torch.randint(backbone.vocab_size, (300,), generator=source)
        nodes = torch.zeros_like(targets)
        batch = TokenBatch(targets[None], torch.arange(300), targets, nodes, nodes)
        states = LayerStates(final, tuple(candidates), backbone.head, backbone.head_rows if narrow else None)
        settings = ILRecSettings(k=2, cpd_support="item_tokens", lambda_=1.0, mu=0.0)
        terms = build_objective("ilrec", settings, mask)(states, batch, None)
        found[dtype, narrow] = torch.autograd.grad(terms.total, delta)[0].double()
    exact = found[torch.float64, False]
    for narrow in (True, False):
        assert (found[torch.bfloat16, narrow] - exact).norm() / exact.norm() < 1e-2
