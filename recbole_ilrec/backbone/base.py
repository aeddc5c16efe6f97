"""A causal language model as ILRec needs it: states of a few layers at a few positions, and cached decoding.

Wraps any ``transformers`` causal LM whose parts can be found by structure. Knows token ids; never items or losses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_ilrec.errors import UserError
from recbole_ilrec.schema import LayerStates

LAYER_NAMES = ("layers", "h", "blocks", "block")
NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


@dataclass
class DecodeState:
    """A key-value cache shared by all beams of a user, and what each cached position is.

    Attributes:
        cache: the ``transformers`` cache; batch rows are users, beams stand behind the prompt in the same row.
        prompt: ``[B, T]`` bool, real (not padding) prompt positions.
        length: ``[B]`` int64, number of real prompt tokens.
    """

    cache: Any
    prompt: Tensor
    length: Tensor


class Backbone(nn.Module):
    """A causal LM with its final norm, head and decoder blocks found by structure.

    Args:
        model: a ``transformers`` causal LM.
        tokenizer: its tokenizer, with every item token already added.

    Raises:
        UserError: the blocks, the final norm or the head cannot be found.
    """

    model: Any

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        decoder = model.get_decoder()
        layers = next((getattr(decoder, name) for name in LAYER_NAMES if hasattr(decoder, name)), None)
        norm = next((getattr(decoder, name) for name in NORM_NAMES if hasattr(decoder, name)), None)
        if layers is None or norm is None or model.get_output_embeddings() is None:
            raise UserError(
                f"backbone {type(model).__name__} has no decoder blocks, final norm or head that this package finds; "
                "use a Llama, Qwen, Mistral, Gemma or GPT-2 style causal LM."
            )
        # Plain attributes would register the same modules twice and double them in a checkpoint.
        self._parts = (decoder, layers, norm)

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its head."""
        return self._parts[0]

    @property
    def num_layers(self) -> int:
        """Decoder blocks L."""
        return len(self._parts[1])

    @property
    def vocab_size(self) -> int:
        """Rows V of the output embedding."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_output_embeddings().weight.device

    def head(self, states: Tensor) -> Tensor:
        """Logits of normed states, ``[n, H] -> [n, V]``."""
        return self.model.get_output_embeddings()(states)

    def norm(self, states: Tensor) -> Tensor:
        """The model's final norm, ``[n, H] -> [n, H]``."""
        return self._parts[2](states)

    def layer_states(
        self, input_ids: Tensor, select: Tensor, candidates: int = 0, *, apply_final_norm: bool = True
    ) -> LayerStates:
        """One causal pass; states only where a supervised token is predicted (Eq. 2).

        Args:
            input_ids: ``[B, T]``, right-padded: a causal model never sees padding from a real position.
            select: ``[N]`` flat positions.
            candidates: K, layers L-K .. L-1 to hand over.
            apply_final_norm: pass candidate states through the final norm. ``hidden_states[-1]`` of transformers is
                already normed; blocks' outputs, used here, are not.
        """
        decoder, layers, _ = self._parts
        if candidates >= len(layers):
            raise UserError(
                f"k={candidates} candidate layers are not available: this backbone has {len(layers)} layers, so k may "
                f"be 0 to {len(layers) - 1}; lower --k or use a deeper backbone."
            )
        first = len(layers) - 1 - candidates
        with self._captured(layers[first:-1], select) as picked:
            hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        final = hidden.flatten(0, 1)[select]
        lower = tuple(self.norm(state) if apply_final_norm else state for state in picked)
        return LayerStates(final=final, candidates=lower, head=self.head)

    @staticmethod
    @contextmanager
    def _captured(blocks: nn.ModuleList, select: Tensor) -> Iterator[list[Tensor]]:
        picked: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            picked.append(hidden.flatten(0, 1)[select])

        hooks = [block.register_forward_hook(keep) for block in blocks]
        try:
            yield picked
        finally:
            for hook in hooks:
                hook.remove()

    def answer_states(self, input_ids: Tensor, position_ids: Tensor, segment: Tensor, select: Tensor) -> Tensor:
        """One pass over prompts that are each followed by several answers (tree attention).

        Args:
            input_ids: ``[B, T]``.
            position_ids: ``[B, T]``; every answer continues the positions of its prompt.
            segment: ``[B, T]``; 0 in the prompt, another number in each answer, which sees the prompt and itself.
            select: ``[P]`` flat positions.

        Returns:
            ``[P, H]`` normed states.
        """
        width = segment.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
        seen = causal & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
        hidden = self._parts[0](
            input_ids=input_ids,
            attention_mask=self._bias(seen[:, None]),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden.flatten(0, 1)[select]

    def _bias(self, seen: Tensor) -> Tensor:
        """A boolean mask as what is added to attention scores."""
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return bias.masked_fill_(~seen, torch.finfo(bias.dtype).min)

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, DecodeState]:
        """Encode prompts once.

        Args:
            input_ids: ``[B, T]``, padded on the left.
            mask: ``[B, T]`` bool, True at real tokens.

        Returns:
            state after the last prompt token ``[B, 1, H]`` (normed), and the cache.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        attention = None if bool(mask.all()) else mask.long()
        hidden = self._parts[0](
            input_ids=input_ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden[:, -1:], DecodeState(cache=cache, prompt=mask, length=mask.sum(1))

    @torch.no_grad()
    def extend(self, state: DecodeState, tokens: Tensor, visible: Tensor, depth: int) -> Tensor:
        """Append one token to every beam, all beams of a user in one row (tree attention).

        Keys of the prompt are stored once per user; each beam sees the prompt, its own ancestors and itself.

        Args:
            state: from :meth:`prefill`; its cache grows by W positions.
            tokens: ``[B, W]``, the token each beam takes.
            visible: ``[B, W, S]`` bool, which of the S decoded positions (this step's W included) each beam sees.
            depth: tokens decoded before this step.

        Returns:
            ``[B, W, H]`` normed states.
        """
        prompt = state.prompt[:, None, :].expand(-1, tokens.shape[1], -1)
        mask = torch.cat([prompt, visible], dim=-1)[:, None]
        positions = (state.length + depth)[:, None].expand(-1, tokens.shape[1])
        return self._parts[0](
            input_ids=tokens,
            attention_mask=self._bias(mask),
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state
