"""Settings of what items are to the language model: identifiers, prompts, tasks, titles, candidates."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from recbole_ilrec.settings.section import Count, Natural, NonNegative, Positive, Probability, Section, listed

SEQREC: Literal["seqrec"] = "seqrec"
Task = Literal["seqrec", "item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain"]


Tasks = Annotated[tuple[Task, ...], BeforeValidator(listed)]

AUTO_GAMMA = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""What ``bigrec.gamma: auto`` chooses from."""


def _gammas(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError("give a number from 0 on, a list of such numbers, or auto")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return AUTO_GAMMA if value == "auto" else (value,) if number else value


Gammas = Annotated[tuple[NonNegative, ...], BeforeValidator(_gammas), Field(min_length=1)]


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
