"""The page of results: everything escaped, nothing loaded, what is missing said, and the way from runs to the file."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from recbole_ilrec import cli
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces
from recbole_ilrec.evaluation.user_ranks import ranks_file, write_ranks
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.report.accounts import costs_table
from recbole_ilrec.report.curves import layer_series, run_picture
from recbole_ilrec.report.markup import Markup, table_element, tag
from recbole_ilrec.report.page import Content, is_page, page
from recbole_ilrec.report.runs import Run, conditions, deciding, results_tables
from recbole_ilrec.report.table import Cell, Line, Table, marked
from recbole_ilrec.runtime.history import HISTORY, read_history, write_history
from recbole_ilrec.verbs import experiments
from recbole_ilrec.verbs.report import read_runs
from tests.worlds import QUICK

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HOSTILE = "<img src=x onerror=alert(1)>\"'&</style></script><script>alert(2)</script> $\\frac$ ]]>"


class Parsed(HTMLParser):
    """Elements, texts and attributes of a page; fails where an element is closed that is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += [(name, *pair) for pair in attributes]
        if name not in ("meta", "br"):
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.tags.append(name)
        self.attributes += [(name, *pair) for pair in attributes]

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


def record(model="LCRec", seed=1, value=0.25, **changed):
    part = {
        "rows_in_split": 60, "rows_evaluated": 60, "users_evaluated": 60, "limited_by": None, "found": 0.5, "tied": 0.0,
        "policies": {"expected": {"hit@10": value, "hit@5": value / 2}}, "ranks": "ranks-test.safetensors",
    }  # fmt: skip
    certificate = {
        "valid": part, "test": part, "collisions": "expected", "history_masked": True, "lists": {"valid": 1.0},
        "candidates": {"test": "full"}, "tie_rule": "rule", "data": "d" * 64, "run": f"{model}{seed}", "code": "c",
        "weights": "w", "settings": "s",
    }  # fmt: skip
    stages = {"supervised": {"wall_seconds": 30.0, "cpu_seconds": 20.0, "epochs": 3.0}}
    return {
        "model": model, "dataset": "ring", "seed": seed, "command": f"run --model={model}", "commit": "abc",
        "result": {"test_result": {"hit@10": value, "hit@5": value / 2}}, "config": {"epochs": 3, "seed": seed},
        "settings": {"ilrec": {"alpha": 0.8}}, "evaluation": certificate, "stages": stages, "wall_seconds": 60.0,
        "cpu_seconds": 50.0, "peak_memory_mb": 500, "peak_gpu_memory_mb": None, "parameters": 1000, "threads": 1,
        "versions": {"torch": "2"}, "python": "3.11", "processor": "some", "cores": 2, "device": "cpu",
        "finished": f"2026-01-01T00:00:0{seed}+00:00",
        "data": {"users": 61, "items": 25, "interactions": 600, "sparsity": 0.6},
        "findings": [{"group": "data", "check": "ties", "level": "attention", "text": "equal times"}],
    } | changed  # fmt: skip


LINES = [
    {"epoch": e, "train/loss": 3.0 - e, "train/part/cpo": 2.0, "train/part/crr": 1.0, "valid/hit@10": e} for e in (1, 2)
]


def runs_of(*records, history=()):
    return [Run(n, one, deciding(one, ()), history) for n, one in enumerate(records, start=1)]


def page_of(runs, **more):
    return page(Content(**{"title": "Results", "made": "today", "runs": runs, **more}))


# ---- markup and tables


def test_what_is_not_made_as_an_element_is_text():
    made = tag("p", HOSTILE, tag("b", "x & y"), title=HOSTILE)
    assert isinstance(made, Markup) and made.count("<") == 4 and "<b>x &amp; y</b>" in made
    assert Parsed(made).attributes == [("p", "title", HOSTILE)] and Parsed(made).text == HOSTILE + "x & y"


def test_a_table_has_the_numbers_and_marks_of_its_cells():
    lines = [Line("a", (Cell((0.1, 0.2), 0.15, 0.07), Cell(text="failed"))), Line("b", (Cell((0.3,), 0.3), Cell()))]
    table = Table("t", "caption", (("Data", "Data"), ("Hit", "Time")), (("block", marked(lines)),), ("a note",))
    made = table_element(table, links={"a": "#there"})
    assert "<u>0.1500 ± 0.0700</u>" in made and "<strong>0.3000</strong>" in made and "<td>failed</td>" in made
    assert '<th scope="colgroup" colspan="2">Data</th>' in made and '<a href="#there">a</a>' in made
    assert '<tbody><tr class="block"><th colspan="3" scope="rowgroup"><span>block</span></th></tr>' in made
    assert "a note" in made and "caption" in Parsed(made).text


