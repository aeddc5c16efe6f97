"""Low-rank adapters and the rows of new tokens on a frozen causal LM, by peft. Knows modules; never items or losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from recbole_ilrec.errors import UserError
from recbole_ilrec.settings import AdapterSettings


def attach_adapter(model: Any, settings: AdapterSettings, new_rows: Sequence[int], seed: int) -> Any:
    """LoRA on the linear layers of the decoder blocks; all other weights are frozen.

    Choice: the paper does not say how it fine-tunes its 8B model. LC-Rec's published script for adapters has rank 8,
    alpha 32 and dropout 0.05 on all projections, which are the defaults here, and trains both embeddings in full
    (``adapter.rows=all``). Here only the rows of the item tokens are trained (``new``): the others have been learned
    already, and for an 8B model with a thousand item tokens that is 8 million numbers in place of a billion.

    Args:
        model: a ``transformers`` causal LM, its embeddings already resized.
        settings: rank, scale, targets, rows.
        new_rows: token ids of the item tokens; none where items are called by their titles.
        seed: of the adapters' fresh weights.

    Returns:
        the ``peft.PeftModel`` around ``model``, whose layers it has replaced.

    Raises:
        UserError: ``adapter.targets`` names a layer that is not there.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    linear = sorted(_linear_layers(model))
    unknown = [name for name in settings.targets or () if name not in linear]
    if unknown:
        raise UserError(
            f"adapter.targets names '{unknown[0]}', which is no linear layer of this backbone's blocks: choose from "
            f"{', '.join(linear)}."
        )
    rows = dict.fromkeys(_embedding_names(model), list(new_rows))
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets or linear),
        trainable_token_indices=rows if settings.rows == "new" and new_rows else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():  # an AdamW step is below the precision of bfloat16
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()
    if settings.rows == "all":
        _train_embeddings(model)
    return adapted


def _train_embeddings(model: Any) -> None:
    """Both embeddings learn, in float32 whatever the precision of the rest, which still gets its own.

    They are no modules that peft copies: a copy of GPT-2's embedding would be tied to the head no longer.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    precision = inputs.weight.dtype
    for embedding in (inputs, outputs):
        embedding.weight.data = embedding.weight.data.float()
        embedding.weight.requires_grad_(True)
    if precision != torch.float32:  # the head's states and weights meet in backbone/head.py
        inputs.register_forward_hook(lambda _module, _tokens, vectors: vectors.to(precision))


def _linear_layers(model: Any) -> set[str]:
    """Last parts of the names of the linear layers in the decoder's blocks."""
    from transformers.pytorch_utils import Conv1D

    blocks = (module for module in model.get_decoder().children() if isinstance(module, nn.ModuleList))
    modules = (pair for block_list in blocks for pair in block_list.named_modules())
    return {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear | Conv1D)}


def _embedding_names(model: Any) -> list[str]:
    """Full names of the input embedding and, where it has weights of its own, of the head."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [inputs] if outputs.weight is inputs.weight else [inputs, outputs]
    return [name for name, module in model.named_modules() if any(module is embedding for embedding in wanted)]
