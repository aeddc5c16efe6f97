"""The frozen collaborative-filtering model behind Eq. 10: trained once, kept by content, asked for scores.

Knows RecBole's models and the cache; never tokens or the trie (see ``recbole_ilrec.reward``).
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_seed
from recbole.utils.argument_list import dataset_arguments
from torch import Tensor

from recbole_ilrec.collaborative.classical import BEST, LAST, ClassicalTrainer
from recbole_ilrec.collaborative.model import build_model, items_key, load_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.lookup import find_model, read_of
from recbole_ilrec.configuration.outcome import OUTCOME_FREE, decides, interactions_key, own_code
from recbole_ilrec.configuration.presets import preset, read_yaml
from recbole_ilrec.data.dataset import SequenceDataset, build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import PREFERENCES
from recbole_ilrec.preparation.files import made_once
from recbole_ilrec.report.costs import REWARD, note_earlier, note_made, spent_on
from recbole_ilrec.reward.token_reward import item_probabilities
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import STATE, check_kind, fingerprint, load_state, plain_entry
from recbole_ilrec.runtime.generators import random_state, set_random_state
from recbole_ilrec.settings import Settings

logger = logging.getLogger(__name__)

_SELECTING = (*dataset_arguments, "eval_args", "repeatable", "seed", "reproducibility")


class RewardModel:
    """A trained recommender of RecBole that is only asked for scores.

    Args:
        model: the recommender, already trained.
        dataset: the dataset whose item ids it knows.
        temperature: of the softmax over items.
        mask_history: give items of the user's history no probability, but for the truth.
    """

    def __init__(
        self,
        model: AbstractRecommender,
        dataset: SequenceDataset,
        *,
        temperature: float = 1.0,
        mask_history: bool = False,
    ):
        self.model = model.eval().requires_grad_(False)
        self.dataset = dataset
        self.temperature = temperature
        self.mask_history = mask_history

    @torch.no_grad()
    def scores(self, rows: Interaction) -> Tensor:
        """Scores of all real items after each row's history, ``[B, I]`` float32 in the order of internal ids 1 .. I."""
        return self._scores(rows)[:, 1:]

    def _scores(self, rows: Interaction) -> Tensor:
        self.model.eval()
        device = next(self.model.parameters()).device
        return self.model.full_sort_predict(rows.to(device)).view(len(rows), -1).float().cpu()

    @torch.no_grad()
    def probabilities(
        self, rows: Interaction, candidates: np.ndarray | None = None, past: Sequence[np.ndarray] | None = None
    ) -> Tensor:
        """R of Eq. 10 (:func:`~recbole_ilrec.reward.token_reward.item_probabilities`).

        Args:
            rows: rows of the dataset's training, validation or test part, or others with their ``past``.
            candidates: ``[B, C]`` item ids, 0 where a row has fewer; only these may have a probability.
            past: what the user of each row has had before; by default what the dataset says.

        Returns:
            ``[B, I]`` float64, each row sums to 1.
        """
        scores = self._scores(rows)
        return item_probabilities(
            scores,
            self.temperature,
            candidates=None if candidates is None else torch.from_numpy(candidates).long(),
            seen=self._seen(rows, past, scores) if self.mask_history else None,
            target=rows[self.dataset.iid_field].cpu() if self.mask_history else None,
        )

    def _seen(self, rows: Interaction, past: Sequence[np.ndarray] | None, scores: Tensor) -> Tensor:
        """``[B, I + 1]`` bool, what each user has had before."""
        if past is None:
            fields = self.dataset.uid_field, self.dataset.time_field
            row, item = self.dataset.sequences.before(*(rows[field].cpu() for field in fields))
        else:
            row = torch.repeat_interleave(torch.arange(len(past)), torch.tensor(list(map(len, past)), dtype=torch.long))
            item = torch.from_numpy(np.concatenate([*past, np.zeros(0, dtype=np.int64)])).long()
        seen = torch.zeros(scores.shape, dtype=torch.bool)
        seen[row, item] = True
        return seen