# ---- what is compared with what


def test_seeds_are_averaged_and_of_a_repeated_seed_the_newest_counts():
    old = record(seed=1, value=0.9, finished="2025-01-01T00:00:00+00:00")
    (table,) = results_tables(runs_of(old, record(seed=1, value=0.1), record(seed=2, value=0.3)))
    ((_, (line,)),) = table.blocks
    assert table.head[-1] == ("Hit@5", "Hit@10", "Ties", "Seeds", "Runs")
    assert line.cells[1].values == (0.1, 0.3) and line.cells[1].mean == pytest.approx(0.2)
    assert [cell.text for cell in line.cells[2:]] == ["expected", "1, 2", "2, 3"]


def test_runs_that_read_other_files_are_not_taken_for_seeds_of_one_line():
    def made(seed, configuration):
        one = record(seed=seed)
        return one | {"evaluation": one["evaluation"] | {"configuration": configuration}}

    (table,) = results_tables(runs_of(made(1, "a" * 16), made(2, "a" * 16), made(3, "b" * 16)))
    ((_, lines),) = table.blocks
    assert sorted(line.label for line in lines) == ["LCRec, files=aaaaaaaa", "LCRec, files=bbbbbbbb"]
    (table,) = results_tables(runs_of(made(1, "a" * 16), made(2, "a" * 16), record(seed=3)))
    assert [line.label for _, lines in table.blocks for line in lines] == ["LCRec"], "an older record does not say"


def test_a_mean_over_seeds_is_that_of_the_users_and_not_of_four_digits(tmp_path):
    """One of 6 users is hit, then one of 7: .1667 and .1429, whose mean is .1548; of the users' it is .154762."""
    found = []
    for seed, users in enumerate((6, 7), start=1):
        before = torch.tensor([0] + [MISSING] * (users - 1))
        places = TargetPlaces(before, torch.ones_like(before), torch.zeros_like(before), before)
        write_ranks(ranks_file(tmp_path / f"moved-{seed}", "test"), torch.arange(users), places, {})
        result = {"test_result": {"hit@5": round(1 / users, 4), "mrr@5": 0.5}}
        found.append((record(seed=seed, result=result, folder=f"elsewhere/moved-{seed}"), tmp_path / "records.jsonl"))
    (table,) = results_tables(read_runs(found)[0])
    ((_, (line,)),) = table.blocks
    assert line.cells[0].mean == pytest.approx((1 / 6 + 1 / 7) / 2, abs=1e-12) and line.cells[1].mean == 0.5
    ranks_file(tmp_path / "moved-1", "test").write_bytes(b"torn")
    runs, missing = read_runs(found)
    assert runs[0].test("hit@5") == 0.1667 and "Means over seeds take four digits of LCRec, seed 1" in missing[0]


def test_only_numbers_made_under_the_same_conditions_are_marked_against_each_other():
    kept = record(model="ILRec", value=0.9)
    kept["evaluation"]["history_masked"] = False
    few = record(model="SPRec", value=0.8)
    few["evaluation"]["test"] = {**few["evaluation"]["test"], "rows_evaluated": 20, "limited_by": "eval_users"}
    first_place = record(model="BIGRec", value=0.7)
    first_place["evaluation"]["collisions"] = "optimistic"
    scored = record(model="SASRec", value=0.05)
    scored["evaluation"]["collisions"] = "torch.topk"
    own = record(value=0.2), record(model="SDPO", value=0.1), scored
    (table,) = results_tables(runs_of(kept, few, first_place, *own))
    found = {label: {line.label: line.cells[1].best for line in lines} for label, lines in table.blocks}
    together = [("BIGRec",), ("ILRec",), ("LCRec", "SASRec", "SDPO"), ("SPRec",)]
    assert sorted(map(tuple, map(sorted, found.values()))) == together
    assert [name for lines in found.values() for name, best in lines.items() if best] == ["LCRec"]
    assert any("20 of 60 test rows (eval_users)" in label for label in found)
    assert "made by an earlier version" in conditions({"model": "A"})


def test_runs_without_a_language_model_differ_by_their_typed_settings_too():
    runs = runs_of(*(record("Transitions", settings={"transitions": {"decay": decay}}) for decay in (0.3, 0.9)))
    labels = [line.label for line in results_tables(runs)[0].blocks[0][1]]
    assert labels == ["Transitions, transitions.decay=0.3", "Transitions, transitions.decay=0.9"]


