"""The command line: what is typed, what is answered, and the exit status."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_ilrec import __main__ as entry
from recbole_ilrec import cli
from recbole_ilrec.configuration.arguments import listed, parse
from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime import compat
from tests.toy import tiny, write_toy

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path)


def options(settings):
    return [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items()]


def run(*argv, **settings):
    return cli.main(["run", *argv, *options(settings)])


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_values_are_yaml_and_both_spellings_are_read():
    arguments = parse(
        [
            "-m",
            "SASRec",
            "--dataset=100",
            "--topk=[5,10]",
            "--learning_rate",
            "1e-3",
            "--mu",
            "-1",
            "--debug",
            "--seed=7",
        ]
    )
    assert arguments.options == {
        "model": "SASRec",
        "dataset": "100",
        "topk": [5, 10],
        "learning_rate": 0.001,
        "mu": -1,
        "debug": True,
        "seed": 7,
    }
    assert parse(["--x=a=b"]).options == {"x": "a=b"}


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (None, []),
        (7, [7]),
        ([1, 2], [1, 2]),
        ("a, b", ["a", "b"]),
        ("[a,b,]", ["a", "b"]),
        ('["ILRec, long", LC-Rec, "007"]', ["ILRec, long", "LC-Rec", "007"]),
        ("['a", ["'a"]),
    ],
)
def test_lists_are_separated_by_commas_and_quoted_where_a_part_has_one(value, parts):
    assert listed(value) == parts


def test_an_option_given_twice_must_agree():
    assert parse(["--seed=1", "--seed=1"]).options == {"seed": 1}
    with pytest.raises(UserError, match="given twice"):
        parse(["--seed=1", "--seed=2"])


def test_nothing_typed_is_executed():
    assert parse(["--x=__import__('os').getcwd()"]).options == {"x": "__import__('os').getcwd()"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["--model=SASRec"], "must be a verb: recbole-ilrec run --model=SASRec"),
        (["run", "SASRec"], "'SASRec' is no option"),
        (["run", "--epochs"], "--epochs has no value"),
        (["run", "--dataset=toy"], "No model given"),
        (["run", "--model=SASRec", "--dataset=toy", "--epoch=3"], "Did you mean 'epochs'?"),
        (["run", "--model=SASRec", "--dataset=toy", "--config_files=no.yaml"], "no.yaml does not exist"),
        (
            ["doctor", "--model=Pop", "--dataset=toy", "--result_file=x"],
            "result_file (from config_dict or command line)",
        ),
        (["prepare"], "takes one dataset name"),
        (["prepare", "X"], "--source is missing"),
        (["prepare", "X", "--sorce=lcrec"], "Did you mean 'source'?"),
    ],
)
def test_a_usage_error_is_the_last_line_and_exit_2(root, capsys, argv, message):
    if argv[0] == "run":
        argv = [*argv, f"--data_path={root}"]
    assert cli.main(argv) == 2
    line = last_line(capsys)
    assert line.startswith("error: ") and message in line


def test_debug_shows_the_traceback_before_the_error(root, capsys):
    assert cli.main(["run", "--model=Nope", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.strip().splitlines()[-1].startswith("error: No dataset given")


def test_help_and_settings_are_shown(root, capsys):
    for argv in ([], ["--help"], ["run", "--help"], ["prepare", "-h"]):
        assert cli.main(argv) == 0 and "usage: recbole-ilrec" in capsys.readouterr().out
    assert run("--print_config", model="SASRec", dataset="toy", **tiny(root)) == 0
    assert "MAX_ITEM_LIST_LENGTH = 6  # config_dict or command line" in capsys.readouterr().out
    assert not (root / "saved").exists()


def test_without_anything_given_it_is_ilrec_on_the_data_that_recbole_brings(root, capsys):
    assert cli.main(["run", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert "model = 'ILRec'" in shown and "dataset = 'ml-100k'" in shown and "paradigm" in shown


def test_a_run_from_files_writes_its_result(root):
    (root / "a.yaml").write_text("epochs: 5\nseed: 3\n")
    (root / "b.yaml").write_text("epochs: 1\n")
    settings = {key: value for key, value in tiny(root).items() if key != "epochs"}
    for number, files in enumerate(("a.yaml b.yaml", "a.yaml,b.yaml")):
        target = root / f"new/folder/{number}.json"
        where = {("result_file", "json")[number]: str(target)}
        common = {"model": "SASRec", "dataset": "toy", "config_files": files, **where, **settings}
        assert run(**common) == 0
        result = json.loads(target.read_text())
        recboles = {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
        assert set(result) == recboles | {"evaluation", "record"}
        assert result["evaluation"]["test"]["rows_evaluated"] == result["evaluation"]["test"]["rows_in_split"]
        assert list(target.parent.iterdir()) and not list(target.parent.glob(".*"))
    kept = [json.loads(path.read_text()) for path in (root / "saved").glob("SASRec-toy-*/result.json")]
    assert [(run["test"], run["evaluation"]) for run in kept] == [(result["test_result"], result["evaluation"])] * 2
    one, two = (json.loads((root / f"new/folder/{number}.json").read_text()) for number in range(2))
    assert one == two


def test_a_result_that_cannot_be_written_is_refused_before_training(root, capsys):
    (root / "file").write_text("")
    for target in (root / "toy", root / "file/result.json"):
        assert run(model="SASRec", dataset="toy", result_file=str(target), **tiny(root)) == 2
        assert "result_file=" in last_line(capsys)
    assert not (root / "saved").exists()


def test_an_output_folder_that_cannot_be_made_is_one_line(root, capsys):
    (root / "file").write_text("")
    settings = tiny(root, checkpoint_dir=str(root / "file/saved"), cache_dir=str(root / "cache"))
    assert run(model="SASRec", dataset="toy", **settings) == 2
    assert "the system refused" in last_line(capsys)


def test_an_interrupt_is_one_line_and_exit_130(monkeypatch, capsys):
    def interrupted(_arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "run", (interrupted, ""))
    assert cli.main(["run"]) == 130
    assert last_line(capsys).startswith("interrupted")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.VERBS, "run", (lambda _arguments: 1 // 0, ""))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


def test_without_recbole_the_command_to_install_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(compat, "find_spec", lambda _name: None)
    assert cli.main(["run", "--model=SASRec", "--dataset=toy"]) == 2
    assert "pip install --no-deps recbole==1.2.1" in last_line(capsys)


def test_numpy_has_the_names_that_recbole_reads():
    import numpy as np

    assert np.float is np.float64 and np.bool is np.bool_ and np.object is np.object_ and np.str is np.str_


def in_process(*argv):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=300)


def test_help_is_quick_and_loads_neither_torch_nor_recbole():
    code = (
        "import sys; from recbole_ilrec.cli import main; main(['run', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'recbole', 'pandas', 'transformers')))"
    )
    before = os.times()
    assert in_process("-c", code).returncode == 0
    after = os.times()  # of the processor, since the clock tells how busy the machine is
    assert after.children_user + after.children_system - before.children_user - before.children_system < 5


def test_the_script_and_the_module_are_the_same_command():
    script = in_process(str(PROJECT / "run_recbole_ilrec.py"), "--epochs")
    module = in_process("-m", "recbole_ilrec", "run", "--epochs")
    assert script.returncode == module.returncode == 2
    assert script.stderr == module.stderr == "error: --epochs has no value: write --epochs=VALUE.\n"


def test_a_verb_leaves_no_handler_that_would_show_a_later_run_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (tmp_path / "mine.csv").write_text("user,item,time\n" + "".join(f"u,{item},{item}\n" for item in range(4)))
    assert cli.main(["prepare", "mine", "--source=clicks", f"--path={tmp_path}", f"--out={tmp_path / 'out'}"]) == 0
    assert "0 of 4 rows are copies" in capsys.readouterr().err
    assert logging.getLogger().handlers == []


def test_what_nobody_foresaw_is_a_traceback_a_line_and_a_status_of_its_own(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "run", (lambda arguments: 1 / 0, ""))
    assert entry.main(["run"]) == 70
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("fault: ZeroDivisionError: division by zero. The")
