"""Training of the language models: a world with a known answer, exact resume, loss independent of how a step is cut."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from recbole_ilrec.configuration import contradictions
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.errors import UserError
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.history import read_history
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.settings import ILRecSettings, build_settings
from recbole_ilrec.training import trainer
from recbole_ilrec.training.arguments import trackers, training_arguments
from recbole_ilrec.training.epochs import Epochs
from recbole_ilrec.training.loop import StepTrainer
from tests.worlds import LEARN, QUICK, newest


def run(model="ILRec", **settings):
    return run_recbole_ilrec(model, "ring", config_dict={**QUICK, **settings})


@pytest.mark.parametrize(("model", "rows"), [("ILRec", "sequence"), ("ILRec", "prefix"), ("LCRec", "sequence")])
def test_next_item_that_is_a_function_of_the_last_is_always_found(ring, model, rows):
    result = run(model, train_rows=rows, **LEARN)
    assert result["test_result"]["hit@1"] == 1.0
    assert result["best_valid_result"]["ndcg@5"] == 1.0
    assert {tuple(values.items()) for values in result["policies"].values()} == {tuple(result["test_result"].items())}


SHORT = {
    "epochs": 3,
    "eval_step": 1,
    "train_batch_size": 40,
    "train.valid_users": 20,
    "save_steps": 2,
    "train.keep_checkpoints": 50,
    "ilrec.cpd_share": 0.5,
}


class Interrupted(Exception):
    """Stands for a power cut."""


def final_weights(folder):
    last = load_state(checkpoints(folder)[-1])
    return {**last["model"], **{f"average.{k}": v for k, v in last["average"].items()}}


def only_run(folder):
    (found,) = (path for path in (folder / "saved").iterdir() if path.name.startswith("ILRec-"))
    return found


@pytest.mark.parametrize("cut_at", [3, 16, 17])
def test_an_interrupted_and_resumed_run_equals_the_straight_one_bit_for_bit(ring, monkeypatch, cut_at):
    straight = run(**SHORT)
    wanted = final_weights(only_run(ring))
    (ring / "saved").rename(ring / "straight")
    compute = StepTrainer.compute_loss

    def cut(self, *args, **kwargs):
        if self.state.global_step == cut_at:
            raise Interrupted
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StepTrainer, "compute_loss", cut)
        run(**SHORT)
    torch.manual_seed(999)  # what happened in between does not matter
    folder = only_run(ring)
    resumed = run(resume_from_checkpoint=str(folder), **SHORT)
    for key in ("test_result", "best_valid_result", "best_valid_score", "policies"):
        assert resumed[key] == straight[key]
    got = final_weights(folder)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_resuming_a_finished_run_only_evaluates(ring, monkeypatch):
    first = run(**SHORT)
    folder = only_run(ring)
    monkeypatch.setattr(StepTrainer, "compute_loss", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(trainer, "reward_table", lambda *a: pytest.fail("rewards computed again"))
    assert run(resume_from_checkpoint=str(folder), **SHORT)["test_result"] == first["test_result"]


def losses(folder):
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_loss_does_not_depend_on_how_a_step_is_cut_into_micro_batches(ring):
    drawn = {**SHORT, "backbone.dropout": 0.2, "train.item_dropout": 0.2, "train.log_steps": 1}
    assert drawn["ilrec.cpd_share"] < 1
    run(**drawn)
    (ring / "saved").rename(ring / "one")
    run(**drawn, gradient_accumulation_steps=3)
    one, three = losses(next(ring.glob("one/ILRec-*"))), losses(only_run(ring))
    assert len(one) > 10
    assert one == pytest.approx(three, rel=1e-4)


def test_parts_of_the_loss_and_validation_metrics_are_named_in_tensorboard(ring):
    run(**SHORT, **{"train.log_steps": 1})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (ring / "log_tensorboard").glob("ILRec-*")
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/train/part/cpo", "train/train/part/cpd", "train/train/part/crr", "train/loss"} <= tags
    kept = [line["valid/ndcg@5"] for line in read_history(only_run(ring)) if "valid/ndcg@5" in line]
    assert [event.value for event in events.Scalars("eval/ndcg@5")] == pytest.approx(kept) and len(kept) == 3
    total = events.Scalars("train/train/loss")[0].value
    parts = [events.Scalars(f"train/train/part/{name}")[0].value for name in ("cpo", "cpd", "crr")]
    assert total == pytest.approx(parts[0] + 0.01 * parts[1] + 0.005 * parts[2], rel=1e-4)
    assert math.isfinite(total)


def test_curves_are_shown_in_the_trackers_that_are_named(monkeypatch):
    shown = type("Shown", (TrainerCallback,), {})
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", shown)
    config = SimpleNamespace(settings=build_settings({"train.report_to": "trackio"}))
    assert trackers(config) == [shown]
    assert trackers(SimpleNamespace(settings=build_settings({}))) == []


def test_a_tracker_that_is_not_there_is_one_line_before_training(ring, monkeypatch):
    monkeypatch.setattr(contradictions, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="train.report_to=wandb needs the package wandb"):
        run("LCRec", **{"train.report_to": ["wandb"]})


def test_a_run_without_saving_leaves_no_checkpoint_and_tests_the_last_weights(ring):
    once = {"epochs": 1, "train_batch_size": 200, "metrics": ["NDCG"], "topk": [10], "num_beams": 10}
    result = run("LCRec", **once, saved=False)
    assert not list(ring.glob("saved/LCRec-*"))
    assert result["test_result"] == run("LCRec", **once)["test_result"]


@pytest.mark.parametrize(("metric", "scores"), [("Hit@5", (0.3, 0.2, 0.1, 0.1)), ("GiniIndex@5", (0.1, 0.2, 0.3, 0.3))])
def test_training_stops_when_validation_got_no_better_more_often_than_allowed(ring, monkeypatch, metric, scores):
    """Better once, then ``stopping_step`` + 1 validations that are not; less is better for some metrics."""
    given = iter(scores)
    monkeypatch.setattr(trainer, "calculate_valid_score", lambda *_: next(given))
    often = {"epochs": 4, "eval_step": 1, "train_batch_size": 400, "train.valid_users": 20, "stopping_step": 1}
    chosen = {"metrics": ["Hit", "GiniIndex"], "topk": [5], "num_beams": 5, "valid_metric": metric}
    result = run("LCRec", **often, **chosen)
    lines = read_history(newest(ring, "LCRec"))
    assert [line["epoch"] for line in lines if "valid/hit@5" in line] == [1.0, 2.0, 3.0]
    assert result["best_valid_score"] == scores[0]


def test_settings_of_the_optimiser_reach_the_library(ring):
    changed = {"weight_decay": 0.3, "train.adam_beta2": 0.95, "train.schedule": "constant", "train.warmup_ratio": 0.25}
    changed |= {"train.max_grad_norm": 0.7, "learning_rate": 0.02, "seed": 7, "train.gradient_accumulation": 3}
    made = training_arguments(Config("LCRec", "ring", None, QUICK | changed), ring / "run")
    assert (made.lr_scheduler_type, made.warmup_steps, made.max_grad_norm) == ("constant_with_warmup", 0.25, 0.7)
    assert (made.learning_rate, made.weight_decay, made.adam_beta2) == (0.02, 0.3, 0.95)
    assert (made.seed, made.gradient_accumulation_steps) == (7, 3)


@pytest.mark.parametrize(
    ("penalty", "share", "warned"),
    [("multiplicative", 0.02, True), ("multiplicative", 0.005, False), ("sign_safe", 0.02, False)],
)
def test_negative_logits_among_the_penalised_are_warned_of_where_the_penalty_turns_there(
    caplog, penalty, share, warned
):
    config = SimpleNamespace(settings=SimpleNamespace(ilrec=ILRecSettings(penalty=penalty)))
    epochs = Epochs(None, config, validate=False, show=False)
    epochs._warn_of_negative_logits({"monitor/frac_negative_logit": share * 0.25, "monitor/penalised": 0.25})
    assert ("penalises; consider --ilrec.penalty=sign_safe" in caplog.text) is warned


def test_k_larger_than_the_backbone_is_one_line(ring):
    with pytest.raises(UserError, match=r"k=4 .* has 4 layers, so k may be 0 to 3"):
        run(k=4)


def test_resuming_from_a_folder_without_checkpoints_is_one_line(ring):
    with pytest.raises(UserError, match="no checkpoint"):
        run(resume_from_checkpoint=str(ring))


def test_resuming_another_model_is_one_line(ring):
    run(**SHORT)
    with pytest.raises(UserError, match="another model"):
        run("LCRec", resume_from_checkpoint=str(only_run(ring)), **SHORT)
