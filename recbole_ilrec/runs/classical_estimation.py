"""What the training of one of RecBole's models takes: one epoch of it and one validation, by the clock."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.model import build_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import Data
from recbole_ilrec.report.estimate import Part, may_stop


class TimedClassical(ClassicalTrainer):
    """A trainer that says how long an epoch and a validation took."""

    took: dict[str, float]

    def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("epoch", super()._train_epoch, *args, **kwargs)

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("validation", super()._valid_epoch, *args, **kwargs)

    def _timed(self, name: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = work(*args, **kwargs)
        self.took[name] = time.perf_counter() - start
        return result


def training_parts(config: Config, data: Data, scratch: Path, name: str) -> tuple[list[Part], int]:
    """Parts of the training of the model that ``config`` names.

    Args:
        config: its settings.
        data: what it learns from.
        scratch: a folder that is thrown away.
        name: what the parts are called.

    Returns:
        training and validation; parameters that are trained.
    """
    init_seed(config["seed"], config["reproducibility"])
    once = copy.copy(config)
    changed = {"epochs": 1, "eval_step": 1, "checkpoint_dir": str(scratch), "log_wandb": False}
    once.final_config_dict = {**config.final_config_dict, **changed}
    model = build_model(once, data.train._dataset)
    trainer = TimedClassical(once, model)
    trainer.took, trainer.log_folder = {}, scratch / "log"
    trainer.fit(data.train, data.valid, saved=False)
    epochs, every = config["epochs"], min(config["eval_step"], config["epochs"])
    times = epochs // every if every > 0 else 0
    early = may_stop(times, config["stopping_step"])
    parts = [
        Part(name, trainer.took["epoch"], epochs, "epoch", stops_early=early),
        Part(f"{name}, validation", trainer.took["validation"], times, "validation", stops_early=early),
    ]
    return parts, sum(p.numel() for p in model.parameters() if p.requires_grad)


def classical_parts(config: Config, data: Data, scratch: Path) -> tuple[list[Part], str]:
    """Parts of a run of one of RecBole's models, and its sizes; see :func:`training_parts` for the arguments."""
    parts, trained = training_parts(config, data, scratch, "training")
    if config["eval_test"]:
        of_user = parts[1].each / max(len(data.valid._dataset), 1)
        parts.append(Part("test", of_user, len(data.test._dataset), "user"))
    return parts, f"{trained:,} trained parameters"
