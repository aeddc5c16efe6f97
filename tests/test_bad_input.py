"""Bad input, end to end: one ``error:`` line, exit status 2, no traceback, and nothing half-written left behind."""

import errno
import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recbole_ilrec import cli
from recbole_ilrec.report.results import read_records
from tests.worlds import QUICK, ring_world, small_backbone, write_dataset

PROJECT = Path(__file__).resolve().parents[1]
SEQUENCES, IDENTIFIERS = ring_world(users=30, items=12)
FAST = {**QUICK, "epochs": 1, "eval_step": 1, "train_batch_size": 64, "topk": [5], "num_beams": 5, "k": 2}
FAST["reward.config"] = {**QUICK["reward.config"], "epochs": 1}
LLM, CLASSICAL = {"model": "ILRec", **FAST}, {"model": "SASRec", "epochs": 1, "device": "cpu", "show_progress": False}


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """A working folder with the ring world, made once."""
    root = tmp_path_factory.mktemp("master")
    write_dataset(root / "dataset", "ring", SEQUENCES, IDENTIFIERS)
    return root


@pytest.fixture
def work(master, tmp_path, monkeypatch):
    """A fresh working folder with the ring world."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers of an earlier test's run, whose stderr is closed
    folder = tmp_path / "work"
    shutil.copytree(master, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def finished(master):
    """Folders of a finished run of each kind: ``ILRec``, ``SASRec``, ``GRU4Rec``; training them takes a second each."""
    before = Path.cwd()
    runs = {}
    os.chdir(master)
    try:
        for name, settings in {"ILRec": LLM, "SASRec": CLASSICAL, "GRU4Rec": CLASSICAL}.items():
            typed = {**settings, "model": name, "dataset": "ring", "checkpoint_dir": "done", "topk": [5]}
            assert cli.main(["run", *options(typed)]) == 0
            (runs[name],) = (path for path in (master / "done").iterdir() if path.name.startswith(f"{name}-"))
    finally:
        os.chdir(before)
    shutil.move(master / "done", master.parent / "done")
    shutil.rmtree(master / "log_tensorboard")
    return {name: master.parent / "done" / folder.name for name, folder in runs.items()}


def options(settings):
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def tree(folder):
    """Every file and folder, and the bytes of each file; logs may grow."""
    found = sorted(path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "log")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def refused(capsys, argv, folder, written=()):
    """Run, and return the one error line; ``written`` are the only new top-level names allowed."""
    before = tree(folder)
    capsys.readouterr()
    assert cli.main(argv) == 2
    text = capsys.readouterr().err
    lines = text.strip().splitlines()
    assert "Traceback" not in text
    assert lines[-1].startswith("error: ") and sum(line.startswith("error:") for line in lines) == 1
    after = {name: content for name, content in tree(folder).items() if name.split("/")[0] not in written}
    assert after == before
    return lines[-1]


def ring(**changes):
    return ["run", *options({"dataset": "ring", **LLM, **changes})]


USAGE = {
    "model": ({"model": "ILRecc"}, "Did you mean 'ILRec'?"),
    "dataset": ({"dataset": "rings"}, "Did you mean 'ring'?"),
    "data path": ({"data_path": "nowhere"}, "Unknown dataset 'ring'"),
    "key": ({"alhpa": 0.5}, "Did you mean 'alpha'?"),
    "dotted key": ({"decode.beams": 5}, "Unknown setting 'decode.beams'"),
    "alpha": ({"alpha": -0.1}, "alpha=-0.1 is not allowed"),
    "not a number": ({"alpha": "much"}, "alpha='much' is not allowed"),
    "seed": ({"seed": 1 << 33}, "below 2^32"),
    "backbone": ({"backbone": "tinny"}, "Did you mean 'tiny'?"),
    "backbone's folder": ({"backbone": "./nowhere"}, "backbone=./nowhere: there is no such folder or file"),
    "mu": ({"mu": "inf"}, "mu='inf' is not allowed"),
    "few beams": ({"num_beams": 4}, "num_beams=4 cannot fill topk=[5]"),
    "metric": ({"metrics": ["GAUC"]}, "needs the score of every item"),
    "device": ({"device": "tpu"}, "device='tpu' is not allowed"),
    "paradigm": ({"paradigm": "tiger"}, "paradigm='tiger' is not allowed"),
    "k": ({"k": 4}, "k may be 0 to 3"),
    "k is text": ({"k": "all"}, "k='all' is not allowed"),
    "objective": ({"objective": "ilerc"}, "Did you mean 'ilrec'?"),
    "prompt": ({"prompt.template": "poem"}, "prompt template 'poem' not found"),
    "wordy prompt in one pass": ({"prompt.template": "lcrec", "train_rows": "sequence"}, "use --train_rows=prefix"),
    "short rows": ({"prompt.max_length": 12}, "set --prompt.max_length="),
    "rows": ({"train_rows": "column"}, "train_rows='column' is not allowed"),
    "topk": ({"topk": [13], "num_beams": 13, "valid_metric": "NDCG@13"}, "smaller --topk"),
    "split": ({"eval_args": {"split": {"RS": [0.8, 0.2]}}}, "eval_args.split="),
    "split's name": ({"eval_args": {"split": {"XX": 1}}}, "eval_args.split="),
    "split that leaves a part empty": ({"eval_args": {"split": {"LS": "test_only"}}}, "validation part is empty"),
    "part of eval_args": ({"eval_args": {"grup_by": "user"}}, "Did you mean 'group_by'?"),
    "mode": ({"eval_args": {"mode": "uni"}}, "eval_args.mode='uni' is not allowed"),
    "interval": ({"user_inter_num_interval": "5"}, "give an interval such as '[5,inf)'"),
    "interval backwards": ({"item_inter_num_interval": "[5,2)"}, "give an interval such as '[5,inf)'"),
    "interval of values": ({"val_interval": {"timestamp": "3,inf"}}, "val_interval.timestamp='3,inf' is not allowed"),
    "column of values": ({"val_interval": {"stars": "[3,inf)"}}, "names the column 'stars', which is not loaded"),
    "values of nothing": ({"val_interval": "[3,inf)"}, "give columns, e.g. {rating: '[3,inf)'}"),
    "copies": ({"rm_dup_inter": "frist"}, "keep the 'first' or the 'last' copy"),
    "parts in files": ({"benchmark_filename": ["a", "b", "c"]}, "there is no file dataset/ring/ring.a.inter"),
    "model that is not sequential": ({"model": "LightGCN"}, "is a model of RecBole, but no sequential one"),
    "reward model": ({"reward_model": "SASRek"}, "Did you mean 'SASRec'?"),
    "reward model that is not sequential": ({"reward_model": "LightGCN"}, "reward_model=LightGCN: 'LightGCN' is a"),
    "reward is a language model": ({"reward_model": "LCRec"}, "is a language model"),
    "reward checkpoint": ({"reward_checkpoint": "nowhere"}, "There is no folder nowhere"),
    "resume from nothing": ({"resume_from_checkpoint": "nowhere"}, "no checkpoint-N in that folder"),
    "index file": ({"index_file": "no.json"}, "no.json: no such index file"),
    "settings file": ({"config_files": "no.yaml"}, "no.yaml does not exist"),
    "too many micro-batches": ({"gradient_accumulation_steps": 1000}, "lower --gradient_accumulation_steps"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(work, capsys, case):
    changes, message = USAGE[case]
    # A reward model that was trained for a run that fails later is complete, and is used by the next run.
    written = ("saved", "log_tensorboard") if case == "too many micro-batches" else ()
    line = refused(capsys, ring(**changes), work, written)
    assert message in line
    assert not list(work.glob("saved/ILRec-*"))


HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
FILES = {
    "missing": (None, "ring.inter does not exist"),
    "no bytes": ("", "ring.inter:1:"),
    "no rows": (HEADER, "no interactions"),
    "no types": ("user_id\titem_id\ttimestamp\nu\ti\t1\n", "ring.inter:1:"),
    "short row": (HEADER + "u\ti1\t1\nu\ti2\n", "ring.inter:3: 2 columns"),
    "no number": (HEADER + "u\ti1\tnow\n", "ring.inter:2: timestamp='now'"),
    "short sequences": (HEADER + "u\ti1\t1\nu\ti2\t2\n", "no user has 3 interactions"),
    "not text": (b"\xff\xfe\x00\x81" * 9, "Convert the file to UTF-8"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_interaction_file_is_one_line(work, capsys, case):
    content, message = FILES[case]
    path = work / "dataset/ring/ring.inter"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(capsys, ring(), work)


INDEX = {f"i{n}": ["<a_1>", f"<b_{n}>"] for n in range(1, 13)}
INDEXES = {
    "misses an item": ({k: v for k, v in INDEX.items() if k != "i7"}, "no entry for 1 of 12 items"),
    "mixed depths": ({**INDEX, "i7": ["<a_1>", "<b_7>", "<c_1>", "<d_1>"]}, "4 tokens where others have 2"),
    "no JSON": ("{", "not valid JSON"),
    "a list": ([1], "holds a JSON list"),
    "numbers": ({**INDEX, "i7": [1, 2]}, "a list of non-empty strings"),
    "an empty identifier": ({**INDEX, "i7": []}, "a list of non-empty strings"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_bad_index_file_is_one_line(work, capsys, case):
    content, message = INDEXES[case]
    (work / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    line = refused(capsys, ring(index_file="bad.json"), work)
    assert message in line and "bad.json" in line


def test_a_dataset_without_texts_and_index_is_one_line(work, capsys):
    (work / "dataset/ring/ring.index.json").unlink()
    assert "no item texts and no index file" in refused(capsys, ring(), work)


def test_a_folder_that_is_no_backbone_is_one_line(work, capsys):
    (work / "empty").mkdir()
    (work / "broken").mkdir()
    (work / "broken/config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    backbone = small_backbone(1)
    backbone.tokenizer.save_pretrained(work / "weightless")
    backbone.model.config.save_pretrained(work / "weightless")
    for folder in ("./empty", "./broken", "./weightless"):
        assert "could not be loaded" in refused(capsys, ring(backbone=folder), work)


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_trained(work, capsys, finished):
    line = refused(capsys, ring(model="LCRec", resume_from_checkpoint=str(finished["ILRec"])), work)
    assert "holds ILRec, this run is LCRec" in line
    line = refused(capsys, ring(resume_from_checkpoint=str(finished["ILRec"] / "best")), work)
    assert "holds weights only" in line
    classical = {"dataset": "ring", **CLASSICAL, "topk": [5], "resume_from_checkpoint": str(finished["GRU4Rec"])}
    assert "holds GRU4Rec, this run is SASRec" in refused(capsys, ["run", *options(classical)], work)


def test_a_reward_checkpoint_of_another_model_or_dataset_is_refused(work, capsys, finished):
    line = refused(capsys, ring(reward_checkpoint=str(finished["GRU4Rec"])), work)
    assert "reward_model=SASRec" in line and "holds GRU4Rec" in line
    line = refused(capsys, ring(reward_checkpoint=str(finished["SASRec"] / "last")), work)
    assert "give the run's folder or its best/" in line
    write_dataset(
        work / "dataset", "other", [[item + 12 for item in row] for row in SEQUENCES], [(1, n) for n in range(24)]
    )
    line = refused(capsys, ring(dataset="other", reward_checkpoint=str(finished["SASRec"])), work)
    assert "knows other items" in line


@pytest.mark.parametrize("settings", [LLM, {**CLASSICAL, "topk": [5]}], ids=["ILRec", "SASRec"])
def test_an_output_folder_that_cannot_be_written_is_refused_before_training(work, capsys, settings):
    (work / "file").write_text("")
    for folder in ("file", "file/saved"):
        line = refused(capsys, ["run", *options({"dataset": "ring", **settings, "checkpoint_dir": folder})], work)
        assert f"checkpoint_dir={folder} cannot be written" in line


def test_a_read_only_output_folder_is_refused_before_training(work, capsys):
    (work / "saved").mkdir()
    (work / "saved").chmod(0o555)
    if os.access(work / "saved", os.W_OK):
        pytest.skip("permissions do not bind this user")
    assert "checkpoint_dir=saved cannot be written" in refused(capsys, ring(), work)


@pytest.fixture
def full_disk(monkeypatch):
    """Whoever syncs a file below ``saved/ILRec-*`` is told that the disk is full; the reward cache is not on it."""
    sync = os.fsync

    def no_space(descriptor):
        if "/saved/ILRec-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", no_space)


def test_a_disk_that_fills_up_while_training_leaves_no_half_a_checkpoint(work, capsys, full_disk):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file is synced")
    line = refused(capsys, ring(save_steps=1), work, written=("saved", "log_tensorboard"))
    assert "No space left on device" in line
    assert not list(work.glob("saved/ILRec-*/**/*"))


def test_a_result_that_finds_the_disk_full_is_one_line_and_a_device_stays_a_device(work, capsys):
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    argv = ["run", *options({"dataset": "ring", **CLASSICAL, "topk": [5], "saved": False, "result_file": str(full)})]
    assert "No space left on device" in refused(capsys, argv, work, written=("log_tensorboard",))
    assert full.is_char_device()


def test_a_refused_run_makes_no_folder_for_its_result(work, capsys):
    assert "ILRecc" in refused(capsys, ring(model="ILRecc", result_file="new/folder/result.json"), work)


def test_a_dataset_of_the_paper_that_cannot_be_downloaded_says_what_to_run(work, capsys, monkeypatch):
    monkeypatch.setattr("recbole_ilrec.preparation.known.BASES", ("http://127.0.0.1:9/a", "http://127.0.0.1:9/b"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    line = refused(capsys, ring(dataset="Instrument"), work)
    assert "Instrument cannot be downloaded" in line and "cannot be reached" in line
    assert "recbole-ilrec prepare Instrument --source amazon18 --path DIR" in line and "--out" not in line
    assert "Add --out=else/where" in refused(capsys, ring(dataset="Instrument", data_path="else/where"), work)
    assert "prepare Instrument" in refused(capsys, [*ring(dataset="Instrument"), "--print_config"], work)


class Publisher(http.server.BaseHTTPRequestHandler):
    """Serves the raw files of a tiny Instrument: five users who each rate the same five items."""

    ratings = "".join(f"B{item},U{user},5.0,{1000 + item}\n" for user in range(6) for item in range(6))
    metadata = "".join(json.dumps({"asin": f"B{item}", "title": f"Item {item}"}) + "\n" for item in range(6))

    def do_GET(self):
        import gzip

        content = self.metadata.encode()
        content = gzip.compress(content) if self.path.endswith(".gz") else self.ratings.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        """Keep the test's output clean."""


