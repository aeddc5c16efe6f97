"""Tables and figures: plans, statistics by hand, marks, and the way from an empty folder to the finished table."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from recbole_ilrec import cli
from recbole_ilrec.configuration.presets import preset, preset_names, read_yaml
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces
from recbole_ilrec.evaluation.user_ranks import ranks_file, write_ranks
from recbole_ilrec.report.figure import Panel, Picture, Series, draw
from recbole_ilrec.report.plan import narrowed, read_plan
from recbole_ilrec.report.record import append_record
from recbole_ilrec.report.statistics import holm, mean_and_deviation, paired_p
from recbole_ilrec.report.table import Cell, Line, Table, latex, markdown, marked, to_csv
from recbole_ilrec.runtime.interrupts import Interrupted, raised
from recbole_ilrec.runtime.run_folder import MARK
from recbole_ilrec.verbs import experiments
from recbole_ilrec.verbs.experiments import Experiments, Outcome, newest_resumable
from recbole_ilrec.verbs.printed import paper_table
from recbole_ilrec.verbs.tables import Grid, results_table
from tests.worlds import ring_world

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def plan_of(name):
    return read_plan(name, read_yaml(preset("table", name)))


# ---- plans


@pytest.mark.parametrize("name", list(preset_names("table")))
def test_every_plan_is_read_and_its_printed_numbers_fill_its_cells(name):
    plan = plan_of(name)
    if plan.kind == "runs":
        assert all(plan.run(row, column, 1, {}).model for _, row in plan.rows() for column in plan.columns())
    for label, numbers in plan.paper.items():
        width = 4 if plan.kind == "datasets" else len(plan.columns()) * len(plan.metrics)
        assert len(numbers) == width, label
    if plan.paper and plan.kind == "runs":
        assert [line.label for _, lines in paper_table(plan, plan).blocks for line in lines] == list(plan.paper)


def test_table_1_is_39_runs_beside_those_that_only_count_and_shares_those_of_table_2():
    main = Grid(plan_of("main"), {}).all_runs()
    assert len([run for run in main if run.model not in ("Pop", "Transitions")]) == 39 == len(main) - 6
    full = [run for run in Grid(plan_of("ablation"), {}).all_runs() if set(run.settings) == {"paradigm", "seed"}]
    assert len(full) == 4 and set(full) <= set(main)


def test_options_narrow_a_plan_and_name_what_they_do_not_know():
    plan = plan_of("main")
    small = narrowed(plan, datasets=["ring"], models=["sasrec", "LC-Rec + ILRec"], seeds=[1, 2])
    assert [row.label for _, row in small.rows()] == ["SASRec", "LC-Rec + ILRec"]
    assert len(Grid(small, {"epochs": 3}).all_runs()) == 4
    assert Grid(small, {"epochs": 3}).all_runs()[0].settings == {"epochs": 3, "seed": 1}
    with pytest.raises(UserError, match=r"Unknown model of table 'main': 'SASRek'. Did you mean 'SASRec'\?"):
        narrowed(plan, models=["SASRek"])
    with pytest.raises(UserError, match="Unknown column 'LCRec'"):
        narrowed(plan_of("ablation"), columns=["LCRec"])


def test_a_backbone_plan_names_the_fine_tuned_model_by_its_paradigm():
    plan = narrowed(plan_of("backbones"), datasets=["ring"], backbones=["tiny"])
    runs = [str(run) for run in Grid(plan, {}).all_runs()]
    assert runs[:2] == [
        "--model=BIGRec --dataset=ring --paradigm=bigrec --backbone=tiny --seed=2020",
        "--model=LCRec --dataset=ring --paradigm=lcrec --backbone=tiny --seed=2020",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"titel": "x"}, "unknown key 'titel'. Did you mean 'title'"),
        ({"title": "x", "datasets": ["a"], "metrics": ["hit@5"]}, "'blocks' is missing"),
        ({"title": "x", "datasets": ["a"], "metrics": ["hit@5"], "blocks": [{"rows": {"A": {}}}]}, "its 'model'"),
        ({"title": "x", "datasets": ["a"], "kind": "charts"}, "use runs or datasets"),
    ],
)
def test_a_bad_plan_is_one_line(content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_plan("mine", content)


# ---- statistics


def test_the_mean_over_seeds_has_a_deviation_when_there_are_several():
    assert mean_and_deviation([0.1, 0.3]) == (pytest.approx(0.2), pytest.approx(0.2 / 2**0.5))
    assert mean_and_deviation([0.1]) == (0.1, None)


def test_holm_by_hand():
    """Sorted .01 .03 .04 times 3, 2, 1 is .03 .06 .04, made monotone .03 .06 .06."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_users_are_the_sample_and_seeds_are_averaged_first():
    rng = np.random.default_rng(0)
    other = rng.random((3, 50))
    ours = other + rng.normal(0.05, 0.1, (3, 50))
    differences = (ours - other).mean(0)
    assert paired_p(ours, other) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert paired_p(ours, ours) == 1.0 == paired_p(ours, ours + 1e-15), "the order of a sum is no difference"
    assert paired_p(np.ones((1, 4)), np.zeros((1, 4))) == 0.0
    assert paired_p(np.ones((3, 1)), np.zeros((3, 1))) == 1.0, "one user says nothing of others"


