"""Training of the language models: a world with a known answer, exact resume, loss independent of how a step is cut."""

import json
import math

import pytest
import torch

from recbole_ilrec.errors import UserError
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.training import trainer
from recbole_ilrec.training.loop import StepTrainer
from tests.worlds import LEARN, QUICK


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


def test_parts_of_the_loss_are_named_in_tensorboard(ring):
    run(**SHORT, **{"train.log_steps": 1})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (ring / "log_tensorboard").glob("ILRec-*")
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/train/part/cpo", "train/train/part/cpd", "train/train/part/crr", "train/loss"} <= tags
    total = events.Scalars("train/train/loss")[0].value
    parts = [events.Scalars(f"train/train/part/{name}")[0].value for name in ("cpo", "cpd", "crr")]
    assert total == pytest.approx(parts[0] + 0.01 * parts[1] + 0.005 * parts[2], rel=1e-4)
    assert math.isfinite(total)


def test_a_run_without_saving_leaves_no_checkpoint_and_tests_the_last_weights(ring):
    result = run(**{**SHORT, "saved": False})
    assert result["test_result"]["hit@10"] >= 0
    assert not list(ring.glob("saved/ILRec-*"))


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
