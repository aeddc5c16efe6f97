"""RecBole's sequential dataset in exact time order, with the raw item texts, and the loaders built from it.

Rows, split and loaders are RecBole's: one row per prefix of a sequence, a user's last for test, the one before for
validation, as long as one is left to train on. What differs: the ``.inter`` file is checked row by row, timestamps keep
their exact order, texts are read as they stand in the ``.item`` file, and augmentation is vectorised.
"""

import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import FeatureSource, FeatureType, set_color
from torch import Tensor

from recbole_ilrec.checks.interactions import TimeOrder, time_order
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import data_key
from recbole_ilrec.data.candidates import CANDIDATES, draw_lists, published_rows
from recbole_ilrec.data.interaction_file import read_interactions, refuse_one_moment, time_ranks
from recbole_ilrec.data.item_texts import texts_by_id
from recbole_ilrec.data.ready_made import cut_histories
from recbole_ilrec.data.sequences import Rows, Sequences
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.candidate_lists import SUFFIX, CandidateRow, read_candidates

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1 << 18


class SequenceDataset(SequentialDataset):
    """A sequential dataset of RecBole; see the module's docstring for what is different.

    Choice: RecBole turns timestamps into float32, in which seconds less than about 128 apart collapse (RecBole#2204).
    They are replaced by ranks: position in the order of (exact time, user, line of the file). Equal times of one user
    are taken in file order. Above 2^23 interactions, where float32 would not tell ranks apart, the ranks are counted
    for each user alone, which orders a sequence the same but not the users among each other.

    Raises:
        UserError: a missing or malformed file, or nothing left after filtering.
    """

    inter_feat: Any  # a table while it is filtered, RecBole's Interaction afterwards
    time_order: TimeOrder

    @property
    def history_field(self) -> str:
        return str(getattr(self, f"{self.iid_field}_list_field"))  # RecBole names it after the column of items

    def _load_data(self, token: str, dataset_path: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # RecBole fills columns in a way that pandas 3 drops
            super()._load_data(token, dataset_path)

    def _data_processing(self) -> None:
        self._texts: list[dict[str, str]] = []  # read once: RecBole's copies for the parts share this list
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            super()._data_processing()

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        if source is not FeatureSource.INTERACTION or self.benchmark_filename_list is not None:
            return super()._load_feat(filepath, source)
        load, unload = self._get_load_and_unload_col(source)
        frame, types = read_interactions(
            Path(filepath),
            required={self.uid_field: "token", self.iid_field: "token", self.time_field: "float"},
            wanted=lambda field: (load is None or field in load) and (unload is None or field not in unload),
            separator=self.config["field_separator"],
            encoding=self.config["encoding"] or "utf-8-sig",
        )
        if any(kind.endswith("seq") for kind in types.values()):
            return super()._load_feat(filepath, source)
        for field, kind in types.items():
            self.set_field_property(field, FeatureType(kind), source, 1)
            if kind == "float":
                self.field2bucketnum[field] = 2
        return frame

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        path = Path(dataset_path) / f"{token}.inter"
        if self.benchmark_filename_list is None and not path.is_file():
            raise UserError(
                f"{path} does not exist: a dataset folder holds NAME.inter, tab separated, with the header "
                "'user_id:token<TAB>item_id:token<TAB>timestamp:float'."
            )
        super()._load_inter_feat(token, dataset_path)

    def _benchmark_presets(self) -> None:
        cut_histories(self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            super()._benchmark_presets()

    def _remove_duplication(self) -> None:
        if self.config["rm_dup_inter"] is not None:  # RecBole's sort leaves the order of equal times to chance
            self.inter_feat.sort_values(by=self.time_field, kind="stable", inplace=True)
            keep = self.config["rm_dup_inter"]
            self.inter_feat.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep, inplace=True)

    def _reset_index(self) -> None:
        """The last step of filtering; until here the index of a row is its place in the file."""
        counts = self.inter_feat[self.uid_field].value_counts()
        if counts.empty:
            raise UserError(
                f"{self.dataset_name}: no interaction is left after filtering. Check the file and the settings "
                "user_inter_num_interval, item_inter_num_interval, val_interval and filter_inter_by_user_or_item."
            )
        if counts.iloc[0] < 3:
            raise UserError(
                f"{self.dataset_name}: no user has 3 interactions or more, the longest sequence has {counts.iloc[0]}. "
                "Leave-one-out takes one for test and one for validation; use data with longer sequences."
            )
        self._rank_times()
        super()._reset_index()

    def _rank_times(self) -> None:
        frame = self.inter_feat
        users, items = (pd.factorize(frame[field])[0] for field in (self.uid_field, self.iid_field))
        times = frame[self.time_field].to_numpy(np.float64)
        self.time_order = time_order(users, items, times)
        if not self.published:
            refuse_one_moment(self.dataset_name, self.config["eval_args"], self.time_order)
        frame[self.time_field] = time_ranks(users, times, frame.index.to_numpy())

    @cached_property
    def published(self) -> list[CandidateRow]:
        """Published choices among candidates (``NAME.candidates.jsonl``); empty where the folder has none."""
        path = Path(self.dataset_path) / f"{self.dataset_name}{SUFFIX}"
        return read_candidates(path) if path.is_file() else []

    def _remap_ID_all(self) -> None:
        """As RecBole does; items that are only ever offered as candidates get the ids after those of the others."""
        super()._remap_ID_all()
        field = self.iid_field
        offered = dict.fromkeys(token for row in self.published for token in row.candidates)
        more = [token for token in offered if token not in self.field2token_id[field]]
        self.field2token_id[field] |= {token: n for n, token in enumerate(more, start=len(self.field2id_token[field]))}
        self.field2id_token[field] = np.array([*self.field2id_token[field], *more])

    def build(self) -> list["SequenceDataset"]:
        """Training, validation and test part: as published, with the lists as a column, or by RecBole's ``eval_args``.

        Choice: where the folder has published choices, they are the rows and the split of every model and task, so
        that no model, the collaborative one of Eq. 10 included, sees a choice it is tested on; ``eval_args.split`` is
        then not read.
        """
        if not self.published:
            return super().build()
        self._change_feat_format()
        self._drop_unused_col()
        parts = []
        for rows, lists in published_rows(self, self.published):
            part = self.inter_feat[rows]
            part.update(Interaction({CANDIDATES: lists}))
            parts.append(self.copy(part))
        return parts

    def data_augmentation(self) -> None:
        """One row per (history, next item), exactly as RecBole's loops build them, without the loops."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        users = self.inter_feat[self.uid_field].numpy()
        starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        lengths = np.diff(np.r_[starts, len(users)])
        fields = self.uid_field, self.iid_field, self.time_field
        self.sequences = Sequences.build(self.inter_feat, *fields, self.user_num)
        row = np.arange(len(users))
        first = np.repeat(starts, lengths)
        target = row[row > first]
        begin = np.maximum(first[target], target - self.max_item_list_len)
        histories = self._histories(torch.from_numpy(begin), torch.from_numpy(target - begin))
        rows = Rows(self.inter_feat.interaction)[target]
        rows.update(Interaction(histories))
        self.inter_feat = rows

    def _histories(self, begin: Tensor, length: Tensor) -> dict[str, Tensor]:
        """Columns ``item_length`` and ``*_list``: the ``length[r]`` entries from ``begin[r]`` on, zeros after them."""
        columns = {self.item_list_length_field: length}
        for field in list(self.inter_feat):
            if field == self.uid_field:
                continue
            list_field = getattr(self, f"{field}_list_field")
            value = self.inter_feat[field]
            width = self.field2seqlen[list_field]
            width = width[0] if isinstance(width, tuple) else width
            column = torch.zeros((len(begin), width, *value.shape[1:]), dtype=value.dtype)
            for part in torch.arange(len(begin)).split(_ROWS_AT_ONCE):
                count = length[part]
                row = torch.repeat_interleave(part, count)
                place = torch.arange(len(row)) - torch.repeat_interleave(count.cumsum(0) - count, count)
                column[row, place] = value[begin[row] + place]
            columns[list_field] = column
        return columns

    @property
    def item_texts(self) -> list[dict[str, str]]:
        """Field -> raw text of each item by internal id, as in the ``.item`` file; entry 0 (``[PAD]``) is empty."""
        path = Path(self.dataset_path) / f"{self.dataset_name}.item"
        if not self._texts:
            self._texts += texts_by_id(path, self.iid_field, self.field2id_token[self.iid_field][1:].tolist())
        return self._texts

    def statistics(self) -> str:
        """One line of counts as RecBole gives them: ``[PAD]`` is one user and one item (the paper's Table 3)."""
        return (
            f"{self.dataset_name}: {self.user_num:,} users, {self.item_num:,} items (each with [PAD]), "
            f"{self.inter_num:,} interactions, sparsity {self.sparsity:.4%}"
        )

    def counts(self) -> dict[str, float]:
        """The numbers of :meth:`statistics`."""
        numbers = self.user_num, self.item_num, self.inter_num, float(self.sparsity)
        return dict(zip(("users", "items", "interactions", "sparsity"), numbers, strict=True))

    def content_key(self) -> str:
        """See :func:`recbole_ilrec.configuration.outcome.data_key`."""
        return data_key(self.config)


@dataclass(frozen=True)
class Data:
    """A dataset and what is trained and evaluated on.

    Attributes:
        dataset: the whole dataset after filtering; ``dataset.item_texts`` has the texts.
        train: RecBole's loader of training rows, shuffled by a generator of its own.
        valid: loader of validation rows, one a user.
        test: loader of test rows, one a user; their history holds the validation item.
        rows: rows of each part before ``eval_users`` took the first of them.
        statistics: the dataset's counts before augmentation, one line; ``counts``: the same as numbers.
    """

    dataset: SequenceDataset
    train: AbstractDataLoader
    valid: AbstractDataLoader
    test: AbstractDataLoader
    rows: dict[str, int]
    statistics: str
    counts: dict[str, float]


def build_data(config: Config) -> Data:
    """Read, filter, augment, split and batch: RecBole's ``create_dataset`` and ``data_preparation`` without caches.

    Raises:
        UserError: malformed data, an empty split, or ``topk`` beyond the number of items.
    """
    dataset = SequenceDataset(config)
    items = dataset.item_num - 1
    if max(config["topk"]) > items:
        raise UserError(f"topk={config['topk']} asks for more than the {items} items there are: use a smaller --topk.")
    statistics, counts = dataset.statistics(), dataset.counts()
    rule = config["eval_args"]["split"]
    try:
        splits = list(dataset.build())
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise UserError(f"eval_args.split={rule} is not allowed ({error}): use e.g. {{LS: valid_and_test}}.") from None
    if len(splits) != 3:
        raise UserError(f"eval_args.split={rule} gives {len(splits)} parts: training, validation and test are needed.")
    for phase, split in zip(("training", "validation", "test"), splits, strict=True):
        if not len(split):
            raise UserError(
                f"{dataset.dataset_name}: the {phase} part is empty under eval_args.split={rule}: all three have to be "
                "filled; {LS: valid_and_test} needs users with 4 interactions or more."
            )
    rows = {phase: len(split) for phase, split in zip(("train", "valid", "test"), splits, strict=True)}
    splits = [splits[0], *(_first_users(split, config.settings.eval_users) for split in splits[1:])]
    if config.settings.task == "candidates":
        draw_lists(config, splits)
    samplers = create_samplers(config, dataset, splits)
    train, valid, test = (
        get_dataloader(config, phase)(config, split, sampler, shuffle=phase == "train" and config["shuffle"])
        for phase, split, sampler in zip(("train", "valid", "test"), splits, samplers, strict=True)
    )
    _log_batches(config)
    return Data(dataset, train, valid, test, rows, statistics, counts)


def _first_users(split: SequenceDataset, count: int | None) -> SequenceDataset:
    """The rows of the first ``count`` users in the order of their internal ids."""
    users = split.inter_feat[split.uid_field]
    if count is None or count >= len(users.unique()):
        return split
    last = users.unique()[count - 1]
    return split.copy(split.inter_feat[users <= last])


def _log_batches(config: RecBoleConfig) -> None:
    """RecBole's two lines, formatted before they are logged: its file log strips colours from whole messages only."""
    of_training, of_evaluation = ("train_batch_size", "train_neg_sample_args"), ("eval_batch_size", "eval_args")
    for phase, (size, name) in {"Training": of_training, "Evaluation": of_evaluation}.items():
        parts = (
            set_color(f"[{phase}]: ", "pink") + set_color(size, "cyan"),
            "= " + set_color(f"[{config[size]}]", "yellow"),
            set_color(name, "cyan") + ": " + set_color(f"[{config[name]}]", "yellow"),
        )
        logger.info(" ".join(parts))
