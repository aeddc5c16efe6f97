"""What a run will take: the counts are those of the run that follows, and nothing is left but what it would find."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_ilrec import cli
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.report.estimate import ONCE, Estimate, Part, duration, may_stop, render
from recbole_ilrec.training import measured
from recbole_ilrec.training.measured import LEAST, Clock, Measured, Schedule
from tests.worlds import LEARN, QUICK

SMALL = {**QUICK, **LEARN, "k": 2, "epochs": 4, "eval_step": 2}
PREFER = {"preference.epochs": 2, "preference.train_batch_size": 16, "preference.eval_step": 2}


class Users:
    """Rows to evaluate."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def some(self, count):
        return Users(min(count, self.count))


def options(**settings):
    return [f"--{key}={json.dumps(value)}" for key, value in settings.items()]


def estimated(*argv, **settings):
    assert cli.main(["estimate", *argv, "--dataset=ring", "--measure=0", "--json=e.json", *options(**settings)]) == 0
    with open("e.json", encoding="utf-8") as stream:
        found = json.load(stream)
    return found, {part["name"]: part for part in found["parts"]}


def steps_of(folder):
    (state,) = sorted(folder.glob("checkpoint-*/trainer_state.json"))[-1:]
    return json.loads(state.read_text())["global_step"]


def test_the_counts_are_those_of_the_run(ring, capsys):
    found, parts = estimated("--model=ILRec", **SMALL)
    assert (
        not (ring / "saved/reward").exists() and not (ring / "log").exists() and not (ring / "log_tensorboard").exists()
    )
    shown = capsys.readouterr().out
    result = run_recbole_ilrec("ILRec", "ring", config_dict=SMALL)
    record = json.loads((ring / "saved/records.jsonl").read_text())
    assert parts["fine-tuning"]["times"] == steps_of(ring / record["folder"])
    users = record["data"]["users"] - 1  # without [PAD]
    assert parts["validation"]["times"] == 2 * users and parts["test"]["times"] == users
    assert parts["reward model"]["times"] == 2 and result["test_result"]
    assert f"{record['parameters']:,} trained parameters" in shown
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in found["parts"]))
    assert found["memory_mb"] > 100 and found["gpu_memory_mb"] is None
    assert "together: " in shown and "ILRec on ring, backbone" in shown
    again, parts = estimated("--model=ILRec", **SMALL)
    assert (parts["reward model"]["times"], parts["reward model"]["note"]) == (
        0,
        "kept",
    )


def test_a_run_of_no_epochs_is_tested_only(ring):
    _, parts = estimated("--model=LCRec", **{**SMALL, "epochs": 0})
    assert [parts[name]["times"] for name in ("fine-tuning", "validation", "test")] == [0, 0, 60]


def test_checkpoints_take_no_more_than_is_said(ring):
    found, _ = estimated("--model=LCRec", **SMALL)
    run_recbole_ilrec("LCRec", "ring", config_dict=SMALL)
    record = json.loads((ring / "saved/records.jsonl").read_text())
    parts = list((ring / record["folder"]).rglob("*.safetensors"))
    taken = sum(size for _, size in {(p.stat().st_ino, p.stat().st_size) for p in parts if "ranks" not in p.name})
    assert 0.3 * found["disk_mb"] <= taken / 1e6 <= found["disk_mb"] + 1


@pytest.mark.parametrize(("model", "rounds"), [("SDPO", 1), ("SPRec", 2)])
def test_a_preference_run_has_its_stages(ring, model, rounds):
    more = {"preference.iterations": 2} if model == "SPRec" else {}
    settings = {**SMALL, **PREFER, **more, "train_rows": "prefix"}
    _, parts = estimated(f"--model={model}", **settings)
    assert not (ring / "saved/cache/preference").exists() and not list(ring.rglob("reference-*"))
    rows = parts["reference"]["times"]
    found = (rows, "row") if model == "SPRec" else (rounds, "round")  # those of S-DPO are drawn by chance, all at once
    assert (parts["rejected items"]["times"], parts["rejected items"]["unit"]) == found and rows > 0
    run_recbole_ilrec(model, "ring", config_dict=settings)
    record = json.loads((ring / "saved/records.jsonl").read_text())
    assert parts["preference training"]["times"] == rounds * steps_of(ring / record["folder"])
    assert ("more fine-tuning" in parts) == (model == "SPRec")
    _, parts = estimated(f"--model={model}", **settings)
    assert parts["fine-tuning"]["times"] == 0 and parts["fine-tuning"]["note"] == "kept from before"


def test_plain_fine_tuning_before_the_models_own_is_a_part_of_its_own(ring):
    settings = {**SMALL, "train.init_from": "sft"}
    _, parts = estimated("--model=ILRec", **settings)
    assert parts["first fine-tuning"]["times"] == parts["fine-tuning"]["times"] > 0
    assert "first fine-tuning, validation" in parts and parts["first fine-tuning"]["each"] > 0
    run_recbole_ilrec("LCRec", "ring", config_dict=SMALL)
    _, parts = estimated("--model=ILRec", **settings)
    assert parts["first fine-tuning"]["note"] == "kept from before" and parts["fine-tuning"]["times"] > 0


