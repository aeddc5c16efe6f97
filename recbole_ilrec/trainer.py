"""RecBole's face of the language models' training: ``fit`` and ``evaluate``, its log lines, its early stopping.

The steps themselves are :mod:`recbole_ilrec.loop`; what a metric is, RecBole's evaluator decides.
"""

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import calculate_valid_score, dict2str, early_stopping, set_color
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from recbole_ilrec.checkpoint import load_state, resumable, save_state
from recbole_ilrec.epochs import Epochs, epoch_of
from recbole_ilrec.evaluation.topk import TargetPlaces
from recbole_ilrec.evaluation.user_ranks import ranks_file, write_ranks
from recbole_ilrec.generative_metrics import GenerativeMetrics
from recbole_ilrec.layer_losses import layer_losses
from recbole_ilrec.loop import MicroBatches, StepTrainer, set_aside_later
from recbole_ilrec.model import GenerativeRecommender, to_pairs
from recbole_ilrec.prompt.rows import Pairs, StepPlan, TrainRows
from recbole_ilrec.report.costs import note, note_earlier, spent_on
from recbole_ilrec.report.record import Stopwatch
from recbole_ilrec.reward.table import RewardTable
from recbole_ilrec.task_batches import task_batches
from recbole_ilrec.weights import WeightAverage, load_weights, weights

logger = logging.getLogger(__name__)

BEST = "best"
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass
class Progress:
    """Early stopping as RecBole counts it, and what was ``spent`` until then; part of every checkpoint.

    Attributes:
        layer_losses: ``epoch`` (epochs done), ``step`` and ``losses`` (of each layer, lowest first) of each validation.
    """

    best_score: float
    best_result: dict[str, float] | None = None
    waited: int = 0
    stopped: bool = False
    spent: dict[str, float] = field(default_factory=dict)
    layer_losses: list[dict[str, Any]] = field(default_factory=list)


