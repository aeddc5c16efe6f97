"""The generative recommenders as RecBole models: wiring only, no mathematics.

A model joins identifiers, prompt, backbone, objective and decoding, and answers RecBole's three verbs
``calculate_loss``, ``predict`` and ``full_sort_predict``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.collaborative.reward_model import RewardModel, load_reward_model
from recbole_ilrec.configuration.contradictions import too_many_layers
from recbole_ilrec.configuration.presets import properties_folder
from recbole_ilrec.data.alignment import alignment_of
from recbole_ilrec.data.candidates import CANDIDATES
from recbole_ilrec.data.sequences import as_pairs
from recbole_ilrec.decoding.candidates import rank_candidates
from recbole_ilrec.decoding.users import rank_users
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.identifiers.title import TitleIdentifiers
from recbole_ilrec.models.item_index import identifiers_of
from recbole_ilrec.models.pretrained import local_backbone
from recbole_ilrec.models.title_ranker import TitleRanker
from recbole_ilrec.objective import build_objective, build_preference
from recbole_ilrec.objective.preference import answer_log_probs, token_log_probs
from recbole_ilrec.objective.returned import checked_terms
from recbole_ilrec.prompt.encode import EncodedRow, Example, PromptEncoder
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.prompt.template import load_template
from recbole_ilrec.reward.table import RewardTable
from recbole_ilrec.reward.token_reward import legal_tokens, token_rewards
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.weights import frozen_key
from recbole_ilrec.schema import AnswerBatch, LegalTokens, LossTerms, Ranking, TokenBatch


def to_pairs(interaction: Interaction, model: SequentialRecommender) -> Pairs:
    """RecBole's augmented rows as arrays, with the whole past of each where the model's data set knows it.

    Raises:
        UserError: the task is to choose among candidates and the rows have none.
    """
    fields = model.USER_ID, model.ITEM_SEQ, model.ITEM_SEQ_LEN, model.POS_ITEM_ID, model.time_field
    choosing = model.settings.task == "candidates"
    if choosing and CANDIDATES not in interaction:
        raise UserError(f"task=candidates needs rows with a column '{CANDIDATES}', as build_data makes them.")
    return as_pairs(interaction, model.sequences, *fields, candidates=CANDIDATES if choosing else None)


class GenerativeRecommender(SequentialRecommender):
    """A language model that recommends by generating the identifier of the next item.

    Args:
        config: the run's :class:`~recbole_ilrec.configuration.config.Config`; its ``settings`` decide everything.
        dataset: RecBole's data set (numbers of items, their external ids and texts).

    Attributes:
        frozen_key: tells the weights that are not trained from others; empty where all are.
        alignment: the tasks beside sequential recommendation, or ``None``.
        objective: the loss over tokens; supervised fine-tuning where ``preference`` follows it.
        preference: the loss over chosen and rejected answers, or ``None``.

    Raises:
        UserError: settings that do not fit the backbone, the prompt or the items.
    """

    input_type = InputType.POINTWISE
    is_language_model = True

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.settings = settings = config.settings
        self.sequences = getattr(dataset, "sequences", None)
        self.time_field = config["TIME_FIELD"]
        items = identifiers_of(config, dataset)
        template = load_template(settings.prompt.template or settings.backbone.template, properties_folder() / "prompt")
        self.alignment = alignment_of(config, dataset)
        texts = [*template.texts, *items.texts, *(self.alignment.texts if self.alignment else ())]
        of_backbone = local_backbone(config)
        self.backbone = build_backbone(
            of_backbone, items.new_tokens, texts, config["seed"], settings.adapter, device=config["device"]
        )
        self.frozen_key = frozen_key(self.backbone)
        tokenizer = self.backbone.tokenizer
        self.catalog = self._catalog(items.token_ids(tokenizer), tokenizer)
        self.encoder = PromptEncoder(tokenizer, self.catalog, template, settings.prompt.max_length)
        self._check_rows(template, config["MAX_ITEM_LIST_LENGTH"])
        self._check_task(template)
        self.preference = build_preference(settings.objective, settings.preference)
        self.objective = build_objective(
            "sft" if self.preference is not None else settings.objective,
            settings.ilrec,
            self.catalog.item_token_mask(self.backbone.vocab_size),
            eos_id=tokenizer.eos_token_id,
            options=config["objective_options"],
        )
        if self.objective.needs.layers >= self.backbone.num_layers:
            raise too_many_layers(settings, self.backbone.num_layers, self.objective.needs.layers)
        self.rewards: RewardTable | None = None
        self.epoch = 0.0
        self._load_reward_model = partial(load_reward_model, config, dataset)
        self._reward_model: RewardModel | None = None
        self.list_length = settings.decode.num_beams
        self.exact_places = max(config["topk"]) if settings.decode.exact else 0
        self.title_ranker: TitleRanker | None = None
        if isinstance(items, TitleIdentifiers) and settings.task == "full" and not settings.generates_lists:
            self.title_ranker = TitleRanker(
                config, dataset, self.backbone, self.encoder, items.titles, lambda: self.reward_model
            )
            self.list_length = max(config["topk"])
        elif any(settings.bigrec.gamma):
            raise UserError(
                "bigrec.gamma weighs distances between titles, and here lists come from beams alone: use "
                "--paradigm=bigrec with --bigrec.ranker=grounding or hybrid, or leave bigrec.gamma out."
            )

    def _catalog(self, ids: list[list[int]], tokenizer: Any) -> Catalog:
        prompt, backbone = self.settings.prompt, self.settings.backbone
        append = backbone.append_eos if prompt.append_eos is None else prompt.append_eos
        try:
            return Catalog(ids, tokenizer.eos_token_id if append else None)
        except ValueError as error:
            raise UserError(f"item identifiers: {error}; set --prompt.append_eos=true.") from None

    def _check_rows(self, template: Any, window: int) -> None:
        if self.settings.train.rows != "sequence":
            return
        if not (template.continues and (template.ends_items or self.catalog.eos_id is None)):
            raise UserError(
                f"train_rows=sequence needs a prompt that ends with its history and answers without an end token; "
                f"prompt {template.name} or prompt.append_eos does not allow it; use --train_rows=prefix."
            )
        longest, limit = self.encoder.longest(window + 1), self.encoder.max_length
        if longest > limit:
            raise UserError(
                f"MAX_ITEM_LIST_LENGTH={window} makes rows of up to {longest} tokens, and prompt.max_length={limit} "
                f"would cut histories short in evaluation only: set --prompt.max_length={longest} or lower "
                "MAX_ITEM_LIST_LENGTH."
            )

    def _check_task(self, template: Any) -> None:
        if template.offers and self.settings.task != "candidates":
            raise UserError(f"prompt {template.name} names candidates: use --task=candidates or another template.")
        if self.settings.candidates.answers == "free" and self.catalog.eos_id is None:
            raise UserError("candidates.answers=free needs answers that end: set --prompt.append_eos=true.")

    @property
    def reward_model(self) -> RewardModel:
        """The frozen collaborative model of Eq. 10, trained or read when it is first asked for."""
        if self._reward_model is None:
            self._reward_model = self._load_reward_model()
        return self._reward_model

    @reward_model.setter
    def reward_model(self, model: RewardModel) -> None:
        self._reward_model = model

    @property
    def variants(self) -> int:
        """Prompt templates to draw from while training."""
        return len(self.encoder.template.variants)

    def loss_terms(
        self, batch: TokenBatch, generator: torch.Generator | None = None, legal: LegalTokens | None = None
    ) -> LossTerms:
        """The objective on one micro-batch; ``legal`` in place of what the table of training targets gives."""
        how: dict[str, Any] = {"apply_final_norm": self.settings.ilrec.apply_final_norm, "row_keys": batch.row_keys}
        states = self.backbone.layer_states(batch.input_ids, batch.select, self.objective.needs.layers, **how)
        legal = legal or self._legal(batch)
        return self.objective(states, batch, legal, epoch=self.epoch, generator=generator)

    def _terms(self, *inputs: Any, **more: Any) -> LossTerms:
        return checked_terms(self.loss_terms(*inputs, **more), type(self).__name__, self.settings.objective)

    def _legal(self, batch: TokenBatch) -> LegalTokens | None:
        needs = self.objective.needs
        if needs.rewards and self.rewards is not None:
            legal = self.rewards.legal(batch.target.cpu(), batch.node.cpu())
        elif needs.legal or needs.rewards:
            legal = legal_tokens(self.catalog.trie, batch.node.cpu())
        else:
            return None
        return legal.to(batch.input_ids.device)

    def answer_log_probs(self, batch: AnswerBatch) -> Tensor:
        """Log-probability of each answer after its prompt, ``[B, A]``; -inf where there is none."""
        inputs = batch.input_ids, batch.position_ids, batch.segment, batch.select
        states = self.backbone.answer_states(*inputs, batch.row_keys)
        tokens = token_log_probs(self.backbone.head(states), batch.place, batch.targets)
        return answer_log_probs(tokens, batch.answer, batch.present)

    def _preference_terms(self, batch: AnswerBatch) -> LossTerms:
        """Choice: the reference answers without dropout, and so does the policy, as in the common DPO trainer; else the
        first ratios would be noise. ``preference.dropout: true`` trains with it.
        """
        assert self.preference is not None
        assert batch.reference is not None
        self.backbone.train(self.training and self.settings.preference.dropout)
        if self.training:
            self.backbone.keep_checkpointing()
        return self.preference(self.answer_log_probs(batch), batch.reference, batch.smoothing)

    def forward(
        self, batch: TokenBatch | AnswerBatch, generator: torch.Generator | None = None
    ) -> Mapping[str, Tensor]:
        """Sums over the batch's ``count`` by name, ``loss`` first: what the training loop asks for."""
        terms = self._preference_terms(batch) if isinstance(batch, AnswerBatch) else self._terms(batch, generator)
        parts = {f"part/{name}": value.detach() for name, value in terms.parts.items()}
        monitors = {f"monitor/{name}": value.detach() for name, value in terms.monitors.items()}
        return {"loss": terms.total, **parts, **monitors}

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """RecBole's verb: mean loss over the supervised tokens of prefix rows.

        For a preference model the loss of its supervised stage: an interaction holds no rejected items.
        """
        pairs = to_pairs(interaction.cpu(), self)
        batch = self.encoder.collate(self.encoded(pairs)).to(self.backbone.device)
        legal = None
        if self.objective.needs.rewards:
            probabilities = self.reward_model.probabilities(interaction, pairs.candidates)
            legal = token_rewards(probabilities, self.catalog, batch.target.cpu(), batch.node.cpu())
            legal = legal.to(batch.input_ids.device)
        return self._terms(batch, legal=legal).total / len(batch.targets)

    def encoded(self, pairs: Pairs) -> list[EncodedRow]:
        """One row for each pair, in which its number is the target's."""
        every = np.arange(len(pairs))
        histories, nothing = pairs.histories(every), [None] * len(pairs)
        choices: Sequence[np.ndarray | None] = pairs.choices(every) or nothing
        return [
            self.encoder.row(Example(np.append(history, item), np.array([number]), candidates=offered))
            for number, (history, item, offered) in enumerate(zip(histories, pairs.target, choices, strict=True))
        ]

    def rank(self, pairs: Pairs, *, batch_size: int, count: int | None = None, **how: Any) -> Ranking:
        """The ``count`` best identifiers for each history, in the order of ``pairs``: beams, or BIGRec's grounding.

        ``progress`` and ``keeper`` are as in :func:`~recbole_ilrec.decoding.passes.each_user`.
        """
        return self._rank(pairs, count or self.list_length, batch_size=batch_size, **how)

    def _rank(self, pairs: Pairs, count: int, **how: Any) -> Ranking:
        if self.title_ranker is not None and pairs.candidates is None:
            return self.title_ranker.rank(pairs, count, **how)
        decode, every = self.settings.decode.model_copy(update={"num_beams": count}), np.arange(len(pairs))
        histories, choices, seen = pairs.histories(every), pairs.choices(every), pairs.seen()
        how |= {"device": self.backbone.device, "share": (processes.rank(), processes.world())}
        if choices is not None and not decode.renormalise:
            left_out = seen if decode.exclude_history else None
            how |= {"vocabulary": self.backbone.vocab_size, "seen": left_out, "joined": processes.maximum}
            return rank_candidates(self.answer_log_probs, self.encoder, histories, choices, **how)
        how["exact_places"] = self.exact_places
        own = rank_users(self.backbone, self.encoder, histories, decode, seen=seen, candidates=choices, **how)
        assert own.bound is not None
        return Ranking(*map(processes.maximum, (own.leaf, own.score, own.bound)))

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """RecBole's verb: the score that decoding gives each row's item after its history, ``[B]``.

        Where the task is to choose among candidates, it is -inf for an item that is none of the row's, and under
        ``decode.exclude_history`` for one that the user has had; with BIGRec's grounding it is the negative distance,
        as in :meth:`full_sort_predict`.
        """
        if self.settings.task == "candidates" or self.title_ranker is not None:
            chosen = interaction[self.POS_ITEM_ID].to(self.backbone.device)
            return self.full_sort_predict(interaction).gather(1, chosen[:, None])[:, 0]
        pairs = to_pairs(interaction.cpu(), self)
        rows = self.encoded(pairs)
        batch = self.encoder.collate(rows).to(self.backbone.device)
        logits = self.backbone.head(self.backbone.layer_states(batch.input_ids, batch.select).final).float()
        if self.settings.decode.renormalise:
            legal = legal_tokens(self.catalog.trie, batch.node.cpu()).to(logits.device)
            at = legal.row, legal.token
            logits = torch.full_like(logits, -torch.inf).index_put(at, logits[at])
        chosen = logits.log_softmax(1).gather(1, batch.targets[:, None])[:, 0]
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.target) for row in rows]))
        scores = torch.zeros(len(rows), device=chosen.device).index_add_(0, owner.to(chosen.device), chosen)
        left_out = torch.from_numpy(pairs.repeats() & self.settings.decode.exclude_history).to(scores.device)
        return scores.masked_fill(left_out, -torch.inf)

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """RecBole's verb: exact log-probability of every item, ``[B, I + 1]``, by a beam as wide as the catalogue.

        With BIGRec's grounding it is the negative distance instead (below the beams' scores where they come first).
        Where the task is to choose among candidates, all other items have -inf.
        Meant for small catalogues and other people's tools; training and evaluation of this package never build
        a table of users and items.
        """
        pairs = to_pairs(interaction.cpu(), self)
        scores = torch.full((len(pairs), self.n_items), -torch.inf)
        ranking = self._rank(pairs, self.catalog.num_leaves, batch_size=1)
        by_leaf = torch.full((len(pairs), self.catalog.num_leaves + 1), -torch.inf)
        by_leaf.scatter_(1, ranking.leaf.where(ranking.leaf >= 0, self.catalog.num_leaves), ranking.score)
        scores[:, 1:] = by_leaf[:, self.catalog.leaf_of_item[1:]]
        if pairs.candidates is not None:
            others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, torch.from_numpy(pairs.candidates), False)
            scores.masked_fill_(others, -torch.inf)
        return scores.to(self.backbone.device)
