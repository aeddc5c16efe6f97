"""The parts of a language model's run, each measured on a few of its steps, rows or users."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils import init_seed

from recbole_ilrec.collaborative.reward_model import is_kept, prefers, untrained_reward_model, weighs_titles
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.models.model import GenerativeRecommender, to_pairs
from recbole_ilrec.prompt.rows import StepPlan
from recbole_ilrec.report.costs import REWARD, noting_costs
from recbole_ilrec.report.estimate import ONCE, Part
from recbole_ilrec.runs.classical_estimation import training_parts
from recbole_ilrec.runs.kept_stages import supervised_config, supervised_is_kept, supervision_alone
from recbole_ilrec.runs.stages import preference_config
from recbole_ilrec.runtime.weights import weights
from recbole_ilrec.settings.model import SFT
from recbole_ilrec.training.measured import Measured, MeasuredPreference, Schedule
from recbole_ilrec.training.rejected import KeptRows, chosen_rows, rejected_items

FEW_STEPS = 4
"""Steps of preference training for whose rows rejected items are found."""


def language_parts(config: Any, data: Any, scratch: Path, seconds: float) -> tuple[list[Part], str, int]:
    """Parts of the run of a language model.

    Args:
        config: its settings.
        data: what it learns from.
        scratch: a folder that is thrown away.
        seconds: how long each kind of work is measured.

    Returns:
        the parts in their order; the run's sizes; megabytes that checkpoints take.
    """
    init_seed(config["seed"], config["reproducibility"])
    start = time.perf_counter()
    model = config.model_class(config, data.train._dataset).to(config["device"])
    parts = [Part("building the model", time.perf_counter() - start, 1, ONCE, note="what was learned for it is kept")]
    parts += _reward_model(config, data, model, scratch)
    if config.settings.train.init_from == SFT:
        with supervision_alone(model):
            parts += _supervised(config, data, model, scratch, seconds, "first fine-tuning")[1]
    stage = "" if model.preference is None else "fine-tuning"
    trainer, made = _supervised(config, data, model, scratch, seconds, stage)
    parts += made
    if model.preference is not None:
        parts += _preference(config, data, trainer, scratch)
    if config["eval_test"]:
        parts.append(trainer.test(data.test))
    own, settings = weights(model), config.settings.train
    size = sum(p.numel() * p.element_size() for p in own.values())
    # A checkpoint holds weights, two moments and the average; the best weights stand beside those that are kept.
    disk = size * ((3 + bool(settings.ema)) * (settings.keep_checkpoints + 1) + 1)
    assert trainer.plan is not None
    plan, count = trainer.plan, sum(p.numel() for p in own.values())
    sizes = (
        f"{count:,} trained parameters; {len(plan.size):,} rows with {int(plan.targets.sum()):,} targets make "
        f"{plan.steps:,} step{'s' * (plan.steps > 1)} an epoch"
    )
    return parts, sizes, round(disk / 2**20)


def _reward_model(config: Any, data: Any, model: GenerativeRecommender, scratch: Path) -> list[Part]:
    """The training of the collaborative model, in whose place one that knows nothing is asked meanwhile."""
    settings, dataset = config.settings, data.train._dataset
    if not (model.objective.needs.rewards or weighs_titles(settings) or prefers(settings)):
        return []
    if is_kept(config, dataset):
        return [Part(REWARD, 0.0, 0, "epoch", note="kept")]
    model.reward_model, own = untrained_reward_model(config, dataset)
    return training_parts(own, build_data(own), scratch, REWARD)[0]


def _supervised(
    config: Any, data: Any, model: GenerativeRecommender, scratch: Path, seconds: float, stage: str
) -> tuple[Measured, list[Part]]:
    """The training over tokens: what ``stage`` names, which others follow, or the run's own where it is empty."""
    name = stage or "fine-tuning"
    own = supervised_config(config) if stage else config
    trainer = Measured(own, model, scratch / "supervised", seconds=seconds)
    trainer.fit(data.train, None, saved=False)
    if stage and supervised_is_kept(config, model, data):
        return trainer, [Part(name, 0.0, 0, "step", note="kept from before")]
    assert trainer.plan is not None
    clock, most = trainer.clock, config.settings.train.max_steps
    schedule = Schedule(trainer.plan.steps, own["epochs"], own["eval_step"], most)
    of_stage = "validation" if name == "fine-tuning" else f"{name}, validation"
    validation = trainer.validation(of_stage, data.valid, schedule)
    early = validation.stops_early
    parts = [Part(name, clock.each, schedule.last, "step", error=clock.error, stops_early=early), validation]
    if trainer.rewards_took:
        parts.insert(0, Part("rewards (Eq. 10)", trainer.rewards_took, 1, ONCE))
    return trainer, parts


def _preference(config: Any, data: Any, supervised: Measured, scratch: Path) -> list[Part]:
    model, dataset, own = supervised.model, data.train._dataset, config.settings.preference
    stage = preference_config(config)
    stage.final_config_dict["cache_dir"] = str(scratch / "cache")  # a copy of the run's own
    pairs = to_pairs(dataset.inter_feat, model)
    chosen, batch = chosen_rows(config, len(pairs)), stage["train_batch_size"]
    rows = len(chosen)
    few = np.sort(np.random.default_rng(0).choice(rows, min(rows, FEW_STEPS * batch), replace=False))
    # Only the model's own items cost so much by the row that those of a few rows have to do.
    by_row = own.source == "self_hard"
    searched = chosen[few] if by_row else chosen
    with noting_costs() as costs:
        kept = KeptRows(stage, model, dataset, show_progress=False)
        rejected = rejected_items(config, model, dataset, pairs.take(searched), kept, weights="estimate")
        rejected = rejected if by_row else rejected[:, few]
        place, seconds = scratch / "preference", supervised.clock.seconds
        trainer = MeasuredPreference(stage, model, place, "estimate", chosen[few], rejected, seconds=seconds)
        trainer.fit(data.train, None, saved=False)
    sampling, reference = (costs.stages[name]["wall_seconds"] for name in ("sampling", "reference"))
    one, rounds, most = np.ones(rows, dtype=np.int64), own.iterations, config.settings.train.max_steps
    steps = StepPlan(one, one, batch, config.settings.train.gradient_accumulation, 0).steps
    schedule = Schedule(steps, own.epochs, own.eval_step, most)
    found = (sampling / len(few), rounds * rows, "row") if by_row else (sampling, rounds, "round")
    validation = trainer.validation("preference, validation", data.valid, schedule, rounds)
    clock, early = trainer.clock, validation.stops_early
    times = rounds * schedule.last
    parts = [
        Part("rejected items", *found),
        Part("reference", reference / len(few), rounds * rows, "row"),
        Part("preference training", clock.each, times, "step", error=clock.error, stops_early=early),
        validation,
    ]
    if own.supervised_epochs:
        parts[1:1] = _more_supervision(config, data, supervised)
    return parts


def _more_supervision(config: Any, data: Any, supervised: Measured) -> list[Part]:
    """What SPRec fine-tunes further, round by round."""
    own, clock, plan = config.settings.preference, supervised.clock, supervised.plan
    assert plan is not None
    schedule = Schedule(plan.steps, own.supervised_epochs, own.eval_step, config.settings.train.max_steps)
    validation = supervised.validation("more fine-tuning, validation", data.valid, schedule, own.iterations)
    times, early = own.iterations * schedule.last, validation.stops_early
    return [Part("more fine-tuning", clock.each, times, "step", error=clock.error, stops_early=early), validation]
