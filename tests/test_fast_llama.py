"""The fast blocks of ``tiny`` beside those of transformers, which are the reference."""

import pytest
import torch
from transformers.models.llama import modeling_llama as library

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.backbone.fast_llama import FastNorm, RMSNorm, hasten


def pair(*, heads: int = 2, width: int = 24, attention: str = "sdpa", dtype: torch.dtype = torch.float32):
    """Two models of the same weights: the library's and the fast one."""
    torch.manual_seed(3)
    config = library.LlamaConfig(
        vocab_size=31,
        hidden_size=width,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    config._attn_implementation = attention
    models = [library.LlamaForCausalLM(config).to(dtype) for _ in range(2)]
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    models[1].load_state_dict(models[0].state_dict())
    hasten(models[1], 0.0)
    return [Backbone(model, None) for model in models]


def close(one: torch.Tensor, two: torch.Tensor, whole: float = 0.0) -> bool:
    """Equal to what float32 sums of some hundred terms differ by in another order, on any processor.

    Args:
        whole: norm of all that was computed together, whose rounding is left where ``two`` is none by the equations, as
            the gradient of a query that sees one key.
    """
    return bool((one - two).norm() <= 1e-5 * two.norm() + 1e-7 * whole)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 7), (5, 17)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_and_gradients_are_the_librarys_to_rounding(rows, length, attention):
    stock, fast = pair(heads=2 if length == 7 else 4, attention=attention)
    ids = torch.randint(31, (rows, length))
    select = torch.arange(0, rows * length, 2)
    weight = torch.randn(3, len(select), 24)
    for backbone in (stock, fast):
        states = backbone.train().layer_states(ids, select, 2)
        total = sum((x * w).sum() for x, w in zip((states.final, *states.candidates), weight, strict=True))
        (total + states.head(states.final).square().sum()).backward()
    assert isinstance(fast.model.model.layers[0].input_layernorm, FastNorm)
    whole = sum(float(parameter.grad.square().sum()) for parameter in stock.parameters()) ** 0.5
    for (name, one), two in zip(fast.named_parameters(), stock.parameters(), strict=True):
        assert close(one.grad, two.grad, whole), name
    with torch.no_grad():
        assert close(fast.layer_states(ids, select).final, stock.layer_states(ids, select).final)


def test_tree_attention_and_cached_decoding_are_the_librarys_to_rounding():
    stock, fast = (backbone.eval() for backbone in pair())
    ids, mask = torch.randint(31, (2, 6)), torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    start = torch.zeros(2, 2, dtype=torch.long)
    segment, positions = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2), torch.tensor([[0, 1, 2, 3, 2, 3]] * 2)
    found = []
    for backbone in (stock, fast):
        with torch.no_grad():
            tree = backbone.answer_states(ids, positions, segment, torch.arange(12))
        state, cache = backbone.prefill(ids, mask)
        found.append((tree, state, backbone.extend(cache, torch.tensor([[4, 5]] * 2), start)))
    assert all(close(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_goes_through_the_librarys_own_code(autocast):
    stock, fast = pair(dtype=torch.float32 if autocast else torch.bfloat16)
    ids, select = torch.randint(31, (2, 5)), torch.arange(10)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(fast.layer_states(ids, select).final, stock.layer_states(ids, select).final)


def test_the_norms_derivative_is_right():
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: RMSNorm.apply(*inputs, 1e-6), (x, weight))
