"""Llama's blocks for training a small model on a CPU: the same numbers to rounding, in fewer passes over memory.

With states 128 wide a matrix product takes as long as a few passes over its operands, and the stock blocks make dozens
of such passes. Here the rotation is one product of complex numbers, the norm has its derivative written down, and
dropout is added to the residual where it is drawn. Weights, their names and what is saved are those of
``transformers``; anything but float32 on a CPU goes through its own code, which is the reference in the tests.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    eager_attention_forward,
)

from recbole_ilrec.backbone.dropout import add_dropped


def hasten(model: Any, dropout: float) -> None:
    """Let the blocks of a Llama compute as this module does, with dropout on what each one adds.

    Args:
        model: a ``LlamaForCausalLM`` without biases, its modules of the library's own classes.
        dropout: rate, on the output of each attention and feed-forward block while training. Its sites are numbered
            from 1; 0 is free for the embeddings.
    """
    decoder = model.get_decoder()
    decoder.norm.__class__ = FastNorm
    for number, block in enumerate(decoder.layers):
        block.__class__ = FastLayer
        block.dropout, block.site = dropout, 1 + 2 * number
        block.self_attn.__class__ = FastAttention
        block.input_layernorm.__class__ = block.post_attention_layernorm.__class__ = FastNorm


def applies(states: Tensor) -> bool:
    """Whether this module's code is for such states; the library's own is for all others."""
    return states.device.type == "cpu" and states.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class FastNorm(LlamaRMSNorm):
    """The norm in two passes, its derivative in three."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., H] -> [..., H]``."""
        if not applies(hidden_states):
            return super().forward(hidden_states)
        return RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def rms_normed(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + epsilon) * weight (arXiv:1910.07467, Eq. 4), and what x was multiplied by, ``[..., 1]``."""
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * inverse).mul_(weight), inverse


class RMSNorm(torch.autograd.Function):
    """:func:`rms_normed` with its derivative written down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, inverse = rms_normed(x, weight, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        width = x.shape[-1]
        # That of a layer norm whose mean is told to be 0, but for the share that the mean would have had.
        by_x, by_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
        )
        return by_x.add_((grad @ weight)[..., None].mul_(inverse).div_(width)), by_weight, None


def paired(weight: Tensor, head_dim: int) -> Tensor:
    """``weight [heads * d, H]`` with the rows of features i and i + d/2 of each head, which are rotated together, side
    by side."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def turns(position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Cosines and sines ``[B, T, d]`` of the library as complex numbers ``[B, T, 1, d / 2]``."""
    half = position_embeddings[0].shape[-1] // 2
    return torch.complex(*(x[..., :half].contiguous() for x in position_embeddings))[:, :, None]


class FastAttention(LlamaAttention):
    """Rotary positions (arXiv:2104.09864) as one multiplication of complex numbers.

    Queries and keys get their features in the same other order (:func:`paired`), which leaves their products as they
    were.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``transformers``."""
        # With a cache there are few new tokens, and its keys must all be in one order of features.
        if not applies(hidden_states) or past_key_values is not None or position_embeddings is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        turn = turns(position_embeddings)

        def rotated(weight: Tensor) -> Tensor:
            features = functional.linear(hidden_states, paired(weight, self.head_dim))
            features = features.unflatten(-1, (-1, self.head_dim // 2, 2))
            return torch.view_as_real(torch.view_as_complex(features) * turn).flatten(-2).transpose(1, 2)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            rotated(self.q_proj.weight),
            rotated(self.k_proj.weight),
            self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.flatten(-2)), weights


class FastLayer(LlamaDecoderLayer):
    """A block with dropout on what it adds; see :func:`hasten` for ``dropout`` and ``site``."""

    dropout: float
    site: int

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, row_keys: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """See ``transformers``; ``row_keys`` as for :func:`~recbole_ilrec.backbone.dropout.dropout`."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self._added(hidden_states, attended, self.site, row_keys)
        update = self.mlp(self.post_attention_layernorm(hidden_states))
        return self._added(hidden_states, update, self.site + 1, row_keys)

    def _added(self, states: Tensor, update: Tensor, site: int, row_keys: Tensor | None) -> Tensor:
        if not (self.training and self.dropout):
            return states + update
        return add_dropped(states, update, self.dropout, site=site, row_keys=row_keys)
