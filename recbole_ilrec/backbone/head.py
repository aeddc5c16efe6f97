"""The head of a causal LM: a matrix, or a frozen one of which an adapter trains some rows (peft's trainable tokens).

The adapter's own forward pass copies the whole matrix, its rows put in, at each call, and its backward pass computes
the gradient of every row. Here the trained rows have a product of their own, whose columns take their place among the
logits: the same numbers to rounding, neither the copy nor the third product.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class _TrainedRows(NamedTuple):
    """``weight [S, H]`` in the place of the rows ``tokens [S]`` of ``base``."""

    base: nn.Linear
    tokens: Tensor
    weight: Tensor


def logits(head: nn.Module, states: Tensor) -> Tensor:
    """``[n, H] -> [n, V]``."""
    trained = _trained_rows(head)
    if trained is None:
        return _product(head, states)
    found = trained.base(states)
    return found.index_copy_(-1, trained.tokens, linear(states, trained.weight.to(states.dtype)).to(found.dtype))


def _product(head: Any, states: Tensor) -> Tensor:
    """In the precision of the states; weights that learn have a greater one. Autocast sees to that by itself."""
    if type(head) is not nn.Linear or head.weight.dtype == states.dtype:
        return head(states)
    if torch.is_autocast_enabled(states.device.type):
        return head(states)
    return linear(states, *(x.to(states.dtype) for x in (head.weight, head.bias) if x is not None))


def is_matrix(head: nn.Module) -> bool:
    """Whether :func:`rows` can be had: there is no other adapter."""
    return type(head) is nn.Linear or _trained_rows(head) is not None


def rows(head: Any, tokens: Tensor) -> tuple[Tensor, ...]:
    """Weights ``[S, H]`` and, if there is one, bias ``[S]`` for ``tokens [S]``, with their gradients."""
    trained = _trained_rows(head)
    base = head if trained is None else trained.base
    weight, *bias = (x.index_select(0, tokens) for x in (base.weight, base.bias) if x is not None)
    if trained is not None:
        # In the greater precision of both: gradients of a row are summed over chunks in it.
        weight = weight.to(torch.promote_types(weight.dtype, trained.weight.dtype))
        number = tokens.new_full((base.out_features,), -1)
        number[trained.tokens] = torch.arange(len(trained.tokens), device=tokens.device)
        place = (number[tokens] >= 0).nonzero().squeeze(1)
        weight = weight.index_copy(0, place, trained.weight.index_select(0, number[tokens[place]]).to(weight.dtype))
    return weight, *bias


def _trained_rows(head: nn.Module) -> _TrainedRows | None:
    """The rows that an adapter trains and uses now; ``None`` where there is none, or it is not as expected."""
    layer: Any = getattr(head, "token_adapter", None)
    if layer is None or type(layer.base_layer) is not nn.Linear or layer.base_layer.bias is not None:
        return None
    active = list(layer.active_adapters)
    if layer.merged or len(active) != 1 or getattr(head, "disable_adapters", False) or layer.disable_adapters:
        return None
    weight = layer.trainable_tokens_delta[active[0]]
    tokens = torch.tensor(layer.token_indices[active[0]], device=weight.device)
    return _TrainedRows(layer.base_layer, tokens, weight)
