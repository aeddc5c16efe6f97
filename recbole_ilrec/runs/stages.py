"""The stages of a run of a language model: supervised fine-tuning and, for some models, preference training after it.

The supervised stage of a preference model is what ``--model=LCRec`` trains, or ``--model=BIGRec`` under titles; all
preference models on the same data, backbone and settings share it, and a run of that model leaves it for them. Every
stage but the last is kept by content in ``cache_dir`` with a manifest, is skipped when it is done and goes on where it
was interrupted; the last one's folder is the run's own.
"""

import copy
import hashlib
import json
import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole.utils import init_seed, set_color

from recbole_ilrec.checks.finding import as_plain
from recbole_ilrec.collaborative.reward_model import prefers, reward_key, weighs_titles
from recbole_ilrec.configuration.lookup import PARADIGM_OF
from recbole_ilrec.configuration.outcome import own_code, supervised_settings
from recbole_ilrec.errors import UserError
from recbole_ilrec.models.model import GenerativeRecommender, to_pairs
from recbole_ilrec.models.pretrained import read_from
from recbole_ilrec.preparation.files import made_once, mirror, write_atomically
from recbole_ilrec.report.costs import note_earlier, spent_on
from recbole_ilrec.report.record import machine
from recbole_ilrec.runs.diagnosis import diagnose, log_findings
from recbole_ilrec.runs.result_file import keep_result
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import fingerprint
from recbole_ilrec.runtime.interrupts import Interrupted
from recbole_ilrec.runtime.resumption import BEST, checkpoints
from recbole_ilrec.runtime.run_folder import at_work, new_folder
from recbole_ilrec.runtime.shards import shard
from recbole_ilrec.runtime.weights import weights
from recbole_ilrec.settings import Settings
from recbole_ilrec.training.best_weights import given_weights, require_same_data
from recbole_ilrec.training.gamma_choice import choose_gamma
from recbole_ilrec.training.preference_trainer import PreferenceTrainer
from recbole_ilrec.training.rejected import KeptRows, chosen_rows, rejected_items
from recbole_ilrec.training.trainer import GenerativeTrainer

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
SUPERVISED = {paradigm: model for model, paradigm in PARADIGM_OF.items()}
"""Paradigm -> the model whose training is the supervised stage."""


def run_llm(config: Any, data: Any, saved: bool = True) -> dict[str, Any]:
    """Build, train and evaluate the language model that ``config`` names, through all its stages.

    Returns:
        RecBole's result: ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``; and
        ``policies``, the test metrics under each collision policy, ``lists``, how full the users' lists are,
        ``parameters`` that were trained, ``findings`` of the doctor, and ``folder``, where the run was saved. With
        ``train.layer_losses`` also ``layer_losses``: for each validation ``epoch``, ``step`` and the ``losses`` of all
        layers, lowest first. For a choice among candidates also ``answers``, HitRatio@1 and ValidRatio by each rule.
        Where ``bigrec.gamma`` was chosen on validation, the validation results are those of the chosen value, and
        ``gamma`` says how. With ``eval_test: false`` nothing of the test part is looked at, and what is said of it, and
        the ``findings``, are ``None``.
    """
    init_seed(config["seed"], config["reproducibility"])
    with processes.first_alone():
        model = config.model_class(config, data.train._dataset)
    trained = sum(parameter.numel() for parameter in weights(model).values())
    logger.info("%s: %d", set_color("Trainable parameters", "blue"), trained)
    if config.settings.train.parallel == "fsdp":
        shard(model, model.backbone.blocks, config["device"])
    else:
        model.to(config["device"])
    findings = None
    if config["eval_test"]:  # the checks read the rows of all parts
        findings = diagnose(config, data, model)
        log_findings(findings)
    if model.objective.needs.rewards and not config["resume_from_checkpoint"]:
        # Trained, or refused, before anything of this run is written; a resumed run may have no step left to reward.
        logger.info("Rewards of Eq. 10 by %s", type(model.reward_model.model).__name__)
    if model.preference is None:
        trainer = GenerativeTrainer(config, model, run_folder(config))
    else:
        trainer = _preference_trainer(config, model, data)
    show = config["show_progress"]
    with spent_on("supervised" if model.preference is None else "preference"):
        best_score, best_result = trainer.fit(data.train, data.valid, saved=saved, show_progress=show)
    if saved and config["model"] == SUPERVISED[config.settings.paradigm] and config.settings.objective == "sft":
        _keep_as_stage(trainer, data, best_score)
    of_test: dict[str, Any] = dict.fromkeys(("test_result", "policies", "lists"))
    with trainer.at_work() as here:
        with spent_on("evaluation"):
            chosen = choose_gamma(trainer)
            if chosen is not None:
                best_score, best_result = chosen.valid_score, chosen.valid_result
            if config["eval_test"]:
                of_test = _tested(trainer, data, saved, show)
        if here:
            keep_result(trainer.run_folder, best_result, of_test["test_result"], chosen.value if chosen else None)
    result = {
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_result,
        **of_test,
        "parameters": trained,
        "findings": None if findings is None else as_plain(findings),
        "folder": str(trainer.run_folder) if saved else None,
        **({"layer_losses": trainer.progress.layer_losses} if config.settings.train.layer_losses else {}),
    }
    return result if chosen is None else {**result, "gamma": asdict(chosen)}


