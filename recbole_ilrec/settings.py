"""Typed settings of everything this package adds to RecBole.

Each section is a frozen pydantic model that refuses unknown keys. Users write a section as a YAML mapping
(``decode: {renormalise: true}``) or dotted (``--decode.renormalise=true``); the settings of the paper and the usual
ones also have a short flat name, listed in :data:`FLAT_KEYS` (``--alpha=0.8``). RecBole's own keys stay RecBole's.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from recbole_ilrec.errors import UserError, did_you_mean

Share = Annotated[float, Field(gt=0, le=1)]
Natural = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]

SEQREC: Literal["seqrec"] = "seqrec"
Task = Literal["seqrec", "item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain"]


def _listed(value: Any) -> Any:
    """``a,b`` as a list, as it is typed on a command line."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


Tasks = Annotated[tuple[Task, ...], BeforeValidator(_listed)]


AUTO_GAMMA = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""What ``bigrec.gamma: auto`` chooses from."""


def _gammas(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError("give a number from 0 on, a list of such numbers, or auto")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return AUTO_GAMMA if value == "auto" else (value,) if number else value


Gammas = Annotated[tuple[NonNegative, ...], BeforeValidator(_gammas), Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, docstrings under the fields are their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class ILRecSettings(Section):
    """Equations 2-12 of the paper and every reading of them (docs/choices.md)."""

    k: Count = 3
    """Candidate layers before the last one; 0 takes the negatives from the final logits and switches CPD off."""
    alpha: NonNegative = 0.8
    """Threshold of Eq. 4: a token is a hard negative when its ensemble probability is >= alpha times the truth's."""
    beta: NonNegative = 0.1
    """Strength of the penalty in Eq. 7."""
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 0.01
    """Weight of the cross-layer preference distillation, Eq. 8-9."""
    mu: NonNegative = 0.005
    """Weight of the collaborative reward regularisation, Eq. 11-12."""
    use_cpo: bool = True
    """False puts plain cross-entropy in place of Eq. 7 (Table 2, 'w/o CPO')."""
    use_cpd: bool = True
    """False drops Eq. 8 (Table 2, 'w/o CPD')."""
    use_crr: bool = True
    """False drops Eq. 11 (Table 2, 'w/o CRR')."""
    negatives_from: Literal["ensemble", "final"] = "ensemble"
    """'final' takes negatives and weights from the last layer's logits (Table 2, 'w/o CNS')."""
    layer_range: Literal["k", "k_plus_1"] = "k"
    """Layers of Eq. 3 and 8: L-k .. L-1, or L-k-1 .. L-1."""
    apply_final_norm: bool = True
    """Apply the model's final norm before the shared head (phi of Eq. 2)."""
    ensemble: Literal["mean", "sum", "mean_prob", "mean_logprob"] = "mean"
    """How Eq. 3 joins the layers."""
    threshold_on: Literal["prob", "logit"] = "prob"
    """Whether Eq. 4 compares probabilities or raw logits."""
    tau_from: Literal["ensemble", "final"] = "ensemble"
    """Whose value of the true token sets the threshold of Eq. 4."""
    neg_scope: Literal["vocab", "item_tokens", "legal"] = "vocab"
    """Which tokens may be negatives in Eq. 5."""
    max_negatives: Natural | None = None
    """Keep at most this many negatives of a position, the most probable ones."""
    weight_from: Literal["logit", "prob", "uniform"] = "logit"
    """Exponent of Eq. 6: ensemble logits (so w is the probability renormalised), probabilities, or equal weights."""
    penalty: Literal["multiplicative", "sign_safe", "additive", "log1p"] = "multiplicative"
    """Form of the penalised logit in Eq. 7."""
    detach_weights: bool = True
    """No gradient through the weights of Eq. 6."""
    detach_teacher: bool = True
    """No gradient through the last layer in Eq. 8."""
    cpd_direction: Literal["student_teacher", "teacher_student", "js"] = "student_teacher"
    """Direction of the divergence in Eq. 8; the first is as printed."""
    cpd_support: Literal["vocab", "item_tokens", "legal"] = "vocab"
    """Tokens over which Eq. 8 compares the two distributions."""
    cpd_layer_reduction: Literal["sum", "mean"] = "sum"
    """Join the layers of Eq. 8 by sum (printed) or mean."""
    cpd_detach_head: bool = False
    """Distil into the layers only, not into the shared head."""
    cpd_share: Share = 1.0
    """Random share of the positions on which Eq. 8 is evaluated; the estimate stays unbiased."""
    crr_scope: Literal["negatives", "legal"] = "negatives"
    """H of Eq. 11: the negatives and the truth (printed), or all legal tokens."""
    crr_label: Literal["softmax", "normalised"] = "softmax"
    """Soft label of Eq. 11: softmax of the rewards (printed) or the rewards themselves, normalised over H."""
    crr_temperature: Positive = 1.0
    """Temperature of the softmax of rewards in Eq. 11."""
    r_truth_floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Lower bound of the true token's reward in Eq. 11."""
    apply_to_eos: bool = True
    """Whether the terms of ILRec also apply where the target is the end token."""
    start_epoch: NonNegative = 0.0
    """Train with plain cross-entropy until this epoch."""

    @property
    def layers(self) -> int:
        """Number K of candidate layers that the backbone has to hand over."""
        return self.k + 1 if self.layer_range == "k_plus_1" and self.k else self.k


