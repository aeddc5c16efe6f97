"""Several processes on one run give what one gives, and only the first one writes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from recbole_ilrec.cli import main
from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.device import choose_device
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.settings import build_settings
from recbole_ilrec.training.arguments import training_arguments
from tests.children import begin, free_port, outcomes, several
from tests.worlds import QUICK, ring_world, write_dataset

PLAIN = {
    **QUICK,
    "backbone.dropout": 0.2,
    "ilrec.cpd_share": 0.5,
    "epochs": 1,
    "eval_step": 1,
    "train_batch_size": 40,
    "eval_batch_size": 16,
    "train.item_dropout": 0.2,
    "train.log_steps": 1,
    "save_steps": 4,
    "train.keep_checkpoints": 99,
}

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def ring(tmp_path):
    """The ring world as a data set."""
    write_dataset(tmp_path / "dataset", "ring", *ring_world())
    return tmp_path


def only_run(folder: Path, model: str = "ILRec") -> Path:
    (found,) = folder.glob(f"{model}-*")
    return found


def weights(folder):
    state = load_state(checkpoints(folder)[-1])
    return {**state["model"], **{f"average.{k}": v for k, v in (state["average"] or {}).items()}}


def losses(folder):
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_two_processes_give_the_numbers_of_one_and_only_the_first_writes(ring):
    (one,) = several(ring, 1, "ILRec", "ring", PLAIN)
    (ring / "saved").rename(ring / "one")
    shutil.rmtree(ring / "log")
    shutil.rmtree(ring / "log_tensorboard")
    first, second = several(ring, 2, "ILRec", "ring", PLAIN)
    alone, shared = only_run(ring / "one"), only_run(ring / "saved")
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4) and len(losses(alone)) == 10
    wanted, got = weights(alone), weights(shared)
    assert all(torch.allclose(got[name], wanted[name], atol=2e-4) for name in wanted)
    for key in ("test_result", "best_valid_result", "best_valid_score", "policies"):
        assert first[key] == second[key] == one[key]
    assert first["record"] and second["record"] is None
    assert len((ring / "saved/records.jsonl").read_text().splitlines()) == 1
    assert len(list(ring.glob("log_tensorboard/**/events*"))) == 1 and len(list(ring.glob("log/**/*.log"))) == 1


def test_evaluation_in_several_processes_is_bit_for_bit_that_of_one(ring):
    results = [several(ring, world, "LCRec", "ring", {**PLAIN, "epochs": 0}) for world in (1, 3)]
    assert results[1] == [{**results[0][0], "record": result["record"]} for result in results[1]]


def test_two_processes_resume_exactly_what_two_began_and_one_to_rounding(ring):
    drop = {**PLAIN, "max_steps": 6, "gradient_accumulation_steps": 2}
    straight = several(ring, 2, "LCRec", "ring", drop)
    folder = only_run(ring / "saved", "LCRec")
    wanted, older = weights(folder), folder / "checkpoint-4"
    again = several(ring, 2, "LCRec", "ring", {**drop, "resume_from_checkpoint": str(older)})
    assert [result["test_result"] for result in again] == [result["test_result"] for result in straight]
    got = weights(folder)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert (folder / "superseded-checkpoint-6").is_dir()
    several(ring, 1, "LCRec", "ring", {**drop, "gradient_accumulation_steps": 4, "resume_from_checkpoint": str(older)})
    got = weights(folder)
    assert all(torch.allclose(got[name], wanted[name], atol=2e-4) for name in wanted)


def test_a_signal_to_all_processes_saves_together(ring):
    settings = {**PLAIN, "epochs": 400, "eval_step": 400, "stopping_step": 400}
    children = begin(ring, 2, "LCRec", "ring", settings)
    while not list(ring.glob("saved/*/checkpoint-*/trainer_state.json")):
        assert all(child.is_alive() for child in children)
        time.sleep(0.05)
    for child in children:
        child.terminate()
    first, second = outcomes(ring, children)
    assert "saved; go on with the same command" in first["stopped"] and "saved" in second["stopped"]
    state = load_state(checkpoints(only_run(ring / "saved", "LCRec"))[-1])
    assert len(state["random_of_processes"]) == 2


def test_rejected_items_and_references_are_shared_out(ring):
    settings = {**PLAIN, "max_steps": 2, "preference.source": "self_hard", "preference.examples": 40}
    (one,) = several(ring, 1, "DPO", "ring", settings)
    shutil.rmtree(ring / "saved")
    for result in several(ring, 2, "DPO", "ring", settings):
        assert result["test_result"] == pytest.approx(one["test_result"], abs=0.02)


def test_freely_generated_titles_are_shared_out(ring):
    settings = {**PLAIN, "epochs": 0, "bigrec.max_new_tokens": 8}
    lines = ["item_id:token\ttitle:token_seq", *(f"i{n}\tTale {n * n}" for n in range(1, 25))]
    (ring / "dataset/ring/ring.item").write_text("\n".join(lines) + "\n")
    (one,) = several(ring, 1, "BIGRec", "ring", settings)
    for result in several(ring, 2, "BIGRec", "ring", settings):
        assert result["test_result"] == one["test_result"]


@pytest.mark.parametrize("answers", ["constrained", "free"])
def test_choices_among_candidates_are_shared_out(ring, monkeypatch, answers):
    lines = ["item_id:token\ttitle:token_seq", *(f"i{n}\tTale {n * n}" for n in range(1, 25))]
    (ring / "dataset/ring/ring.item").write_text("\n".join(lines) + "\n")
    settings = {
        **PLAIN,
        "epochs": 0,
        "task": "candidates",
        "candidates.count": 6,
        "topk": [1, 3],
        "valid_metric": "Hit@1",
    }
    settings |= {
        "candidates.answers": answers,
        "bigrec.max_new_tokens": 8,
        "train_rows": "prefix",
        "eval_batch_size": 8,
    }
    (one,) = several(ring, 1, "BIGRec", "ring", settings)
    for result in several(ring, 2, "BIGRec", "ring", settings):
        assert result["test_result"] == one["test_result"] and 0 < one["test_result"]["hit@3"] < 1


def test_a_first_process_that_fails_does_not_leave_the_others_waiting(ring):
    first, second = several(ring, 2, "ILRec", "ring", {**PLAIN, "prompt.max_length": 4})
    assert "prompt.max_length=4" in first["error"]
    assert second["error"] == f"the first of 2 processes failed: {first['error']}"


ON_A_NODE = """
import json, sys
from pathlib import Path
import torch
from recbole_ilrec.runtime import processes
folder = Path(sys.argv[1])
with processes.together(torch.device("cpu")):
    with processes.first_alone():
        here = (folder / "built").exists()
        (folder / "built").touch()
    told = processes.agreed("from the first" if processes.is_first() else "")
    found = [here, told, processes.total(torch.tensor([processes.rank() + 1])).tolist(), processes.world()]
    (folder / f"node-{processes.rank()}").write_text(json.dumps(found))
