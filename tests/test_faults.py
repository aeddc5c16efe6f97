"""Whatever happens to a run, it goes on where it was: kills, signals, broken checkpoints, numbers that are none."""

import json
import logging
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import torch

from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.reward_model import load_reward_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.decoding import memory, users
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import files
from recbole_ilrec.preparation.files import held
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime import interrupts
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.history import read_history
from recbole_ilrec.runtime.interrupts import Interrupted, StopSignals, raised
from recbole_ilrec.runtime.resumption import checkpoints, load_resumable
from recbole_ilrec.training import trainer
from recbole_ilrec.training.loop import StepTrainer
from recbole_ilrec.training.trainer import GenerativeTrainer
from tests.children import run_here, start
from tests.worlds import QUICK

SHORT = {
    **QUICK,
    "epochs": 3,
    "eval_step": 1,
    "train_batch_size": 40,
    "train.valid_users": 20,
    "save_steps": 3,
    "ilrec.cpd_share": 0.5,
}


def run(model="LCRec", **settings):
    return run_recbole_ilrec(model, "ring", config_dict={**SHORT, **settings})


def runs(folder, model="LCRec"):
    return sorted(path for path in (folder / "saved").iterdir() if path.name.startswith(f"{model}-"))


def outcome(result):
    return {key: result[key] for key in ("test_result", "best_valid_result", "best_valid_score", "policies")}


def final_state(folder):
    state = load_state(checkpoints(folder)[-1])
    progress = {key: value for key, value in state["extra"].items() if key != "spent"}  # seconds are not reproducible
    return {**state["model"], **{f"average.{k}": v for k, v in state["average"].items()}}, progress


@pytest.mark.parametrize("kills", [2, pytest.param(24, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_numbers_of_an_undisturbed_one(ring, kills):
    straight = json.loads(json.dumps(outcome(run("ILRec"))))
    (folder,) = runs(ring, "ILRec")
    wanted, progress = final_state(folder)
    folder.rename(ring / "straight")
    chance, settings, killed = random.Random(7), {**SHORT, "resume_from_checkpoint": "auto"}, 0
    for attempt in range(kills):
        by_file = attempt % 2 == 0
        child = start(kill_me, str(ring), settings, chance.randint(1, 30) if by_file else 0)
        if not by_file:
            child.join(chance.uniform(0.3, 1.5))
            child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    result = outcome(run("ILRec", resume_from_checkpoint="auto"))
    (folder,) = [path for path in runs(ring, "ILRec") if checkpoints(path)]
    got, same = final_state(folder)
    assert killed >= kills / 2
    assert json.loads(json.dumps(result)) == straight and same == progress
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert not [path for path in folder.rglob(".*") if path.name != ".tmp"], "nothing unfinished stays"


def kill_me(folder, settings, die_at):
    run_here(folder, "ILRec", "ring", settings, die_at=die_at)


def at_step(monkeypatch, step, action):
    """Have something happen while step number ``step`` (from 0) is computed."""
    compute = StepTrainer.compute_loss

    def hooked(self, model, inputs, *args, **kwargs):
        if self.state.global_step == step:
            action(self, inputs)
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "compute_loss", hooked)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(ring, monkeypatch, number):
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"--resume_from_checkpoint=saved/L") as stop:
        at_step(patch, 4, lambda *_: os.kill(os.getpid(), number))
        run()
    assert stop.value.status == 128 + number
    (folder,) = runs(ring)
    assert checkpoints(folder)[-1].name == "checkpoint-5"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_stopped_in_its_evaluation_goes_on_with_it(ring, monkeypatch):
    straight = outcome(run(max_steps=3))
    runs(ring)[0].rename(ring / "straight")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GenerativeTrainer, "_score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        run(max_steps=3, save_steps=None)
    (folder,) = runs(ring)
    assert not (folder / "best").exists() and checkpoints(folder)[-1].name == "checkpoint-3"
    assert outcome(run(max_steps=3, resume_from_checkpoint="auto")) == straight


def test_an_evaluation_made_up_for_is_kept_and_a_finished_run_cleared_up(ring, monkeypatch):
    run(max_steps=3)
    (folder,) = runs(ring)
    straight = final_state(folder)[1]
    folder.rename(ring / "straight")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GenerativeTrainer, "_score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        run(max_steps=3, save_steps=None)
    (folder,) = runs(ring)
    assert final_state(folder)[1]["evaluated"] == 0
    (folder / ".result.json.tmp-1").write_text("{")
    run(max_steps=3, resume_from_checkpoint="auto")
    assert final_state(folder)[1] == straight and not list(folder.rglob(".*.tmp-*"))
    assert any("valid/ndcg@5" in line for line in read_history(folder))
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "evaluate", lambda *_: pytest.fail("evaluated again"))
        run(max_steps=3, resume_from_checkpoint="auto")