def test_every_stage_ends_after_so_many_steps_as_were_asked_for():
    assert Schedule(10, 4, 2).validations == 2 and Schedule(10, 4, 2).last == 40
    assert Schedule(10, 5, 2).validations == 3 and Schedule(10, 4, 9).validations == 1
    assert Schedule(10, 4, 1, most=60).last == 40, "max_steps ends a stage earlier, never later"
    assert Schedule(10, 4, 1, most=25).validations == 3 and Schedule(10, 4, 1, most=25).last == 25
    assert Schedule(10, 0, 1).validations == 0
    assert not may_stop(12, 10) and may_stop(13, 10)


def test_users_and_what_an_evaluation_costs_beside_them_are_told_apart(monkeypatch):
    now, fixed, of_user = [0.0], 5.0, 0.5

    def score(pairs, *, final):
        now[0] += fixed + of_user * len(pairs)

    trainer = SimpleNamespace(model=None, clock=Clock(30.0), _score=score)
    monkeypatch.setattr(measured.time, "perf_counter", lambda: now[0])
    for users, expected in ((100, (of_user, fixed)), (5, (of_user + fixed / 5, 0.0))):
        rows = Users(users)
        monkeypatch.setattr(measured, "evaluation_pairs", lambda *_, rows=rows: rows)
        assert Measured.evaluation_seconds(trainer, None) == pytest.approx(expected)


def test_models_of_recbole_are_measured_by_the_epoch(ring):
    found, parts = estimated("--model=SASRec", device="cpu", epochs=30, topk=[5], valid_metric="ndcg@5")
    assert parts["training"]["times"] == 30 and parts["training"]["stops_early"] and found["at_most"]
    assert parts["training, validation"]["times"] == 30 and found["disk_mb"] is None
    _, parts = estimated("--model=SASRec", device="cpu", epochs=3, eval_step=0, topk=[5], valid_metric="ndcg@5")
    assert (parts["training, validation"]["times"], parts["test"]["times"]) == (0, 60)
    assert not parts["training"]["stops_early"] and parts["test"]["seconds"] > 0
    found, parts = estimated("--model=Pop", device="cpu", topk=[5], valid_metric="ndcg@5", eval_test=False)
    assert not found["at_most"] and "test" not in parts
    assert {path.name for path in ring.iterdir()} == {"dataset", "e.json"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["ring"], "'ring' is no option"),
        (["--model=ILRec", "--dataset=ring", "--measure=long"], "--measure=long is no time: give seconds"),
        (["--model=ILRec", "--dataset=ring", "--measure=-1"], "--measure=-1 is no time"),
        (["--model=ILRec", "--dataset=ring", "--json=dataset"], "json=dataset is a folder"),
        (["--model=ILRec", "--dataset=ring", "--measure=.inf"], "--measure=inf is no time"),
        (["--model=ILRec", "--dataset=ring", "--print_config"], "--print_config is of run"),
        (["--model=ILRec", "--dataset=ring", "--alhpa=1"], "Did you mean 'alpha'?"),
        (["--model=ILRec", "--dataset=ring", "--resume_from_checkpoint=auto"], "without torchrun and --resume"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(ring, capsys, argv, says):
    assert cli.main(["estimate", *argv]) == cli.USAGE_ERROR
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last


def test_the_first_step_does_not_count(monkeypatch):
    times = iter([0.0, 9.0, 10.0, 12.0, 13.0, 15.0])
    monkeypatch.setattr("recbole_ilrec.training.measured.time.perf_counter", lambda: next(times))
    clock, control = Clock(14.0), SimpleNamespace(should_training_stop=False)
    clock.on_train_begin(None, None, control)
    stopped = []
    for _ in range(5):
        clock.on_step_end(None, None, control)
        stopped.append(control.should_training_stop)
    assert stopped == [False] * 4 + [True] and LEAST == 3
    assert clock.each == 1.5 and clock.error == pytest.approx(np.std([1, 2, 1, 2], ddof=1) / 2)


def test_a_clock_that_saw_one_step_or_none():
    clock, control = Clock(0.0), SimpleNamespace(should_training_stop=False)
    assert (clock.each, clock.error) == (0.0, 0.0)
    clock.on_train_begin(None, None, control)
    clock.on_step_end(None, None, control)
    assert clock.each >= 0 and clock.error == 0.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0041, "4.1 ms"), (38, "38.0 s"), (252, "4.2 min"), (11160, "3.1 h"), (216000, "2.5 d")],
)
def test_durations_are_said_in_their_unit(seconds, said):
    assert duration(seconds) == said


def test_the_table_lines_up_and_says_what_may_be_less():
    parts = (
        Part("reading", 0.1, 1, ONCE),
        Part("reward model", 0.0, 0, "epoch", stops_early=True, note="kept from before"),
        Part("fine-tuning", 0.5, 1200, "step", error=0.05, stops_early=True),
    )
    text = render(Estimate("ILRec on ring", ("24 items",), parts, 1500, gpu_memory_mb=2500, disk_mb=40))
    assert text == (
        "ILRec on ring\n"
        "24 items\n"
        "\n"
        "                  each         times           in all\n"
        "reading                                      100.0 ms\n"
        "reward model                                     none  kept from before\n"
        "fine-tuning   500.0 ms  ± 10%  1,200  steps  10.0 min  at most, stops early\n"
        "\n"
        "together: at most 10.0 min\n"
        "memory: 1.6 GB, of the GPU 2.6 GB; checkpoints: up to 0.04 GB\n"
    )
    assert not Estimate("nothing is left to stop early", (), parts[:2], 1).stops_early
