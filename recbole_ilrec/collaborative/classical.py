"""Training of RecBole's sequential models with RecBole's own loop.

What differs from RecBole's ``Trainer``: checkpoints without pickle in one folder a run (``best/`` to evaluate and
``last/`` to go on from), an interrupted run resumed at an epoch's boundary continues as if it had not been interrupted,
recommendations that do not exist are no hits, the history can be left out of the ranking, frozen parameters stay out of
the optimiser, and nothing is written before training starts.
"""

import json
import logging
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.evaluator import Evaluator
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer as RecBoleTrainer
from recbole.trainer.trainer import AbstractTrainer
from recbole.utils import WandbLogger, get_tensorboard, set_color
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from recbole_ilrec.collaborative.model import items_key, load_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import interactions_key, own_texts, request_of
from recbole_ilrec.data.candidates import CANDIDATES
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.evaluation.topk import TargetPlaces
from recbole_ilrec.metrics.collector import Collector, refuse_nan
from recbole_ilrec.metrics.rank_metrics import keep_ranks
from recbole_ilrec.report.costs import note, note_earlier, spent_on
from recbole_ilrec.report.record import Stopwatch
from recbole_ilrec.runtime.checkpoint import load_state, save_state
from recbole_ilrec.runtime.generators import random_state, set_random_state
from recbole_ilrec.runtime.history import validation, write_history
from recbole_ilrec.runtime.run_folder import mark, new_folder

logger = logging.getLogger(__name__)

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
BEST, LAST = "best", "last"