# ---- rendering

SMALL = Table(
    name="t",
    caption="A & B: 5%.",
    head=(("Data", "Data"), ("Hit@5", "Time (min)")),
    blocks=(
        (
            "Block_1",
            marked(
                [
                    Line("a", (Cell((0.1, 0.2), 0.15, 0.0707), Cell((3.0,), 3.0, digits=1, lower=True))),
                    Line("b", (Cell((0.3,), 0.3, significant=True), Cell((2.0,), 2.0, digits=1, lower=True))),
                    Line("c", (Cell(text="failed"), Cell((9.0,), 9.0, digits=1, lower=True))),
                ]
            ),
        ),
    ),
    notes=("Failed: c: no space.",),
)


def test_best_and_second_are_marked_by_direction_and_what_failed_is_said():
    text = markdown(SMALL)
    assert "| a | <u>0.1500 ± 0.0707</u> | <u>3.0</u> |" in text
    assert "| b | **0.3000**† | **2.0** |" in text and "| c | failed | 9.0 |" in text
    assert text.endswith("Failed: c: no space.\n")


def test_latex_is_booktabs_with_every_special_character_escaped():
    text = latex(SMALL)
    assert r"\caption{A \& B: 5\%. Failed: c: no space.}" in text
    assert r" & \multicolumn{2}{c}{Data} \\" + "\n" + r"\cmidrule(lr){2-3}" in text
    assert r"b & \textbf{0.3000}$^{\dagger}$ & \textbf{2.0} \\" in text and r"\emph{Block\_1}" in text
    assert r"\underline{0.1500~$\pm$~0.0707}" in text
    assert [text.count(word) for word in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_csv_holds_the_value_of_each_seed():
    rows = list(csv.DictReader(io.StringIO(to_csv(SMALL))))
    assert len(rows) == 6 and rows[0]["values"] == "0.1 0.2" and rows[0]["header_2"] == "Hit@5"
    assert rows[2]["best"] == "1" and rows[4]["note"] == "failed"


def test_equal_numbers_share_a_mark_and_a_single_line_has_none():
    lines = marked([Line(n, (Cell((v,), v),)) for n, v in (("a", 0.5), ("b", 0.50001), ("c", 0.4))])
    marks = [(line.cells[0].best, line.cells[0].second) for line in lines]
    assert marks == [(True, False), (True, False), (False, True)]
    assert not marked([Line("a", (Cell((1.0,), 1.0),))])[0].cells[0].best


@pytest.mark.parametrize("place", range(4))
def test_what_is_no_number_is_neither_best_nor_in_the_way_of_those_that_are(place):
    values = [0.1, 0.3, 0.2]
    values.insert(place, float("nan"))
    cells = [line.cells[0] for line in marked([Line(str(v), (Cell((v,), v),)) for v in values])]
    assert [cell.mean for cell in cells if cell.best] == [0.3] and [c.mean for c in cells if c.second] == [0.2]


def test_a_figure_is_the_same_bytes_each_time(tmp_path):
    series = tuple(Series(name, ("x", "y"), (1.0, 2.0 + n), (0.1, 0.2)) for n, name in enumerate("ab"))
    panels = (Panel("title", "Hit@10", series),)
    first, second = (draw(Picture(name, "bars", "caption", "axis", panels), tmp_path) for name in "12")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG") and b"<svg" in first[1].read_bytes()
    assert draw(Picture("3", "lines", "caption", "axis", panels), tmp_path)[1].is_file()


# ---- the whole way


def in_process(calls):
    """Makes a run in this process, and notes its arguments."""

    def launch(arguments, log, descriptor):
        calls.append(arguments)
        with log.open("a", encoding="utf-8") as stream:
            stream.write("error: no room on this machine\n" if "--model=Caser" in arguments else "fine\n")
        return 2 if "--model=Caser" in arguments else cli.main([*arguments, "--state=WARNING"])

    return launch


TABLE = ("table", "main", "--dataset=ring", "--quick", "--models=Caser,GRU4Rec,SASRec", "--seeds=1,2", "--jobs=1")


def test_a_table_is_finished_from_where_it_stopped_and_a_failure_is_a_cell(ring, monkeypatch, capsys):
    calls = []
    launch = in_process(calls)

    def cut(arguments, log, descriptor):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return launch(arguments, log, descriptor)

    monkeypatch.setattr(experiments, "_process", cut)
    assert cli.main(TABLE) == 130 and not (ring / "tables/main-quick.md").exists()
    made = len(list((ring / "saved/planned").glob("*/records.jsonl")))
    monkeypatch.setattr(experiments, "_process", launch)
    assert cli.main(TABLE) == 1  # Caser fails again
    finished, again = (ring / "tables/main-quick.md").read_text(), len(calls)
    assert again == 3 + 2 + (4 - made) and 1 <= made <= 2
    assert cli.main(TABLE) == 1 and (ring / "tables/main-quick.md").read_text() == finished
    assert all("--model=Caser" in call for call in calls[again:])
    assert "| Caser | failed | failed | failed | failed |" in finished and "QUICK SETTINGS" in finished
    assert "Failed: Caser, ring, seed 1 and 1 more of the runs: no room on this machine" in finished
    certified = list(csv.DictReader((ring / "tables/main-quick-runs.csv").open()))
    assert [(row["line"], row["seed"]) for row in certified] == [(n, s) for n in ("GRU4Rec", "SASRec") for s in "12"]
    assert all(row["test users_evaluated"] == row["test rows_in_split"] == "60" for row in certified)
    assert all(row["data"] and row["code"] and row["test ndcg@10, strict"] for row in certified)
    assert "seeds 1, 2" in finished
    assert re.search(r"\| SASRec \| 0\.\d{4} ± 0\.\d{4} \|", finished)
    capsys.readouterr()
    assert cli.main([*TABLE, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": finished") == 4 and shown.count("unknown: no like run") == 2
    assert cli.main([option for option in TABLE if "--seeds" not in option] + ["--seeds=[3]", "--dry_run"]) == 0
    assert re.search(r"--model=SASRec .*about \d", capsys.readouterr().out)


@pytest.mark.parametrize(("given", "expected"), [((), {"cuda:0", "cuda:1"}), (("--device=cpu",), {"cpu"})])
def test_runs_side_by_side_have_a_gpu_each_unless_the_device_is_given(ring, monkeypatch, given, expected):
    both, used = threading.Barrier(2, timeout=60), []

    def launch(arguments, log, descriptor):
        used.append(next((a.removeprefix("--device=") for a in arguments if a.startswith("--device=")), ""))
        both.wait()
        log.write_text("error: no such GPU here\n")
        return 2

    monkeypatch.setattr(experiments, "_gpus", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(experiments, "_process", launch)
    assert experiments.default_jobs() == 2
    assert cli.main(["table", "main", "--dataset=ring", "--models=Pop", "--seeds=4", "--quick", *given]) == 1
    assert [{*used[:2]}, {*used[2:]}] == [expected, expected]


def test_a_run_that_was_not_planned_is_found_by_its_content(ring, monkeypatch):
    assert cli.main(["run", "--model=SASRec", "--dataset=ring", "--epochs=1", "--seed=5", "--state=WARNING"]) == 0
    monkeypatch.setattr(experiments, "_process", lambda *_: pytest.fail("made again"))
    assert cli.main(["table", "main", "--dataset=ring", "--models=SASRec", "--seeds=[5]", "--epochs=1"]) == 0


def test_of_two_runs_with_one_key_the_newer_counts_wherever_its_record_stands(tmp_path):
    old, new = ({"finished": f"2026-01-0{day}", "evaluation": {"run": "k"}, "n": day} for day in (1, 2))
    shared = {"model": "A", "dataset": "d", "seed": 1, "result": {}}
    for first, second in ((old, new), (new, old)):
        root = tmp_path / str(first["n"])
        for path, one in ((root / "planned/k/records.jsonl", first), (root / "records.jsonl", second)):
            append_record(path, {**shared, **one})
        assert Experiments({"checkpoint_dir": str(root)}).finished()["k"]["n"] == 2


OWN = """
title: Two step sizes
datasets: [ring]
seeds: [1]
metrics: [hit@5, time]
settings: {epochs: 1, hidden_size: 16, inner_size: 16}
blocks:
  - rows:
      small: {model: SASRec, learning_rate: 1e-4}
      large: {model: SASRec, learning_rate: 1e-2}
figure: {kind: bars, x: ""}
"""


def test_a_plan_of_ones_own_is_a_table_and_a_figure_of_the_same_runs(ring, monkeypatch, capsys):
    (ring / "mine.yaml").write_text(OWN)
    calls = []
    monkeypatch.setattr(experiments, "_process", in_process(calls))
    assert cli.main(["figure", "mine.yaml", "--jobs=1"]) == 0
    assert {path.suffix for path in (ring / "tables").iterdir()} == {".png", ".svg", ".csv"}
    assert cli.main(["table", "mine.yaml", "--jobs=1"]) == 0 and len(calls) == 2
    assert "| large | " in capsys.readouterr().out
    (ring / "mine.yaml").write_text(OWN.replace("kind: bars", "kind: pie"))
    assert cli.main(["figure", "mine.yaml"]) == 2 and "figure.kind='pie'" in capsys.readouterr().err


def outcome_of(folder, hits):
    """A run whose lists begin with the true item for the first of 30 users, and lack it for the others."""
    zero = torch.zeros(30, dtype=torch.long)
    before = torch.where(torch.arange(30) < hits, 0, MISSING)
    write_ranks(ranks_file(folder, "test"), torch.arange(30), TargetPlaces(before, zero + 1, zero, before), {})
    about = {"history_masked": False, "collisions": "expected", "code": "c"}
    result = {"test_result": {"hit@10": hits / 30}}
    return Outcome({"result": result, "folder": str(folder), "evaluation": about})


def grid_of(*models):
    return Grid(replace(narrowed(plan_of("main"), datasets=["ring"], models=models), metrics=("hit@10",)), {})


def test_ours_is_tested_against_the_best_of_its_block_and_needs_every_seed(ring):
    """ILRec finds every item and its rival none: marked; with one seed missing there is no number at all."""
    grid = grid_of("LC-Rec", "LC-Rec + ILRec")
    sft, ours = grid.all_runs()
    outcomes = {sft: outcome_of(ring / "sft", 0), ours: outcome_of(ring / "ours", 30)}
    table = results_table(grid, outcomes)
    cell = table.blocks[0][1][1].cells[0]
    assert cell.significant and cell.best and cell.p == 0.0 and "Holm over 1" in table.caption
    elsewhere = {**outcomes[sft].record, "evaluation": {**outcomes[sft].record["evaluation"], "data": "other"}}
    others = results_table(grid, {**outcomes, sft: Outcome(elsewhere)})
    assert others.blocks[0][1][1].cells[0].p is None and "of other users or data" in others.notes[0]
    assert results_table(grid, {**outcomes, sft: Outcome()}).blocks[0][1][0].cells[0].shown() == "-"


@pytest.mark.parametrize(("hits", "differs"), [((0, 28, 29), False), ((0, 29, 3), True)])
def test_what_is_hardly_better_than_the_best_rival_or_worse_has_no_mark(tmp_path, hits, differs):
    grid = grid_of("LC-Rec", "LC-Rec + SDPO", "LC-Rec + ILRec")
    outcomes = [outcome_of(tmp_path / str(number), found) for number, found in enumerate(hits)]
    table = results_table(grid, dict(zip(grid.all_runs(), outcomes, strict=True)))
    cell = table.blocks[0][1][2].cells[0]
    assert (cell.p < 0.001) is differs and not cell.significant


def test_a_picture_says_by_how_many_versions_its_numbers_were_made_though_it_has_no_marks():
    from recbole_ilrec.verbs.figures import picture

    grid = Grid(narrowed(plan_of("candidates"), datasets=["ring"]), {})
    outcomes = dict.fromkeys(grid.all_runs(), Outcome())
    table = results_table(grid, outcomes)
    tested = (
        " †: better than the best other line of the block (paired two-sided t-test over users, Holm over 2, p < 0.05)."
    )
    versions = " The numbers were made by 2 versions of the code."
    bare = picture(grid, table, outcomes).caption
    assert bare.endswith("one seed (2020).") and table.caption.endswith("within a block.")
    for said in ("", tested):
        drawn = picture(grid, replace(table, caption=table.caption + said + versions), outcomes)
        assert drawn.caption == bare + versions
    assert picture(grid, replace(table, caption=table.caption + tested), outcomes).caption == bare


def test_a_caption_says_where_not_all_users_were_evaluated_or_not_all_items_ranked():
    grid = Grid(narrowed(plan_of("main"), datasets=["ring"], models=["LC-Rec", "LC-Rec + ILRec"]), {})
    part = {"rows_evaluated": 1000, "rows_in_split": 24772, "limited_by": "eval_users"}
    about = {"history_masked": False, "collisions": "expected", "code": "c", "candidates": {"test": "full"}}

    def caption(first, second):
        records = ({"result": {"test_result": {}}, "evaluation": {**about, **own}} for own in (first, second))
        return results_table(grid, dict(zip(grid.all_runs(), map(Outcome, records), strict=True))).caption

    assert "Test part; one seed (2020). Items of the history" in caption({}, {})
    whole = {"test": {"rows_evaluated": 60, "rows_in_split": 60, "users_evaluated": 60, "limited_by": None}}
    full = {"length": 50, "valid": 1.0, "distinct": 1.0}
    assert "Test part, all 60 users; one seed (2020). Items" in caption(whole, whole)
    assert "Lists of 50, all valid and distinct." in caption({"lists": full}, {"lists": None})
    short = {"lists": {"length": 20, "valid": 0.975, "distinct": 0.9}}
    assert "Lists of 20 or 50, 97.50% valid, 90.00% distinct or more." in caption({"lists": full}, short)
    assert "Only 1,000 of 24,772 test rows (eval_users)." in caption({"test": part}, {"test": part})
    assert "Partly only 1,000 of" in caption({"test": part}, {})
    sampled = {"candidates": {"valid": "full", "test": "uni100"}}
    assert "True items ranked among uni100." in caption(sampled, sampled)
    assert "True items ranked among all items or uni100." in caption({}, sampled)


def test_costs_stand_beside_what_they_were_made_on():
    plan = replace(plan_of("main"), metrics=("ndcg@10", "time"))
    grid = Grid(narrowed(plan, datasets=["ring"], models=["LC-Rec", "LC-Rec + ILRec"]), {})
    about = {"history_masked": False, "collisions": "expected", "code": "c", "candidates": {"test": "full"}}

    def caption(*threads):
        records = (
            {"result": {"test_result": {"ndcg@10": 0.1}}, "evaluation": about, "wall_seconds": 60.0, "processor": "P",
             "device": "cpu", "threads": some} for some in threads
        )  # fmt: skip
        return results_table(grid, dict(zip(grid.all_runs(), map(Outcome, records), strict=True))).caption

    assert "Costs: P, cpu, threads: 1." in caption(1, 1)
    assert "Costs: P, cpu, threads: 1 or 2; not comparable where these differ." in caption(1, 2)


def test_an_interrupted_planned_run_is_gone_on_with(tmp_path):
    assert newest_resumable(tmp_path) is None
    for name, files in (("LCRec-a", ["checkpoint-5/state.json", "checkpoint-5/trainer_state.json"]), ("SASRec-b", [])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_text("{}")
    assert newest_resumable(tmp_path) is None  # it does not say what it is
    (tmp_path / "LCRec-a" / MARK).write_text(json.dumps({"run": tmp_path.name}))
    assert newest_resumable(tmp_path) == tmp_path / "LCRec-a"
    (tmp_path / "LCRec-a" / MARK).write_text('{"run": "0123456789abcdef"}')  # what came out would be of no settings
    assert newest_resumable(tmp_path) is None


def test_runs_with_one_supervised_stage_go_one_after_another(ring, monkeypatch):
    """One makes what the next begins from; their lanes run side by side with all others, and share the cores."""
    lines = ["SASRec", "LC-Rec", "LC-Rec + SDPO", "LC-Rec + ILRec"]
    plan = narrowed(plan_of("main"), datasets=["ring"], models=lines, seeds=[1])
    running, together, threads, made = [], [], {}, []
    three = threading.Barrier(3)

    def launch(arguments, log, descriptor):
        name = arguments[1].removeprefix("--model=")
        running.append(name)
        threads[name] = next(option for option in arguments if option.startswith("--num_threads="))
        if name != "SDPO":
            three.wait(60)
        together.append(frozenset(running))
        while name == "LCRec" and len(made) < 2:  # the other lanes end first, however slow the machine
            time.sleep(0.01)
        running.remove(name)
        return 1

    monkeypatch.setattr(experiments, "_cores", lambda: 8)
    Experiments({}, launch=launch).make(Grid(plan, {}).all_runs(), 4, lambda run, outcome: made.append(outcome))
    assert len(made) == 4 and all(outcome.error == "ended with exit status 1" for outcome in made)
    assert not any({"LCRec", "SDPO"} <= names for names in together)
    assert {"LCRec", "ILRec", "SASRec"} in together
    assert {threads[name] for name in ("LCRec", "SASRec", "ILRec")} == {"--num_threads=2"}  # of eight
    assert threads["SDPO"] == "--num_threads=8"  # the last one has them all


def test_a_plan_that_is_terminated_tells_its_runs_to_save(ring, tmp_path, monkeypatch):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\ntrap 'echo saved; exit 143' TERM\necho begun\nwhile :; do sleep 0.05; done\n")
    stub.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stub))
    grid, runs = (
        Grid(narrowed(plan_of("main"), datasets=["ring"], models=["SASRec", "GRU4Rec"], seeds=[1]), {}),
        Experiments({}),
    )
    first, second = grid.all_runs()
    log = runs.folder(first) / experiments.LOG

    def terminate():
        while not log.is_file() or log.read_text() != "begun\n":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(Interrupted), raised():
        runs.make([first, second], 1, lambda *_: pytest.fail("came to its end"))
    assert log.read_text() == "begun\nsaved\n" and not runs.folder(second).exists()


def test_a_run_that_begins_while_its_plan_is_terminated_is_told_to_stop_too(ring, tmp_path, monkeypatch):
    stub, popen = tmp_path / "python", subprocess.Popen
    stub.write_text("#!/bin/sh\ntrap 'echo saved; exit 143' TERM\necho begun\nwhile :; do sleep 0.05; done\n")
    stub.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stub))

    def late(*given, **options):
        process = popen(*given, **options)
        os.kill(os.getpid(), signal.SIGTERM)  # before anybody has noted that it is under way
        while log.read_text() != "begun\n":
            time.sleep(0.01)
        time.sleep(0.5)
        return process

    monkeypatch.setattr("recbole_ilrec.verbs.launched.subprocess.Popen", late)
    (run,) = Grid(narrowed(plan_of("main"), datasets=["ring"], models=["SASRec"], seeds=[1]), {}).all_runs()
    runs = Experiments({})
    log = runs.folder(run) / experiments.LOG
    with pytest.raises(Interrupted), raised():
        runs.make([run], 1, lambda *_: pytest.fail("came to its end"))
    assert log.read_text() == "begun\nsaved\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["table"], "table takes one name"),
        (["table", "mian"], "Unknown table 'mian'. Did you mean 'main'?"),
        (["figure", "main"], "'main' is a table"),
        (["table", "main", "--jobs=0"], "jobs=0 is not allowed"),
        (["table", "main", "--seed=3"], "give --seeds=3 for three"),
        (["table", "main", "--seeds=2020"], "give how many, 1 to 100, or a list, e.g. --seeds=[2020]"),
        (["table", "main", "--seeds=0"], "seeds=0 is not allowed"),
        (["table", "main", "--seeds=1,x"], "seeds='x' is not allowed"),
        (["table", "main", "--dataset=ring", "--paper"], "The paper prints no numbers for this part"),
    ],
)
def test_bad_input_is_one_line(ring, capsys, argv, message):
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        ("epoch 1\nerror: No room.\n", 2, "No room."),
        ("epoch 1\n", -9, "ended by SIGKILL (too little memory is a common reason); its last line: epoch 1"),
        ("", 3, "ended with exit status 3"),
        ("epoch 1\n", 0, "it ended well, but without a record of its settings"),
    ],
)
def test_a_failed_run_says_why_it_failed_and_not_why_one_before_it_did(ring, said, status, reason):
    def launch(arguments, log, descriptor):
        with log.open("a") as stream:
            stream.write(said)
        return status

    plan = narrowed(plan_of("main"), datasets=["ring"], models=["SASRec"], seeds=[1])
    (run,) = Grid(plan, {}).all_runs()
    made, runs = [], Experiments({}, launch=launch)
    runs.folder(run).mkdir(parents=True)
    (runs.folder(run) / experiments.LOG).write_text("error: of another day\n")
    runs.make([run], 1, lambda run, outcome: made.append(outcome.error))
    assert len(made) == 1 and made[0].startswith(reason)


