"""What plans, options and archives are refused, and which way the numbers of a table are read."""

import json
import re
from dataclasses import replace

import pytest

from recbole_ilrec import cli
from recbole_ilrec.configuration.presets import preset, read_yaml
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.plan import narrowed, read_plan
from recbole_ilrec.report.runs import LESS_IS_BETTER, Run, results_tables
from recbole_ilrec.report.table import Cell, Line, Table, latex, marked
from recbole_ilrec.verbs import experiments
from recbole_ilrec.verbs.archive import read_archive, write_archive
from recbole_ilrec.verbs.captions import framed
from recbole_ilrec.verbs.experiments import Outcome
from recbole_ilrec.verbs.printed import paper_table
from recbole_ilrec.verbs.tables import Grid, results_table

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COSTS = ("epoch_time", "user_time", "gpu_memory")
ABOUT = {"history_masked": False, "collisions": "expected", "code": "c", "data": "d"}


def plan_of(name):
    return read_plan(name, read_yaml(preset("table", name)))


def record(minutes=1.0, epochs=5, test_result=None, about=ABOUT):
    stages = {"supervised": {"wall_seconds": 1, "epochs": epochs}}
    result = {"test_result": test_result or {}}
    return Outcome({"result": result, "wall_seconds": 60 * minutes, "stages": stages, "evaluation": about})


def test_costs_of_an_epoch_and_of_a_user_are_columns():
    grid = Grid(replace(narrowed(plan_of("efficiency"), datasets=["ring"], models=["ILRec"]), metrics=COSTS), {})
    made = record(epochs=4)
    made.record["stages"] |= {"supervised/validation": {"wall_seconds": 0.2}, "evaluation": {"wall_seconds": 0.5}}
    test = dict.fromkeys(("rows_evaluated", "rows_in_split", "users_evaluated"), 200) | {"limited_by": None}
    made.record["evaluation"] = {**ABOUT, "test": test}
    made.record.update({"peak_gpu_memory_mb": 1000, "processor": "p", "device": "cuda:0", "gpu": "G", "processes": 2})
    table = results_table(grid, dict.fromkeys(grid.all_runs(), made))
    assert [cell.shown() for cell in table.blocks[0][1][0].cells] == ["0.2", "2.50", "1.0"]
    assert "Costs: p, G, 2 processes, threads" in table.caption


# ---- which number is the best


def test_a_failed_first_line_does_not_turn_the_marks_round():
    plan = narrowed(plan_of("efficiency"), datasets=["ring"], models=["SDPO", "RosePO", "ILRec"])
    grid = Grid(replace(plan, metrics=("time",)), {})
    for first in (Outcome(error="no room"), Outcome()):
        outcomes = dict(zip(grid.all_runs(), (first, record(90), record(10)), strict=True))
        cells = [line.cells[0] for line in results_table(grid, outcomes).blocks[0][1]]
        assert [(cell.best, cell.second) for cell in cells] == [(False, False), (False, True), (True, False)]


def test_metrics_of_which_less_is_better_are_those_of_recbole():
    from recbole.evaluator.register import metrics_dict

    assert {name for name, metric in metrics_dict.items() if metric.smaller} == LESS_IS_BETTER


def test_the_least_popular_and_most_even_lists_are_marked_in_tables_and_on_the_page():
    plan = narrowed(plan_of("main"), datasets=["ring"], models=["BIGRec", "BIGRec + RosePO"])
    plan = replace(plan, metrics=("giniindex@10", "itemcoverage@10"), blocks=plan.blocks[:1])
    grid = Grid(plan, {})
    found = [{"giniindex@10": 0.9, "itemcoverage@10": 0.9}, {"giniindex@10": 0.1, "itemcoverage@10": 0.1}]
    outcomes = {run: record(test_result=numbers) for run, numbers in zip(grid.all_runs(), found, strict=True)}
    lines = results_table(grid, outcomes).blocks[0][1]
    assert [[cell.best for cell in line.cells] for line in lines] == [[False, True], [True, False]]

    runs = [
        Run(n, {"model": m, "dataset": "ring", "seed": 1, "result": {"test_result": numbers}}, {})
        for n, m, numbers in zip((1, 2), "AB", found, strict=True)
    ]
    (table,) = results_tables(runs)
    assert [[cell.best for cell in line.cells[:2]] for line in table.blocks[0][1]] == [[False, True], [True, False]]


def test_of_the_papers_sampling_passes_the_fewest_are_the_best():
    plan = plan_of("efficiency")
    lines = paper_table(plan, plan).blocks[0][1]
    assert [line.label for line in lines if line.cells[2].best] == ["ILRec"] and lines[3].cells[2].shown() == "0"


