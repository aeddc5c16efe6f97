"""Language models that ILRec can be trained on."""

from collections.abc import Sequence

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.settings import BackboneSettings


def build_backbone(settings: BackboneSettings, item_tokens: Sequence[str], texts: Sequence[str], seed: int) -> Backbone:
    """The backbone that ``settings`` describe, its tokenizer extended by the item tokens.

    Args:
        settings: a folder or hub id in ``path``, else ``tiny``.
        item_tokens: tokens of the item identifiers, in the order in which they get their ids.
        texts: fixed text of the prompts, for a tokenizer trained from scratch.
        seed: of fresh weights.
    """
    if settings.path:
        from recbole_ilrec.backbone.causal_lm import load_causal_lm

        return load_causal_lm(settings, item_tokens, seed)
    from recbole_ilrec.backbone.tiny import build_tiny

    return build_tiny(settings, item_tokens, texts, seed)
