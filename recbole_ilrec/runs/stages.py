"""A run of a language model through its stages.

Some models have supervised fine-tuning and then preference training, in rounds; and with ``train.init_from`` training
begins with what another one made. All stages but the last are kept (:mod:`recbole_ilrec.runs.kept_stages`); the last
one's folder is the run's own.
"""

import logging
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole.utils import init_seed, set_color

from recbole_ilrec.checks.finding import as_plain
from recbole_ilrec.models.model import GenerativeRecommender, to_pairs
from recbole_ilrec.report.costs import spent_on
from recbole_ilrec.runs.diagnosis import diagnose, log_findings
from recbole_ilrec.runs.kept_stages import (
    SUPERVISED,
    keep_as_stage,
    resumed,
    stage_config,
    stage_folder,
    supervised_config,
    supervised_stage,
    train_once,
    turn,
)
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import fingerprint
from recbole_ilrec.runtime.resumption import LOOP_STATE
from recbole_ilrec.runtime.run_folder import new_folder
from recbole_ilrec.runtime.shards import shard
from recbole_ilrec.runtime.weights import weights
from recbole_ilrec.training.gamma_choice import choose_gamma
from recbole_ilrec.training.preference_trainer import PreferenceTrainer
from recbole_ilrec.training.rejected import KeptRows, chosen_rows, rejected_items
from recbole_ilrec.training.trainer import GenerativeTrainer

logger = logging.getLogger(__name__)


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
        _begin(config, model, data)
        trainer = GenerativeTrainer(config, model, run_folder(config))
    else:
        trainer = _preference_trainer(config, model, data)
    show = config["show_progress"]
    with spent_on("supervised" if model.preference is None else "preference"):
        best_score, best_result = trainer.fit(data.train, data.valid, saved=saved, show_progress=show)
    if saved and config["model"] == SUPERVISED[config.settings.paradigm] and config.settings.objective == "sft":
        keep_as_stage(trainer, data, best_score)
    of_test: dict[str, Any] = dict.fromkeys(("test_result", "policies", "lists"))
    with trainer.at_work(), spent_on("evaluation"):
        chosen = choose_gamma(trainer)
        if chosen is not None:
            best_score, best_result = chosen.valid_score, chosen.valid_result
        if config["eval_test"]:
            of_test = _tested(trainer, data, saved, show)
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


def _begin(config: Any, model: GenerativeRecommender, data: Any) -> None:
    """Give the model the weights that training begins with where those of its backbone are not meant."""
    if config.settings.train.init_from is None or config["resume_from_checkpoint"]:
        return
    supervised_stage(config, model, data)
    init_seed(config["seed"], config["reproducibility"])  # the same whether these were trained or read


def run_folder(config: Any) -> Path:
    """The folder that is resumed, or a new one."""
    given = config["resume_from_checkpoint"]
    if given:
        folder = Path(given)
        return folder.parent if (folder / LOOP_STATE).is_file() else folder
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
        further = [start, own.model_dump(), config.settings.objective, config["model"], round_]
        folder = run_folder(config) if last else stage_folder(config, model, dataset, "preference", further)
        with nullcontext() if last else turn(folder):
            trainer = PreferenceTrainer(stage if last else resumed(stage, folder), model, folder, start, rows, rejected)
            if not last:
                with spent_on("preference"):
                    best = train_once(trainer, data)
    return trainer


@spent_on("supervised")
def _more_supervision(config: Any, model: GenerativeRecommender, data: Any, before: str, round_: int) -> Path:
    """Fine-tune further from the weights called ``before``, with another order of the rows in each round."""
    own = config.settings.preference
    again = {"epochs": own.supervised_epochs, "learning_rate": own.learning_rate, "eval_step": own.eval_step}
    folder = stage_folder(config, model, data.train._dataset, "supervised", [before, again, round_])
    stage = supervised_config(config, seed=_seed(config, round_ + 1), **again)
    init_seed(stage["seed"], stage["reproducibility"])
    with turn(folder):
        return train_once(GenerativeTrainer(resumed(stage, folder), model, folder), data)


def preference_config(config: Any, round_: int = 0) -> Any:
    """The run's settings as the preference stage reads them, with another order and dropout in each round."""
    own = config.settings.preference
    return stage_config(
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
