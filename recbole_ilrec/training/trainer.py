"""RecBole's face of the language models' training: ``fit`` and ``evaluate``, its log lines, its early stopping.

The steps themselves are :mod:`recbole_ilrec.training.loop`; what a metric is, RecBole's evaluator decides.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import calculate_valid_score, dict2str, early_stopping, set_color
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from recbole_ilrec.decoding.memory import out_of_memory
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import TargetPlaces
from recbole_ilrec.metrics.generative_metrics import GenerativeMetrics
from recbole_ilrec.metrics.rank_metrics import keep_ranks
from recbole_ilrec.models.model import GenerativeRecommender, to_pairs
from recbole_ilrec.prompt.rows import Pairs, StepPlan
from recbole_ilrec.report.costs import note, note_earlier, spent_on
from recbole_ilrec.report.record import Stopwatch
from recbole_ilrec.reward.table import RewardTable
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import save_state
from recbole_ilrec.runtime.history import validation, write_history
from recbole_ilrec.runtime.interrupts import Interrupted, StopSignals
from recbole_ilrec.runtime.resumption import (
    BEST,
    bring_back_best,
    checkpoints,
    keep_best,
    load_resumable,
    set_aside_later,
)
from recbole_ilrec.runtime.run_folder import at_work, mark
from recbole_ilrec.runtime.shards import whole
from recbole_ilrec.runtime.weights import WeightAverage
from recbole_ilrec.training.arguments import last_step, trackers, training_arguments
from recbole_ilrec.training.best_weights import load_best, save_best
from recbole_ilrec.training.choice import answer_ratios, evaluation_pairs
from recbole_ilrec.training.epochs import Epochs, History, Progress, epoch_of, evaluation_due
from recbole_ilrec.training.kept_lists import kept_lists
from recbole_ilrec.training.layer_losses import note_layer_losses
from recbole_ilrec.training.loop import StepTrainer
from recbole_ilrec.training.micro_batches import MicroBatches
from recbole_ilrec.training.reward_rows import reward_table
from recbole_ilrec.training.task_batches import supervised_batches

logger = logging.getLogger(__name__)


class GenerativeTrainer:
    """Trains and evaluates a :class:`~recbole_ilrec.models.model.GenerativeRecommender`.

    Args:
        config: the run's settings.
        model: the model, on its device.
        run_folder: where checkpoints go; made when something is written.

    Attributes:
        places: where the true items stood in the last evaluation, one row a user.
        policies: metrics of the last evaluation under each collision policy.
        answers: HitRatio@1 and ValidRatio of the last evaluation under each rule, where the task is a choice.
    """

    def __init__(self, config: Any, model: GenerativeRecommender, run_folder: Path):
        self.config = config
        self.model = model
        self.run_folder = run_folder
        self.metrics = GenerativeMetrics(config, model.catalog)
        self.places: TargetPlaces | None = None
        self.valid_pairs: Pairs | None = None
        self.saved = True
        self.show_progress = False
        self.policies: dict[str, OrderedDict[str, float]] = {}
        self._users = torch.empty(0, dtype=torch.long)
        self._writer: SummaryWriter | None = None
        self._watch, self._before = Stopwatch(), dict[str, float]()
        self.answers: dict[str, dict[str, float]] = {}
        self.progress = Progress(best_score=-np.inf if config["valid_metric_bigger"] else np.inf)

    def fit(
        self, train_data: Any, valid_data: Any = None, saved: bool = True, show_progress: bool = False
    ) -> tuple[float, Mapping[str, float] | None]:
        """Train; validate as often as ``eval_step`` says; keep the best weights.

        Returns:
            best validation score and the metrics of that evaluation.
        """
        train = self.config.settings.train
        self.saved, self.show_progress = saved, show_progress
        pairs = to_pairs(train_data._dataset.inter_feat, self.model)
        batches, sizes, targets = self.training_batches(train_data._dataset, pairs)
        self.metrics.collector.data_collect(train_data)
        if valid_data is not None:
            self.valid_pairs = evaluation_pairs(valid_data, self.model)
            if train.valid_users:
                self.valid_pairs = self.valid_pairs.some(train.valid_users)
            logger.info("Validation after every %d epochs on %d users", self.config["eval_step"], len(self.valid_pairs))
        arguments = training_arguments(self.config, self.run_folder)
        parts = train.gradient_accumulation * arguments.world_size
        batch, seed = self.config["train_batch_size"], self.config["seed"]
        plan = StepPlan(sizes, targets, batch, parts, seed, batches.sizes, batches.group)
        last = last_step(plan.steps, self.config["epochs"], train.max_steps)
        arguments.max_steps = last if train.max_steps else -1
        loop = StepTrainer(
            self.model,
            arguments,
            batches,
            plan,
            evaluate=self._validate,
            extra_state=lambda: asdict(self.progress) | {"spent": self._spent(loop)},
            kind=self.config["model"],
            keep=train.keep_checkpoints,
            save=saved,
            stop=StopSignals(),
            average=WeightAverage(self.model, train.ema) if train.ema else None,
            callbacks=self._reporting(),
        )
        loop.add_callback(Epochs(loop, self.config, validate=self.valid_pairs is not None, show=show_progress))
        self._watch = Stopwatch()
        try:
            with loop.stop:
                self._train(loop, last, partial(reward_table, self.model, train_data._dataset, pairs, show_progress))
                if loop.stop.received is not None:
                    raise Interrupted(loop.stop.received)
        except Interrupted as stop:
            raise Interrupted(stop.number, self._how_to_go_on()) from None
        finally:
            loop.release()
            if self._writer is not None:
                self._writer.close()
        processes.wait()  # the others read what the first one writes
        self.progress.spent = self._spent(loop)
        note(epochs=self.progress.spent["epochs"] - self._before.get("epochs", 0))
        return self.progress.best_score, self.progress.best_result

    def training_batches(self, dataset: Any, pairs: Pairs) -> tuple[MicroBatches, np.ndarray, np.ndarray]:
        """What to train on.

        Args:
            dataset: the training part of RecBole's data set.
            pairs: its rows.

        Returns:
            the rows as batches; ``[rows]`` length of each, by which like ones are put together; ``[rows]`` targets of
            each, by which ``train_batch_size`` counts.
        """
        return supervised_batches(self.config, self.model, pairs)

    def _spent(self, loop: StepTrainer) -> dict[str, float]:
        """Seconds and epochs of training, those before an interruption included."""
        epochs = max(float(loop.state.epoch or 0.0), self._before.get("epochs", 0.0))
        return {**self._watch.read(self._before), "epochs": round(epochs, 3)}

    def _train(self, loop: StepTrainer, last: int, rewards: Callable[[], RewardTable]) -> None:
        """All steps up to number ``last`` that are not done yet; ``rewards`` are computed only for them."""
        checkpoint = self._resume(loop, last) if self.config["resume_from_checkpoint"] else None
        if self.progress.stopped:
            self.load_best()
            return
        if loop.state.global_step < last:
            if self.model.objective.needs.rewards:
                self._before = self._spent(loop)
                with loop.stop.at_once():
                    self.model.rewards = rewards()
                self._watch = Stopwatch()  # they are no part of training's seconds
            with self.at_work():
                if self.saved and processes.is_first():
                    mark(self.run_folder, self.config)
                self._steps(loop, checkpoint)
        if loop.average and (self.valid_pairs is None or not self.saved):
            loop.average.swap()
        if self.saved and self.valid_pairs is None:
            self._save_best(self.progress.best_score)
        if not self.saved and processes.is_first():
            with suppress(OSError):
                self.run_folder.rmdir()  # the library makes it, even if nothing is to be written

    @contextmanager
    def at_work(self) -> Iterator[bool]:
        """The run's folder for this process alone; whether it is the one that writes there."""
        writes = self.saved and processes.is_first()
        with at_work(self.run_folder) if writes else nullcontext():
            yield writes

    @staticmethod
    def _steps(loop: StepTrainer, checkpoint: str | None) -> None:
        try:
            loop.train(resume_from_checkpoint=checkpoint)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                "out of memory while training: raise --gradient_accumulation_steps, which cuts a step into so many "
                f"parts with the same result, or lower --train_batch_size. The system says: {error}"
            ) from None

    def _resume(self, loop: StepTrainer, last: int) -> str:
        """Go back to the newest checkpoint that can be read; an evaluation that was due then is made up for."""
        asked = Path(self.config["resume_from_checkpoint"])
        with processes.first_alone():
            checkpoint, content = load_resumable(asked, kind=self.config["model"], check=loop.check)
        loop.restore(checkpoint, content)
        self.progress = Progress(**content["extra"])
        self._before = dict(self.progress.spent)
        note_earlier(self._before)
        processes.wait()
        logger.info("%s: %s", set_color("Resuming from", "blue"), checkpoint)
        step = loop.state.global_step
        due = evaluation_due(self.config, step, loop.plan.steps, last)
        with self.at_work() as here:
            if here:
                set_aside_later(checkpoint)
                bring_back_best(checkpoint, validated=self.progress.evaluated > 0)
            if due and self.valid_pairs is not None and self.progress.evaluated < step:
                loop.evaluate()
                if here:  # the run may have no further step that would save it
                    extra = asdict(self.progress) | {"spent": self._spent(loop)}
                    keep_best(checkpoint)
                    save_state(checkpoint, {**content, "extra": extra}, kind=self.config["model"])
                    write_history(self.run_folder, [*loop.state.log_history, *self.progress.validations])
        return str(checkpoint)

    def _how_to_go_on(self) -> str:
        if not checkpoints(self.run_folder):
            return "no checkpoint was written yet"
        return f"saved; go on with the same command and --resume_from_checkpoint={self.run_folder}"

    def _reporting(self) -> list[TrainerCallback]:
        if not processes.is_first():
            return []
        self._writer = SummaryWriter(str(Path("log_tensorboard") / self.run_folder.name))
        return [
            TensorBoardCallback(self._writer),
            History(self.run_folder, lambda: self.progress),
            *trackers(self.config),
        ]

    def _validate(self, loop: StepTrainer) -> dict[str, float]:
        start = time.time()
        with spent_on("validation"), loop.stop.at_once():
            result = self._score(self.valid_pairs)
        score = calculate_valid_score(result, self.config["valid_metric"].lower())
        progress = self.progress
        progress.best_score, progress.waited, progress.stopped, better = early_stopping(
            score,
            progress.best_score,
            progress.waited,
            max_step=self.config["stopping_step"],
            bigger=self.config["valid_metric_bigger"],
        )
        head = set_color("epoch %d evaluating", "green") % epoch_of(loop.state.epoch)
        logger.info(
            "%s [%s: %.2fs, %s: %f]", head, set_color("time", "blue"), time.time() - start, "valid_score", score
        )
        logger.info("%s: \n%s", set_color("valid result", "blue"), dict2str(result))
        progress.validations.append(validation(float(loop.state.epoch or 0.0), loop.state.global_step, result))
        if self.config.settings.train.layer_losses:
            assert self.valid_pairs is not None
            with whole(self.model):
                self.progress.layer_losses.append(note_layer_losses(loop, self.model, self.valid_pairs))
        if better:
            progress.best_result = dict(result)
            if self.saved and processes.is_first():
                self.save_ranks("valid")
            if self.saved:
                self._save_best(score)
        progress.evaluated = loop.state.global_step
        if progress.stopped:
            loop.control.should_training_stop = True
            logger.info("Finished training, no better result in %d evaluations", progress.waited)
        return {f"eval_{name}": float(value) for name, value in result.items()}

    def _save_best(self, score: float) -> None:
        save_best(self.config, self.model, self.run_folder, score, self.progress.best_result)

    def save_ranks(self, split: str) -> None:
        """Keep where the true items stood in the last evaluation."""
        assert self.places is not None
        keep_ranks(self.config, self.run_folder, split, self._users, self.places, self.model.list_length)

    def load_best(self, folder: Path | None = None) -> None:
        """Put the best weights of a run, its own or that in ``folder``, back into the model."""
        load_best(self.config, self.model, folder or self.run_folder / BEST)

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Path | None = None, show_progress: bool = False
    ) -> OrderedDict[str, float]:
        """Metrics of all users of a split; ``places`` and ``policies`` keep the details."""
        if load_best_model and (model_file or (self.run_folder / BEST).is_dir()):
            self.load_best(model_file)
        self.show_progress = show_progress
        return self._score(evaluation_pairs(eval_data, self.model), final=True)

    def _score(self, pairs: Pairs | None, *, final: bool = False) -> OrderedDict[str, float]:
        self.model.eval()
        assert pairs is not None
        label = set_color("Evaluate   ", "pink") if self.show_progress else None
        how: dict[str, Any] = {"batch_size": self.config["eval_batch_size"], "progress": label}
        with whole(self.model), kept_lists(self.config, self.run_folder, self.model, pairs, final=final) as keeper:
            how["keeper"] = keeper if self.saved else None
            ranking = self.model.rank(pairs, **how)
            self._users = torch.from_numpy(pairs.user)
            self.places, self.policies = self.metrics(ranking, pairs)
            self.answers = answer_ratios(self.model, pairs, ranking, self.policies, free=final, **how)
        return self.policies[self.config.settings.decode.collisions]