def test_a_bad_setting_is_a_failed_cell_with_its_line(ring, monkeypatch, capsys):
    (ring / "mine.yaml").write_text(OWN.replace("{model: SASRec, learning_rate: 1e-2}", "{model: SASRec, alhpa: 1}"))
    monkeypatch.setattr(experiments, "_process", in_process([]))
    assert cli.main(["table", "mine.yaml", "--jobs=1"]) == 1
    assert "Failed: large, ring, seed 1: Unknown setting 'alhpa'" in capsys.readouterr().out


def test_a_reason_that_many_runs_share_is_said_once_and_a_plan_without_hope_makes_nothing(ring, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "_process", lambda *_: pytest.fail("made a run"))
    asked = ["table", "ablation", "--dataset=none", "--seeds=5"]
    assert cli.main([*asked, "--dry_run"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[1] == "60 runs, all of them will fail; to do: nothing"
    assert said[0].startswith("60 runs, the first of them --model=ILRec --dataset=none")
    assert cli.main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: table ablation: none of its 60 runs can be made: Unknown dataset 'none'")
    assert cli.main(["table", "main", "--dataset=none,nil", "--models=Pop"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "none of its 2 runs can be made: 1 of them: Unknown dataset 'none'" in line and "1 of them: Unknown" in line
    assert cli.main(["table", "main", "--dataset=ring,none", "--models=Pop,SASRec", "--dry_run"]) == 1
    said = capsys.readouterr().out
    assert "2 runs, the first of them --model=Pop --dataset=none" in said and said.endswith(
        "4 runs, 2 of them will fail; to do: 2 of unknown length (measure one: recbole-ilrec estimate "
        "and its options)\n"
    )
    assert not (ring / "tables").exists() and not (ring / "saved").exists()


def test_data_that_cannot_be_downloaded_are_asked_for_once_before_any_run(ring, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "_process", lambda *_: pytest.fail("made a run"))
    asked = []

    def unreachable(name, *_):
        asked.append(name)
        raise UserError(f"{name} cannot be downloaded: no network.")

    monkeypatch.setattr("recbole_ilrec.preparation.pipeline.prepare", unreachable)
    assert cli.main(["table", "main", "--dataset=Art", "--models=Pop", "--dry_run"]) == 0 and not asked
    assert "--seed=2020: time and memory unknown: its data are not here and would be" in capsys.readouterr().out
    assert cli.main(["table", "main", "--dataset=Art", "--models=Pop,SASRec", "--seeds=2"]) == 2
    assert "none of its 4 runs can be made: Art cannot be downloaded" in capsys.readouterr().err.splitlines()[-1]
    assert asked == ["Art"]


def test_the_datasets_are_counted_as_the_paper_counts_them(ring, capsys):
    assert cli.main(["table", "datasets", "--dataset=ring,none"]) == 1
    out = capsys.readouterr().out
    users, items = 61, 25
    interactions = sum(len(sequence) for sequence in ring_world()[0])
    assert f"| ring | {users} | {items} | {interactions} | {1 - interactions / users / items:.2%} |" in out
    assert "| none | failed | failed | failed | failed |" in out and "Failed: none: Unknown dataset 'none'" in out


def test_layer_losses_of_the_runs_are_drawn_layer_by_layer(ring, monkeypatch):
    from recbole_ilrec.report.figure import points
    from recbole_ilrec.verbs.figures import picture

    plan = narrowed(plan_of("layer-losses"), datasets=["ring"], seeds=[1, 2])
    grid = Grid(plan, {})
    log = [{"epoch": e, "step": e, "losses": [3.0 - e, 2.0 - e, 1.0 - e]} for e in (1, 2)]
    about = {"history_masked": False, "collisions": "expected", "code": "c"}
    result = {"test_result": {"hit@10": 0.1, "ndcg@10": 0.1}, "layer_losses": log}
    outcomes = {run: Outcome({"result": result, "evaluation": about}) for run in grid.all_runs()}
    drawn = picture(grid, results_table(grid, outcomes), outcomes)
    (panel,) = drawn.panels
    assert [s.label for s in panel.series] == ["L-2", "L-1", "L"]
    head, first, *_, last = points(drawn).splitlines()
    assert head == "panel,of,series,x,mean,deviation"
    assert first.startswith('"LC-Rec') and first.endswith(",L-2,1.0,2,0") and last.endswith(",L,2.0,-1,0")
    assert panel.series[2].mean == (0.0, -1.0) and panel.series[0].x == (1.0, 2.0)
    one, two = grid.all_runs()
    missing = {one: outcomes[one], two: Outcome(error="no room")}
    with pytest.raises(UserError, match="in the runs of all seeds"):
        picture(grid, results_table(grid, missing), missing)
    partly = results_table(grid, {one: outcomes[one], two: Outcome()})
    assert (
        partly.notes == ("Not all runs are there yet: LC-Rec (1 of 2).",) and not partly.blocks[0][1][0].cells[0].text
    )
    assert not results_table(grid, outcomes).notes
    del result["layer_losses"]
    with pytest.raises(UserError, match="train.layer_losses=true"):
        picture(grid, results_table(grid, outcomes), outcomes)


def test_the_cost_of_a_preference_run_is_counted_with_the_stage_it_shares():
    plan = narrowed(plan_of("efficiency"), datasets=["ring"], models=["SPRec"])
    grid = Grid(plan, {})
    stages = {
        "supervised": {"wall_seconds": 5, "epochs": 3, "earlier": {"wall_seconds": 540, "epochs": 5}},
        "preference": {"wall_seconds": 40, "epochs": 3},
        "sampling": {"sampling_passes": 3},
    }
    about = {"history_masked": False, "collisions": "expected", "code": "c"}
    result = {"result": {"test_result": {}}, "wall_seconds": 60, "stages": stages, "evaluation": about}
    cells = results_table(grid, {grid.all_runs()[0]: Outcome(json.loads(json.dumps(result)))}).blocks[0][1][0].cells
    assert [cell.shown() for cell in cells] == ["10.0", "11 (8 + 3)", "3"]


def test_an_archive_gives_the_table_again_without_data_or_runs(ring, monkeypatch, capsys):
    (ring / "own.yaml").write_text(
        "title: Two\ndatasets: [ring]\nseeds: [1, 2]\nmetrics: [hit@5, ndcg@5]\n"
        "settings: {epochs: 1, topk: [5], valid_metric: NDCG@5}\n"
        "blocks: [{ours: A, rows: {A: {model: SASRec}, B: {model: GRU4Rec}}}]\n"
    )
    (ring / "page.md").write_text("# Page\n<!-- own:begin -->\nold\n<!-- own:end -->\nafter\n")
    monkeypatch.setattr(experiments, "_process", in_process([]))
    assert cli.main(["table", "own.yaml", "--archive=own.jsonl", "--jobs=1"]) == 0
    first = capsys.readouterr().out
    assert "Holm over 2" in first, "the places of the true items are needed for this"
    for folder in ("dataset", "saved"):
        (ring / folder).rename(ring / f"no-{folder}")
    assert cli.main(["table", "own.yaml", "--from_archive=own.jsonl", "--into=page.md"]) == 0
    assert capsys.readouterr().out == first
    page = (ring / "page.md").read_text()
    assert page == f"# Page\n<!-- own:begin -->\n{first.strip()}\n<!-- own:end -->\nafter\n"
    (ring / "page.md").write_text(page.replace("own:", "second:"))
    assert cli.main(["table", "own.yaml", "--from_archive=own.jsonl", "--into=page.md#second"]) == 0
    assert (ring / "page.md").read_text() == page.replace("own:", "second:")
    assert str(ring) not in (ring / "own.jsonl").read_text(), "no folders of this machine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from_archive=none.jsonl"], "none.jsonl cannot be read"),
        (["--from_archive=bad.jsonl"], "bad.jsonl:1: no run of an archive"),
        (["--from_archive=empty.jsonl"], "empty.jsonl holds none of the 1 runs, e.g. '--model=LCRec --dataset=ring"),
        (["--from_archive=empty.jsonl", "--archive=other.jsonl"], "--from_archive runs nothing"),
        (["--from_archive=empty.jsonl", "--into=none.md"], "none.md cannot be read"),
    ],
)
def test_a_bad_archive_is_one_line(ring, capsys, options, message):
    (ring / "bad.jsonl").write_text("{}\n")
    (ring / "empty.jsonl").write_text("")
    assert cli.main(["table", "main", "--dataset=ring", "--models=LC-Rec", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
