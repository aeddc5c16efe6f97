"""A causal language model as ILRec needs it: states of a few layers at a few positions, and cached decoding.

Wraps any ``transformers`` causal LM whose parts can be found by structure. Knows token ids; never items or losses.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from recbole_ilrec.backbone import head as heads
from recbole_ilrec.backbone.shared_prefix import encode
from recbole_ilrec.errors import UserError
from recbole_ilrec.schema import LayerStates

LAYER_NAMES = ("layers", "h", "blocks", "block")
NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


@dataclass
class DecodeState:
    """A key-value cache shared by all beams of a user, and what each cached position is.

    Attributes:
        cache: the ``transformers`` cache; batch rows are users, beams stand behind the prompt in the same row.
        prompt: ``[B, T]`` bool, columns of the cache that hold real tokens of the prompt.
        length: ``[B]`` int64, number of real prompt tokens.
        visible: ``[B, W, S]`` bool, which of the S decoded positions each beam sees; at first one beam and none.
        depth: tokens that each beam has taken.
    """

    cache: Any
    prompt: Tensor
    length: Tensor
    visible: Tensor
    depth: int = 0


class Backbone(nn.Module):
    """A causal LM with its final norm, head and decoder blocks found by structure.

    Args:
        model: a ``transformers`` causal LM.
        tokenizer: its tokenizer, with every item token already added.
        adapter: the ``peft.PeftModel`` whose layers stand in ``model``, if it has adapters.

    Attributes:
        vocab_size: rows V of the output embedding.

    Raises:
        UserError: the blocks, the final norm or the head cannot be found.
    """

    model: Any

    def __init__(self, model: Any, tokenizer: Any, adapter: Any = None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._adapter = (adapter,)  # in a tuple, so that its parameters are not registered a second time
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
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])

    @torch.no_grad()
    def check_structure(self) -> None:
        """Compare the model's own logits with those made of its parts, on a few tokens.

        Raises:
            UserError: they differ: the model does more to its logits than final norm and head.
        """
        ids = torch.arange(3, device=self.device)[None]
        training = self.training
        self.eval()
        kept: list[Tensor] = []
        with self._captured(self._parts[1][-1:], kept):
            logits = self.model(input_ids=ids).logits[0]
        own = self.head(self.norm(kept[0][0]))
        self.train(training)
        if not torch.allclose(own, logits, rtol=1e-3, atol=1e-3):
            raise UserError(
                f"backbone {type(self.model).__name__}: its logits are not those of its final norm and head (a cap or "
                "a scale comes after them), which Eq. 2 takes apart; use a Llama, Qwen, Mistral, Gemma (1 or 3) or "
                "GPT-2 style causal LM."
            )

    @property
    def adapter(self) -> Any:
        """The ``peft.PeftModel`` whose layers stand in the model, or ``None``."""
        return self._adapter[0]

    def untrained(self) -> AbstractContextManager[None] | None:
        """A context in which the weights are those from before training; ``None`` where they have been changed."""
        trained = (name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        if self.adapter is None or not all("lora_" in name or "trainable_tokens" in name for name in trained):
            return None
        return self.adapter.disable_adapter()

    def keep_checkpointing(self) -> None:
        """Compute activations again in the backward pass also in evaluation mode, where transformers leaves that out.

        Only blocks are told that they train, not what is in them, so there is no dropout; one that draws dropout itself
        is left as it is.
        """
        for block in self.blocks:
            if getattr(block, "gradient_checkpointing", False) and not getattr(block, "dropout", 0):
                block.training = True

    def merge_adapter(self) -> None:
        """Fold the adapter into the weights for good; without one nothing happens."""
        if self.adapter is not None:
            self.adapter.merge_and_unload()
            self._adapter = (None,)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """A folder that transformers loads, or peft where there is an adapter; with the tokenizer."""
        if self.adapter is None:
            self.model.save_pretrained(folder)
        else:
            # Embeddings that were trained in full are no part of the adapter, and are written with it.
            self.adapter.save_pretrained(folder, save_embedding_layers=self.untrained() is None)
        self.tokenizer.save_pretrained(folder)

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its head."""
        return self._parts[0]

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, lowest first."""
        return self._parts[1]

    @property
    def num_layers(self) -> int:
        """Decoder blocks L."""
        return len(self._parts[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def head(self, states: Tensor) -> Tensor:
        """Logits of normed states, ``[n, H] -> [n, V]``."""
        return heads.logits(self.model.get_output_embeddings(), states)

    def head_rows(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Weights ``[S, H]`` of the head and, if it has one, bias ``[S]`` for ``tokens [S]``, with their gradients."""
        return heads.rows(self.model.get_output_embeddings(), tokens)

    def norm(self, states: Tensor) -> Tensor:
        """The model's final norm, ``[n, H] -> [n, H]``."""
        return self._parts[2](states)

    def _inputs(self, input_ids: Tensor, row_keys: Tensor | None) -> dict[str, Any]:
        """What the decoder is told of the tokens; ``row_keys`` only where its dropout can be told of them."""
        del row_keys
        return {"input_ids": input_ids}

    def layer_states(
        self,
        input_ids: Tensor,
        select: Tensor,
        candidates: int = 0,
        *,
        apply_final_norm: bool = True,
        row_keys: Tensor | None = None,
    ) -> LayerStates:
        """One causal pass; states only where a supervised token is predicted (Eq. 2).

        Choice: phi, an "additional prediction layer" in the paper, is the model's own final norm and head for all
        layers; ``apply_final_norm: false`` leaves the norm out. A norm or a head of each layer's own is not offered.

        Args:
            input_ids: ``[B, T]``, right-padded: a causal model never sees padding from a real position.
            select: ``[N]`` flat positions.
            candidates: K, layers L-K .. L-1 to hand over.
            apply_final_norm: pass candidate states through the final norm. ``hidden_states[-1]`` of transformers is
                already normed; blocks' outputs, used here, are not.
            row_keys: ``[B]``, which decide the dropout masks of ``tiny``; drawn anew without them.
        """
        decoder, layers, _ = self._parts
        if candidates >= len(layers):
            raise UserError(
                f"k={candidates} candidate layers are not available: this backbone has {len(layers)} layers, so k may "
                f"be 0 to {len(layers) - 1}; lower --k or use a deeper backbone."
            )
        first = len(layers) - 1 - candidates
        picked: list[Tensor] = []
        with self._captured(layers[first:-1], picked):
            hidden = decoder(**self._inputs(input_ids, row_keys), use_cache=False).last_hidden_state
        # Not in the hook: gradient checkpointing runs a block again without it, and must find the same operations.
        final, *states = (each.flatten(0, 1).index_select(0, select) for each in (hidden, *picked))
        lower = tuple(self.norm(state) if apply_final_norm else state for state in states)
        narrows = heads.is_matrix(self.model.get_output_embeddings())
        return LayerStates(final, lower, self.head, self.head_rows if narrows else None)

    @staticmethod
    @contextmanager
    def _captured(blocks: nn.ModuleList, kept: list[Tensor]) -> Iterator[None]:
        """Put the output ``[B, T, H]`` of each block of a pass into ``kept``."""

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)

        hooks = [block.register_forward_hook(keep) for block in blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def answer_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segment: Tensor,
        select: Tensor,
        row_keys: Tensor | None = None,
    ) -> Tensor:
        """One pass over prompts that are each followed by several answers (tree attention).

        Args:
            input_ids: ``[B, T]``.
            position_ids: ``[B, T]``; every answer continues the positions of its prompt.
            segment: ``[B, T]``; 0 in the prompt, another number in each answer, which sees the prompt and itself.
            select: ``[P]`` flat positions.
            row_keys: as for :meth:`layer_states`.

        Returns:
            ``[P, H]`` normed states.

        Raises:
            UserError: a prompt with an answer is longer than the attention's window.
        """
        self._check_window(position_ids.amax() + 1)
        width = segment.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
        seen = causal & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
        hidden = self._parts[0](
            **self._inputs(input_ids, row_keys),
            attention_mask=self._bias(seen[:, None]),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden.flatten(0, 1)[select]

    def _check_window(self, length: int | Tensor) -> None:
        """The masks of trees hold no window, so nothing may lie outside; ``length`` is read where there is one."""
        window = getattr(self.model.config, "sliding_window", None)
        if window and length > window:
            raise UserError(
                f"a prompt with its answer has {int(length)} tokens, and this backbone's attention sees {window}: "
                f"lower --prompt.max_length to {window}, or MAX_ITEM_LIST_LENGTH."
            )

    def _bias(self, seen: Tensor) -> Tensor:
        """A boolean mask as what is added to attention scores, in the blocks' precision (not that of embeddings)."""
        bias = torch.zeros(seen.shape, dtype=next(self._parts[2].parameters()).dtype, device=seen.device)
        return bias.masked_fill_(~seen, torch.finfo(bias.dtype).min)

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, DecodeState]:
        """Encode prompts once, and what all of them begin with once for all users.

        Args:
            input_ids: ``[B, T]``, padded on the left.
            mask: ``[B, T]`` bool, True at real tokens.

        Returns:
            state after the last prompt token ``[B, 1, H]`` (normed), and the cache.
        """
        self._check_window(input_ids.shape[1])
        states, cache, prompt = encode(self._parts[0], input_ids, mask)
        nothing = mask.new_empty(len(mask), 1, 0)
        return states, DecodeState(cache=cache, prompt=prompt, length=mask.sum(1), visible=nothing)

    @torch.no_grad()
    def extend(self, state: DecodeState, tokens: Tensor, parent: Tensor) -> Tensor:
        """Append one token to every beam, all beams of a user in one row (tree attention).

        Keys of the prompt are stored once per user; each beam sees the prompt, its own ancestors and itself.

        Args:
            state: from :meth:`prefill`; it grows by this step.
            tokens: ``[B, W]``, the token each beam takes.
            parent: ``[B, W]`` int64, the beam of the step before that each one goes on from; 0 in the first step.

        Returns:
            ``[B, W, H]`` normed states.
        """
        self._check_window(state.prompt.shape[1] + state.depth + 1)
        batch, width = tokens.shape
        inherited = state.visible.gather(1, parent[..., None].expand(-1, -1, state.visible.shape[-1]))
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(batch, width, width)
        state.visible = torch.cat([inherited, itself], dim=-1)
        prompt = state.prompt[:, None, :].expand(-1, width, -1)
        mask = torch.cat([prompt, state.visible], dim=-1)[:, None]
        positions = (state.length + state.depth)[:, None].expand(-1, width)
        state.depth += 1
        return self._parts[0](
            input_ids=tokens,
            attention_mask=self._bias(mask),
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state