def test_a_dataset_of_the_paper_that_is_not_there_is_downloaded_and_prepared(work, capsys, monkeypatch):
    from recbole_ilrec.quick_start import configure

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr("recbole_ilrec.preparation.known.BASES", (f"http://127.0.0.1:{server.server_port}",))
        try:
            config = configure("SASRec", "Instrument", config_dict={"device": "cpu", "data_path": "new/place"})
        finally:
            server.shutdown()
            thread.join()
    folder = work / "new/place/Instrument"
    assert Path(config["data_path"]).resolve() == folder
    assert {path.name for path in folder.iterdir()} >= {"Instrument.inter", "Instrument.item"}
    assert len((folder / "Instrument.inter").read_text().splitlines()) == 37


def test_several_processes_do_not_download_over_each_other(work, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "recbole-ilrec prepare Instrument" in refused(capsys, ring(dataset="Instrument"), work)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model": "ILRecc"}, "Did you mean 'ILRec'?"), ({"dataset": "Instrument"}, "Instrument cannot be downloaded")],
)
def test_the_command_itself_exits_with_2_and_one_last_line(work, changes, message):
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **offline, "no_proxy": "", "NO_PROXY": "", "PYTHONPATH": str(PROJECT)}
    environment["OMP_NUM_THREADS"] = "1"
    before = tree(work)
    done = subprocess.run(
        [sys.executable, str(PROJECT / "run_recbole_ilrec.py"), *ring(**changes)[1:]],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert tree(work) == before


def test_columns_of_any_name_train_and_are_checked(work, capsys):
    """RecBole names the attribute of the column of histories after the column of items."""
    path = work / "dataset/ring/ring.inter"
    path.write_text(
        path.read_text().replace("user_id:", "uid:").replace("item_id:", "pid:").replace("timestamp:", "ts:")
    )
    names = {"USER_ID_FIELD": "uid", "ITEM_ID_FIELD": "pid", "TIME_FIELD": "ts"}
    assert cli.main(ring(epochs=1, **names)) == 0
    (record,) = read_records(work / "saved/records.jsonl")
    assert record["data"]["interactions"] == len(path.read_text().splitlines()) - 1
    assert cli.main(["doctor", *options({"dataset": "ring", **LLM, **names})]) in (0, 1)
    assert "history of" in capsys.readouterr().out


def test_a_run_is_not_gone_on_with_on_other_data(work, capsys):
    assert cli.main(ring(epochs=1)) == 0
    (run,) = work.glob("saved/ILRec-ring-*")
    shutil.copytree(work / "dataset/ring", work / "dataset/other")
    for file in (work / "dataset/other").iterdir():
        file.rename(file.with_name(file.name.replace("ring", "other")))
    line = refused(capsys, ring(dataset="other", epochs=2, resume_from_checkpoint=str(run)), work)
    assert "is of a run on 'ring': go on with it under --dataset=ring" in line
