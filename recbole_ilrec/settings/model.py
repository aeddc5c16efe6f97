"""Settings of the language model: its weights, its adapters, its training, its search."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from recbole_ilrec.settings.section import Natural, Positive, Probability, Section, listed

Tracker = Literal["wandb", "trackio", "swanlab", "mlflow"]
SFT = "sft"
"""``train.init_from``: begin with what plain fine-tuning of the same model gives."""


class BackboneSettings(Section):
    """The language model: a preset in ``properties/backbone``, a folder, or a hub id."""

    path: str | None = None
    """Folder, ``.gguf`` file or hub id of a Hugging Face causal LM; empty trains ``tiny`` from scratch."""
    package: str | None = None
    """Python package with a ``.gguf`` file of the model, which is taken in place of ``path`` where it is installed."""
    revision: str | None = None
    """Commit or tag of the hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of frozen pretrained weights; what is trained is float32 always."""
    quantization: Literal["nf4"] | None = None
    """Keep the frozen weights in 4 bits (QLoRA, arXiv:2305.14314); needs ``lora`` and the package bitsandbytes."""
    dequantise: bool = False
    """Turn quantised weights back into ordinary layers: the rounded values without the saving, as in merged exports."""
    gradient_checkpointing: bool = False
    """Compute the activations of a block again in the backward pass instead of keeping them."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention asked of transformers; ``sdpa`` lets torch choose a kernel: on a GPU, for half precision and without a
    mask (supervised training), the flash kernel."""
    template: str = "compact"
    """Default prompt template of this backbone."""
    append_eos: bool = True
    """Default of ``prompt.append_eos`` for this backbone."""
    hidden_size: Natural = 128
    """Width of ``tiny``."""
    layers: Natural = 4
    """Decoder blocks of ``tiny``."""
    heads: Natural = 4
    """Attention heads of ``tiny``."""
    intermediate_size: Natural = 256
    """Width of the gated feed-forward of ``tiny``."""
    dropout: Probability = 0.2
    """Dropout on embeddings and on the output of each attention and feed-forward block of ``tiny``; its masks depend on
    seed, epoch and row only."""
    tie_embeddings: bool = True
    """Share the input and output embedding of ``tiny``."""


class AdapterSettings(Section):
    """Low-rank adapters (LoRA, arXiv:2106.09685) on a pretrained backbone, its own weights frozen."""

    lora: bool = False
    """Train adapters in place of all weights."""
    r: Natural = 8
    """Rank."""
    alpha: Natural = 32
    """Scale: what an adapter adds is multiplied by alpha / r."""
    dropout: Probability = 0.05
    """Dropout on the input of each adapter."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers that get an adapter; default: all in the decoder blocks."""
    rows: Literal["new", "all", "none"] = "new"
    """Rows of the input and output embeddings that are trained too: those of the item tokens, all, or none."""


class TrainSettings(Section):
    """The loop, beside RecBole's own keys (epochs, train_batch_size, learning_rate, weight_decay, eval_step, ...)."""

    rows: Literal["prefix", "sequence"] = "prefix"
    """One row per (history, target), or one per sequence with every item after the first as a target."""
    gradient_accumulation: Natural = 1
    """Micro-batches of an optimiser step."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps with a rising learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping."""
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """Second moment's decay of AdamW (torch's own default is .999)."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe (autocast) while training; the weights stay as they are."""
    max_steps: Natural | None = None
    """Stop each stage of training after this many optimiser steps, if ``epochs`` does not end it before."""
    init_from: str | None = None
    """Weights that training begins with in place of the backbone's own: ``sft`` trains the same model by plain
    fine-tuning first (kept and shared, as for preference models), or the folder of a language model's run on the same
    data, with the same identifiers."""
    item_dropout: Probability = 0.0
    """Leave each history item out with this probability while training (the target stays)."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights that is evaluated and kept; 0 keeps the weights."""
    valid_users: Natural | None = None
    """Validation users scored between epochs, a fixed random part of them; default: all. Testing always takes all."""
    save_steps: Natural | None = None
    """Write a resumable checkpoint every so many steps; default: at each epoch."""
    save_minutes: Positive | None = 30.0
    """Write one also when so many minutes have passed since the last."""
    keep_checkpoints: Natural = 2
    """Resumable checkpoints kept."""
    log_steps: Natural = 50
    """Steps between two lines of loss parts in TensorBoard."""
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(listed)] = ()
    """Show the curves of TensorBoard in these too; each needs its package."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under ``torchrun``: the whole model in each process (``ddp``), or a share of weights, gradients and optimizer
    state (``fsdp``, FSDP2), for models that do not fit otherwise. Results are the same to rounding."""
    layer_losses: bool = False
    """At each validation, also measure every layer's cross-entropy (final norm, shared head) on a small fixed part of
    the validation users (Fig. 2)."""


class DecodeSettings(Section):
    """Constrained beam search."""

    num_beams: Natural = 20
    """Beams, and identifiers returned."""
    renormalise: bool = False
    """Score a token among the legal ones only instead of over the whole vocabulary."""
    exclude_history: bool = False
    """Leave items of the history out of the result."""
    exact: bool = False
    """Search again with more beams for users whose first ``max(topk)`` places are not proven to be the best of all."""
    collisions: Literal["expected", "strict", "optimistic"] = "expected"
    """Rank of an item that shares its identifier: average over the group, by item order, or best."""
