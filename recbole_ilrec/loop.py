"""The training loop of the language models: ``transformers.Trainer`` with our rows, our loss and our checkpoints.

What the library does well (accumulation, clipping, schedules, precision, processes, resuming at a step) is left to it.
Ours are the batches, the normalisation of the loss, and what is written to disk: safetensors and JSON, never a pickle.
"""

import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recbole_ilrec.checkpoint import LOOP_STATE, checkpoints, load_state, random_state, save_state, set_random_state
from recbole_ilrec.errors import UserError
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import StepPlan, TrainRows
from recbole_ilrec.schema import AnswerBatch, TokenBatch
from recbole_ilrec.weights import WeightAverage, load_weights, weights

logger = logging.getLogger(__name__)

StepKey = tuple[int, np.ndarray, list[np.ndarray]]
"""Epoch, rows of this micro-batch, and the rows of all micro-batches of its step."""


class MicroBatches(Dataset):
    """Turns the keys of :class:`StepSampler` into token batches.

    Attributes:
        sizes: items and targets of the rows in an epoch, for :class:`~recbole_ilrec.prompt.rows.StepPlan`; ``None``
            where they are the same in every epoch.
        group: ``[rows]`` kind of each row, where there are several.
    """

    sizes: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None
    group: np.ndarray | None = None

    def __init__(self, rows: TrainRows, encoder: PromptEncoder):
        self.rows = rows
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: StepKey) -> dict[str, Any]:
        """``batch`` and ``count``, which the loss of the whole step is the mean over (all micro-batches, processes)."""
        epoch, own, parts = key
        batch = self.encode(epoch, own)
        others = 0 if len(parts) == 1 else sum(self.count(epoch, part) for part in parts)
        return {"batch": batch, "count": others or batch.count}

    def encode(self, epoch: int, rows: np.ndarray) -> TokenBatch | AnswerBatch:
        """Some rows as they are in an epoch."""
        return self.encoder.collate([self.encoder.row(self.rows.example(epoch, row)) for row in rows])

    def count(self, epoch: int, rows: np.ndarray) -> int:
        """What these rows add to the number that the loss of their step is the mean over."""
        return self.encode(epoch, rows).count


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
                yield [(self.epoch, parts[micro * self.world + self.rank], parts)]


class StepLoader(DataLoader):
    """A loader whose epoch can be set; the loop skips whole batches of its sampler when it resumes."""

    batch_sampler: StepSampler

    def set_epoch(self, epoch: int) -> None:
        """Forwarded to the sampler."""
        self.batch_sampler.set_epoch(epoch)


def _only(items: list[Any]) -> Any:
    return items[0]


