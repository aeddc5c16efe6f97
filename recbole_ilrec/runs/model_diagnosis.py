"""What the doctor looks at in a language model: what it was learned from, its items and prompts."""

from pathlib import Path
from typing import Any

import numpy as np

from recbole_ilrec.checks.finding import Finding, Level, of
from recbole_ilrec.checks.items import identifier_finding, lost_token_finding, prompt_finding, title_finding
from recbole_ilrec.collaborative.reward_model import prefers, trained_elsewhere, training_settings, weighs_titles
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.candidates import CANDIDATES
from recbole_ilrec.data.dataset import Data, SequenceDataset, build_data
from recbole_ilrec.identifiers.title import TitleIdentifiers, item_titles
from recbole_ilrec.models.item_index import index_file
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.runs.data_diagnosis import rows_of
from recbole_ilrec.training.best_weights import given_weights, on_same_data


def training_findings(config: Config, data: Data, model: Any) -> list[Finding]:
    """Whether the reward model and the identifiers were learned from training rows alone."""
    file = index_file(config)
    learned_from_clicks = config.settings.paradigm == "lcrec" and config.settings.index.embedding == "cf" and not file
    findings = []
    other_uses = weighs_titles(config.settings) or prefers(config.settings)
    if model.objective.needs.rewards or learned_from_clicks or other_uses:
        findings.append(_reward_finding(config, data))
    if config.settings.paradigm == "lcrec":
        findings.append(_index_finding(config, file, learned_from_clicks))
    if given := given_weights(config):
        findings.append(_given_finding(config, given))
    return findings


def _given_finding(config: Config, folder: Path) -> Finding:
    same = on_same_data(config, folder)
    level = {True: Level.OK, False: Level.ATTENTION, None: Level.NOTE}[same]
    text = {
        True: "was trained on the training rows of this run and no others",
        False: "was trained on other data than this run's: held-out items may have been in them; a run refuses it",
        None: "does not say what it was trained on: whether held-out items were in it cannot be seen",
    }[same]
    return Finding("split", "weights to begin with", level, f"{folder} {text}")


def _reward_finding(config: Config, data: Data) -> Finding:
    name = config.settings.reward.model
    differing = training_settings(config)
    elsewhere = trained_elsewhere(config)
    if elsewhere is not False:
        told = "was trained on another file of interactions" if elsewhere else "does not say what it was trained on"
        text = f"reward_checkpoint of {name} {told}: whether held-out items were in it cannot be seen"
        return Finding("split", "reward model", Level.ATTENTION if elsewhere else Level.NOTE, text)
    if differing is None:
        text = f"{name} is trained on the training rows of this run and no others"
        return Finding("split", "reward model", Level.OK, text)
    known = _pairs(data.train._dataset)
    held_out = {pair for part in (data.valid, data.test) for pair in _target_pairs(part._dataset)} - known
    among = len(held_out & _pairs(build_data(differing).train._dataset))
    text = (
        f"{of(among, len(held_out))} held-out items are in the training rows of {name}, which has its own data settings"
    )
    if among:
        text += ": leave data settings out of reward.config, or reward_checkpoint out to train one"
    return Finding("split", "reward model", Level.ATTENTION if among else Level.NOTE, text, {"rows": among})


def _target_pairs(part: SequenceDataset) -> set[tuple[str, str]]:
    users, items = (part.field2id_token[field] for field in (part.uid_field, part.iid_field))
    rows = rows_of(part)
    return set(zip(users[rows.user], items[rows.target], strict=True))


def _pairs(part: SequenceDataset) -> set[tuple[str, str]]:
    """User and item, by their tokens, of every target and history."""
    users, items = (part.field2id_token[field] for field in (part.uid_field, part.iid_field))
    rows = rows_of(part)
    owner = np.repeat(rows.user, rows.length)
    return _target_pairs(part) | set(zip(users[owner], items[rows.history[rows.inside]], strict=True))


def _index_finding(config: Config, file: Path | None, from_clicks: bool) -> Finding:
    if file is not None:
        text = f"{file.name} was learned elsewhere: from what cannot be seen; from texts alone it holds no clicks"
        return Finding("split", "identifiers", Level.NOTE, text)
    if from_clicks:
        text = "learned from vectors of the reward model, which is checked above"
        return Finding("split", "identifiers", Level.OK, text)
    text = f"learned from item texts alone (index.embedding={config.settings.index.embedding}), no clicks"
    return Finding("split", "identifiers", Level.OK, text)


def item_findings(config: Config, data: Data, model: Any) -> list[Finding]:
    """What the model reads of items and histories."""
    dataset, titles_needed = data.dataset, config.settings.paradigm == "bigrec"
    titles = unnamed = [""] * (dataset.item_num - 1)
    if (Path(config["data_path"]) / f"{config.dataset}.item").is_file():
        titles = item_titles(dataset.item_texts[1:], unnamed)[0]
    catalog, encoder = model.catalog, model.encoder
    if titles_needed:
        source = "titles"
    else:
        file = index_file(config)
        source = file.name if file is not None else "learned"
    test = rows_of(data.test._dataset)
    parts = {name: getattr(data, name)._dataset for name in ("train", "test")}
    return [
        title_finding(titles, needed=titles_needed),
        identifier_finding(catalog.leaf_of_item.numpy(), test.target, source),
        lost_token_finding(_lost_tokens(config, data, model)),
        prompt_finding({name: _left_out(encoder, part) for name, part in parts.items()}, encoder.max_length),
    ]


def _left_out(encoder: PromptEncoder, part: SequenceDataset) -> np.ndarray:
    """``[R]`` items that do not fit into the prompt of each row."""
    rows = rows_of(part)
    offered = part.inter_feat[CANDIDATES].numpy() if CANDIDATES in part.inter_feat else None
    return encoder.left_out(rows.history, rows.length, offered)


def _lost_tokens(config: Config, data: Data, model: Any) -> np.ndarray:
    """``[I]`` tokens by which the title of each item is longer than its identifier; semantic IDs are never cut."""
    dataset = data.dataset
    if config.settings.paradigm != "bigrec":
        return np.zeros(dataset.item_num - 1, dtype=np.int64)
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    titles = tuple(item_titles(dataset.item_texts[1:], tokens)[0])
    return np.array(
        TitleIdentifiers(titles, config.settings.bigrec.max_title_tokens).lost_tokens(model.backbone.tokenizer)
    )