def test_lines_of_a_model_are_named_by_the_settings_that_differ():
    other = record(settings={"ilrec": {"alpha": 0.5}})
    (table,) = results_tables(runs_of(record(), other))
    assert [line.label for line in table.blocks[0][1]] == ["LCRec, ilrec.alpha=0.8", "LCRec, ilrec.alpha=0.5"]
    (table,) = results_tables(runs_of(record(), other, record(config={"epochs": 5})))
    assert [line.label for line in table.blocks[0][1]] == ["LCRec", "LCRec, ilrec.alpha=0.5", "LCRec, epochs=5"]


# ---- the page


def test_hostile_data_stays_text_everywhere():
    bad = record(model=HOSTILE, dataset=HOSTILE, command=HOSTILE, note=HOSTILE, commit=HOSTILE, processor=HOSTILE)
    bad |= {"settings": {"a": {HOSTILE: HOSTILE}}, "versions": {HOSTILE: HOSTILE}}
    bad["findings"] = [{"group": HOSTILE, "check": HOSTILE, "level": HOSTILE, "text": HOSTILE}]
    bad["stages"] = {HOSTILE: {"wall_seconds": 1.0, HOSTILE: 2.0}}
    bad["result"] = {"test_result": {HOSTILE: 0.5}, "layer_losses": [{"epoch": 1.0, "losses": [1.0, 2.0]}]}
    bad["evaluation"] |= {"tie_rule": HOSTILE, "collisions": HOSTILE, "run": HOSTILE, "candidates": HOSTILE}
    history = [{"epoch": 1.0, f"train/part/{HOSTILE}": 1.0, "train/part/b": 1.0, f"valid/{HOSTILE}": 1.0}]
    other = copy.deepcopy(bad) | {"settings": {"a": {HOSTILE: "x"}}}
    text = page_of(
        runs_of(bad, other, history=history), title=HOSTILE, missing=[HOSTILE], sources=[HOSTILE], version=HOSTILE
    )
    parsed = Parsed(text)
    assert parsed.tags.count("script") == 1 and not {"img", "iframe", "link", "object"} & {*parsed.tags}
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count(HOSTILE) > 20


def test_the_page_loads_nothing_and_its_links_lead_to_places_on_it():
    parsed = Parsed(page_of(runs_of(record(), record("ILRec"), history=LINES)))
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    leads = [value for _, name, value in parsed.attributes if name in ("href", "xlink:href", "src", "data", "action")]
    assert leads and all(lead.startswith("#") and lead[1:] in ids for lead in leads)
    assert not re.findall(r"url\((?!#)|@import", page_of(runs_of(record(), history=LINES)))
    assert "svg" in parsed.tags and "default-src 'none'" in str(parsed.attributes)


def test_each_number_stands_beside_its_conditions_and_curves_say_whose_they_are():
    said = Parsed(page_of(runs_of(record(), history=LINES))).text
    for words in (
        "60 of 60 test rows, items of the history left out, ranked among all items, data dddddddd",
        "Run 1 LCRec, ring, seed 1. Losses are means",
        "Validation on 60 of 60 validation rows, ties: expected.",
        "Training, part crr",
        "data, ties: attention. equal times",
        "61256006",  # users, items, interactions: cells beside each other
    ):
        assert words in said, words


def test_a_run_costs_what_was_done_for_it_earlier_too():
    spent = {"wall_seconds": 30.0, "cpu_seconds": 20.0, "earlier": {"wall_seconds": 60.0, "cpu_seconds": 30.0}}
    cells = costs_table(runs_of(record(stages={"supervised": spent}))).blocks[0][1][0].cells
    assert (cells[0].mean, cells[1].mean) == (pytest.approx(120 / 60), pytest.approx(80 / 60))


def test_a_layers_curve_is_the_mean_over_seeds_as_far_as_all_of_them_go():
    longer = [{"epoch": 1, "losses": [1.0]}, {"epoch": 2, "losses": [9.0]}]
    (layer,) = layer_series([longer, [{"epoch": 1, "losses": [3.0]}]])
    assert (layer.x, layer.mean, layer.deviation) == ((1.0,), (2.0,), (pytest.approx(2**0.5),))


def test_a_step_that_was_made_twice_counts_as_it_was_made_last():
    (run,) = runs_of(record(), history=[{"epoch": 1, "train/loss": 5.0}, {"epoch": 1, "train/loss": 4.0}])
    assert run_picture(run).panels[0].series[0].mean == (4.0,)


