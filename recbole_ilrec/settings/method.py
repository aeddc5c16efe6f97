"""Settings of what is trained for: the paper's equations, the preferences of the baselines, the reward."""

from typing import Annotated, Any, Literal

from pydantic import Field

from recbole_ilrec.settings.section import Count, Natural, NonNegative, Positive, Section, Share, Weight


class ILRecSettings(Section):
    """Equations 2-12 of the paper and every reading of them (docs/choices.md)."""

    k: Count = 3
    """Candidate layers before the last one; 0 takes the negatives from the final logits and switches CPD off."""
    alpha: NonNegative = 0.8
    """Threshold of Eq. 4: a token is a hard negative when its ensemble probability is >= alpha times the truth's."""
    beta: Weight = 0.1
    """Strength of the penalty in Eq. 7."""
    lambda_: Annotated[float, Field(ge=0, allow_inf_nan=False, alias="lambda")] = 0.01
    """Weight of the cross-layer preference distillation, Eq. 8-9."""
    mu: Weight = 0.005
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
    """Distil into the layers and the final norm that their states pass, not into the shared head; a teacher that learns
    (detach_teacher: false) still reaches it."""
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


class PreferenceSettings(Section):
    """Preference training from a supervised model (``--model=DPO``, ``SDPO``, ``RosePO`` or ``SPRec``).

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


class TransitionsSettings(Section):
    """The baseline that counts what followed the items of a history, the last ones most (``--model=Transitions``)."""

    shrinkage: Positive = 1.0
    """Training rows that popularity weighs as much as, beside what was seen after an item."""
    text_weight: NonNegative = 0.0
    """Weight of the tf-idf cosine of item texts, beside a probability; without texts nothing is added."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of an item of the history, relative to the one after it; 0 looks at the last item alone."""


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
    """Give items of the history no probability in R; the truth keeps its own where a user returns to it."""