class StepTrainer(Trainer):
    """``transformers.Trainer`` over :class:`MicroBatches`.

    Args:
        model: answers ``model(batch)`` with sums over tokens by name, ``loss`` first.
        args: the library's arguments.
        batches: the training rows.
        plan: steps of an epoch.
        evaluate: called when an evaluation is due; returns named numbers, may raise ``control.should_training_stop``.
        extra_state: JSON-able state of the caller that goes into every checkpoint.
        kind: what the checkpoints are of; compared when one is read.
        keep: resumable checkpoints kept.
        average: moving average of the weights, or ``None``.
        callbacks: further callbacks of the library.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        batches: MicroBatches,
        plan: StepPlan,
        *,
        evaluate: Callable[["StepTrainer"], Mapping[str, float]],
        extra_state: Callable[[], dict[str, Any]],
        kind: str,
        keep: int,
        average: WeightAverage | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        args._n_gpu = min(args.n_gpu, 1)  # several processes share GPUs; torch's DataParallel cannot split our batches
        super().__init__(model=model, args=args, train_dataset=batches, callbacks=callbacks)
        self.batches = batches
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.plan = plan
        self.average = average
        self.kind = kind
        self.keep = keep
        self._resumed: dict[str, Any] = {}
        self.sums: dict[str, float] = {}
        self.supervised = 0
        self._logged: tuple[dict[str, float], int] = ({}, 0)
        self._evaluate_model = evaluate
        self._extra_state = extra_state
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> DataLoader:
        """The rows of this process; never touched by accelerate, whose sharding would change the batches."""
        sampler = StepSampler(
            self.plan, self.args.gradient_accumulation_steps, self.args.process_index, self.args.world_size
        )
        return StepLoader(self.batches, batch_sampler=sampler, collate_fn=_only)

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the supervised tokens (or answered rows) of the whole step, however it is cut (A14)."""
        unwrapped = self.accelerator.unwrap_model(model)
        unwrapped.epoch = float(self.state.epoch or 0.0)
        batch = inputs["batch"].to(self.args.device)
        sums = model(batch)
        # Processes average their gradients; the factor turns that average back into a sum.
        loss = sums["loss"] * (self.args.world_size / inputs["count"])
        self._note(sums, batch.count)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"training loss is {loss.item()} at step {self.state.global_step}; lower --learning_rate, or set "
                "--ilrec.penalty=sign_safe if logits are strongly negative."
            )
        return (loss, sums) if return_outputs else loss

    def _note(self, sums: Mapping[str, Tensor], tokens: int) -> None:
        self.supervised += tokens
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def means(self) -> dict[str, float]:
        """Mean of each noted number per supervised token since the last :meth:`reset_means`."""
        return {name: value / max(self.supervised, 1) for name, value in self.sums.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's numbers and ours, as means since the last call."""
        recent = {k: v - self._logged[0].get(k, 0.0) for k, v in self.sums.items()}
        tokens = self.supervised - self._logged[1]
        self._logged = (dict(self.sums), self.supervised)
        ours = {f"train/{name}": value / tokens for name, value in recent.items() if tokens > 0}
        super().log({**logs, **ours}, start_time)

    def reset_means(self) -> None:
        """Start counting anew, at the beginning of an epoch."""
        self.sums, self.supervised, self._logged = {}, 0, ({}, 0)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """What the library calls when ``control.should_evaluate`` is set."""
        if self.average:
            self.average.swap()
        try:
            return dict(self._evaluate_model(self))
        finally:
            if self.average:
                self.average.swap()

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Everything that the next step depends on, under its final name only when it is complete."""
        if not self.args.should_save:
            return
        folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        building = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(building, ignore_errors=True)
        content = {
            "model": weights(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "average": self.average.mean if self.average else None,
            "random": random_state(),
            "sums": self.sums,
            "supervised": self.supervised,
            "identity": self._identity(),
            "extra": self._extra_state(),
        }
        try:
            save_state(building, content, kind=self.kind)
            self.state.save_to_json(str(building / LOOP_STATE))
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # only when nothing else is in it
            raise
        for old in checkpoints(folder.parent)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it goes on from: a checkpoint cannot show it by its shapes."""
        tokens = self.batches.encoder.catalog.tokens.numpy().tobytes()
        return {
            "seed": self.plan.seed,
            "learning_rate": self.args.learning_rate,
            "training rows": len(self.plan.size),
            "steps of an epoch (train_batch_size)": self.plan.steps,
            "item identifiers": hashlib.sha256(tokens).hexdigest()[:16],
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._resumed = load_state(resume_from_checkpoint, kind=self.kind)
        for name, value in self._identity().items():
            stored = self._resumed.get("identity", {}).get(name, value)
            if stored != value:
                raise UserError(
                    f"{resume_from_checkpoint} is of a run with another {name}: {stored} there, {value} here. Resume "
                    "it with its own data and settings, or start anew without --resume_from_checkpoint."
                )
        load_weights(self.model, self._resumed["model"], resume_from_checkpoint)
        if self.average:
            self.average.restore(self._resumed["average"])
        self.sums, self.supervised = self._resumed["sums"], self._resumed["supervised"]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(self._resumed["optimizer"])
            self.lr_scheduler.load_state_dict(self._resumed["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(self._resumed["random"])


def set_aside_later(checkpoint: Path) -> None:
    """Rename the run's checkpoints after ``checkpoint``: going on from an older one, they are no part of the run."""
    for later in checkpoints(checkpoint.parent):
        if int(later.name.rpartition("-")[2]) > int(checkpoint.name.rpartition("-")[2]):
            aside = later.with_name(f"superseded-{later.name}")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
            logger.warning("%s is set aside as %s", later, aside.name)
