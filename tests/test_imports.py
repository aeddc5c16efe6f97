"""What a run does not load, and how what it loads is imported."""

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_ilrec.runtime.imports import quick_imports
from tests.worlds import QUICK

PROJECT = Path(__file__).resolve().parents[1]

SWITCH = "TORCHDYNAMO_DISABLE"
COMPILER = ("torch._inductor.compile_fx", "torch._inductor.lowering", "torch._inductor.scheduler")
OF_LEARNED_IDENTIFIERS = ("sklearn.cluster", "sklearn.decomposition", "sklearn.feature_extraction")
OF_OTHER_VERBS = ("matplotlib", "polars", "optuna")
OF_RECBOLES_QUICK_START = ("ray", "hyperopt")

RUN = """
import gc, json, os, sys
from recbole_ilrec.cli import main
status = main(["run", *sys.argv[2:]])
state = [status, [m for m in json.loads(sys.argv[1]) if m in sys.modules], gc.isenabled(), gc.get_freeze_count() > 0]
sys.stderr.write("\\n" + json.dumps([*state, os.environ.get("TORCHDYNAMO_DISABLE")]))
"""


def test_a_run_loads_neither_the_compiler_nor_what_only_others_need(ring):
    unwanted = [*COMPILER, *OF_LEARNED_IDENTIFIERS, *OF_OTHER_VERBS, *OF_RECBOLES_QUICK_START]
    settings = {**QUICK, "model": "LCRec", "dataset": "ring", "max_steps": 1, "eval_test": False, "saved": False}
    options = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-c", RUN, json.dumps(unwanted), *options]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop(SWITCH, None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, [], True, True, None]


def test_what_shows_runs_loads_no_language_model():
    check = (
        "import sys, recbole_ilrec.verbs.figures, recbole_ilrec.verbs.report; sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], cwd=PROJECT, check=True)


@pytest.mark.parametrize("given", [None, "0", "1"])
def test_imports_leave_collector_and_switch_as_they_were(monkeypatch, given):
    monkeypatch.delenv(SWITCH, raising=False)
    if given is not None:
        monkeypatch.setenv(SWITCH, given)
    frozen, quantisation = gc.get_freeze_count(), logging.getLogger("bitsandbytes")
    quantisation.setLevel(logging.INFO)
    for collecting in (True, False):
        (gc.enable if collecting else gc.disable)()
        try:
            with pytest.raises(ImportError), quick_imports():
                assert not gc.isenabled() and os.environ[SWITCH] == "1"
                assert not quantisation.isEnabledFor(logging.WARNING)
                raise ImportError
            assert gc.isenabled() == collecting
        finally:
            gc.enable()
        assert os.environ.get(SWITCH) == given and quantisation.level == logging.INFO
    quantisation.setLevel(logging.NOTSET)
    assert gc.get_freeze_count() == frozen  # nothing was imported


def test_quantised_weights_keep_the_compiler(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    with quick_imports(compiler=True):
        assert SWITCH not in os.environ


def test_garbage_is_collected_before_modules_are_set_aside(monkeypatch):
    class Model:
        def __init__(self):
            self.itself = self
            self.alive = alive

    alive = []
    monkeypatch.setattr(Model, "__del__", lambda model: model.alive.append("no more"), raising=False)
    Model()
    try:
        with quick_imports():
            monkeypatch.setitem(sys.modules, "a_module_that_is_new", sys)
        assert alive == ["no more"]
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