class IndexSettings(Section):
    """Semantic IDs of LC-Rec: read from a file, or learned by an RQ-VAE."""

    file: str | None = None
    """LC-Rec's ``*.index.json``; default: ``<dataset>.index.json`` beside the data when it exists, else learned."""
    embedding: Literal["tfidf", "backbone", "encoder", "cf"] = "tfidf"
    """Item vectors to quantise: tf-idf of the texts, the backbone's pooled states, a sentence encoder, CF vectors."""
    encoder: str | None = None
    """Folder of the sentence encoder for ``embedding: encoder``."""
    dimension: Natural = 256
    """Length of the tf-idf vectors after truncated SVD."""
    levels: Natural = 4
    """Codebooks, i.e. tokens of an identifier."""
    codebook_size: Annotated[int, Field(ge=2)] = 256
    """Codes of a codebook."""
    code_dim: Natural = 32
    """Length of a code."""
    hidden: tuple[Natural, ...] = (512,)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    dropout: Probability = 0.0
    """Dropout between the layers of encoder and decoder."""
    batch_norm: bool = False
    """Batch normalisation between the layers. LC-Rec's script says false and its parser reads that as true."""
    commitment: NonNegative = 0.25
    """Weight of the commitment part of the quantisation loss."""
    quantisation_weight: NonNegative = 1.0
    """Weight of the quantisation loss beside the reconstruction."""
    sinkhorn_epsilon: tuple[NonNegative, ...] = (0.0, 0.0, 0.0, 0.003)
    """Entropy of the optimal transport at each level (0: nearest code); the last entries belong to the last levels."""
    sinkhorn_iterations: Natural = 50
    """Row and column normalisations of the transport plan."""
    epochs: Count = 100
    """Passes over the items."""
    batch_size: Natural = 256
    """Items of a step."""
    learning_rate: Positive = 1e-2
    """AdamW's step size, decayed linearly after a warm-up."""
    weight_decay: NonNegative = 1e-4
    """AdamW's decay."""
    reassign_rounds: Count = 0
    """LC-Rec's rounds of moving items that collide by Sinkhorn; 0 moves each to its nearest free code at once."""


class PromptSettings(Section):
    """How a history and an answer become text and tokens."""

    template: str | None = None
    """Name of a file in ``properties/prompt`` or a path; default: the backbone preset's."""
    append_eos: bool | None = None
    """End every answer with the end token; default: the backbone preset's. Needed when an identifier begins another."""
    max_length: Natural = 1024
    """Tokens of a row at most; older history items are left out first, answers never."""