"""


def test_torchrun_on_two_nodes_makes_one_run(tmp_path):
    """Both nodes are this machine: two launches that meet at an address and a port."""
    (tmp_path / "node.py").write_text(ON_A_NODE)
    meet = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    launch = [sys.executable, "-m", "torch.distributed.run", *meet]
    nodes = [
        subprocess.Popen([*launch, f"--node_rank={rank}", str(tmp_path / "node.py"), str(tmp_path)], env=ENVIRONMENT)
        for rank in (1, 0)
    ]
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    found = [json.loads((tmp_path / f"node-{rank}").read_text()) for rank in (0, 1)]
    assert found == [[False, "from the first", [3], 2], [True, "from the first", [3], 2]]


class Told(dict):
    """Settings of a run on the second GPU, as far as the training arguments read them."""

    settings = build_settings({})


def test_a_named_gpu_is_the_one_that_training_computes_on(tmp_path, monkeypatch):
    """The library sets up the first GPU and makes it current; accelerate then moves the model to the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(torch.device(device)))
    asked = torch.device("cuda", 1)
    config = Told(epochs=1, learning_rate=1e-3, weight_decay=0.0, seed=1, device=asked)
    with processes.together(asked):
        arguments = training_arguments(config, tmp_path)
        assert arguments.device == asked and current and set(current) == {asked}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert PartialState.default_device.fget(None) == torch.device("cuda")


def test_variables_of_torchrun_without_it_are_one_line(ring, monkeypatch, capsys):
    monkeypatch.chdir(ring)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["doctor", "--dataset=ring"]) == 2
    assert "unset WORLD_SIZE RANK" in capsys.readouterr().err
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main(["run", "--model=LCRec", "--dataset=ring", "--device=cpu"]) == 2
    assert "they do not find each other" in capsys.readouterr().err and not (ring / "saved").exists()


def test_classical_models_and_a_named_gpu_are_refused_under_torchrun(ring, monkeypatch):
    for result in several(ring, 2, "SASRec", "ring", QUICK):
        assert "start it without torchrun" in result["error"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="takes a GPU of its own"):
        choose_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:1") == torch.device("cuda", 1), "what a reward model's settings take from the run's"
    with pytest.raises(UserError, match="takes a GPU of its own"):
        choose_device("cuda:0")
