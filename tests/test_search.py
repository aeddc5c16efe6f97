"""Searches: what a space may say, what comes next, that a killed one goes on, that no trial looks at the test part."""

import csv
import json
import random
import sys
import threading
from dataclasses import replace

import pytest
import yaml

from recbole_ilrec import cli, quick_start, run_recbole_ilrec
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import run_key
from recbole_ilrec.configuration.presets import preset, preset_names, read_yaml
from recbole_ilrec.data.dataset import Data
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.space import Around, OneOf, Phase, Range, first_of, read_range_file, read_space
from recbole_ilrec.verbs import experiments
from recbole_ilrec.verbs.trials import Ledger, Proposals, Trial, best_of, presets_of
from tests.worlds import QUICK, ring_world, write_dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def ring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world())
    return tmp_path


# ---- spaces


@pytest.mark.parametrize("name", list(preset_names("search")))
def test_every_space_that_is_shipped_searches_settings_of_its_model(ring, name):
    space = read_space(name, read_yaml(preset("search", name)))
    for phase in space.phases:
        assert Config(space.model, "ring", None, first_of(phase)).model == space.model


def test_the_papers_ranges_are_those_of_its_appendix():
    coarse, fine = read_space("ilrec", read_yaml(preset("search", "ilrec"))).phases
    assert coarse.space["alpha"].values == (0.1, 0.5, 0.8, 1.0, 1.2)
    assert coarse.space["beta"].values == (0.005, 0.01, 0.05, 0.1, 0.2)
    assert coarse.space["lambda"].values == coarse.space["mu"].values == (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1)
    assert (coarse.sampler, fine.sampler) == ("each", "tpe")


def test_a_range_file_of_recbole_means_what_hyperopt_makes_of_it():
    text = "learning_rate loguniform -8,0\n\n# sizes\nhidden_size quniform 64,128,64\ndropout uniform 0,0.5\n"
    (phase,) = read_range_file("hyper.test", text + "loss_type choice ['CE', 'BPR', None]\n").phases
    rate, size = phase.space["learning_rate"], phase.space["hidden_size"]
    assert (rate.low, rate.high, rate.log) == (pytest.approx(0.00033546263), 1.0, True)
    assert size == Range(64, 128, step=64) and size.whole and not phase.space["dropout"].whole
    assert phase.space["loss_type"] == OneOf(("CE", "BPR", None)) and phase.sampler == "tpe"
    assert read_range_file("h", "a choice [1,2]\nb choice [3]").phases[0].sampler == "grid"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a choice [1,2]\nb chioce [1]", "hyper.test:2: 'b chioce [1]' cannot be read"),
        ("a choice", "hyper.test:1: 'a choice' cannot be read"),
        ("a choice __import__('os')", "hyper.test:1: '__import__('os')' cannot be read"),
        ("a uniform 1", "uniform takes low,high"),
        ("a uniform 2,1", "the smaller first"),
        ("a choice [1]\na choice [2]", "hyper.test:2: 'a' stands twice"),
        ("\n", "hyper.test holds no setting"),
    ],
)
def test_a_bad_range_file_is_one_line(text, message):
    with pytest.raises(UserError) as caught:
        read_range_file("hyper.test", text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"spcae": {}}, "unknown key 'spcae'. Did you mean 'space'?"),
        ({"space": {}}, "'space' is missing"),
        ({"space": {"a": 3}}, "a: 3 is not allowed"),
        ({"space": {"a": {"low": 1, "hihg": 2}}}, "unknown key 'hihg'. Did you mean 'high'?"),
        ({"space": {"a": {"low": 0, "high": 2, "log": True}}}, "low has to be positive"),
        ({"space": {"a": {"low": 0, "high": 2}}, "sampler": "grid"}, "needs a list of values for a"),
        ({"space": {"a": [1]}, "sampler": "bayes"}, "Unknown sampler"),
        ({"space": {"a": [1]}, "trials": 0}, "trials=0 is not allowed"),
        ({"space": {"a": {"times": 2}}}, "no phase before searches it"),
        ({"space": {"a": {"times": 0.5}}}, "times is greater than 1"),
        ({"phases": [1]}, "'phases' is a mapping"),
    ],
)
def test_a_bad_space_is_one_line(content, message):
    with pytest.raises(UserError) as caught:
        read_space("mine", content)
    assert message in str(caught.value) and "search space 'mine'" in str(caught.value)


# ---- what comes next


