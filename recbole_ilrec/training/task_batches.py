"""Sequential recommendation and LC-Rec's alignment tasks in one stream of training batches."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from recbole_ilrec.data.alignment import Alignment
from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import Pairs, TrainRows
from recbole_ilrec.prompt.tasks import TaskRows
from recbole_ilrec.schema import TokenBatch
from recbole_ilrec.settings import SEQREC
from recbole_ilrec.training.micro_batches import MicroBatches

Array = np.ndarray


class TaskBatches(MicroBatches):
    """Rows of ``seqrec``, then those of the other tasks.

    Choice: the paper does not say whether LC-Rec's other tasks are trained with it, nor what ILRec does to them. By
    default ``tasks`` is ``seqrec`` alone. Rows of other tasks are trained with plain cross-entropy, unless
    ``ilrec_tasks`` names their task.

    Args:
        rows: rows of ``seqrec``.
        encoder: builds the token ids.
        tasks: rows of the other tasks.
        ilrec_tasks: tasks whose rows get ILRec's terms.
    """

    def __init__(self, rows: TrainRows, encoder: PromptEncoder, tasks: TaskRows, ilrec_tasks: Collection[str]):
        super().__init__(rows, encoder)
        self.tasks = tasks
        names = np.array([SEQREC] * len(rows) + tasks.tasks)
        self.group = np.unique(names, return_inverse=True)[1]
        self._ilrec = np.isin(names, list(ilrec_tasks))

    def __len__(self) -> int:
        return len(self._ilrec)

    def encode(self, epoch: int, rows: Array) -> TokenBatch:
        """Some rows as they are in an epoch."""
        first = len(self.rows)
        encoded = [
            self.encoder.row(self.rows.example(epoch, row)) if row < first else self.tasks.row(epoch, row - first)
            for row in rows
        ]
        ilrec = np.repeat(self._ilrec[rows], [len(row.target) for row in encoded])
        return replace(self.encoder.collate(encoded), ilrec_rows=torch.from_numpy(ilrec))


def supervised_batches(config: Any, model: GenerativeRecommender, pairs: Pairs) -> tuple[MicroBatches, Array, Array]:
    """The training rows of a run, as :meth:`~recbole_ilrec.training.trainer.GenerativeTrainer.training_batches`."""
    train = config.settings.train
    rows = TrainRows(
        pairs,
        rows=train.rows,
        window=config["MAX_ITEM_LIST_LENGTH"],
        variants=model.variants,
        item_dropout=train.item_dropout,
        seed=config["seed"],
        shuffle=config.settings.candidates.shuffle,
    )
    if model.alignment is not None:
        return task_batches(config, model, model.alignment, rows, pairs)
    batches = MicroBatches(rows, model.encoder)
    batches.sizes = rows.sizes
    return batches, rows.num_items, rows.num_targets


def task_batches(
    config: Any, model: GenerativeRecommender, alignment: Alignment, rows: TrainRows, pairs: Pairs
) -> tuple[TaskBatches, Array, Array]:
    """The rows of all tasks; each row of a task beside ``seqrec`` counts as one target.

    Args:
        config: the run's settings.
        model: its tokenizer and identifiers.
        alignment: prompts and texts of the tasks.
        rows: rows of ``seqrec``.
        pairs: the training pairs that these rows are made of.

    Returns:
        the batches; ``[rows]`` length of each row (items, or tokens in another task); ``[rows]`` targets of each.
    """
    settings = config.settings.alignment
    tasks = TaskRows(
        alignment.templates,
        alignment.data,
        pairs,
        model.encoder,
        model.backbone.tokenizer,
        seed=config["seed"],
        max_text_tokens=settings.max_text_tokens,
        fusion_sample=settings.fusion_sample,
    )
    batches = TaskBatches(rows, model.encoder, tasks, settings.ilrec_tasks)
    lengths, ones = tasks.num_tokens, np.ones(len(tasks), dtype=np.int64)

    def with_tasks(items: Array, targets: Array) -> tuple[Array, Array]:
        return np.concatenate([items, lengths]), np.concatenate([targets, ones])

    batches.sizes = lambda epoch: with_tasks(*rows.sizes(epoch))
    return batches, *with_tasks(rows.num_items, rows.num_targets)