def load_reward_model(config: Config, dataset: SequenceDataset) -> RewardModel:
    """The reward model that ``reward.*`` asks for: a given checkpoint, the cached one, or one trained now.

    The state of the random generators is the same afterwards, whether a model was trained or read.

    Args:
        config: the run that needs rewards.
        dataset: its dataset, built (or one of its parts).

    Raises:
        UserError: an unknown model, a bad ``reward.config``, or a checkpoint of another model or other items.
    """
    reward = config.settings.reward
    before = random_state()
    try:
        with processes.first_alone():
            model = _given(config, dataset) if reward.checkpoint else _cached(config, dataset)
    finally:
        set_random_state(before)
    return RewardModel(model, dataset, temperature=reward.temperature, mask_history=reward.mask_history)


def is_kept(config: Config, dataset: SequenceDataset) -> bool:
    """Whether :func:`load_reward_model` reads a model that is trained, and trains none.

    Raises:
        UserError: as :func:`reward_key`.
    """
    if config.settings.reward.checkpoint:
        return True
    last = _folder(config, _own_config(config, dataset), dataset) / LAST
    return (last / STATE).is_file() and bool(plain_entry(last, "finished"))


def untrained_reward_model(config: Config, dataset: SequenceDataset) -> tuple[RewardModel, Config]:
    """A model that costs what the trained one costs and knows nothing, and the settings it would be trained with."""
    own, reward = _own_config(config, dataset), config.settings.reward
    model = build_model(own, dataset)
    return RewardModel(model, dataset, temperature=reward.temperature, mask_history=reward.mask_history), own


def weighs_titles(settings: Settings) -> bool:
    """Whether the reward model weighs the distances of BIGRec's grounding."""
    own = settings.bigrec
    return settings.paradigm == "bigrec" and own.weight_by == "cf" and any(own.gamma)


def prefers(settings: Settings) -> bool:
    """Whether a preference stage smooths its labels, or finds similar items, by the reward model."""
    own = settings.preference
    similar = own.source == "similar" and settings.index.embedding == "cf"
    return settings.objective in PREFERENCES and (own.smoothing == "personalised" or similar)


def reward_key(config: Config, dataset: SequenceDataset) -> str:
    """Names the reward model that :func:`load_reward_model` gives, without training it.

    Raises:
        UserError: an unknown model, a bad ``reward.config``, or no checkpoint where one is given.
    """
    if config.settings.reward.checkpoint:
        folder = _checkpoint_folder(config)
        asked = json.dumps(_settings_of(config, plain_entry(folder, "config") or {}), sort_keys=True, default=str)
        return hashlib.sha256(f"{fingerprint(folder)} {asked}".encode()).hexdigest()[:16]
    return _key(_own_config(config, dataset), dataset)


def item_vectors(config: Config, dataset: SequenceDataset) -> Tensor:
    """The reward model's item embeddings, ``[I, d]`` float32 in the order of internal ids 1 .. I."""
    model = load_reward_model(config, dataset).model
    embedding = getattr(model, "item_embedding", None)
    if not isinstance(embedding, torch.nn.Embedding):
        raise UserError(f"reward_model={config.settings.reward.model} has no item embeddings: use e.g. SASRec.")
    return embedding.weight[1 : dataset.item_num].detach().float().cpu().clone()


def reward_config(config: Config, settings: dict[str, Any]) -> Config:
    """Settings of the reward model: ``settings``, then ``reward.config``.

    What selects and orders the data is the run's own, so that both see the same items under the same ids.
    """
    reward = config.settings.reward
    try:
        name, _, is_llm = find_model(reward.model)
    except UserError as error:
        raise UserError(f"reward_model={reward.model}: {error}") from None
    if is_llm:
        raise UserError(f"reward_model={name} is a language model: choose a sequential model of RecBole, e.g. SASRec.")
    shared = {key: config[key] for key in _SELECTING if key in config}
    if "load_col" not in config.external_config_dict:
        shared.pop("load_col", None)
    places = {key: config[key] for key in ("checkpoint_dir", "cache_dir", "show_progress", "state")}
    places |= {"data_path": str(Path(config["data_path"]).parent), "device": str(config["device"])}
    return Config(reward.model, config.dataset, None, {**settings, **shared, **places, **reward.config})


