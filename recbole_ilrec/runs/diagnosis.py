"""What the doctor looks at in a run: data, split, items and prompts, handed to :mod:`recbole_ilrec.checks`.

Nothing is trained for it, but identifiers that are neither given nor cached are learned, as the run would.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_ilrec.checks.candidates import candidate_findings
from recbole_ilrec.checks.finding import Finding, Level, needing_attention, of, summary
from recbole_ilrec.checks.interactions import count_finding, order_findings
from recbole_ilrec.checks.items import identifier_finding, lost_token_finding, prompt_finding, title_finding
from recbole_ilrec.checks.leaks import Rows, Timeline, ready_made_findings, split_findings
from recbole_ilrec.collaborative.reward_model import prefers, trained_elsewhere, training_settings, weighs_titles
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.candidates import CANDIDATES
from recbole_ilrec.data.dataset import Data, SequenceDataset, build_data
from recbole_ilrec.identifiers.title import TitleIdentifiers, item_titles
from recbole_ilrec.models.item_index import index_file
from recbole_ilrec.preparation.known import known_dataset
from recbole_ilrec.preparation.pipeline import tie_rule
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.training.best_weights import given_weights, on_same_data

logger = logging.getLogger(__name__)


def diagnose(config: Config, data: Data, model: Any = None) -> list[Finding]:
    """All findings of a run.

    Args:
        config: its settings.
        data: its data.
        model: its language model; ``None`` leaves out what depends on one.
    """
    findings = [*data_findings(config, data), *leak_findings(config, data), *list_findings(config, data)]
    if model is None:
        return findings
    return [*findings, *training_findings(config, data, model), *item_findings(config, data, model)]


def log_findings(findings: Sequence[Finding]) -> None:
    """One line that counts, and one for each finding that needs attention."""
    logger.info("Data check: %s (the verb 'doctor' shows all)", summary(findings))
    for finding in needing_attention(findings):
        logger.warning("Data check, %s: %s", finding.name, finding.text)


def data_findings(config: Config, data: Data) -> list[Finding]:
    """The interactions as they stand in the file."""
    dataset, known = data.dataset, known_dataset(config.dataset)
    found = dataset.user_num, dataset.item_num, int(data.counts["interactions"])
    expected = None if known is None else (known.users, known.items, known.interactions)
    counts = count_finding(config.dataset, found, expected)
    if _whole(data) is None:
        return [counts]  # rows that come ready made hold no times
    rule = tie_rule(Path(config["data_path"]), config.dataset)
    return [counts, *order_findings(dataset.time_order, rule)]


def _whole(data: Data) -> Any:
    """Whole sequences; ``None`` where rows come ready made."""
    return getattr(data.dataset, "sequences", None)


def leak_findings(config: Config, data: Data) -> list[Finding]:
    """The split."""
    whole = _whole(data)
    parts = {name: rows_of(getattr(data, name)._dataset) for name in ("train", "valid", "test")}
    if whole is None:
        return ready_made_findings(parts)
    timeline = Timeline(whole.start.numpy(), whole.items.numpy(), whole.times.numpy())
    return split_findings(
        timeline,
        parts,
        positions=data.dataset.time_order.positions,
        exclude_history=config.settings.decode.exclude_history,
    )


def list_findings(config: Config, data: Data) -> list[Finding]:
    """The candidate lists of the test rows, where the task is to choose among them."""
    if config.settings.task != "candidates":
        return []
    test, train = data.test._dataset, data.train._dataset
    rows = rows_of(test)
    histories = [items[:length] for items, length in zip(rows.history, rows.length, strict=True)]
    lists = [shown[shown > 0] for shown in test.inter_feat[CANDIDATES].numpy()]
    known = rows_of(train)
    in_rows = np.concatenate([known.target, known.history[known.inside]])
    counts = [np.bincount(items, minlength=train.item_num) for items in (known.target, in_rows)]
    return candidate_findings(histories, rows.target, lists, counts[0], counts[1] > 0)


def rows_of(part: SequenceDataset) -> Rows:
    """The rows of a part of the split as arrays; times are zeros where the rows came ready made."""
    feat, time = part.inter_feat, part.time_field
    history, times = feat[part.history_field].numpy(), f"{time}{part.config['LIST_SUFFIX']}"
    return Rows(
        user=feat[part.uid_field].numpy(),
        history=history,
        history_time=feat[times].numpy() if times in feat else np.zeros(history.shape),
        length=feat[part.item_list_length_field].numpy(),
        target=feat[part.iid_field].numpy(),
        time=feat[time].numpy() if time in feat else np.zeros(len(history)),
    )


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
