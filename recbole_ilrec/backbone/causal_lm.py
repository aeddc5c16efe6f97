"""Pretrained causal LMs of Hugging Face: a folder or a hub id, with item tokens added to vocabulary and embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.errors import UserError
from recbole_ilrec.settings import BackboneSettings


def load_causal_lm(settings: BackboneSettings, item_tokens: Sequence[str], seed: int) -> Backbone:
    """Load a model and tokenizer and add the item tokens.

    New embedding rows start at the mean of the old ones with the old rows' spread (the library's mean resizing), drawn
    by ``seed``.

    Raises:
        UserError: the path is no model folder and cannot be fetched.
    """
    tokenizer, model = _load(settings)
    tokenizer.add_tokens([token for token in item_tokens if token not in tokenizer.get_vocab()])
    if tokenizer.eos_token_id is None:
        raise UserError(f"backbone '{settings.path}' has no end token in its tokenizer; choose another backbone.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    return Backbone(model, tokenizer)


def _load(settings: BackboneSettings) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(settings.path)
    where: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, settings.dtype), attn_implementation=settings.attention, **where
        )
    except Exception as error:  # what is wrong in a folder has no common base class in the libraries that read it
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone '{settings.path}' could not be loaded ({reason}); give a folder with config.json, tokenizer and "
            "safetensors weights, a hub id that this machine can reach, or a preset such as --backbone=tiny."
        ) from None
    return tokenizer, model


@torch.no_grad()
def pooled_states(
    settings: BackboneSettings, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False
) -> Tensor:
    """Mean of the last hidden states over the tokens of each text (LC-Rec's item vectors).

    Returns:
        ``[len(texts), H]`` float32, zero where a text is empty.
    """
    if not settings.path:
        raise UserError("index.embedding=backbone needs a pretrained backbone; tiny has read nothing, use tfidf or cf.")
    tokenizer, model = _load(settings)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    decoder = model.get_decoder().eval()
    pooled = torch.zeros(len(texts), model.config.hidden_size)
    rows = [row for row, text in enumerate(texts) if text.strip()]
    for low in tqdm(range(0, len(rows), batch_size), desc="Item vectors", disable=not progress, ncols=100):
        some = rows[low : low + batch_size]
        batch = tokenizer(
            [texts[row] for row in some], return_tensors="pt", padding=True, truncation=True, max_length=512
        )
        states = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        pooled[some] = (states * mask).sum(1) / mask.sum(1)
    return pooled