class GenerativeTrainer:
    """Trains and evaluates a :class:`~recbole_ilrec.model.GenerativeRecommender`.

    Args:
        config: the run's settings.
        model: the model, on its device.
        run_folder: where checkpoints go; made when something is written.

    Attributes:
        places: where the true items stood in the last evaluation, one row a user.
        policies: metrics of the last evaluation under each collision policy.
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
        self._users: np.ndarray = np.empty(0, dtype=np.int64)
        self._watch, self._before = Stopwatch(), dict[str, float]()
        bigger = config["valid_metric_bigger"]
        self.progress = Progress(best_score=-np.inf if bigger else np.inf)

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
        average = WeightAverage(self.model, train.ema) if train.ema else None
        if valid_data is not None:
            self.valid_pairs = to_pairs(valid_data._dataset.inter_feat, self.model)
            if train.valid_users:
                self.valid_pairs = self.valid_pairs.some(train.valid_users)
            logger.info("Validation after every %d epochs on %d users", self.config["eval_step"], len(self.valid_pairs))
        arguments = self._arguments()
        parts = train.gradient_accumulation * arguments.world_size
        batch, seed = self.config["train_batch_size"], self.config["seed"]
        plan = StepPlan(sizes, targets, batch, parts, seed, batches.sizes, batches.group)
        loop = StepTrainer(
            self.model,
            arguments,
            batches,
            plan,
            evaluate=self._validate,
            extra_state=lambda: asdict(self.progress) | {"spent": self._spent(loop)},
            kind=self.config["model"],
            keep=train.keep_checkpoints,
            average=average,
            callbacks=self._reporting(),
        )
        loop.add_callback(
            Epochs(loop, self.config, validate=self.valid_pairs is not None, save=saved, show=show_progress)
        )
        self._watch = Stopwatch()
        self._train(loop)
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
        train = self.config.settings.train
        if self.model.objective.needs.rewards:
            self.model.rewards = self._rewards(dataset, pairs, self.show_progress)
        rows = TrainRows(
            pairs,
            rows=train.rows,
            window=self.config["MAX_ITEM_LIST_LENGTH"],
            variants=self.model.variants,
            item_dropout=train.item_dropout,
            seed=self.config["seed"],
        )
        if self.model.alignment is not None:
            return task_batches(self.config, self.model, self.model.alignment, rows, pairs)
        batches = MicroBatches(rows, self.model.encoder)
        batches.sizes = rows.sizes
        return batches, rows.num_items, rows.num_targets

    def _rewards(self, dataset: Any, pairs: Pairs, show_progress: bool) -> RewardTable:
        """Eq. 10 for every training target, once: the reward model is frozen."""
        reward_model = self.model.reward_model
        label = set_color("Rewards    ", "pink")
        return RewardTable(
            self.model.catalog,
            pairs.target,
            lambda numbers: reward_model.probabilities(dataset.inter_feat[numbers]),
            progress=lambda chunks: tqdm(chunks, desc=label, ncols=100, disable=not show_progress),
        )

    def _spent(self, loop: StepTrainer) -> dict[str, float]:
        """Seconds and epochs of training, those before an interruption included."""
        epochs = max(float(loop.state.epoch or 0.0), self._before.get("epochs", 0.0))
        return {**self._watch.read(self._before), "epochs": round(epochs, 3)}

    def _train(self, loop: StepTrainer) -> None:
        given = self.config["resume_from_checkpoint"]
        resume = resumable(Path(given), kind=self.config["model"]) if given else None
        if resume:
            set_aside_later(resume)
            self.progress = Progress(**load_state(resume, kind=self.config["model"])["extra"])
            self._before = dict(self.progress.spent)
            note_earlier(self._before)
            logger.info("%s: %s", set_color("Resuming from", "blue"), resume)
        if self.progress.stopped:
            self.load_best()
            return
        loop.train(resume_from_checkpoint=str(resume) if resume else None)
        if loop.average and (self.valid_pairs is None or not self.saved):
            loop.average.swap()
        if not self.saved:
            with suppress(OSError):
                self.run_folder.rmdir()  # the library makes it, even if nothing is to be written
        elif self.valid_pairs is None:
            self._save_best(self.progress.best_score)

    @property
    def _valid_metric(self) -> str:
        return self.config["valid_metric"].lower()

    def _arguments(self) -> TrainingArguments:
        train = self.config.settings.train
        return TrainingArguments(
            output_dir=str(self.run_folder),
            num_train_epochs=self.config["epochs"],
            max_steps=train.max_steps or -1,
            learning_rate=self.config["learning_rate"],
            weight_decay=self.config["weight_decay"],
            adam_beta2=train.adam_beta2,
            lr_scheduler_type=SCHEDULES[train.schedule],
            warmup_steps=train.warmup_ratio,
            max_grad_norm=train.max_grad_norm,
            bf16=train.bf16,
            gradient_accumulation_steps=train.gradient_accumulation,
            seed=self.config["seed"],
            use_cpu=self.config["device"].type == "cpu",
            logging_steps=train.log_steps,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
        )

    def _reporting(self) -> list[TrainerCallback]:
        writer = SummaryWriter(str(Path("log_tensorboard") / self.run_folder.name))
        return [TensorBoardCallback(writer)]

    def _validate(self, loop: StepTrainer) -> dict[str, float]:
        start = time.time()
        with spent_on("validation"):
            result = self._score(self.valid_pairs)
        score = calculate_valid_score(result, self._valid_metric)
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
        if self.config.settings.train.layer_losses:
            self._compare_layers(loop)
        if better:
            progress.best_result = dict(result)
            if self.saved:
                self.save_ranks("valid")
                self._save_best(score)
        if progress.stopped:
            loop.control.should_training_stop = True
            logger.info("Finished training, no better result in %d evaluations", progress.waited)
        return {f"eval_{name}": float(value) for name, value in result.items()}

    def _compare_layers(self, loop: StepTrainer) -> None:
        assert self.valid_pairs is not None
        losses = layer_losses(self.model, self.valid_pairs)
        done = {"epoch": float(loop.state.epoch or 0.0), "step": loop.state.global_step}
        self.progress.layer_losses.append({**done, "losses": losses})
        named = {str(layer): loss for layer, loss in enumerate(losses, start=1)}
        logger.info("%s: %s", set_color("loss of each layer", "blue"), dict2str(named))
        loop.log({f"eval_layer_loss/{layer}": loss for layer, loss in named.items()})

    def _save_best(self, score: float) -> None:
        content = {
            "model": weights(self.model),
            "settings": self.config.settings.model_dump(mode="json"),
            "request": _request(self.config),
            "valid_score": score,
            "valid_result": self.progress.best_result,
        }
        save_state(self.run_folder / BEST, content, kind=self.config["model"])
        logger.info("%s: %s", set_color("Saving current", "blue"), self.run_folder / BEST)

    def save_ranks(self, split: str) -> None:
        """Keep where the true items stood in the last evaluation."""
        assert self.places is not None
        about = {"model": self.config["model"], "dataset": self.config["dataset"], "split": split}
        write_ranks(ranks_file(self.run_folder, split), torch.from_numpy(self._users), self.places, about)

    def load_best(self, folder: Path | None = None) -> None:
        """Put the best weights of a run back into the model."""
        folder = folder or self.run_folder / BEST
        load_weights(self.model, load_state(folder, kind=self.config["model"])["model"], folder)
        logger.info("Loading model structure and parameters from %s", folder)

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Path | None = None, show_progress: bool = False
    ) -> OrderedDict[str, float]:
        """Metrics of all users of a split; ``places`` and ``policies`` keep the details."""
        if load_best_model and (model_file or (self.run_folder / BEST).is_dir()):
            self.load_best(model_file)
        self.show_progress = show_progress
        pairs = to_pairs(eval_data._dataset.inter_feat, self.model)
        return self._score(pairs)

    def _score(self, pairs: Pairs | None) -> OrderedDict[str, float]:
        self.model.eval()
        assert pairs is not None
        label = set_color("Evaluate   ", "pink") if self.show_progress else None
        ranking = self.model.rank(pairs, batch_size=self.config["eval_batch_size"], progress=label)
        self._users = pairs.user
        self.places, self.policies = self.metrics(ranking, pairs)
        return self.policies[self.config.settings.decode.collisions]


def _request(config: Any) -> dict[str, Any]:
    """The arguments that make this configuration again, from any folder, in plain values."""
    data, cache = Path(config["data_path"]).resolve(), Path(config["cache_dir"]).resolve()
    given = {**config.external_config_dict, "data_path": data.parent, "cache_dir": cache}
    return {
        "model": config.model,
        "dataset": config.dataset,
        "config_dict": json.loads(json.dumps(given, default=str)),
    }
