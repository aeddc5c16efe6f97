"""Texts to vectors by the hidden states of a language model. Knows a decoder and its tokenizer; never items."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

MAX_TOKENS = 512
"""Tokens of a text that are read."""


@torch.no_grad()
def text_states(
    decoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pooling: Literal["mean", "last"],
    batch_size: int = 32,
    progress: str | None = None,
) -> Tensor:
    """Last hidden states (after the final norm) of each text: their mean over its tokens, or the last token's.

    Args:
        decoder: the transformer without its head, in evaluation mode.
        tokenizer: its tokenizer, with a padding token.
        texts: read alone, with the special tokens that the tokenizer adds by itself.
        pooling: see above.
        batch_size: texts of a pass; the result does not depend on it (up to rounding).
        progress: label of a progress bar, none without.

    Returns:
        ``[len(texts), H]`` float32 on the CPU, zero where a text is empty.
    """
    device = next(decoder.parameters()).device
    pooled = torch.zeros(len(texts), int(decoder.config.hidden_size))
    rows = sorted((row for row, text in enumerate(texts) if text.strip()), key=lambda row: len(texts[row]))
    starts = range(0, len(rows), batch_size)
    for low in tqdm(starts, desc=progress, disable=progress is None, ncols=100, unit="batch"):
        some = rows[low : low + batch_size]
        batch = tokenizer(
            [texts[row] for row in some], return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS
        ).to(device)
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp_min(0)  # right also where the tokenizer pads on the left
        states = decoder(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions).last_hidden_state
        weight = mask if pooling == "mean" else (positions == positions[:, -1:]) & mask.bool()
        summed = (states.float() * weight[..., None]).sum(1)
        pooled[some] = (summed / weight.sum(1, keepdim=True)).cpu()
    return pooled
