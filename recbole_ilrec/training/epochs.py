"""RecBole's rhythm in the training loop: a bar and a line for each epoch, evaluation, checkpoints at its end."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm
from transformers import TrainerCallback

from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.history import write_history
from recbole_ilrec.runtime.interrupts import Interrupted
from recbole_ilrec.training.loop import StepTrainer

logger = logging.getLogger(__name__)

NEGATIVE_LOGITS = 0.01


@dataclass
class Progress:
    """Early stopping as RecBole counts it, the step of the last evaluation, and what was ``spent`` until then.

    It is part of every checkpoint.

    Attributes:
        layer_losses: ``epoch`` (epochs done), ``step`` and ``losses`` (of each layer, lowest first) of each validation.
        validations: see :func:`recbole_ilrec.runtime.history.validation`.
    """

    best_score: float
    best_result: dict[str, float] | None = None
    waited: int = 0
    evaluated: int = 0
    stopped: bool = False
    spent: dict[str, float] = field(default_factory=dict)
    layer_losses: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)


def epoch_of(passed: float | None) -> int:
    """Number of the epoch (from 0, as RecBole counts) that ends or runs at ``passed`` epochs."""
    return max(int(np.ceil((passed or 0.0) - 1e-9)) - 1, 0)


def evaluation_due(config: Any, step: int, steps: int, last: int) -> bool:
    """Whether the model is evaluated after optimiser step number ``step`` (from 1).

    Args:
        config: the run's settings (``eval_step``, ``epochs``).
        step: of the run.
        steps: of an epoch.
        last: the run's last step.
    """
    every = min(config["eval_step"], config["epochs"])
    return step >= last or (step % steps == 0 and every > 0 and step // steps % every == 0)


class Epochs(TrainerCallback):
    """RecBole's rhythm: a bar and a line for each epoch, evaluation every ``eval_step``, a checkpoint at its end.

    Further checkpoints come every ``save_steps`` steps and ``save_minutes`` minutes, and when the run is to stop.
    """

    def __init__(self, loop: StepTrainer, config: Any, *, validate: bool, show: bool):
        self.loop = loop
        self.config = config
        self.validate = validate
        self.show = show
        self.saved_at = time.monotonic()
        self.stopped_by = 0
        self.bar: Any = None
        self.start = 0.0

    def on_epoch_begin(self, args, state, control, **kwargs):
        steps = self.loop.plan.steps
        done = state.global_step % steps
        if not done:
            self.loop.reset_means()
        self.start = time.time()
        label = set_color(f"Train {state.global_step // steps:>5}", "pink")
        self.bar = tqdm(total=steps, initial=done, desc=label, ncols=100, disable=not self.show)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)
        if self.loop.average:
            self.loop.average.update(state.global_step)
        # Clocks and signals differ between processes, and all have to save, or to stop, at the same step.
        own = [self.loop.stop.received or 0, int(self._save_due(state.global_step))]
        self.stopped_by, due = processes.maximum(torch.tensor(own)).tolist()
        control.should_save = bool(self.loop.save and (self.stopped_by or due))
        if not self.loop.save:
            self._stop()

    def _save_due(self, step: int) -> bool:
        train = self.config.settings.train
        waited = (time.monotonic() - self.saved_at) / 60
        by_steps = train.save_steps is not None and step % train.save_steps == 0
        return by_steps or (train.save_minutes is not None and waited >= train.save_minutes)

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()
        self._stop()

    def _stop(self) -> None:
        if self.stopped_by:
            raise Interrupted(self.stopped_by)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.bar.close()
        epoch = epoch_of(state.epoch)
        means = self.loop.means()
        parts = ", ".join(
            f"{set_color(name.partition('/')[2] or 'train loss', 'blue')}: {value:.4f}" for name, value in means.items()
        )
        head = set_color("epoch %d training", "green") % epoch
        logger.info("%s [%s: %.2fs, %s]", head, set_color("time", "blue"), time.time() - self.start, parts)
        self._warn_of_negative_logits(means)
        due = evaluation_due(self.config, state.global_step, self.loop.plan.steps, state.max_steps)
        control.should_evaluate = due and self.validate
        control.should_save = self.loop.save
        control.should_log = True  # else a short epoch leaves no line in the history

    def _warn_of_negative_logits(self, means: Mapping[str, float]) -> None:
        """Eq. 7 rewards a negative whose logit is below 0 (methods: A8); say so when that is not rare."""
        share = means.get("monitor/frac_negative_logit", 0.0) / max(means.get("monitor/penalised", 0.0), 1e-9)
        if share > NEGATIVE_LOGITS and self.config.settings.ilrec.penalty == "multiplicative":
            logger.warning(
                "%.1f%% of the penalty weight of Eq. 7 stands on negative logits, where it rewards instead of "
                "penalises; consider --ilrec.penalty=sign_safe",
                100 * share,
            )


class History(TrainerCallback):
    """Keeps the numbers that the loop logs, and those of validations, in the run's folder at every checkpoint.

    Args:
        folder: of the run.
        progress: what is known of the run so far; read anew each time, since a resumption replaces it.
    """

    def __init__(self, folder: Path, progress: Callable[[], Progress]):
        self.folder, self.progress = folder, progress

    def on_save(self, args, state, control, **kwargs):
        write_history(self.folder, [*state.log_history, *self.progress().validations])
