"""Lines of a table against one of them, seed by seed; and the tables of the study again from their archives."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from recbole_ilrec import cli
from recbole_ilrec.report.plan import read_plan
from recbole_ilrec.report.statistics import paired_over_seeds
from recbole_ilrec.report.table import markdown
from recbole_ilrec.verbs.differences import differences_table
from recbole_ilrec.verbs.experiments import Outcome
from recbole_ilrec.verbs.tables import Grid

ROOT = Path(__file__).parents[1]
PLAN = {
    "title": "Two methods",
    "datasets": ["ring"],
    "metrics": ["hit@5", "ndcg@10", "hit@10", "time"],
    "seeds": [1, 2, 3],
    "blocks": [{"rows": {"base": {"model": "LCRec"}, "ours": {"model": "ILRec"}, "other": {"model": "BIGRec"}}}],
}


def outcome(test, valid):
    result = {"test_result": test, "best_valid_result": valid}
    return Outcome({"result": result, "evaluation": {"code": "c", "collisions": "expected"}})


def outcomes_of(grid, numbers):
    """Numbers of a line, three seeds of ``(test, valid)`` each, as records; ``None`` for a run that is not there."""
    made = {}
    for run in grid.all_runs():
        number = numbers[run.model][run.settings["seed"] - 1]
        made[run] = Outcome() if number is None else outcome(*({"hit@10": x, "ndcg@10": x / 2} for x in number))
    return made


def test_seeds_are_paired_by_hand():
    ours, other = np.array([0.3, 0.5, 0.4]), np.array([0.2, 0.3, 0.1])
    assert paired_over_seeds(ours, other) == pytest.approx(stats.ttest_rel(ours, other).pvalue)
    assert paired_over_seeds(ours, ours) == 1.0 and paired_over_seeds(ours, ours - 0.1) is None
    assert paired_over_seeds(ours[:1], other[:1]) is None


def test_each_line_is_compared_over_the_seeds_that_both_have():
    grid = Grid(read_plan("two", PLAN), {})
    numbers = {
        "LCRec": [(0.2, 0.1), (0.3, 0.1), (0.1, 0.1)],
        "ILRec": [(0.3, 0.1), (0.5, 0.1), (0.4, 0.1)],
        "BIGRec": [(0.1, 0.2), None, None],
    }
    table = differences_table(grid, outcomes_of(grid, numbers), "base")
    assert table.head == (("ring",) * 4, ("test",) * 2 + ("validation",) * 2, ("NDCG@10", "Hit@10") * 2)
    ((_, (ours, other)),) = table.blocks
    assert (ours.label, other.label, table.name) == ("ours", "other", "two-against")
    p = stats.ttest_rel([0.3, 0.5, 0.4], [0.2, 0.3, 0.1]).pvalue
    assert ours.cells[1].text == f"+0.2000 (3 of 3, p = {p:.3f})".replace("= 0.", "= .")
    assert ours.cells[1].values == pytest.approx((0.1, 0.2, 0.3))
    assert ours.cells[3].text == "+0.0000 (0 of 3, p = 1.000)" and ours.cells[1].p == pytest.approx(min(1, 4 * p))
    assert [cell.text for cell in other.cells] == ["-0.0500", "-0.1000", "+0.0500", "+0.1000"]
    assert "after Holm over all 4" in table.caption and "Difference to base" in markdown(table)


def test_of_a_metric_that_is_better_when_smaller_the_smaller_seeds_are_ahead():
    grid = Grid(read_plan("two", {**PLAN, "metrics": ["giniindex@10"], "seeds": [1, 2]}), {})
    made = {}
    for run in grid.all_runs():
        value = {"LCRec": 0.5, "ILRec": 0.4, "BIGRec": 0.6}[run.model] + run.settings["seed"] / 100
        made[run] = outcome({"giniindex@10": value}, {"giniindex@10": value})
    ((_, (ours, other)),) = differences_table(grid, made, "base").blocks
    assert (ours.cells[0].text, other.cells[0].text) == ("-0.1000 (2 of 2)", "+0.1000 (0 of 2)")


def test_what_stays_after_the_correction_is_marked_and_a_block_of_the_base_alone_is_left_out():
    plan = read_plan("two", PLAN)
    base, ours = plan.blocks[0].rows[:2]
    block = plan.blocks[0]
    plan = replace(plan, blocks=(replace(block, label="A", rows=(base,)), replace(block, label="B", rows=(ours,))))
    grid = Grid(plan, {})
    numbers = {"LCRec": [(0.1, 0.1), (0.3, 0.2), (0.2, 0.2)], "ILRec": [(0.2, 0.1), (0.4001, 0.2), (0.3, 0.3)]}
    table = differences_table(grid, outcomes_of(grid, numbers), "base", quick=True)
    ((label, (line,)),) = table.blocks
    assert (label, table.name) == ("B", "two-quick-against")
    assert [cell.significant for cell in line.cells] == [True, True, False, False]
    assert "QUICK SETTINGS" in table.caption and "p < .001)†" in markdown(table)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["table", "ablation", "--against=ILRe"], "Did you mean 'ILRec'? Available: ILRec, w/o CNS,"),
        (["table", "datasets", "--against=Art"], "counts data and makes no runs: leave --against out"),
        (["table", "efficiency", "--against=ILRec"], "and table efficiency shows none: leave it out"),
        (["figure", "layers", "--against=LC-Rec"], "--against makes a second table: recbole-ilrec table layers"),
    ],
)
def test_what_cannot_be_compared_is_one_line(ring, capsys, argv, says):
    assert cli.main(argv) == cli.USAGE_ERROR
    assert says in capsys.readouterr().err.splitlines()[-1]


# ---- the study


STUDY = sorted((ROOT / "docs").glob("study*.md"))


def commands():
    """Every command of the study's pages that makes a table again, as arguments."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in STUDY).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^(recbole-ilrec table .*--from_archive.*)$", text, re.M)]


def marked_parts(page):
    return dict(re.findall(r"<!-- ([\w-]+):begin -->\n(.*?)\n<!-- \1:end -->", page.read_text(encoding="utf-8"), re.S))


def test_the_tables_of_the_study_come_again_from_their_archives(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    pages = {tmp_path / "docs" / page.name: page.read_text(encoding="utf-8") for page in STUDY}
    for page, whole in pages.items():
        page.write_text(re.sub(r"(:begin -->\n).*?(<!-- [\w-]+:end -->)", r"\1\2", whole, flags=re.S), encoding="utf-8")
        assert "|  | Industrial" not in page.read_text(encoding="utf-8")
    for command in commands():
        assert cli.main(command) == 0, command
    for page, whole in pages.items():
        assert page.read_text(encoding="utf-8") == whole, page.name


def test_the_tables_of_the_readme_are_those_of_the_study():
    study = {name: text for page in STUDY for name, text in marked_parts(page).items()}
    readme = marked_parts(ROOT / "README.md")
    assert readme and all(study[name] == text for name, text in readme.items())