def played(phases, score, *, bigger=True, trials=(), seed=0, presets=None):
    """All trials of a search whose runs score ``score(params)``; ``None`` is a failure."""
    proposals, trials = Proposals(phases, seed, bigger=bigger, presets=presets or {}), list(trials)
    while (trial := proposals.next(trials)) is not None:
        value = score(trial.params)
        trials.append(Trial(trial.number, trial.phase, trial.params, value, error="" if value is not None else "x"))
    return trials


def test_a_grid_is_every_combination_once():
    phase = Phase("p", "grid", 1, {"a": OneOf((1, 2)), "b": OneOf(("x", "y", "z"))})
    made = [tuple(trial.params.values()) for trial in played([phase], lambda params: params["a"])]
    assert made == [(a, b) for a in (1, 2) for b in "xyz"]


def test_ranges_are_laid_around_presets_where_no_listed_value_is_better(ring):
    config = Config("ILRec", "ring", config_dict=QUICK)
    phases = [replace(p, trials=12) for p in read_space("ilrec", read_yaml(preset("search", "ilrec"))).phases]
    presets = presets_of(config, phases)
    assert presets == {"alpha": 0.8, "beta": 0.1, "lambda": 0.01, "mu": 0.005, "k": 2}
    best = {**presets}

    def score(params):  # the presets are the best that there is, and a run without a setting has its preset
        return -sum(abs(params.get(key, value) - value) for key, value in best.items())

    fine = [t.params for t in played(phases, score, presets=presets) if t.phase == "fine"]
    assert len(fine) == 12
    for key, times in (("alpha", 1.25), ("beta", 2), ("lambda", 2), ("mu", 2)):
        drawn = {params[key] for params in fine}
        assert len(drawn) > 3 and best[key] / times <= min(drawn) and max(drawn) <= best[key] * times


def test_one_setting_after_another_stands_at_its_best_and_a_failure_is_passed_over():
    phase = Phase("p", "each", 1, {"a": OneOf((1, 2, 3)), "b": OneOf((10, 20))})

    def score(params):
        return None if params["a"] == 3 else -abs(params["a"] - 2) - params.get("b", 15)

    trials = played([phase], score)
    assert [dict(t.params) for t in trials] == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 2, "b": 10}, {"a": 2, "b": 20}]
    assert best_of(trials, bigger=True).params == {"a": 2, "b": 10}
    assert best_of(trials, bigger=False).params == {"a": 2, "b": 20}


def test_a_preset_that_no_value_beats_stays_while_the_next_settings_are_searched():
    """b is best at its preset, which is none of its values: a and c have to be tried with that."""
    phase = Phase("p", "each", 1, {"a": OneOf((1, 2)), "b": OneOf((10, 20)), "c": OneOf((5, 6))})
    trials = played([phase], lambda params: params["a"] - params.get("b", 0) + params.get("c", 0))
    assert [dict(t.params) for t in trials[4:]] == [{"a": 2, "c": 5}, {"a": 2, "c": 6}]
    assert best_of(trials, bigger=True).params == {"a": 2, "c": 6}
    finer = Phase("finer", "each", 1, {"d": OneOf((7, 8)), "e": OneOf((9,))})
    trials = played([phase, finer], lambda params: params["a"] - params.get("b", 0) - params.get("d", 0))
    assert dict(trials[-1].params) == {"a": 2, "e": 9}, "the preset of d was tried in the phase before"


def test_the_finer_phase_stays_near_the_best_of_the_coarser():
    pytest.importorskip("optuna")
    coarse = Phase("coarse", "grid", 1, {"a": OneOf((0.01, 0.1, 1.0)), "b": OneOf((5, 6)), "c": OneOf(("x",))})
    fine = Phase("fine", "tpe", 9, {"a": Around(times=2.0), "b": Around(plus=1)})
    trials = played([coarse, fine], lambda params: -abs(params["a"] - 0.15) - abs(params["b"] - 6))
    drawn = [trial.params for trial in trials if trial.phase == "fine"]
    assert len(drawn) == 9 and all(0.05 <= p["a"] <= 0.2 and p["b"] in (5, 6, 7) and p["c"] == "x" for p in drawn)
    assert best_of(trials, bigger=True).score > best_of(trials[:6], bigger=True).score
    assert Around(plus=1).near(0) == Range(0, 1) and Around(times=2.0).near(0.0) == Range(0.0, 0.0)


