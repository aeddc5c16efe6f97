"""Stages of a run that are kept by content in ``cache_dir``, the supervised one above all, and found again by others.

A stage is kept with a manifest, skipped when it is done and gone on with where it was interrupted. The supervised one
is what ``--model=LCRec`` trains, or ``--model=BIGRec`` under titles: all models that begin with it on the same data,
backbone and settings share it, and a run of that model leaves it for them.
"""

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from recbole_ilrec.collaborative.reward_model import prefers, reward_key, weighs_titles
from recbole_ilrec.configuration.lookup import PARADIGM_OF
from recbole_ilrec.configuration.outcome import own_code, supervised_settings
from recbole_ilrec.errors import UserError
from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.models.pretrained import read_from
from recbole_ilrec.objective import build_objective
from recbole_ilrec.preparation.files import made_once, mirror, write_atomically
from recbole_ilrec.report.costs import note_earlier, spent_on
from recbole_ilrec.report.record import machine
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.interrupts import Interrupted
from recbole_ilrec.runtime.resumption import BEST, checkpoints
from recbole_ilrec.runtime.run_folder import at_work
from recbole_ilrec.settings import Settings
from recbole_ilrec.training.best_weights import begin_with, given_weights
from recbole_ilrec.training.trainer import GenerativeTrainer

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
SUPERVISED = {paradigm: model for model, paradigm in PARADIGM_OF.items()}
"""Paradigm -> the model whose training is the supervised stage."""


@spent_on("supervised")
def supervised_stage(config: Any, model: GenerativeRecommender, data: Any) -> Path:
    """Give ``model`` its supervised weights: those that a setting names, the cached ones, or ones trained now.

    Choice: A.4 says that preference training starts from the checkpoint of supervised fine-tuning, not from which
    epoch: it is the best on validation, as ``--model=LCRec`` or ``BIGRec`` would report it.

    Returns:
        the checkpoint.

    Raises:
        UserError: what ``preference.checkpoint`` or ``train.init_from`` names is no checkpoint of a language model, or
            one of other data, identifiers or shapes.
    """
    best = given_weights(config)
    if best is not None:
        preferring = model.preference is not None
        with supervision_alone(model):
            begin_with(config, model, best, kind=SUPERVISED[config.settings.paradigm] if preferring else None)
        return best
    folder = stage_folder(config, model, data.train._dataset, "supervised", [])
    with turn(folder), supervision_alone(model):
        return train_once(GenerativeTrainer(resumed(supervised_config(config), folder), model, folder), data)


@contextmanager
def supervision_alone(model: GenerativeRecommender) -> Iterator[None]:
    """The model's loss is plain cross-entropy meanwhile; a loss of the user's own may be a module with weights."""
    own = model.objective
    del model.objective
    model.objective = build_objective("sft", model.settings.ilrec)
    try:
        yield
    finally:
        del model.objective
        model.objective = own


def supervised_is_kept(config: Any, model: GenerativeRecommender, data: Any) -> bool:
    """Whether :func:`supervised_stage` reads its weights, and trains nothing."""
    if given_weights(config) is not None:
        return True
    return (stage_folder(config, model, data.train._dataset, "supervised", []) / MANIFEST).is_file()


def turn(folder: Path) -> AbstractContextManager[None]:
    """The turn of this run among those that would train the stage in ``folder``; its first process stands for all."""
    return made_once(folder) if processes.is_first() else nullcontext()


def train_once(trainer: GenerativeTrainer, data: Any) -> Path:
    """Train a stage that is not done, and load its best weights into the model.

    Returns:
        the checkpoint of these weights.
    """
    folder, config = trainer.run_folder, trainer.config
    if not processes.agreed((folder / MANIFEST).is_file()):
        logger.info("Stage %s; kept in %s", config["model"], folder)
        try:
            score, _ = trainer.fit(data.train, data.valid, saved=True, show_progress=config["show_progress"])
        except Interrupted as stop:
            raise Interrupted(stop.number, "saved; the same command goes on") from None
        _finish(trainer, folder, score)
    else:
        note_earlier(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    trainer.load_best(folder / BEST)
    return folder / BEST


def stage_folder(config: Any, model: GenerativeRecommender, dataset: Any, kind: str, further: list[Any]) -> Path:
    """Where a stage is kept: named by all that its weights depend on, and by nothing else."""
    template, items = model.encoder.template, model.catalog.digest
    own: list[Any] = [model.alignment.key] if model.alignment else []
    own += [model.frozen_key] if model.frozen_key else []
    if weighs_titles(config.settings) or (kind == "preference" and prefers(config.settings)):
        own.append(reward_key(config, dataset))
    own += ["ends items"] if template.ends_items else []
    data = [dataset.content_key(), template.variants, template.separator, items]
    own += own_code(supervised_config(config))
    what = [*supervised_settings(config), *data, *own, *read_from(config, model), *further]
    key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
    name = SUPERVISED[config.settings.paradigm] if kind == "supervised" else config["model"]
    return Path(config["cache_dir"]) / kind / f"{name}-{config['dataset']}-{key}"


def keep_as_stage(trainer: GenerativeTrainer, data: Any, score: float) -> None:
    """Let a run that was supervised fine-tuning and nothing else be the stage that other models begin with."""
    best = trainer.run_folder / BEST
    mixed = trainer.config.keys is not None and trainer.config.keys.begun
    second = trainer.config.settings.train.init_from  # itself begun with a stage
    if not processes.is_first() or not best.is_dir() or mixed or second:  # without epochs there are no weights
        return
    folder = stage_folder(trainer.config, trainer.model, data.train._dataset, "supervised", [])
    if (folder / MANIFEST).is_file():
        return
    try:
        with at_work(folder):
            mirror(best, folder / BEST)
            _finish(trainer, folder, score)
    except (OSError, UserError) as error:
        # A full disk, or another process that trains it, must not cost this run its result.
        logger.warning("Not kept as a stage for other models in %s: %s", folder, error)


def _finish(trainer: GenerativeTrainer, folder: Path, score: float) -> None:
    """Write the manifest that says a stage is done; what only served to go on with it is removed."""
    if not processes.is_first():
        return
    about = {"stage": trainer.config["model"], "seed": trainer.config["seed"], "best_valid_score": score}
    with write_atomically(folder / MANIFEST) as stream:
        json.dump({**about, **trainer.progress.spent, **machine()}, stream, indent=1)
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)


def supervised_config(config: Any, **values: Any) -> Any:
    """The run's settings as its supervised stage reads them."""
    train = config.settings.train.model_copy(update={"init_from": None})
    settings = config.settings.model_copy(update={"objective": "sft", "train": train})
    return stage_config(config, settings, model=SUPERVISED[config.settings.paradigm], **values)


def resumed(config: Any, folder: Path) -> Any:
    """The settings of a stage kept in ``folder``, which goes on from its newest checkpoint where there is one."""
    resume = str(folder) if processes.agreed(bool(checkpoints(folder))) else None
    return stage_config(config, config.settings, resume_from_checkpoint=resume)


def stage_config(config: Any, settings: Settings, **values: Any) -> Any:
    """The run's settings with other typed ones, and with ``values`` over RecBole's, for one of its stages."""
    stage = copy.copy(config)
    stage.final_config_dict = {**config.final_config_dict, **values}
    stage.settings = settings
    return stage
