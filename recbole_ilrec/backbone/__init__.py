"""Language models that ILRec can be trained on."""

from collections.abc import Sequence
from typing import Any

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.errors import UserError
from recbole_ilrec.settings import AdapterSettings, BackboneSettings


def build_backbone(
    settings: BackboneSettings,
    item_tokens: Sequence[str],
    texts: Sequence[str],
    seed: int,
    adapter: AdapterSettings | None = None,
    *,
    device: Any = "cpu",
) -> Backbone:
    """The backbone that ``settings`` describe, its tokenizer extended by the item tokens.

    Args:
        settings: a folder or hub id in ``path``, else ``tiny``.
        item_tokens: tokens of the item identifiers, in the order in which they get their ids.
        texts: fixed text of the prompts, for a tokenizer trained from scratch.
        seed: of fresh weights.
        adapter: adapters on a pretrained backbone; none by default.
        device: where quantised weights are made.

    Raises:
        UserError: a backbone that cannot be had, or adapters on ``tiny`` or another precision of its weights.
    """
    adapter = adapter or AdapterSettings()
    if settings.path:
        from recbole_ilrec.backbone.causal_lm import load_causal_lm

        backbone = load_causal_lm(settings, item_tokens, seed, adapter, device=device)
    elif adapter.lora or settings.quantization:
        raise UserError(
            "lora and quantization need pretrained weights, and backbone=tiny is trained from scratch: leave them out "
            "or choose a pretrained backbone, e.g. --backbone=smollm2-135m."
        )
    elif settings.dtype != "float32":
        raise UserError(
            f"backbone.dtype={settings.dtype} is for pretrained weights: those of backbone=tiny learn from scratch in "
            "steps that are smaller than its precision. Use --train.bf16=true, which only computes in it."
        )
    else:
        from recbole_ilrec.backbone.tiny import build_tiny

        backbone = build_tiny(settings, item_tokens, texts, seed)
    if settings.gradient_checkpointing:
        backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return backbone