@pytest.mark.parametrize("around", [{"times": 2}, {"plus": 2.5}])
def test_near_a_whole_number_only_whole_numbers_are_drawn(around):
    pytest.importorskip("optuna")
    coarse = {"num_beams": [10, 20], "alpha": [0.5, 1]}
    phases = {"coarse": {"space": coarse}, "fine": {"trials": 8, "space": {"num_beams": around, "alpha": around}}}
    space = read_space("mine", {"phases": {**phases, "finest": {"trials": 6, "space": {"num_beams": {"times": 1.01}}}}})
    trials = played(space.phases, lambda params: params["num_beams"] + params["alpha"])
    drawn = [trial.params for trial in trials if trial.phase == "fine"]
    assert all(type(p["num_beams"]) is int and 10 <= p["num_beams"] <= 40 for p in drawn) and len(drawn) == 8
    assert all(type(p["alpha"]) is float for p in drawn), "its list has a fraction"
    assert all(type(t.params["num_beams"]) is int for t in trials if t.phase == "finest")
    assert "whole" not in repr(space.phases), "a search goes on in the folder it was begun in"


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_anywhere_proposes_what_it_would_have_proposed(sampler):
    pytest.importorskip("optuna")
    space = {"a": Range(1e-4, 1.0, log=True), "b": OneOf(([1], [2, 3], None)), "n": Range(2, 8, step=2)}
    phase = Phase("p", sampler, 12, space)

    def score(params):
        return params["a"] * len(params["b"] or ()) + params["n"]

    whole = played([phase], score, seed=3)
    assert all(played([phase], score, seed=3, trials=whole[:n]) == whole for n in (1, 5, 8))
    assert played([phase], score, seed=4) != whole
    assert len({json.dumps(trial.params) for trial in whole}) > 8 and {t.params["n"] for t in whole} <= {2, 4, 6, 8}


@pytest.mark.parametrize("sampler", ["grid", "each", "random", "tpe"])
def test_the_same_trials_are_made_however_many_at_a_time(sampler):
    """Whatever ends first, and wherever it is stopped: what is started does not depend on what is under way."""
    pytest.importorskip("optuna")
    lists = {"a": OneOf((1, 2, 3)), "b": OneOf((10, 20, 30))}
    space = lists if sampler in ("grid", "each") else {"a": Range(0.0, 3.0), "b": Range(10, 30)}
    phases = [Phase("coarse", sampler, 9, space), Phase("fine", "tpe", 8, {"a": Around(times=2.0)})]

    def score(params):
        return -abs(params["a"] - 2) - abs(params.get("b", 15) - 21) / 10

    whole = played(phases, score)
    for seed in range(4):
        draw = random.Random(seed)
        proposals, made, under_way, most = Proposals(phases, 0, bigger=True), [], [], 0
        while True:
            while len(under_way) < 3 and (trial := proposals.next(made, under_way)) is not None:
                under_way.append(trial)
            if not under_way:
                break
            most = max(most, len(under_way))
            ended = under_way.pop(draw.randrange(len(under_way)))
            made.append(Trial(ended.number, ended.phase, ended.params, score(ended.params)))
            if draw.random() < 0.2:  # killed: what was under way is not known any more
                under_way = []
        assert sorted(made, key=lambda trial: trial.number) == whole and most == 3


# ---- the ledger