def _tested(trainer: GenerativeTrainer, data: Any, saved: bool, show: bool) -> dict[str, Any]:
    """What :func:`run_llm` returns about the test part."""
    result = trainer.evaluate(data.test, load_best_model=saved, show_progress=show)
    if saved and processes.is_first():
        trainer.save_ranks("test")
    return {
        "test_result": result,
        "policies": trainer.policies,
        "lists": asdict(trainer.metrics.quality) if trainer.metrics.quality else None,
        **({"answers": trainer.answers} if trainer.answers else {}),
    }


def run_folder(config: Any) -> Path:
    """The folder that is resumed, or a new one."""
    given = config["resume_from_checkpoint"]
    if given:
        folder = Path(given)
        return folder.parent if (folder / "trainer_state.json").is_file() else folder
    return Path(processes.agreed(str(new_folder(config))))


def _preference_trainer(config: Any, model: GenerativeRecommender, data: Any) -> PreferenceTrainer:
    """The trainer of the last stage, all stages before it being done and its weights in the model.

    A round is: the model proposes rejected items, is fine-tuned once more where ``preference.supervised_epochs`` says
    so (SPRec), and learns to prefer the true items, with what it was just before that as the reference.
    """
    dataset = data.train._dataset
    kept = KeptRows(config, model, dataset, config["show_progress"])
    best = supervised_stage(config, model, data)
    own = config.settings.preference
    for round_ in range(own.iterations):
        proposer = fingerprint(best)
        pairs = to_pairs(dataset.inter_feat, model)
        rows = chosen_rows(config, len(pairs), round_)
        pairs = pairs.take(rows)
        rejected = rejected_items(config, model, dataset, pairs, kept, weights=proposer, iteration=round_)
        if own.supervised_epochs:
            best = _more_supervision(config, model, data, proposer, round_)
        stage, start = preference_config(config, round_), fingerprint(best)
        init_seed(stage["seed"], stage["reproducibility"])  # the same whether a stage was trained or read
        last = round_ + 1 == own.iterations
        further = [start, own.model_dump(), config.settings.objective.lower(), config["model"], round_]
        folder = run_folder(config) if last else _folder(config, model, dataset, "preference", further)
        with nullcontext() if last else _turn(folder):
            trainer = PreferenceTrainer(
                stage if last else _resumed(stage, folder), model, folder, start, rows, rejected
            )
            if not last:
                with spent_on("preference"):
                    best = _train_once(trainer, data)
    return trainer


@spent_on("supervised")
def supervised_stage(config: Any, model: GenerativeRecommender, data: Any) -> Path:
    """Give ``model`` its supervised weights: those of ``preference.checkpoint``, the cached ones, or ones trained now.

    Choice: A.4 says that preference training starts from the checkpoint of supervised fine-tuning, not from which
    epoch: it is the best on validation, as ``--model=LCRec`` or ``BIGRec`` would report it.

    Returns:
        the checkpoint.

    Raises:
        UserError: ``preference.checkpoint`` is no checkpoint of such a run, or of other data or settings.
    """
    best = given_weights(config)
    if best is not None:
        require_same_data(config, best)
        GenerativeTrainer(supervised_config(config), model, best.parent).load_best(best)
        return best
    folder = _folder(config, model, data.train._dataset, "supervised", [])
    with _turn(folder):
        return _train_once(GenerativeTrainer(_resumed(supervised_config(config), folder), model, folder), data)


@spent_on("supervised")
def _more_supervision(config: Any, model: GenerativeRecommender, data: Any, before: str, round_: int) -> Path:
    """Fine-tune further from the weights called ``before``, with another order of the rows in each round."""
    own = config.settings.preference
    again = {"epochs": own.supervised_epochs, "learning_rate": own.learning_rate, "eval_step": own.eval_step}
    folder = _folder(config, model, data.train._dataset, "supervised", [before, again, round_])
    stage = supervised_config(config, seed=_seed(config, round_ + 1), **again)
    init_seed(stage["seed"], stage["reproducibility"])
    with _turn(folder):
        return _train_once(GenerativeTrainer(_resumed(stage, folder), model, folder), data)