def test_going_back_to_an_older_checkpoint_brings_back_the_best_weights_of_then(ring, monkeypatch):
    scores = count()
    monkeypatch.setattr(trainer, "calculate_valid_score", lambda *_: next(scores))
    run(**{"train.keep_checkpoints": 99})
    (folder,) = runs(ring)
    first = next(path for path in checkpoints(folder) if load_state(path)["extra"]["evaluated"])
    then, now = load_state(first / "best"), load_state(folder / "best")
    assert (then["valid_score"], now["valid_score"]) == (0, 2)
    (folder / ".exported.tmp-1").mkdir()
    assert run(epochs=1, resume_from_checkpoint=str(first))["best_valid_score"] == 0
    brought_back = load_state(folder / "best")
    assert brought_back["valid_score"] == 0
    assert all(torch.equal(brought_back["model"][name], value) for name, value in then["model"].items())


def test_a_second_signal_stops_at_once_unless_a_scheduler_and_a_plan_both_sent_it(monkeypatch):
    for first, second in ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)):
        with pytest.raises(Interrupted), StopSignals() as stop:
            os.kill(os.getpid(), first)
            assert stop.received == first
            os.kill(os.getpid(), second)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGINT
    monkeypatch.setattr(interrupts, "TOGETHER", 0.0)
    with pytest.raises(Interrupted), StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.undo()
    with pytest.raises(Interrupted) as error, raised():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while the first is cleaned up after
    assert error.value.status == 143


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", ["state.json", "trainer_state.json", "tensors"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(ring, caplog, spoil):
    straight = outcome(run(max_steps=2, save_steps=1))
    (folder,) = runs(ring)
    older, newest = checkpoints(folder)
    cut(next(newest.glob("tensors-*")) if spoil == "tensors" else newest / spoil)
    with caplog.at_level("WARNING"):
        assert load_resumable(folder, kind="LCRec")[0] == older
    assert str(newest) in caplog.text
    if spoil == "tensors":
        assert outcome(run(max_steps=2, save_steps=1, resume_from_checkpoint="auto")) == straight
        assert (folder / f"superseded-{newest.name}").is_dir()
    for checkpoint in checkpoints(folder):
        cut(checkpoint / "state.json")
    with pytest.raises(UserError, match="truncated"):
        load_resumable(folder, kind="LCRec")


@pytest.mark.parametrize("spoil", ["best/tensors-*", "ranks-valid.safetensors"])
def test_a_checkpoint_whose_best_weights_are_broken_does_not_replace_those_of_the_run(ring, caplog, spoil):
    straight = outcome(run(epochs=3))
    (folder,) = runs(ring)
    newest = checkpoints(folder)[-1]
    (path,) = newest.glob(spoil)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()  # the run has the same file under another name
    path.write_bytes(half)
    assert outcome(run(epochs=3, resume_from_checkpoint="auto")) == straight
    assert f"{newest.name}/{spoil[:4]}" in caplog.text


def test_auto_starts_anew_with_other_settings_or_data_and_goes_on_with_the_same(ring, monkeypatch):
    run(max_steps=1)
    run(max_steps=1, learning_rate=1e-3, resume_from_checkpoint="auto")
    assert len(runs(ring)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "compute_loss", lambda *a, **k: pytest.fail("trained again"))
        run(max_steps=1, resume_from_checkpoint="auto", save_steps=9)
    with (ring / "dataset/ring/ring.inter").open("a") as stream:
        stream.write("u0\ti3\t99\n")
    run(max_steps=1, resume_from_checkpoint="auto")
    assert len(runs(ring)) == 3