def training_settings(config: Config) -> Config | None:
    """Settings that select the training rows of the reward model, where they are not those of the run itself.

    They come from ``reward.config``, or from the run that ``reward.checkpoint`` is of.

    Returns:
        the settings of that model, or ``None`` when it learns from the run's own training rows.
    """
    reward = config.settings.reward
    given: dict[str, Any] = {}
    if reward.checkpoint:
        given = plain_entry(_checkpoint_folder(config), "config") or {}
    own = reward_config(config, {})
    choosing = [key for key in _SELECTING if key not in ("seed", "reproducibility", "load_col", "unload_col")]
    for key in choosing:
        if key in given:  # unset there is a difference too: a filter of this run then keeps rows from it
            own[key] = given[key]
    return own if any(own[key] != config[key] for key in choosing) else None


def _preferred(config: Config) -> dict[str, Any]:
    """``properties/reward/<Model>.yaml``, where there is one."""
    path = preset("reward", find_model(config.settings.reward.model)[0])
    return read_yaml(path) if path.is_file() else {}


def _checkpoint_folder(config: Config) -> Path:
    folder = Path(str(config.settings.reward.checkpoint))
    return folder / BEST if (folder / BEST / STATE).is_file() else folder


def trained_elsewhere(config: Config) -> bool | None:
    """Whether ``reward.checkpoint`` was trained on another file of interactions than this run's; ``None``: not known.

    Versions that did not say are the reason why it may not be known.
    """
    if not config.settings.reward.checkpoint:
        return False
    file = plain_entry(_checkpoint_folder(config), "interactions")
    return None if file is None else file != interactions_key(config)


def _given(config: Config, dataset: SequenceDataset) -> AbstractRecommender:
    folder = _checkpoint_folder(config)
    name, _, _ = find_model(config.settings.reward.model)
    try:
        check_kind(folder, name)
    except UserError as error:
        raise UserError(f"reward_checkpoint with reward_model={name}: {error}") from None
    state = load_state(folder)
    if "items" not in state:
        raise UserError(f"reward_checkpoint={folder} is for resuming a run: give the run's folder or its best/.")
    if state["items"] != items_key(dataset):
        raise UserError(
            f"reward_checkpoint={folder} knows other items than dataset '{config.dataset}': use one trained on "
            "this dataset with the same filters, or leave reward_checkpoint out to train one."
        )
    model = build_model(reward_config(config, _settings_of(config, state["config"])), dataset)
    load_model(model, state, folder)
    return model


def _settings_of(config: Config, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint's model reads, as it was trained: equal weights may stand for other scores."""
    stored = read_of(find_model(config.settings.reward.model)[1], kept)
    return {key: value for key, value in stored.items() if key not in _SELECTING and key not in OUTCOME_FREE}


@spent_on(REWARD)
def _cached(config: Config, dataset: SequenceDataset) -> AbstractRecommender:
    own = _own_config(config, dataset)
    folder = _folder(config, own, dataset)
    with made_once(folder):
        init_seed(own["seed"], own["reproducibility"])
        trainer = ClassicalTrainer(own, build_model(own, dataset))
        trainer.folder = folder
        trainer.log_folder = folder / "log_tensorboard"
        if (folder / LAST / STATE).is_file():
            trainer.resume_checkpoint(folder)
        if not trainer.finished:
            logger.info("Training the reward model %s (once; kept in %s)", own.model, folder)
            data = build_data(own)
            trainer.fit(data.train, data.valid, saved=True, show_progress=own["show_progress"])
            note_made(folder)
        else:
            note_earlier(trainer.spent, of=folder)
        trainer.load_best()
        return trainer.model


@spent_on(REWARD)
def note_cost(config: Config, dataset: SequenceDataset) -> None:
    """Count the training of the kept model for this run, which reads only what was made from it."""
    last = _folder(config, _own_config(config, dataset), dataset) / LAST
    if not config.settings.reward.checkpoint and (last / STATE).is_file():
        note_earlier(plain_entry(last, "spent") or {}, of=last.parent)


def _folder(config: Config, own: Config, dataset: SequenceDataset) -> Path:
    return Path(str(config["cache_dir"])) / "reward" / f"{own.model}-{own.dataset}-{_key(own, dataset)}"


def _own_config(config: Config, dataset: SequenceDataset) -> Config:
    few = {"topk": [dataset.item_num - 1]} if dataset.item_num <= 10 else {}  # the default of 10 would not fit
    return reward_config(config, {**_preferred(config), **few})


def _key(own: Config, dataset: SequenceDataset) -> str:
    outcome = {key: value for key, value in own.as_dict().items() if decides(key, value)}
    identity = json.dumps([outcome, dataset.content_key(), *own_code(own)], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