def supervised_is_kept(config: Any, model: GenerativeRecommender, data: Any) -> bool:
    """Whether :func:`supervised_stage` reads its weights, and trains nothing."""
    given = bool(config.settings.preference.checkpoint)
    return given or (_folder(config, model, data.train._dataset, "supervised", []) / MANIFEST).is_file()


def _turn(folder: Path) -> AbstractContextManager[None]:
    """The turn of this run among those that would train the stage in ``folder``; its first process stands for all."""
    return made_once(folder) if processes.is_first() else nullcontext()


def _train_once(trainer: GenerativeTrainer, data: Any) -> Path:
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


def _folder(config: Any, model: GenerativeRecommender, dataset: Any, kind: str, further: list[Any]) -> Path:
    """Where a stage is kept: named by all that its weights depend on, and by nothing else."""
    template, items = model.encoder.template, model.catalog.digest
    own = [model.alignment.key] if model.alignment else []
    own += [model.frozen_key] if model.frozen_key else []
    if weighs_titles(config.settings) or (kind == "preference" and prefers(config.settings)):
        own.append(reward_key(config, dataset))
    own += ["ends items"] if template.ends_items else []
    data = [dataset.content_key(), template.variants, template.separator, items]
    what = [*supervised_settings(config), *data, *own, *own_code(config), *read_from(config, model), *further]
    key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
    name = SUPERVISED[config.settings.paradigm] if kind == "supervised" else config["model"]
    return Path(config["cache_dir"]) / kind / f"{name}-{config['dataset']}-{key}"


def _keep_as_stage(trainer: GenerativeTrainer, data: Any, score: float) -> None:
    """Let a run that was supervised fine-tuning and nothing else be the first stage of preference models."""
    best = trainer.run_folder / BEST
    mixed = trainer.config.keys is not None and trainer.config.keys.begun
    if not processes.is_first() or not best.is_dir() or mixed:  # no epochs, no weights
        return
    folder = _folder(trainer.config, trainer.model, data.train._dataset, "supervised", [])
    if (folder / MANIFEST).is_file():
        return
    try:
        with at_work(folder):
            mirror(best, folder / BEST)
            _finish(trainer, folder, score)
    except (OSError, UserError) as error:
        # A full disk, or another process that trains it, must not cost this run its result.
        logger.warning("Not kept as a stage for preference models in %s: %s", folder, error)


def _finish(trainer: GenerativeTrainer, folder: Path, score: float) -> None:
    """Write the manifest that says a stage is done; what only served to go on with it is removed."""
    if not processes.is_first():
        return
    about = {"stage": trainer.config["model"], "seed": trainer.config["seed"], "best_valid_score": score}
    with write_atomically(folder / MANIFEST) as stream:
        json.dump({**about, **trainer.progress.spent, **machine()}, stream, indent=1)
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)


def preference_config(config: Any, round_: int = 0) -> Any:
    """The run's settings as the preference stage reads them, with another order and dropout in each round."""
    own = config.settings.preference
    return _stage_config(
        config,
        config.settings,
        seed=_seed(config, round_),
        epochs=own.epochs,
        learning_rate=own.learning_rate,
        train_batch_size=own.train_batch_size,
        eval_step=own.eval_step,
    )


def _seed(config: Any, round_: int) -> int:
    """Another seed for each round, that of the run first; never above what NumPy takes."""
    return (config["seed"] + 1000 * round_) % (1 << 32)


def supervised_config(config: Any, **values: Any) -> Any:
    """The run's settings as its supervised stage reads them."""
    settings = config.settings.model_copy(update={"objective": "sft"})
    return _stage_config(config, settings, model=SUPERVISED[config.settings.paradigm], **values)


def _resumed(config: Any, folder: Path) -> Any:
    """The settings of a stage kept in ``folder``, which goes on from its newest checkpoint where there is one."""
    resume = str(folder) if processes.agreed(bool(checkpoints(folder))) else None
    return _stage_config(config, config.settings, resume_from_checkpoint=resume)


def _stage_config(config: Any, settings: Settings, **values: Any) -> Any:
    stage = copy.copy(config)
    stage.final_config_dict = {**config.final_config_dict, **values}
    stage.settings = settings
    return stage