def test_epochs_that_differ_over_seeds_are_a_mean_and_no_sum_of_the_first():
    plan = narrowed(plan_of("efficiency"), datasets=["ring"], models=["ILRec"], seeds=[1, 2, 3])
    grid = Grid(replace(plan, metrics=("epochs",)), {})

    def shown(*epochs):
        outcomes = {run: record(epochs=n) for run, n in zip(grid.all_runs(), epochs, strict=True)}
        return results_table(grid, outcomes).blocks[0][1][0].cells[0].shown()

    assert shown(5, 9, 9) == "7.7 ± 2.3" and shown(5, 5, 5) == "5"


def test_no_character_of_a_label_or_an_error_stops_latex():
    text = latex(Table("t", "at 10^-3 ~ λ ≤ Ω|", (("x",),), (("", marked([Line("[a] µ−1", (Cell(text="→"),))])),)))
    assert r"at 10\textasciicircum{}-3 \textasciitilde{} $\lambda$ $\le$ $\Omega$\textbar{}" in text
    assert r"{[}a] $\mu$$-$1 & $\to$" in text


# ---- plans


BLOCKS = [{"rows": {"A": {"model": "SASRec"}}}]
WHOLE = {"title": "x", "datasets": ["ring"], "metrics": ["hit@10"], "blocks": BLOCKS}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": 3}, "seeds=3 is not allowed: give a list"),
        ({"seeds": ["a"]}, "seed 1 is 'a': give a whole number"),
        ({"seeds": [7, 7]}, "seed 7 stands twice"),
        ({"columns": ["a", "b"]}, "columns=['a', 'b'] is not allowed: give a mapping"),
        ({"columns": {"a": 3}}, "column a is 3: give a mapping"),
        ({"datasets": "ring"}, "datasets='ring' is not allowed: give a list"),
        ({"metrics": "hit@10"}, "metrics='hit@10' is not allowed: give a list"),
        ({"figure": "bars"}, "figure='bars' is not allowed: give a mapping"),
        ({"paper": {"A": 0.1}}, "paper A is 0.1: give a list of numbers"),
        ({"paper": {"A": [0.1, 0.2]}}, "paper, 'A' has 2 numbers: give 1"),
        ({"blocks": ["A"]}, "block 1 is 'A': give a mapping"),
        ({"blocks": [{"rows": {"A": None}}]}, "each with its 'model'"),
        ({"blocks": [{"rows": ["A"]}]}, "each with its 'model'"),
        ({"blocks": [{**BLOCKS[0], "our": "A"}]}, "unknown key 'our' of a block. Did you mean 'ours'?"),
    ],
)
def test_a_plan_of_the_wrong_kind_is_one_line(changed, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_plan("mine", {**WHOLE, **changed})
    assert "table plan 'mine'" in str(caught.value)


def test_what_a_plan_leaves_empty_is_left_out():
    plan = read_plan("mine", {**WHOLE, "seeds": None, "columns": {"a": None}, "figure": {"kind": "bars", "x": None}})
    assert plan.seeds == (2020,) and plan.columns()[0].settings == {} and plan.figure["x"] == ""


def test_a_line_that_is_called_like_a_model_is_chosen_alone():
    chosen = narrowed(plan_of("ablation"), models=["ilrec"])
    assert [row.label for _, row in chosen.rows()] == ["ILRec"]
    both = narrowed(plan_of("main"), models=["ILRec"])
    assert [row.label for _, row in both.rows()] == ["BIGRec + ILRec", "LC-Rec + ILRec"]


def test_a_paradigm_without_a_model_is_named():
    plan = read_plan("mine", {**WHOLE, "blocks": [{"rows": {"A": {"model": {"bigrec": "BIGRec", "lcrec": "LCRec"}}}}]})
    with pytest.raises(
        UserError, match="paradigm=title is not allowed: line 'A' of table 'mine' names models for bigr"
    ):
        Grid(plan, {"paradigm": "title"}).all_runs()


# ---- options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sensitivity", "--alpha=0.8"],
            "--alpha=0.8 contradicts line 'alpha = 0.1' of table 'sensitivity', which sets",
        ),
        (["sensitivity", "--ilrec.alpha=0.8"], "--ilrec.alpha=0.8 contradicts line 'alpha = 0.1'"),
        (["main", "--paradigm=bigrec"], "--paradigm=bigrec contradicts line 'LC-Rec + RosePO'"),
        (["backbones", "--paradigm=title"], "--paradigm=title contradicts column 'BIGRec'"),
        (["main", "--seeds=7,7"], "seed 7 stands twice"),
        (["main", "--saved=false"], "runs are found again by what they saved"),
        (["main", "--dataset=ring", "--topk=[20]"], "no run computes hit@5: choose from hit@20, "),
        (["main", "--dataset=Art", "--topk=[20]"], "no run computes hit@5"),  # not there yet
        (["typo.yaml", "--dry_run"], "no run computes hitt@10"),
        (["datasets", "--from_archive=y.jsonl"], "counts data and makes no runs: leave --from_archive out"),
        (["datasets", "--archive=y.jsonl"], "leave --archive out"),
        (["datasets", "--dry_run"], "leave --dry_run out"),
        (["datasets", "--into=none.md"], "none.md cannot be read"),
    ],
)
def test_an_option_that_would_not_do_what_it_says_is_one_line(ring, monkeypatch, capsys, argv, message):
    (ring / "typo.yaml").write_text(
        "title: x\ndatasets: [ring]\nmetrics: [hitt@10]\nblocks: [{rows: {A: {model: Pop}}}]\n"
    )
    monkeypatch.setattr(experiments, "_process", lambda *_: pytest.fail("made a run"))
    assert cli.main(["table", *argv]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and len(error) == 1


def test_what_a_plan_sets_for_all_runs_can_be_overridden_and_a_part_without_the_setting_too():
    plan_of("efficiency").refuse_overwritten({"paradigm": "bigrec"})
    plan_of("sensitivity").refuse_overwritten({"paradigm": "bigrec", "k": 2})
    narrowed(plan_of("sensitivity"), models=["LC-Rec"]).refuse_overwritten({"alpha": 0.8})
    narrowed(plan_of("sensitivity"), models=["alpha = 0.8"]).refuse_overwritten({"ilrec": {"alpha": 0.8}})


def test_metrics_of_one_family_costs_and_choices_among_candidates_are_columns(ring, capsys):
    (ring / "mixed.yaml").write_text(
        "title: x\ndatasets: [ring]\nmetrics: [hit@10, itemcoverage@10, validratio, time]\n"
        "blocks: [{rows: {A: {model: Pop, metrics: [Hit, NDCG, ItemCoverage]}, "
        "B: {model: BIGRec, task: candidates}}}]\n"
    )
    assert cli.main(["table", "mixed.yaml", "--dry_run"]) == 2  # without titles nothing chooses among candidates
    assert "no run computes validratio" in capsys.readouterr().err
    (ring / "dataset/ring/ring.item").write_text("item_id:token\ttitle:token_seq\ni1\tOne\n")
    assert cli.main(["table", "mixed.yaml", "--dry_run"]) == 0
    assert "2 runs; to do" in capsys.readouterr().out


def test_counts_of_data_come_into_a_page(ring, capsys):
    (ring / "page.md").write_text("<!-- datasets:begin -->\nold\n<!-- datasets:end -->\n")
    assert cli.main(["table", "datasets", "--dataset=ring", "--into=page.md"]) == 0
    assert "| ring | 61 |" in (ring / "page.md").read_text() and "old" not in (ring / "page.md").read_text()


# ---- archives


def test_quick_numbers_never_come_out_of_an_archive_as_results(ring, capsys):
    plan = narrowed(plan_of("main"), datasets=["ring"], models=["Pop"])
    (run,) = Grid(plan, {}).all_runs()
    numbers = dict.fromkeys(plan.metrics, 0.5)
    outcomes = {run: record(test_result=numbers)}
    table = ["table", "main", "--dataset=ring", "--models=Pop"]
    for quick, options, wrong in ((True, ["--quick"], []), (False, [], ["--quick"])):
        write_archive(ring / "a.jsonl", outcomes, quick=quick)
        assert cli.main([*table, *wrong, "--from_archive=a.jsonl"]) == 2
        assert f"a.jsonl:1: these numbers were made {'with' if quick else 'without'} --quick" in capsys.readouterr().err
        assert cli.main([*table, *options, "--from_archive=a.jsonl"]) == 0
        assert ("QUICK SETTINGS" in capsys.readouterr().out) == quick
    text = (ring / "a.jsonl").read_text()
    (ring / "old.jsonl").write_text(text.replace('"quick": false, ', ""))
    assert (ring / "old.jsonl").read_text() != text, "of an earlier version"
    assert set(read_archive(ring / "old.jsonl", quick=False)) == {str(run)}


def test_a_spoilt_archive_is_refused_by_its_line(ring):
    (run,) = Grid(narrowed(plan_of("main"), datasets=["ring"], models=["Pop"]), {}).all_runs()
    write_archive(ring / "a.jsonl", {run: record(test_result={"hit@5": 0.5})}, quick=False)
    whole = json.loads((ring / "a.jsonl").read_text())
    lines = {
        "a second line of a run": [whole, whole],
        "'result' is missing": [{key: value for key, value in whole.items() if key != "result"}],
        "'evaluation' is missing or has no 'code'": [{**whole, "evaluation": {}}],
        "'places' is garbled": [{**whole, "places": {"user": "0" * 20}}],
    }
    for told, records in lines.items():
        (ring / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        with pytest.raises(UserError, match=f"a.jsonl:{len(records)}: {told}"):
            read_archive(ring / "a.jsonl", quick=False)


def test_numbers_of_other_data_are_named_in_the_caption():
    plan = plan_of("main")
    records = [{"dataset": "ring", "evaluation": {"code": "c", "data": key}} for key in "ab"]
    assert "Not comparable within ring: 2 versions of its data" in framed(plan, records, [], False, {})
    assert "Not comparable" not in framed(plan, records[:1], [], False, {})