def test_what_is_missing_is_said():
    bare = record()
    for key in ("evaluation", "stages", "data", "findings", "versions", "commit", "parameters"):
        del bare[key]
    said = Parsed(page_of(runs_of(bare), missing=["The folder is gone."])).text
    for words in (
        "No certificate in the record",
        "No losses were kept",
        "No cost of stages in the record",
        "No record holds the counts",
        "No record holds findings",
        "Runs 1: no certificate",
        "Runs 1: no history of losses",
        "The folder is gone.",
    ):
        assert words in said, words


def test_without_matplotlib_the_page_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "Not drawn: Figures need matplotlib" in Parsed(page_of(runs_of(record(), history=LINES))).text


# ---- histories


def test_a_resumed_run_has_the_history_of_one_that_was_not_interrupted(ring):
    settings = {**QUICK, "epochs": 2, "eval_step": 1, "train_batch_size": 200, "train.valid_users": 20}
    run_recbole_ilrec("LCRec", "ring", config_dict=settings)
    (folder,) = (ring / "saved").glob("LCRec-*")
    whole = read_history(folder)
    assert [line["epoch"] for line in whole if "valid/hit@10" in line] == [1.0, 2.0]
    assert [line["epoch"] for line in whole if "train/loss" in line][-1] == 2.0
    older, newest = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(newest)
    (folder / HISTORY).write_text((folder / HISTORY).read_text() + '{"epoch": 9}\n')  # of steps that are gone
    run_recbole_ilrec("LCRec", "ring", config_dict={**settings, "resume_from_checkpoint": str(folder)})
    assert read_history(folder) == whole
    (folder / HISTORY).unlink()
    assert [line["epoch"] for line in read_history(folder) if "train/loss" in line][-1] == 2.0  # of the checkpoint
    made = [json.loads(line) for line in (ring / "saved/records.jsonl").read_text().splitlines()]
    assert made[0]["data"]["users"] == 61 and {"group", "check", "level", "text"} <= made[0]["findings"][0].keys()


def test_a_run_resumed_within_an_epoch_has_the_losses_of_one_that_was_not_interrupted(ring):
    settings = {**QUICK, "epochs": 1, "train_batch_size": 25, "train.log_steps": 4, "save_steps": 6}
    settings |= {"train.keep_checkpoints": 9, "train.valid_users": 5}
    run_recbole_ilrec("LCRec", "ring", config_dict=settings)
    (folder,) = (ring / "saved").glob("LCRec-*")
    whole = [(line["step"], line["train/loss"]) for line in read_history(folder) if "train/loss" in line]
    for path in folder.glob("checkpoint-*"):
        if path.name != "checkpoint-6":
            shutil.rmtree(path)
    run_recbole_ilrec("LCRec", "ring", config_dict={**settings, "resume_from_checkpoint": str(folder)})
    assert [(line["step"], line["train/loss"]) for line in read_history(folder) if "train/loss" in line] == whole


def test_one_of_recboles_models_keeps_its_history_too(ring):
    settings = {"epochs": 2, "eval_step": 1, "show_progress": False, "state": "WARNING", "device": "cpu"}
    run_recbole_ilrec("SASRec", "ring", config_dict={**settings, "hidden_size": 16, "inner_size": 16})
    (folder,) = (ring / "saved").glob("SASRec-*")
    lines = read_history(folder)
    assert [line["epoch"] for line in lines if "train/loss" in line] == [1.0, 2.0]
    assert [line["epoch"] for line in lines if "valid/ndcg@10" in line] == [1.0, 2.0]


def test_a_history_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_history(tmp_path, LINES)
    with pytest.raises(TypeError):
        write_history(tmp_path, [{"epoch": 1.0, "x": object()}])
    assert read_history(tmp_path) == LINES and [path.name for path in tmp_path.iterdir()] == [HISTORY]
    assert read_history(tmp_path / "nothing") == []


# ---- the verb