def test_the_last_line_of_a_trial_counts_and_a_torn_line_is_named(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(Trial(0, "p", {"a": 1}, error="no room"))
    ledger.add(Trial(0, "p", {"a": 1}, 0.5))
    assert Ledger(tmp_path).trials == [Trial(0, "p", {"a": 1}, 0.5)]
    with ledger.path.open("a") as stream:
        stream.write('{"number": 1, "pha')
    with pytest.raises(UserError, match="trials.jsonl:3: no trial: remove that line"):
        Ledger(tmp_path)


# ---- the whole way

COUNTING = """
title: How far to look back
model: Transitions
space: {transitions.decay: [0, 0.9], transitions.shrinkage: [1, 1000]}
"""
SEARCH = ("search", "--space=mine.yaml", "--dataset=ring", "--topk=[1,5]", "--valid_metric=Hit@1", "--device=cpu")
SEARCH += ("--jobs=1",)  # runs of these tests are made in this process


def in_process(calls, fails=lambda arguments: False):
    def launch(arguments, log, descriptor):
        calls.append(arguments)
        log.write_text("error: no room on this machine\n" if fails(arguments) else "fine\n")
        return 2 if fails(arguments) else cli.main([*arguments, "--state=WARNING"])

    return launch


def left_by(ring):
    """Folder of the one search, and its trials without what differs from call to call."""
    (folder,) = (ring / "saved/searches").iterdir()
    return folder, [(t.number, t.phase, t.params, t.score, t.valid, t.run, t.error) for t in Ledger(folder).trials]


def test_a_search_that_is_killed_and_given_again_leaves_what_a_straight_one_leaves(ring, monkeypatch, capsys):
    (ring / "mine.yaml").write_text(COUNTING)
    calls = []
    launch = in_process(calls)
    monkeypatch.setattr(experiments, "_process", launch)
    assert cli.main([*SEARCH, "--checkpoint_dir=straight"]) == 0
    (ring / "straight").rename(ring / "saved")
    _, straight = left_by(ring)
    (ring / "saved").rename(ring / "straight")

    def cut(arguments, log, descriptor):
        if len(calls) == 6:
            raise KeyboardInterrupt
        return launch(arguments, log, descriptor)

    monkeypatch.setattr(experiments, "_process", cut)
    assert cli.main(SEARCH) == 130 and len(left_by(ring)[1]) == 2
    monkeypatch.setattr(experiments, "_process", launch)
    assert cli.main(SEARCH) == 0 and left_by(ring)[1] == straight and len(calls) == 8
    assert cli.main(SEARCH) == 0 and len(calls) == 8  # nothing is left to do
    (left_by(ring)[0] / "trials.jsonl").unlink()  # the runs are known by their keys, without the ledger
    assert cli.main(SEARCH) == 0 and left_by(ring)[1] == straight and len(calls) == 8
    assert "| 0 *" in capsys.readouterr().out


def test_the_best_settings_are_a_file_and_its_weights_are_tested_without_training_again(ring, monkeypatch, capsys):
    (ring / "mine.yaml").write_text(COUNTING)
    monkeypatch.setattr(experiments, "_process", in_process([]))
    assert cli.main(SEARCH) == 0
    folder, trials = left_by(ring)
    shown = capsys.readouterr().out
    assert shown == (folder / "summary.md").read_text() and "How far to look back" in shown
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["transitions.decay"] for row in rows] == ["0", "0", "0.9", "0.9"] and rows[0]["Hit@1"] == "1.0"
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best == {"model": "Transitions", "dataset": "ring", "topk": [1, 5], "valid_metric": "Hit@1", **trials[0][2]}
    (command,) = [line for line in shown.splitlines() if line.startswith("recbole-ilrec run ")]
    assert cli.main([*command.split()[1:], "--state=WARNING", "--result_file=out.json"]) == 0
    straight = run_recbole_ilrec(
        config_file_list=[str(folder / "best.yaml")], config_dict={"device": "cpu"}, saved=False
    )
    out = json.loads((ring / "out.json").read_text())
    assert out["test_result"] == straight["test_result"]
    record = json.loads((ring / out["record"]).read_text().splitlines()[-1])
    assert record["evaluation"]["run"] == run_key(Config(None, None, [folder / "best.yaml"])), "the run of a table"


def test_a_failed_trial_is_shown_does_not_stop_the_others_and_is_tried_again(ring, monkeypatch, capsys):
    (ring / "mine.yaml").write_text(COUNTING)
    calls = []
    fails = in_process(calls, lambda arguments: "--transitions.decay=0" in arguments)
    monkeypatch.setattr(experiments, "_process", fails)
    assert cli.main(SEARCH) == 0
    assert "Failed: 0: no room on this machine" in capsys.readouterr().out
    assert [trial[3] is None for trial in left_by(ring)[1]] == [True, True, False, False]
    monkeypatch.setattr(experiments, "_process", in_process(calls))
    assert cli.main(SEARCH) == 0 and len(calls) == 6
    assert not any(trial[-1] for trial in left_by(ring)[1]) and "Failed" not in capsys.readouterr().out
    monkeypatch.setattr(experiments, "_process", in_process(calls, lambda arguments: True))
    assert cli.main([*SEARCH, "--seed=9"]) == 1  # none has a score


def test_trials_that_do_not_depend_on_each_other_are_made_side_by_side(ring, monkeypatch):
    """Both values of a list meet here, or the barrier breaks; with fails no trial is lost, and none is made twice."""
    (ring / "mine.yaml").write_text(COUNTING)
    together, calls = threading.Barrier(2, timeout=300), []

    def launch(arguments, log, descriptor):
        calls.append([option for option in arguments if "transitions." in option])
        together.wait()
        log.write_text("error: no room on this machine\n")
        return 2

    monkeypatch.setattr(experiments, "_process", launch)
    assert cli.main([*SEARCH[:-1], "--jobs=2"]) == 1
    assert len(calls) == 4 and [trial[0] for trial in left_by(ring)[1]] == [0, 1, 2, 3]


