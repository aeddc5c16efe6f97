"""Prompts that begin with the same words, which are encoded once for all users. Knows token ids alone."""

from typing import Any

import torch
from torch import Tensor

SHORTEST = 8
"""Fewer tokens in common are not worth a pass of their own."""


def shared_tokens(input_ids: Tensor, mask: Tensor) -> int:
    """How many tokens all prompts have in common at their beginning; to each is left one of its own.

    Args:
        input_ids: ``[B, T]``, padded on the left.
        mask: ``[B, T]`` bool, True at real tokens.
    """
    at = torch.arange(int(mask.sum(1).min()) - 1, device=mask.device)
    beginning = input_ids.gather(1, mask.int().argmax(1)[:, None] + at)
    return int((beginning == beginning[:1]).all(0).int().cumprod(0).sum())


def encode(decoder: Any, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Any, Tensor]:
    """One pass over prompts, with their common beginning in a pass of its own, over one row.

    Args:
        decoder: a ``transformers`` decoder without its head.
        input_ids: ``[B, T]``, padded on the left.
        mask: ``[B, T]`` bool, True at real tokens.

    Returns:
        states after the last prompt token ``[B, 1, H]`` (normed); the cache, T columns wide; and ``[B, T]`` bool, True
        at its real columns: those in common stand before the padding.
    """
    from transformers import DynamicCache

    cache = DynamicCache()  # one told of a sliding window would forget keys that beams still see
    shared = shared_tokens(input_ids, mask) if len(input_ids) > 1 else 0
    if shared >= SHORTEST:
        beginning = input_ids[:1, mask[0]][:, :shared]
        decoder(input_ids=beginning, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(input_ids))
        own = mask & (mask.cumsum(1) > shared)
        mask = torch.cat([mask.new_ones(len(mask), shared), own[:, shared:]], dim=1)
        input_ids = input_ids[:, shared:]
    hidden = decoder(
        input_ids=input_ids,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=(mask.long().cumsum(1) - 1).clamp_min(0)[:, -input_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden[:, -1:], cache, mask