def test_runs_tables_and_what_is_unfinished_come_onto_the_page_without_a_new_run(ring, monkeypatch, capsys):
    small = ("--device=cpu", "--epochs=1", "--hidden_size=16", "--inner_size=16")

    def launch(arguments, log, descriptor):
        return cli.main([*arguments, "--state=WARNING"])

    monkeypatch.setattr(experiments, "_process", launch)
    assert cli.main(["table", "main", "--dataset=ring", "--models=SASRec", "--seeds=1,2", "--jobs=1", *small]) == 0
    shutil.copytree(next((ring / "saved/planned").glob("*/SASRec-*")), ring / "saved/SASRec-cut")
    with (ring / "saved/planned/asked.jsonl").open("a") as stream:
        stream.write(json.dumps({"verb": "table", "words": ["gone.yaml"], "options": {}}) + "\n")
    monkeypatch.setattr(experiments, "_process", lambda *_: pytest.fail("made a run"))
    capsys.readouterr()
    assert cli.main(["report", "--out=pages/mine.html", "--title=A < B"]) == 0
    assert capsys.readouterr().out == "pages/mine.html: 2 runs\n"
    text = (ring / "pages/mine.html").read_text()
    said = Parsed(text).text
    given = "with epochs=1, hidden_size=16, inner_size=16"
    assert "A < B" in said
    assert f"Overall performance, {given}. Test part, all 60 users; mean ± standard deviation over seeds 1, 2." in said
    assert "SASRec-cut left no record" in said and "Not shown, table gone.yaml" in said
    assert "no history of losses" not in said and text.count("<svg") == 2
    assert cli.main(["report", "--out=pages/mine.html"]) == 0  # its own page is replaced
    (record_file, _) = sorted((ring / "saved/planned").glob("*/records.jsonl"))
    assert cli.main(["report", str(record_file), "--out=one.html"]) == 0
    assert "1 run on ring" in (ring / "one.html").read_text() and "Overall" not in (ring / "one.html").read_text()


def test_a_figure_and_the_table_of_its_numbers_are_one_place_on_the_page(ring, monkeypatch, capsys):
    (ring / "own.yaml").write_text(
        "title: Steps\ndatasets: [ring]\nmetrics: [hit@5]\nsettings: {device: cpu}\n"
        'blocks: [{rows: {A: {model: Pop}, B: {model: Pop}}}]\nfigure: {kind: bars, x: ""}\n'
    )
    monkeypatch.setattr(experiments, "_process", lambda arguments, *_: cli.main([*arguments, "--state=WARNING"]))
    for call in (["table"], ["table", "--against=A", "--out=elsewhere"], ["figure"]):
        assert cli.main([call[0], "own.yaml", "--jobs=1", *call[1:]]) == 0
    assert cli.main(["report"]) == 0
    text = (ring / "report.html").read_text()
    assert text.count("<h3>own-against</h3>") == 1 and "Difference to A: mean over the seeds" in Parsed(text).text
    assert text.count("<h3>own</h3>") == 1 and "as error bars" not in text and 'id="asked-0"' in text
    assert text.count('id="asked-2"') == 0 and "Steps. Test part, all 60 users; one seed" in Parsed(text).text


def test_trials_of_a_search_are_named_and_not_shown(ring, capsys):
    trial = ("run", "--model=Pop", "--dataset=ring", "--device=cpu", "--state=WARNING", "--eval_test=false")
    assert cli.main(trial) == 0 and cli.main(["report"]) == 2
    assert "no record of a run with numbers of the test part" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*trial[:-1], "--seed=3"]) == 0
    capsys.readouterr()
    assert cli.main(["report"]) == 0 and capsys.readouterr().out == "report.html: 1 runs\n"
    said = Parsed((ring / "report.html").read_text()).text
    assert "Runs without numbers of the test part (eval_test=false, as in a search): 1." in said
    assert "left no record" not in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out=mine.html"], "out=mine.html exists and is no report"),
        (["--out=."], "out=. is a folder"),
        (["--outt=x"], "Unknown option of report 'outt'"),
        ([], "There is no record of a run below --checkpoint_dir=saved"),
        (["none.jsonl"], "There is no file none.jsonl"),
        (["mine.html"], "mine.html: a line is no record"),
        (["other.jsonl"], "other.jsonl: record 1 has no model, dataset, seed or result"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("<p>my own page</p>\n")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    assert cli.main(["report", *argv]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "other.jsonl"]
    assert (tmp_path / "mine.html").read_text() == "<p>my own page</p>\n"


def test_a_page_is_known_again():
    assert is_page(page_of(runs_of(record()))[:4096]) and not is_page("<html>")


# ---- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_shows_the_page_runs_its_script_and_has_nothing_to_complain_of(tmp_path):
    (tmp_path / "page.html").write_text(page_of(runs_of(record(), record("ILRec"), history=LINES)), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    options += (
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'user'}",
    )
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [BROWSER, *options, "--window-size=900,1200", f"--screenshot={shot}", "--dump-dom",
         (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    if done.stdout:
        assert 'aria-sort="none"' in done.stdout  # made by the script, which the policy lets run
    from matplotlib.image import imread

    image = imread(shot)[..., :3]
    assert image.shape[:2] == (1200, 900)
    assert 0.01 < (image < 0.5).all(-1).mean() < 0.5  # ink on paper
