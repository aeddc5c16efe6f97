"""The batches of the training loop: which rows a process takes, piece by piece, and what they are as tokens."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from recbole_ilrec.chance import keys_of_rows
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import StepPlan, TrainRows
from recbole_ilrec.schema import AnswerBatch, TokenBatch

StepKey = tuple[int, np.ndarray]
"""Epoch, and rows of a micro-batch."""


class MicroBatches(Dataset):
    """Turns the keys of :class:`StepSampler` into token batches.

    Attributes:
        sizes: items and targets of the rows in an epoch, for :class:`~recbole_ilrec.prompt.rows.StepPlan`; ``None``
            where they are the same in every epoch.
        group: ``[rows]`` kind of each row, where there are several.
        stream: tells these rows from those of another kind of training, for chance.
    """

    sizes: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None
    group: np.ndarray | None = None
    stream = 5

    def __init__(self, rows: TrainRows, encoder: PromptEncoder):
        self.rows = rows
        self.encoder = encoder
        self.seed = rows.seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: StepKey) -> dict[str, Any]:
        """``rows`` and what they are as a ``batch``, with their ``row_keys``."""
        epoch, rows = key
        row_keys = keys_of_rows(self.seed, epoch, self.stream, rows)
        return {"rows": rows, "batch": replace(self.encode(epoch, rows), row_keys=row_keys)}

    def encode(self, epoch: int, rows: np.ndarray) -> TokenBatch | AnswerBatch:
        """Some rows as they are in an epoch."""
        return self.encoder.collate([self.encoder.row(self.rows.example(epoch, row)) for row in rows])


class StepSampler(Sampler):
    """Yields the keys of one process, micro-batch by micro-batch; ``set_epoch`` chooses the order."""

    def __init__(self, plan: StepPlan, micro_batches: int, rank: int = 0, world: int = 1):
        self.plan = plan
        self.micro_batches = micro_batches
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loop before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.steps * self.micro_batches

    def __iter__(self) -> Iterator[list[StepKey]]:
        for parts in self.plan.epoch(self.epoch):
            for micro in range(self.micro_batches):
                yield [(self.epoch, parts[micro * self.world + self.rank])]


class StepLoader(DataLoader):
    """A loader whose epoch can be set; the loop skips whole batches of its sampler when it resumes."""

    batch_sampler: StepSampler

    def set_epoch(self, epoch: int) -> None:
        """Forwarded to the sampler."""
        self.batch_sampler.set_epoch(epoch)
