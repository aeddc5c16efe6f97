"""Trainers that take a few steps by the clock and write nothing: what a training, and an evaluation, will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback

from recbole_ilrec.prompt.rows import StepPlan
from recbole_ilrec.report.estimate import Part, may_stop
from recbole_ilrec.training.arguments import last_step
from recbole_ilrec.training.choice import evaluation_pairs
from recbole_ilrec.training.epochs import evaluation_due
from recbole_ilrec.training.preference_trainer import PreferenceTrainer
from recbole_ilrec.training.trainer import GenerativeTrainer

LEAST = 3
"""Steps that are measured whatever they take."""
FEW_USERS = 8
"""Users that are searched for whatever they take."""


class Clock(TrainerCallback):
    """Ends a training after so many seconds; the first step, which is slower than the others, does not count."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
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

    def validation(self, name: str, loader: Any, schedule: "Schedule", rounds: int = 1) -> Part:
        """All validations of ``rounds`` stages of one schedule."""
        rows = len(loader._dataset)
        users = min(rows, self.config.settings.train.valid_users or rows)
        each, fixed = self.evaluation_seconds(loader)
        note = f"{rounds * schedule.validations} of {users:,} users"
        early = may_stop(schedule.validations, self.config["stopping_step"])
        of_user = each + fixed / max(users, 1)
        return Part(name, of_user, users * rounds * schedule.validations, "user", stops_early=early, note=note)

    def test(self, loader: Any) -> Part:
        """The evaluation of the test part."""
        rows = len(loader._dataset)
        each, fixed = self.evaluation_seconds(loader, free=True)
        return Part("test", each + fixed / max(rows, 1), rows, "user")

    def evaluation_seconds(self, loader: Any, *, free: bool = False) -> tuple[float, float]:
        """Search and metrics of one user, and what an evaluation costs whatever the users: vectors of titles.

        The first users are not timed: what is kept from then on is made for them.
        """
        pairs, count, took = evaluation_pairs(loader, self.model), FEW_USERS, dict[int, float]()
        self._score(pairs.some(count), final=free)
        while not took or (max(took) < len(pairs) and took[max(took)] < self.clock.seconds):
            some = pairs.some(count)
            start = time.perf_counter()
            self._score(some, final=free)
            took[len(some)] = time.perf_counter() - start
            count *= 4
        few, many = min(took), max(took)
        if few == many:
            return took[many] / max(many, 1), 0.0
        each = max(took[many] - took[few], 0.0) / (many - few)
        return each, max(took[few] - each * few, 0.0)


@dataclass(frozen=True)
class Schedule:
    """Steps of a training, and when it is validated.

    Attributes:
        steps: of an epoch.
        epochs: of the training.
        every: epochs between two validations (``eval_step``).
        most: steps after which it ends at the latest (``max_steps``).
    """

    steps: int
    epochs: int
    every: int
    most: int | None = None

    @property
    def last(self) -> int:
        """Number of the last step."""
        return last_step(self.steps, self.epochs, self.most)

    @property
    def validations(self) -> int:
        """How many there are if none ends the training."""
        ends = [*range(self.steps, self.last, self.steps), self.last] if self.last else []
        settings = {"eval_step": self.every, "epochs": self.epochs}
        return sum(evaluation_due(settings, end, self.steps, self.last) for end in ends)


class MeasuredPreference(Measured, PreferenceTrainer):
    """The same of the preference stage."""