def test_trials_and_time_are_limited_and_more_trials_go_on(ring, monkeypatch, capsys):
    pytest.importorskip("optuna")
    (ring / "hyper.test").write_text("transitions.decay uniform 0,1\ntransitions.shrinkage loguniform -1,3\n")
    calls = []
    monkeypatch.setattr(experiments, "_process", in_process(calls))
    search = ["search", "--space=hyper.test", "--model=transitions", *SEARCH[2:]]
    assert cli.main([*search, "--trials=2"]) == 0 and len(calls) == 2
    assert cli.main([*search, "--trials=3"]) == 0 and len(calls) == 3
    capsys.readouterr()
    assert cli.main([*search, "--trials=4", "--dry_run"]) == 0 and len(calls) == 3
    shown = capsys.readouterr().out
    assert shown.count(": finished") == 3 and "phase search: 1 more are drawn by tpe" in shown
    clock = iter([0.0, 0.0, 99.0])
    monkeypatch.setattr("recbole_ilrec.verbs.search.time.monotonic", lambda: next(clock))
    assert cli.main([*search, "--trials=20", "--timeout=60"]) == 0 and len(calls) == 4


def test_without_optuna_lists_are_searched_and_ranges_say_what_to_install(ring, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    (ring / "mine.yaml").write_text(COUNTING)
    assert cli.main([*SEARCH, "--dry_run"]) == 0
    assert cli.main([*SEARCH, "--sampler=tpe"]) == 2
    assert "pip install optuna" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search"], "search takes a name or --space=FILE"),
        (["search", "ilrce"], "Unknown search 'ilrce'. Did you mean 'ilrec'?"),
        (["search", "--space=none.test", "--model=SASRec"], "none.test cannot be read"),
        (["search", "--space=wrong.yaml", "--dataset=ring"], "Did you mean 'hidden_size'?"),
        ([*SEARCH, "--transitions.decay=1"], "transitions.decay is searched by 'mine'"),
        ([*SEARCH, "--trials=0"], "trials=0 is not allowed"),
        ([*SEARCH, "--eval_test=true"], "no trial looks at the test part"),
        ([*SEARCH, "--saved=false"], "found again by what was saved"),
        ([*SEARCH, "--eval_step=0"], "eval_step=0 leaves out the validation"),
        (["search", "ilrec", "--sampler=grid"], "--sampler is for a space with one phase"),
        (["search", "--space=mine.yaml", "--dataset=rign"], "Did you mean 'ring'?"),
    ],
)
def test_bad_input_is_one_line(ring, capsys, argv, message):
    (ring / "mine.yaml").write_text(COUNTING)
    (ring / "wrong.yaml").write_text("model: SASRec\nspace: {hiden_size: [16]}\n")
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# ---- no test leakage


class Untouchable:
    """In place of the test part: whoever looks at it fails."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test part was asked for {name}")

    def __iter__(self):
        raise AssertionError("the test part was walked over")


@pytest.mark.parametrize("model", ["Transitions", "SASRec", "ILRec"])
def test_a_trial_never_looks_at_the_test_part(ring, monkeypatch, model):
    build = quick_start.build_data

    def without_test(config):
        data = build(config)
        return Data(data.dataset, data.train, data.valid, Untouchable(), data.rows, data.statistics, data.counts)

    monkeypatch.setattr(quick_start, "build_data", without_test)
    common = {"device": "cpu", "show_progress": False, "state": "WARNING"}
    own = {"Transitions": {}, "SASRec": {"epochs": 1}, "ILRec": {**QUICK, "epochs": 1, "num_beams": 10}}[model]
    found = run_recbole_ilrec(model, "ring", config_dict={**common, **own, "eval_test": False})
    assert found["test_result"] is None and found["best_valid_score"] >= 0
    record = json.loads((ring / "saved/records.jsonl").read_text())
    assert "test" not in record["evaluation"] and "valid" in record["evaluation"]
    assert record["result"]["test_result"] is None and not list((ring / "saved").rglob("ranks-test*"))
    with pytest.raises(AssertionError, match="the test part"):
        run_recbole_ilrec(model, "ring", config_dict={**common, **own})
