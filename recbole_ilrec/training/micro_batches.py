"""The batches of the training loop: which rows a process takes, piece by piece, and what they are as tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import StepPlan, TrainRows
from recbole_ilrec.schema import AnswerBatch, TokenBatch

StepKey = tuple[int, np.ndarray]
"""Epoch, and rows of a micro-batch."""


class MicroBatches(Dataset):
    """Turns the keys of :class:`StepSampler` into token batches.

    Attributes:
        targets: ``[rows]`` targets of each row, by which ``train_batch_size`` counts.
        targets_in: the same as an epoch leaves them; ``None`` where every epoch does.
        group: ``[rows]`` kind of each row, where there are several.
        size: ``[rows]`` length of each row, where like ones have to go together.
    """

    targets: np.ndarray
    targets_in: Callable[[int], np.ndarray] | None = None
    group: np.ndarray | None = None
    size: np.ndarray | None = None

    def __init__(self, rows: TrainRows, encoder: PromptEncoder, *, pack: bool = False):
        self.rows = rows
        self.encoder = encoder
        self.pack = pack
        self.targets, self.targets_in = rows.num_targets, rows.targets_in

    def plan(self, batch: int, parts: int, seed: int) -> StepPlan:
        """The steps of ``batch`` targets that these rows make, each cut into ``parts``."""
        return StepPlan(self.targets, batch, parts, seed, self.targets_in, self.group, self.size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: StepKey) -> dict[str, Any]:
        """``rows`` and what they are as a ``batch``."""
        epoch, rows = key
        return {"rows": rows, "batch": self.encode(epoch, rows)}

    def encode(self, epoch: int, rows: np.ndarray) -> TokenBatch | AnswerBatch:
        """Some rows as they are in an epoch."""
        encoded = [self.encoder.row(self.rows.example(epoch, row)) for row in rows]
        return self.encoder.collate(encoded, pack=self.pack)


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