class ClassicalTrainer(RecBoleTrainer):
    """RecBole's trainer; see the module's docstring for what is different.

    Attributes:
        folder: ``<checkpoint_dir>/<Model>-<dataset>-<time>`` of this run, or the folder that is resumed; made at the
            first checkpoint.
        log_folder: where TensorBoard's events go; ``None`` for RecBole's ``./log_tensorboard/<run>``.
        finished: the resumed run had already come to its end, so :meth:`fit` has nothing left to do.
        spent: seconds and epochs of training so far, those before an interruption included.
        history: for each epoch the mean loss of its batches, for each validation its metrics.
    """

    def __init__(self, config: Config, model: AbstractRecommender):
        # Not RecBole's own __init__: it makes folders and a TensorBoard file at once.
        AbstractTrainer.__init__(self, config, model)
        self.logger = logging.getLogger()
        self.wandblogger = WandbLogger(config)
        self.learner = str(config["learner"])
        self.learning_rate = config["learning_rate"]
        self.weight_decay = config["weight_decay"]
        self.epochs = config["epochs"]
        self.eval_step = min(config["eval_step"], self.epochs)
        self.stopping_step = config["stopping_step"]
        self.clip_grad_norm = config["clip_grad_norm"]
        self.valid_metric = config["valid_metric"].lower()
        self.valid_metric_bigger = config["valid_metric_bigger"]
        self.test_batch_size = config["eval_batch_size"]
        self.device = config["device"]
        self.gpu_available = self.device.type == "cuda"
        self.enable_amp = config["enable_amp"]
        self.enable_scaler = self.gpu_available and config["enable_scaler"]
        self.checkpoint_dir = config["checkpoint_dir"]
        self.folder = new_folder(config)
        self.start_epoch = self.cur_step = 0
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result: OrderedDict[str, float] | None = None
        self.train_loss_dict: dict[int, float] = {}
        self.history: list[dict[str, Any]] = []
        self.optimizer = self._build_optimizer()
        self.eval_type = config["eval_type"]
        self.eval_collector = Collector(config)
        self.evaluator = Evaluator(config)
        self.item_tensor: Any = None
        self.tot_item_num: int | None = None
        self.finished = False
        self.log_folder: Path | None = None
        self.spent: dict[str, float] = {}
        self._watch, self._before = Stopwatch(), dict(self.spent)
        self._places: tuple[Tensor, TargetPlaces] | None = None
        self._resumed: dict[str, Any] | None = None
        self._items = ""
        self._interactions: str | None = None
        self._saved = False

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        if self.learner.lower() not in LEARNERS:
            raise unknown_name("learner", self.learner, LEARNERS)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return super()._build_optimizer(**{"params": trained, **kwargs})

    # ---- training

    def fit(
        self,
        train_data: AbstractDataLoader,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, OrderedDict[str, float] | None]:
        """Train until ``epochs`` or early stopping; see RecBole's ``Trainer.fit`` for the arguments.

        Returns:
            The best validation score and all validation metrics of that epoch.
        """
        self._saved = saved
        self._items = items_key(train_data._dataset)
        self._interactions = interactions_key(self.config)
        self._watch = Stopwatch()
        note_earlier(self.spent)
        if self.finished:
            self.eval_collector.data_collect(train_data)
            return self.best_valid_score, self.best_valid_result
        if self._resumed is not None:
            train_data.generator.set_state(self._resumed["loader"])
            set_random_state(self._resumed["random"])
        self.tensorboard = SummaryWriter(self.log_folder) if self.log_folder else get_tensorboard(self.logger)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*GradScaler", category=FutureWarning)
                super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        finally:
            self.tensorboard.close()
        note(epochs=len(self.train_loss_dict) - self._before.get("epochs", 0))
        if saved and self.train_loss_dict:
            self._save_resumable(max(self.train_loss_dict) + 1, train_data, finished=True)
        return self.best_valid_score, self.best_valid_result

    def _train_epoch(
        self, train_data: AbstractDataLoader, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float | tuple[float, ...]:
        if self._saved and epoch_idx > self.start_epoch:  # the epoch before is complete, its evaluation included
            self._save_resumable(epoch_idx, train_data, finished=False)
        loss = super()._train_epoch(train_data, epoch_idx, loss_func=loss_func, show_progress=show_progress)
        total = sum(loss) if isinstance(loss, tuple) else loss  # RecBole's is a sum over batches
        self.history.append({"epoch": epoch_idx + 1.0, "train/loss": float(total) / len(train_data)})
        return loss

    def _valid_epoch(self, valid_data: AbstractDataLoader, show_progress: bool = False) -> tuple[float, Any]:
        with spent_on("validation"):
            score, result = super()._valid_epoch(valid_data, show_progress)
        self.history.append(validation(max(self.train_loss_dict) + 1.0, None, result))
        return score, result

    def _check_nan(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise UserError(
                f"The training loss is {loss.item()}: lower learning_rate={self.learning_rate}, or set clip_grad_norm, "
                "e.g. --clip_grad_norm='{max_norm: 5}'."
            )

    # ---- checkpoints

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        content = {
            "model": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "epoch": epoch,
            "valid_score": self.best_valid_score,
            "items": self._items,
            "interactions": self._interactions,
            "config": json.loads(json.dumps(self.config.as_dict(), default=str)),
            "request": request_of(self.config),
            "own_texts": own_texts(self.config),
        }
        self.save_ranks("valid")
        save_state(self.folder / BEST, content, kind=self.config["model"])
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {self.folder / BEST}")

    def _save_resumable(self, next_epoch: int, train_data: AbstractDataLoader, *, finished: bool) -> None:
        self.spent = {**self._watch.read(self._before), "epochs": len(self.train_loss_dict)}
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "loader": train_data.generator.get_state(),
            "next_epoch": next_epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "train_loss": self.train_loss_dict,
            "history": self.history,
            "finished": finished,
            "spent": self.spent,
        }
        mark(self.folder, self.config)
        save_state(self.folder / LAST, content, kind=self.config["model"])
        write_history(self.folder, self.history)

    def resume_checkpoint(self, resume_file: str | os.PathLike[str]) -> None:
        """Go on from the last complete epoch of an earlier run, exactly as it would have gone on itself.

        Args:
            resume_file: the run's folder (``saved/<Model>-<dataset>-<time>``) or its ``last/``; further checkpoints
                go there too.

        Raises:
            UserError: no such checkpoint, or one of another model or another shape.
        """
        folder = Path(resume_file)
        folder = folder.parent if folder.name in (BEST, LAST) else folder
        state = load_state(folder / LAST, kind=self.config["model"])
        load_model(self.model, state, folder / LAST)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise UserError(f"{folder / LAST} does not fit learner={self.learner}: {error}.") from None
        self.start_epoch = state["next_epoch"]
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        if state["best_valid_result"] is not None:
            self.best_valid_result = OrderedDict(state["best_valid_result"])
        self.train_loss_dict = dict(state["train_loss"])
        self.history = list(state.get("history", []))
        self.spent = dict(state.get("spent", {}))
        self._before = dict(self.spent)
        stopped = bool(state["finished"] and self.cur_step > self.stopping_step)
        self.finished = stopped or self.start_epoch >= self.epochs
        self._resumed = state
        self.folder = folder
        self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")

    def load_best(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Put the weights of the best epoch of this run, or of another run's ``best/``, into the model."""
        folder = Path(folder or self.folder / BEST)
        state = load_state(folder, kind=self.config["model"])
        load_model(self.model, state, folder)
        self.logger.info(f"Loading model structure and parameters from {folder}")

    # ---- evaluation

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: AbstractDataLoader,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> OrderedDict[str, float]:
        """All ``metrics`` over ``eval_data``, with the best epoch's weights unless ``load_best_model`` is off."""
        if load_best_model:
            self.load_best(model_file)
        self._evaluated = eval_data._dataset
        self.eval_collector.places.clear()
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self._places = self.eval_collector.take_places()
        return OrderedDict((name, float(value)) for name, value in result.items())

    def save_ranks(self, split: str) -> None:
        """Keep where the true items stood in the last evaluation, if all items were ranked in it."""
        if self._places is not None:
            keep_ranks(self.config, self.folder, split, *self._places)

    def _neg_sample_batch_eval(self, batched_data: tuple[Any, ...]) -> tuple[Any, ...]:
        """Where items are ranked, one row for each user, as in full ranking: RecBole has one for each drawn item."""
        rows, scores, *positives = super()._neg_sample_batch_eval(batched_data)
        refuse_nan(scores, self.config["model"])
        if scores.dim() == 2:
            user = batched_data[1]
            rows = rows[torch.cat([user.new_ones(1), user.diff()]).nonzero()[:, 0]]
        return rows, scores, *positives

    def _full_sort_batch_eval(self, batched_data: tuple[Any, ...]) -> tuple[Any, ...]:
        interaction, history, positive_u, positive_i = batched_data
        if self.config.settings.decode.exclude_history:
            users = interaction[self.config["USER_ID_FIELD"]].cpu()
            history = self._evaluated.sequences.before(users, interaction[self.config["TIME_FIELD"]].cpu())
        rows, scores, *positives = super()._full_sort_batch_eval((interaction, history, positive_u, positive_i))
        refuse_nan(scores, self.config["model"])
        if self.config.settings.task == "candidates":
            others = torch.ones_like(scores, dtype=torch.bool)
            scores = scores.masked_fill(others.scatter_(1, rows[CANDIDATES].to(scores.device), False), -torch.inf)
        return rows, scores, *positives
