"""Trainers that take a few steps by the clock and write nothing: what a training, and an evaluation, will take."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerCallback

from recbole_ilrec.prompt.rows import StepPlan
from recbole_ilrec.report.estimate import Part
from recbole_ilrec.training.choice import evaluation_pairs
from recbole_ilrec.training.epochs import evaluation_due
from recbole_ilrec.training.preference_trainer import PreferenceTrainer
from recbole_ilrec.training.trainer import GenerativeTrainer

LEAST = 3
"""Steps that are measured whatever they take."""
FEW_USERS = 8
"""Users that are searched for whatever they take."""


class Clock(TrainerCallback):
    """Ends a training after so many seconds; the first step, which is slower than the others, does not count.

    Attributes:
        steps: of the whole training.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.steps = 0
        self._ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = state.max_steps
        self._ends = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        self._ends.append(time.perf_counter())
        waited = self._ends[-1] - self._ends[0]
        control.should_training_stop |= len(self._ends) > LEAST + 1 and waited >= self.seconds

    def _took(self) -> np.ndarray:
        took = np.diff(self._ends)
        return took[1:] if len(took) > 1 else took

    @property
    def each(self) -> float:
        """Mean seconds of a step."""
        return float(self._took().mean()) if len(self._ends) > 1 else 0.0

    @property
    def error(self) -> float:
        """Standard error of :attr:`each`."""
        took = self._took()
        return float(took.std(ddof=1) / np.sqrt(len(took))) if len(took) > 1 else 0.0


class Measured(GenerativeTrainer):
    """A trainer that takes a few steps only, and writes nothing.

    Args:
        args: those of the trainer.
        seconds: how long each kind of work is measured.
    """

    def __init__(self, *args: Any, seconds: float):
        super().__init__(*args)
        self.clock = Clock(seconds)
        self.plan: StepPlan | None = None
        self.rewards_took = 0.0

    def _reporting(self) -> list[TrainerCallback]:
        return [self.clock]

    def _train(self, loop: Any, last: int, rewards: Callable[[], Any]) -> None:
        self.plan = loop.plan

        def timed() -> Any:
            start = time.perf_counter()
            table = rewards()
            self.rewards_took = time.perf_counter() - start
            return table

        super()._train(loop, last, timed)

    def validation(self, loader: Any, steps: int, last: int, rounds: int = 1) -> Part:
        """All validations of a training of ``last`` steps, ``steps`` an epoch."""
        ends = [*range(steps, last, steps), last] if last else []
        times = rounds * sum(evaluation_due(self.config, end, steps, last) for end in ends)
        rows = len(loader._dataset)
        users = min(rows, self.config.settings.train.valid_users or rows)
        early = times > self.config["stopping_step"] + 1
        note = f"{times} of {users:,} users"
        return Part("validation", self.seconds_a_user(loader), users * times, "user", stops_early=early, note=note)

    def seconds_a_user(self, loader: Any) -> float:
        """Search and metrics of one user, from as many as fit into the time."""
        pairs, count = evaluation_pairs(loader, self.model), FEW_USERS
        while True:
            some = pairs.some(count)
            start = time.perf_counter()
            self._score(some)
            took = time.perf_counter() - start
            if took >= self.clock.seconds or count >= len(pairs):
                return took / len(some)
            count *= 4


class MeasuredPreference(Measured, PreferenceTrainer):
    """The same of the preference stage."""
