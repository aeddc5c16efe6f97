"""Pretrained causal LMs of Hugging Face: a folder or a hub id, with item tokens added to vocabulary and embeddings."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.backbone.text_states import text_states
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


def base_states(
    settings: BackboneSettings,
    texts: Sequence[str],
    *,
    pooling: Literal["mean", "last"],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    progress: str | None = None,
) -> Tensor:
    """Vectors of texts by the pretrained model as it was published; it is loaded for this and dropped again.

    Returns:
        ``[len(texts), H]`` float32; see :func:`~recbole_ilrec.backbone.text_states.text_states`.
    """
    tokenizer, model = _load(settings)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    decoder = model.get_decoder().to(device).eval()
    return text_states(decoder, tokenizer, texts, pooling=pooling, batch_size=batch_size, progress=progress)


def pooled_states(
    settings: BackboneSettings, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False
) -> Tensor:
    """Mean of the last hidden states over the tokens of each text (LC-Rec's item vectors).

    Returns:
        ``[len(texts), H]`` float32, zero where a text is empty.
    """
    if not settings.path:
        raise UserError("index.embedding=backbone needs a pretrained backbone; tiny has read nothing, use tfidf or cf.")
    label = "Item vectors" if progress else None
    return base_states(settings, texts, pooling="mean", batch_size=batch_size, progress=label)
