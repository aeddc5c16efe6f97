"""The candidates of each row (``--task=candidates``) as a column of RecBole's interactions: published, or drawn."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_ilrec.data.sequences import as_pairs
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.title import item_titles
from recbole_ilrec.preparation.candidate_lists import PHASES, CandidateRow
from recbole_ilrec.prompt.candidates import draw_candidates

logger = logging.getLogger(__name__)

CANDIDATES = "candidates"
"""Name of the column: ``[rows, C]`` item ids as they are shown, 0 where a row has fewer."""


def published_rows(dataset: Any, published: Sequence[CandidateRow]) -> list[tuple[Tensor, Tensor]]:
    """Rows of an augmented data set that the published choices are about.

    Args:
        dataset: the data set, one row for each history and next item.
        published: the choices.

    Returns:
        for training, validation and test: numbers of rows, ascending, and their lists ``[rows, C]``.

    Raises:
        UserError: a choice that the interactions do not hold, e.g. because they were filtered.
    """
    users, items = (dataset.field2token_id[field] for field in (dataset.uid_field, dataset.iid_field))
    rows = dataset.inter_feat
    first, last = dataset.sequences.interval(rows[dataset.uid_field], rows[dataset.time_field]).T.tolist()
    target = rows[dataset.iid_field].tolist()
    keys = zip(rows[dataset.uid_field].tolist(), np.subtract(last, first).tolist(), strict=True)
    number = {key: row for row, key in enumerate(keys)}
    width = max(len(row.candidates) for row in published)
    found: dict[str, dict[int, list[int]]] = {phase: {} for phase in PHASES}
    for row in published:
        at = number.get((users.get(row.user, 0), row.place))
        shown = [items[token] for token in row.candidates]
        if at is None or target[at] not in shown:
            raise UserError(
                f"{dataset.dataset_name}: the published choice of user '{row.user}' after {row.place} items is not in "
                f"{dataset.dataset_name}.inter: leave the interactions unfiltered, or prepare the data set again."
            )
        found[row.phase][at] = shown + [0] * (width - len(shown))
    return [
        (torch.tensor(sorted(lists)), torch.tensor([lists[at] for at in sorted(lists)])) for lists in found.values()
    ]


def draw_lists(config: Any, splits: Sequence[Any]) -> None:
    """Give the rows of each part their candidates, where they have none or others are wanted.

    Args:
        config: the run's settings.
        splits: training, validation and test part of RecBole's data set; a column is added to each.

    Raises:
        UserError: ``topk`` is beyond the length of the lists, or the evaluation is to sample others.
    """
    mode = config["eval_args"]["mode"]
    if set(mode.values()) != {"full"}:
        raise UserError(f"eval_args.mode={mode} samples items and task=candidates has its own lists: leave it at full.")
    own, names = config.settings.candidates, _names(splits[0])
    published = own.lists == "published" and CANDIDATES in splits[0].inter_feat
    for part, split in enumerate(splits):
        rows = split.inter_feat
        if not published:
            pairs = as_pairs(rows, split.sequences, *_fields(split))
            lists = draw_candidates(pairs, names, own.count, seed=config["seed"], part=part, by=own.seeding)
            rows.update(Interaction({CANDIDATES: torch.from_numpy(lists)}))
        width = rows[CANDIDATES].shape[1]
        if max(config["topk"]) > width:
            raise UserError(f"topk={config['topk']} asks for more than the {width} candidates: use a smaller --topk.")
    origin = "as published" if published else f"drawn by {own.seeding}"
    logger.info("Choices among %d candidates, lists %s", width, origin)


def _fields(dataset: Any) -> tuple[str, str, str, str, str]:
    lists, length = dataset.history_field, dataset.item_list_length_field
    return dataset.uid_field, lists, length, dataset.iid_field, dataset.time_field


def _names(dataset: Any) -> np.ndarray:
    """``[I + 1]``: items with one title have one number."""
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    titles, _ = item_titles(dataset.item_texts[1:], tokens)
    return np.unique(["", *titles], return_inverse=True)[1]