class AlignmentSettings(Section):
    """LC-Rec's tasks that tie the tokens of semantic IDs to language, trained in one mixture with ``seqrec``."""

    tasks: Tasks = (SEQREC,)
    """What to train on: ``seqrec`` (the next item; always one of them, and what is evaluated) and, beside it, items to
    texts and back (``item2index``, ``index2item``), histories to texts (``fusionseqrec``), and with a file
    ``NAME.user.json`` wishes to items and histories to preferences (``itemsearch``, ``preferenceobtain``)."""
    ilrec_tasks: Tasks = (SEQREC,)
    """Tasks whose rows get ILRec's terms; the others are trained with plain cross-entropy. Rewards (Eq. 10) exist only
    where an item is the answer to a history."""
    template: str = "lcrec"
    """Prompts of the tasks beside ``seqrec``: name of a file in ``properties/prompt/tasks`` or a path."""
    fusion_sample: Natural | None = 20000
    """Training rows of ``fusionseqrec``, a fixed random part of all histories; empty takes all."""
    max_text_tokens: Annotated[int, Field(ge=2)] = 128
    """Tokens of a title, description or user text at most; a longer one is cut."""

    @field_validator("tasks")
    @classmethod
    def _with_seqrec(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if SEQREC not in tasks or len(set(tasks)) < len(tasks):
            raise ValueError("name seqrec, which is what is evaluated, and each other task once")
        return tasks


class BIGRecSettings(Section):
    """Titles as item identifiers, and how a generated title becomes a ranking of all items (``paradigm: bigrec``)."""

    ranker: Literal["grounding", "constrained", "hybrid"] = "grounding"
    """Free generation and the items nearest to it (as published), beams over the trie of titles, or those beams first
    and then the items nearest to the best one."""
    max_title_tokens: Annotated[int, Field(ge=4)] = 128
    """Tokens of a title at most, its quotes included; a longer one is cut."""
    beams: Natural = 4
    """Beams of the free generation."""
    max_new_tokens: Natural = 128
    """Tokens of a freely generated title at most."""
    embedder: Literal["base", "model"] = "base"
    """Whose last hidden states are compared: the backbone's before training, or as it is now (``tiny``: always so)."""
    gamma: Gammas = (0.0,)
    """Strength of the popularity or CF score in the distance, 0: none; ``auto`` or a list: the best on validation."""
    weight_by: Literal["popularity", "cf"] = "popularity"
    """What ``gamma`` weighs the distance by: interactions in the training part, or the reward model's scores."""


class CandidateSettings(Section):
    """Choosing the next item among a few (``task: candidates``): the lists, and what counts as an answer."""

    lists: Literal["published", "drawn"] = "published"
    """Those of ``NAME.candidates.jsonl`` where the data set has it, else drawn; or always drawn. Rows and split of such
    a data set are the published ones either way."""
    count: Annotated[int, Field(ge=2)] = 20
    """Candidates of a drawn list, the true item included."""
    seeding: Literal["row", "target"] = "row"
    """What a drawn list depends on: its row, or, as in S-DPO's published preparation, its true item."""
    shuffle: bool = True
    """Show the candidates of a training row in another order in each epoch."""
    answers: Literal["constrained", "free"] = "constrained"
    """What answers the test: the most probable candidate, or what the model writes freely (``bigrec.beams``,
    ``bigrec.max_new_tokens``). Validation takes the most probable candidate."""
    matching: Literal["exact", "substring"] = "exact"
    """When an answer names a candidate, for ``hitratio@1`` and ``validratio``: it is its name, or, as in S-DPO's
    published evaluation, it contains its name and that of no other."""


class BackboneSettings(Section):
    """The language model: a preset in ``properties/backbone``, a folder, or a hub id."""

    path: str | None = None
    """Folder, ``.gguf`` file or hub id of a Hugging Face causal LM; empty trains ``tiny`` from scratch."""
    package: str | None = None
    """Python package with a ``.gguf`` file of the model, which is taken in place of ``path`` where it is installed."""
    revision: str | None = None
    """Commit or tag of the hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights; those of adapters are float32 always."""
    quantization: Literal["nf4"] | None = None
    """Keep the frozen weights in 4 bits (QLoRA, arXiv:2305.14314); needs ``lora`` and the package bitsandbytes."""
    dequantise: bool = False
    """Turn quantised weights back into ordinary layers: the rounded values without the saving, as in merged exports."""
    gradient_checkpointing: bool = False
    """Compute the activations of a block again in the backward pass instead of keeping them."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention asked of transformers; ``sdpa`` lets torch choose a kernel, on a GPU the flash kernel in training."""
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
    """Dropout on embeddings and on the output of each attention and feed-forward block of ``tiny``."""
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


class RewardSettings(Section):
    """The frozen collaborative-filtering model of Eq. 10."""

    model: str = "SASRec"
    """Name of any sequential model of RecBole."""
    checkpoint: str | None = None
    """A checkpoint folder written by this package; default: train once, cache by content, reuse."""
    config: dict[str, Any] = Field(default_factory=dict)
    """RecBole settings of the CF model, over ``properties/reward/<model>.yaml``."""
    temperature: Positive = 1.0
    """Temperature of the softmax over items that turns CF scores into R."""
    mask_history: bool = False
    """Give items of the history no probability in R."""


class PreferenceSettings(Section):
    """Preference training from a supervised model: DPO, S-DPO, RosePO (``--model=DPO|SDPO|RosePO``).

    ``epochs``, ``learning_rate`` and ``train_batch_size`` of a run belong to its supervised stage.
    """

    beta: Positive = 0.1
    """Strength of the tie to the supervised model (not Eq. 7's beta)."""
    examples: Natural | None = None
    """Take a random part of the training rows, another one in each round; default: all, as the paper does."""
    negatives: Natural = 1
    """Rejected items of an example."""
    source: Literal["random", "popular", "similar", "self_hard"] = "random"
    """Rejected items: drawn evenly, drawn by popularity, most like the target (by the vectors of ``index.embedding``),
    or what the supervised model itself ranks first."""
    fresh_negatives: bool = True
    """Draw random and popular items anew in each epoch."""
    num_beams: Natural = 10
    """Beams of the search for ``self_hard`` items."""
    loss: Literal["cdpo", "rdpo"] = "cdpo"
    """RosePO's form of the smoothed loss: conservative, or robust."""
    smoothing: Literal["personalised", "constant", "none"] = "none"
    """RosePO's label smoothing: by the reward model for each pair, ``smoothing_rate`` for all, or none."""
    smoothing_rate: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Chance that a pair is the wrong way round, with ``smoothing: constant``."""
    smoothing_temperature: Positive = 1.0
    """Temperature of the reward model's scores in ``smoothing: personalised``."""
    max_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.49
    """Greatest smoothing of a pair."""
    epochs: Natural = 3
    """Passes over the training rows, in each iteration."""
    iterations: Natural = 1
    """Rounds of drawing rejected items and training against them (SPRec)."""
    supervised_epochs: Count = 0
    """Epochs of supervised fine-tuning in each round, after its rejected items are drawn (SPRec)."""
    learning_rate: Positive = 1e-5
    """AdamW's step size."""
    train_batch_size: Natural = 128
    """Examples (a history with its chosen and rejected items) of an optimiser step."""
    eval_step: Natural = 1
    """Epochs between two validations."""
    dropout: bool = False
    """Train with the backbone's dropout, which the reference is free of."""
    checkpoint: str | None = None
    """Folder of an LCRec (or BIGRec) run on the same data to start from; default: trained once, cached, shared."""


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
    """Second moment's decay of AdamW."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe (autocast) while training; the weights stay as they are."""
    max_steps: Natural | None = None
    """Stop after this many optimiser steps."""
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


class Settings(Section):
    """All sections, and the two keys that name a row of Table 1."""

    paradigm: Literal["lcrec", "bigrec"] = "lcrec"
    """Item identifiers: semantic IDs (LC-Rec) or titles (BIGRec)."""
    task: Literal["full", "candidates"] = "full"
    """Recommend from all items, or choose among a few that each row offers."""
    objective: str = "ilrec"
    """Name of a loss in ``recbole_ilrec.objective``."""
    backbone_name: str = "tiny"
    """Preset, folder or hub id given as ``--backbone``."""
    ilrec: ILRecSettings = ILRecSettings()
    index: IndexSettings = IndexSettings()
    prompt: PromptSettings = PromptSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    bigrec: BIGRecSettings = BIGRecSettings()
    candidates: CandidateSettings = CandidateSettings()
    backbone: BackboneSettings = BackboneSettings()
    adapter: AdapterSettings = AdapterSettings()
    reward: RewardSettings = RewardSettings()
    preference: PreferenceSettings = PreferenceSettings()
    train: TrainSettings = TrainSettings()
    decode: DecodeSettings = DecodeSettings()
    eval_users: Natural | None = None
    """Evaluate the first n users only (for a quick look; the record says so)."""

    @property
    def generates_lists(self) -> bool:
        """Whether a user's list is the beams of the search; false where all items are ranked by distance, or a few."""
        return self.task == "full" and (self.paradigm == "lcrec" or self.bigrec.ranker == "constrained")


FLAT_KEYS: dict[str, str] = {
    **{name: f"ilrec.{name}" for name in ("k", "alpha", "beta", "lambda", "mu", "use_cpo", "use_cpd", "use_crr")},
    "negatives_from": "ilrec.negatives_from",
    "lora": "adapter.lora",
    "quantization": "backbone.quantization",
    "index_file": "index.file",
    "tasks": "alignment.tasks",
    "ilrec_tasks": "alignment.ilrec_tasks",
    "reward_model": "reward.model",
    "reward_checkpoint": "reward.checkpoint",
    "train_rows": "train.rows",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "warmup_ratio": "train.warmup_ratio",
    "max_steps": "train.max_steps",
    "save_steps": "train.save_steps",
    "num_beams": "decode.num_beams",
    "exclude_history": "decode.exclude_history",
    "collisions": "decode.collisions",
    "paradigm": "paradigm",
    "task": "task",
    "objective": "objective",
    "backbone": "backbone_name",
    "eval_users": "eval_users",
}
"""Short names on the command line and in YAML -> dotted settings."""

SECTIONS = tuple(n for n, f in Settings.model_fields.items() if isinstance(f.default, Section))


def known_keys() -> Iterator[str]:
    """Every key a user may give for this package: flat names, sections, dotted names."""
    yield from FLAT_KEYS
    for section in SECTIONS:
        yield section
        for name, field in type(Settings.model_fields[section].default).model_fields.items():
            yield f"{section}.{field.alias or name}"


def build_settings(values: Mapping[str, Any]) -> Settings:
    """Typed settings from a bag of flat, dotted and nested keys; other keys are not looked at.

    A flat or dotted key beats a nested one. ``backbone`` may be a name (``--backbone=tiny``) or a mapping.

    Raises:
        UserError: naming the first bad value, what is allowed and where it is documented.
    """
    tree: dict[str, Any] = {}
    for section in SECTIONS:
        if isinstance(values.get(section), Mapping):
            tree[section] = dict(values[section])
    for key, value in values.items():
        target = FLAT_KEYS.get(key, key if key.partition(".")[0] in SECTIONS else None)
        if target is None or (isinstance(value, Mapping) and target in (*SECTIONS, "backbone_name")):
            continue
        section, _, name = target.partition(".")
        if name:
            tree.setdefault(section, {})[name] = value
        elif section in SECTIONS:
            raise UserError(f"{section}={value!r} must be a mapping of settings, e.g. --{section}.NAME=VALUE.")
        else:
            tree[section] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _user_error(error) from None


def _user_error(error: ValidationError) -> UserError:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"])
    short = next((flat for flat, target in FLAT_KEYS.items() if target == dotted.replace("lambda_", "lambda")), dotted)
    if first["type"] == "extra_forbidden":
        known = [key for key in known_keys() if "." in key]
        return UserError(f"Unknown setting '{dotted}'. {did_you_mean(dotted, known)}See docs/settings.md for all.")
    return UserError(f"{short}={first['input']!r} is not allowed: {first['msg']}. See docs/settings.md.")


def flat_sections(layer: Mapping[str, Any]) -> dict[str, Any]:
    """``{"decode": {"num_beams": 5}}`` as ``{"decode.num_beams": 5}``, so that layers can be laid over each other."""
    flat: dict[str, Any] = {}
    for key, value in layer.items():
        if key in SECTIONS and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": entry for name, entry in value.items()})
        else:
            flat[key] = value
    return flat