def test_two_runs_never_share_a_folder(ring, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        run()
    (folder,) = runs(ring)
    with held(folder), pytest.raises(UserError, match=f"another process is at work in saved/{folder.name}"):
        run(resume_from_checkpoint="auto")


def test_runs_that_need_the_same_stage_at_once_wait_for_it(ring, caplog):
    """Two threads here, two processes in life: one reward model is trained, and both read it."""
    trained = []

    def model():
        config = Config("ILRec", "ring", None, {**QUICK, "cache_dir": "cache"})
        return load_reward_model(config, build_data(config).train._dataset).model

    fit = ClassicalTrainer.fit
    first_is_at_it, second_is_there = threading.Event(), threading.Event()

    def slow(self, *arguments, **options):
        trained.append(self.folder)
        first_is_at_it.set()
        second_is_there.wait(30)
        return fit(self, *arguments, **options)

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(ClassicalTrainer, "fit", slow)
        patch.setattr(files, "lock_folder", seen_waiting(files.lock_folder, second_is_there))
        one = pool.submit(model)
        assert first_is_at_it.wait(60)
        other = model()
        same = zip(one.result().parameters(), other.parameters(), strict=True)
    assert len(trained) == 1 and all(torch.equal(a, b) for a, b in same)
    assert "Waiting for another run that makes what this one needs" in caplog.text


def seen_waiting(lock_folder, waiting):
    """``lock_folder`` that sets an event when somebody begins to wait."""

    def seen(folder, *, wait=False):
        if wait:
            waiting.set()
        return lock_folder(folder, wait=wait)

    return seen


def test_auto_resumes_a_classical_run(ring):
    settings = {**QUICK, "epochs": 2, "hidden_size": 16, "inner_size": 32}
    run_recbole_ilrec("SASRec", "ring", config_dict=settings)
    run_recbole_ilrec("SASRec", "ring", config_dict={**settings, "resume_from_checkpoint": "auto"})
    assert len(runs(ring, "SASRec")) == 1


def test_checkpoints_are_written_by_time(ring):
    run(max_steps=3, save_steps=None, **{"train.save_minutes": 1e-9, "train.keep_checkpoints": 99})
    (folder,) = runs(ring)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_none_stops_the_run_with_its_batch(ring, monkeypatch, where):
    def spoil(loop, _inputs):
        parameter = next(loop.model.parameters())
        if where == "loss":
            parameter.data.fill_(torch.nan)
        else:
            parameter.register_hook(lambda gradient: gradient * torch.inf)

    at_step(monkeypatch, 4, spoil)
    with pytest.raises(UserError, match=rf"training {where}.* is (nan|inf) at step 4.*nonfinite-4"):
        run()
    (folder,) = runs(ring)
    kept = load_state(folder / "nonfinite-4")
    assert kept["step"] == 4 and len(kept["rows"]) == len(kept["batch"]["input_ids"])
    assert checkpoints(folder)[-1].name == "checkpoint-3"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate")])
def test_evaluation_goes_on_with_smaller_batches_when_memory_is_short(ring, monkeypatch, caplog, error):
    monkeypatch.setattr(memory, "_CPU_ALLOCATOR", "can't allocate")
    whole, search, sizes = run(epochs=0)["test_result"], users.beam_search, []

    def short_of_memory(stepper, trie, ids, *args, **kwargs):
        if len(ids) > 9:
            raise error
        sizes.append(len(ids))
        return search(stepper, trie, ids, *args, **kwargs)

    monkeypatch.setattr(users, "beam_search", short_of_memory)
    with caplog.at_level("WARNING"):
        assert run(epochs=0)["test_result"] == pytest.approx(whole, abs=1e-3)
    assert "Out of memory" in caplog.text and sum(sizes) == 60
    monkeypatch.setattr(users, "beam_search", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match="out of memory with a single user"):
        run(epochs=0)


def test_an_error_that_is_not_of_memory_is_no_reason_to_try_again(monkeypatch):
    with pytest.raises(RuntimeError, match="shape"):
        memory.each_batch([[1, 2]], lambda rows: (_ for _ in ()).throw(RuntimeError("shape")))


def test_out_of_memory_in_training_is_one_line(ring, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("GPU 0 has 0 bytes free")

    at_step(monkeypatch, 1, full)
    with pytest.raises(UserError, match="--gradient_accumulation_steps"):
        run()
