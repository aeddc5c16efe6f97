"""``tiny``: a small Llama-architecture language model trained from scratch, the default that needs no download."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.backbone.dropout import dropout
from recbole_ilrec.backbone.fast_decoding import FastBackbone
from recbole_ilrec.backbone.fast_llama import hasten
from recbole_ilrec.settings import BackboneSettings

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
TEXT_VOCABULARY = 2000


def build_tokenizer(item_tokens: Sequence[str], texts: Sequence[str]) -> Any:
    """A tokenizer with the item tokens and, when prompts have words, a small byte-level BPE trained on them.

    Args:
        item_tokens: added as they are, one id each.
        texts: what the prompts say; all empty gives a vocabulary of special and item tokens only.

    Returns:
        ``transformers.PreTrainedTokenizerFast`` with pad, bos, eos and unk tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if any(text.strip() for text in texts):
        core = Tokenizer(models.BPE(unk_token=None))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=TEXT_VOCABULARY,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
    else:
        core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(SPECIALS)}, unk_token=SPECIALS[3]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIALS[0],
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        unk_token=SPECIALS[3],
    )
    tokenizer.add_tokens(list(item_tokens))
    return tokenizer


def build_tiny(settings: BackboneSettings, item_tokens: Sequence[str], texts: Sequence[str], seed: int) -> Backbone:
    """A fresh model; the same seed gives the same weights whatever ran before.

    Llama itself has no dropout: here it is on the embeddings and on what each attention and feed-forward block adds.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(item_tokens, texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=settings.tie_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config._attn_implementation = settings.attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    hasten(model, settings.dropout)
    return TinyBackbone(model, tokenizer, settings.dropout)


class TinyBackbone(FastBackbone):
    """A Llama with dropout on its embeddings and in its blocks, as :func:`build_tiny` makes it.

    Args:
        model: with blocks that take ``row_keys``.
        tokenizer: its tokenizer.
        dropout: rate, on the embeddings.
    """

    def __init__(self, model: Any, tokenizer: Any, dropout: float):
        super().__init__(model, tokenizer)
        self.dropout = dropout

    def _inputs(self, input_ids: Tensor, row_keys: Tensor | None) -> dict[str, Any]:
        if not (self.training and self.dropout):
            return super()._inputs(input_ids, row_keys)
        embedded = dropout(self.model.get_input_embeddings()(input_ids), self.dropout, site=0, row_keys=row_keys)
        return {"inputs_embeds": embedded, "row_keys": row_keys}
