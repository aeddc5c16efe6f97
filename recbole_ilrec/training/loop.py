"""The training loop of the language models: ``transformers.Trainer`` with our rows, our loss and our checkpoints.

What the library does well (accumulation, clipping, schedules, precision, processes, resuming at a step) is left to it.
Ours are the batches, the normalisation of the loss, and what is written to disk: safetensors and JSON, never a pickle.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import write_atomically
from recbole_ilrec.prompt.rows import StepPlan
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import save_state
from recbole_ilrec.runtime.generators import generator_state, random_state, set_generator_state, set_random_state
from recbole_ilrec.runtime.interrupts import Interrupted, StopSignals
from recbole_ilrec.runtime.resumption import LOOP_STATE, checkpoints, keep_best, remove
from recbole_ilrec.runtime.shards import Called, cut_state, is_shared_out, whole_on_first
from recbole_ilrec.runtime.weights import WeightAverage, load_weights, weights
from recbole_ilrec.training.micro_batches import MicroBatches, StepLoader, StepSampler

BASE = "base model under the adapters"
"""Name of what a checkpoint of adapters alone depends on."""
IDENTIFIERS = "item identifiers"
"""Name of what the rows of item tokens in a checkpoint are of."""
NON_FINITE = "batch with a loss that is not finite"


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
        save: write checkpoints, and a batch whose loss is not finite.
        stop: signals to stop.
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
        save: bool,
        stop: StopSignals,
        average: WeightAverage | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        args._n_gpu = min(args.n_gpu, 1)  # several processes share GPUs; torch's DataParallel cannot split our batches
        super().__init__(model=model, args=args, train_dataset=batches, callbacks=callbacks)
        if processes.rank():  # pretrained models and adapters draw their own dropout, which is not to be the same
            torch.manual_seed(args.seed + processes.rank())
        self.batches = batches
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.plan = plan
        self.average = average
        self.kind = kind
        self.keep = keep
        self.stop = stop
        self.folder = Path(str(args.output_dir))
        self.save = save
        self._resumed: dict[str, Any] = {}
        self._inputs: Mapping[str, Any] = {}
        self._sums: Mapping[str, Tensor] = {}
        self.sums: dict[str, float] = {}
        self.supervised = 0
        self._logged: tuple[dict[str, float], int] = ({}, 0)
        self._evaluate_model = evaluate
        self._extra_state = extra_state
        self.loss_is_scaled_for_ga = True

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if is_shared_out(self.model):
            return Called(self.model, self.accelerator.autocast)
        return super()._wrap_model(model, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """The rows of this process; never touched by accelerate, whose sharding would change the batches."""
        sampler = StepSampler(
            self.plan, self.args.gradient_accumulation_steps, self.args.process_index, self.args.world_size
        )
        return StepLoader(self.batches, batch_sampler=sampler, collate_fn=itemgetter(0))

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, None]:
        """Micro-batches of a step with ``count``, over which the loss of the step, in all processes, is a mean."""
        samples = list(islice(epoch_iterator, num_batches))
        count = processes.total(torch.tensor(sum(sample["batch"].count for sample in samples)))
        return [{**sample, "count": int(count)} for sample in samples], None

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the supervised tokens (or answered rows) of the whole step, however it is cut (A14)."""
        self.model.epoch = float(self.state.epoch or 0.0)
        batch = inputs["batch"].to(self.args.device)
        sums = model(batch)
        # Processes average their gradients; the factor turns that average back into a sum.
        loss = sums["loss"] * (self.args.world_size / inputs["count"])
        self._note(sums, batch.count)
        self._inputs, self._sums = inputs, sums
        if not math.isfinite(loss.item()):
            raise self._not_finite("loss", loss.item())
        return (loss, sums) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """A gradient that is not finite would turn every weight, and the next checkpoint, into NaN."""
        norm = super()._clip_grad_norm(model)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not math.isfinite(float(norm)):
            raise self._not_finite("gradient norm", float(norm))
        return norm

    def _not_finite(self, what: str, value: float) -> UserError:
        step, kept, sums = self.state.global_step, "", self._sums
        if self.save:
            tensors = {name: entry for name, entry in vars(self._inputs["batch"]).items() if entry is not None}
            content = {"epoch": self.state.epoch, "step": step, "rows": self._inputs["rows"], "batch": tensors}
            place = self.folder / (f"nonfinite-{step}" + (f"-{processes.rank()}" if processes.rank() else ""))
            save_state(place, {**content, what: value, "sums": dict(sums)}, kind=NON_FINITE)
            kept = f" What was computed last of the batch is kept in {place}."
        parts = {name.removeprefix("part/"): entry for name, entry in sums.items() if name.startswith("part/")}
        bad = [name for name, entry in parts.items() if not math.isfinite(entry.item())]
        objective = self.model.settings.objective
        where = f"of objective '{objective}', not finite: {', '.join(bad) or f'no part of {list(parts)}'}"
        penalty = ", or set --ilrec.penalty=sign_safe if logits are strongly negative"
        return UserError(
            f"training {what} is {value} at step {step} ({where}); lower --learning_rate"
            f"{penalty if objective == 'ilrec' else ''}.{kept}"
        )

    def _note(self, sums: Mapping[str, Tensor], tokens: int) -> None:
        self.supervised += tokens
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def means(self) -> dict[str, float]:
        """Mean of each noted number per supervised token since the last :meth:`reset_means`, over all processes."""
        sums, supervised = self._noted()
        return {name: value / max(supervised, 1) for name, value in sums.items()}

    def _noted(self) -> tuple[dict[str, float], int]:
        """What :meth:`_note` counted in all processes."""
        *values, supervised = processes.total(
            torch.tensor([*self.sums.values(), self.supervised], dtype=torch.float64)
        ).tolist()
        return dict(zip(self.sums, values, strict=True)), int(supervised)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's numbers and ours, as means since the last call."""
        sums, supervised = self._noted()
        recent = {k: v - self._logged[0].get(k, 0.0) for k, v in sums.items()}
        tokens = supervised - self._logged[1]
        self._logged = (sums, supervised)
        ours = {f"train/{name}": value / tokens for name, value in recent.items() if tokens > 0}
        super().log({**logs, **ours}, start_time)

    def reset_means(self) -> None:
        """Start counting anew, at the beginning of an epoch."""
        self.sums, self.supervised, self._logged = {}, 0, ({}, 0)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """What the library calls when ``control.should_evaluate`` is set; one that is interrupted comes first later."""
        try:
            with self.average.in_place() if self.average else nullcontext():
                result = dict(self._evaluate_model(self))
            self.callback_handler.on_log(self.args, self.state, self.control, result)  # what shows curves
            return result
        except Interrupted:
            # The others may be at another place, and no process can save without them.
            mixed = self.average is not None and self.average.swapping
            if self.save and self.optimizer is not None and processes.world() == 1 and not mixed:
                self._save_checkpoint(self.model)
            raise

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Everything that the next step depends on; whatever happens, this checkpoint or the one before is complete."""
        sums, supervised = self._noted()
        others = processes.gathered(generator_state())
        average = self.average.mean if self.average else None
        state = {"model": weights(self.model), "optimizer": self.optimizer.state_dict(), "average": average}
        whole = whole_on_first(state)
        if not self.args.should_save:
            return
        folder = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        content = {
            **whole,
            "scheduler": self.lr_scheduler.state_dict(),
            "random": random_state(),
            "random_of_processes": others,
            "sums": sums,
            "supervised": supervised,
            "logged": self._logged,
            "identity": self._identity(),
            "extra": self._extra_state(),
        }
        try:
            save_state(folder, content, kind=self.kind)
            keep_best(folder)
            with write_atomically(folder / LOOP_STATE) as stream:
                json.dump(asdict(self.state), stream, indent=2, sort_keys=True)
        except BaseException:
            if not (folder / LOOP_STATE).is_file():
                remove(folder)
            with suppress(OSError):
                folder.parent.rmdir()  # only when nothing else is in it
            raise
        for old in checkpoints(folder.parent)[: -self.keep]:
            remove(old)

    def release(self) -> None:
        """Let go of the optimizer and of copies of the weights: what comes after a training needs the memory."""
        self.optimizer = self.lr_scheduler = self.average = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.model_wrapped, self._resumed = self.model, {}
        self.accelerator.free_memory()  # also collects the cycles that this loop is in

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it goes on from: a checkpoint cannot show it by its shapes."""
        return {
            "seed": self.plan.seed,
            "learning_rate": self.args.learning_rate,
            "training rows": len(self.plan.size),
            "steps of an epoch (train_batch_size)": self.plan.steps,
            IDENTIFIERS: self.batches.encoder.catalog.digest[:16],
            BASE: self.model.frozen_key,
        }

    def check(self, checkpoint: Path, content: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            UserError: it is of a run on other rows, on another base model under its adapters, or with another seed or
                learning rate.
        """
        for name, value in self._identity().items():
            stored = content.get("identity", {}).get(name, value)
            if stored != value:
                raise UserError(
                    f"{checkpoint} is of a run with another {name}: {stored} there, {value} here. Resume it with its "
                    "own data and settings, or start anew without --resume_from_checkpoint."
                )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.model, self._resumed["model"], resume_from_checkpoint)
        if self.average:
            self.average.restore(self._resumed["average"])
        self.sums, self.supervised = self._resumed["sums"], self._resumed["supervised"]
        self._logged = self._resumed.get("logged", self._logged)  # one of an earlier version does not say
        if processes.rank():
            self.sums, self.supervised = dict.fromkeys(self.sums, 0.0), 0

    def restore(self, checkpoint: Path, content: dict[str, Any]) -> None:
        """Weights and place of a checkpoint, from which ``train(resume_from_checkpoint=...)`` goes on."""
        self._resumed = content
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / LOOP_STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(cut_state(self._resumed["optimizer"], self.optimizer))
            self.lr_scheduler.load_state_dict(self._resumed["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(self._resumed["random"])
            if processes.rank() < len(self._resumed["random_of_processes"]):
                set_generator_state(self._resumed["random_of_processes"][processes.rank()])
            self._resumed = {}  # as large as the model and its optimiser
