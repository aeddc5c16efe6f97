"""What a run will take, before it is made: from like runs here, else from those whose costs are shipped."""

import json

import pytest

from recbole_ilrec import cli
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.presets import preset, properties_folder, read_yaml
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.plan import narrowed, read_plan
from recbole_ilrec.report.record import append_record
from recbole_ilrec.report.results import read_records
from recbole_ilrec.verbs import experiments, like_runs
from recbole_ilrec.verbs.experiments import Experiments
from recbole_ilrec.verbs.like_runs import Expected, expected_from, likeness, taken
from recbole_ilrec.verbs.shipped_costs import shipped_costs
from tests.test_search import in_process

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MADE = {"result": {"test_result": {}}, "evaluation": {"code": "c", "collisions": {}, "history_masked": False}}
SASREC = ("--dataset=ring", "--models=SASRec", "--quick", "--jobs=1")


def record_of(config, *, wall, memory=100, earlier=0.0, **changed):
    stages = {"supervised": {"wall_seconds": wall, "earlier": {"wall_seconds": earlier}}}
    settings = config.settings.model_dump(mode="json")
    record = {"config": config.as_dict(), "settings": settings, "wall_seconds": wall, "peak_memory_mb": memory}
    machine = {"processor": "abacus", "threads": 1, "commit": "0", "versions": {"torch": "2"}, "finished": "2026"}
    return {**record, "stages": stages, "device": str(config["device"]), **machine, **changed}


def test_runs_here_come_first_then_the_shipped_ones_and_their_machine_is_named(ring, monkeypatch):
    config = Config("SASRec", "ring", None, {"epochs": 3})
    other = record_of(Config("SASRec", "ring", None, {"epochs": 4}), wall=99.0)
    here = [record_of(config, wall=wall, memory=memory) for wall, memory in ((1.0, 5), (4.0, 7), (6.0, 6))]
    shipped = {"like": likeness(config), **taken([record_of(config, wall=9.0, earlier=2.0)]), "where": "abacus"}
    monkeypatch.setattr(like_runs, "_shipped", lambda: [{**shipped, "like": {}}, shipped])
    assert expected_from([other, *here], config) == Expected(4.0, 4.0, 7)
    assert expected_from([other], config) == Expected(11.0, 9.0, 100, "abacus")
    assert expected_from([], Config("SASRec", "ring", None, {"epochs": 5})) == Expected()
    elsewhere = {**here[0], "device": "meta"}  # the time of another kind of device says nothing
    assert expected_from([elsewhere], config).where


def test_costs_of_an_archive_are_what_a_plan_expects_where_nothing_was_made(ring, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "_process", in_process([]))
    assert cli.main(["table", "main", *SASREC, "--seeds=1,2", "--archive=made.jsonl"]) == 0
    (cost,) = shipped_costs([ring / "made.jsonl"])
    records = [record for path in (ring / "saved/planned").glob("*/records.jsonl") for record in read_records(path)]
    assert cost["runs"] == len(records) == 2 and cost["like"]["model"] == "SASRec" and cost["like"]["dataset"] == "ring"
    took = sorted(record["wall_seconds"] for record in records)
    assert took[0] - 0.1 <= cost["seconds"] <= took[1] + 0.1
    monkeypatch.setattr(like_runs, "_shipped", lambda: [cost])
    capsys.readouterr()
    assert cli.main(["table", "main", *SASREC, "--seeds=[3]", "--checkpoint_dir=new", "--dry_run"]) == 0
    run, total = capsys.readouterr().out.splitlines()
    assert "about 0." in run and run.endswith(f" GB (as on {cost['where']})")
    assert total.startswith("1 runs; to do: about ")
    assert total.endswith(f" min one after another (as on {cost['where']})")


def test_a_language_model_that_is_trained_for_longer_today_gives_no_cost(ring):
    record = {
        **MADE,
        "run": "--model=LCRec --dataset=ring --epochs=3 --seed=1",
        "stages": {"supervised": {"epochs": 2.0}},
    }
    (ring / "old.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="old.jsonl: '--model=LCRec .*was made with 2 epochs and would take 3 now"):
        shipped_costs([ring / "old.jsonl"])


def test_the_whole_takes_less_where_runs_share_what_they_begin_from(ring, capsys):
    config = Config("SASRec", "ring", None, {})
    append_record(ring / "saved/records.jsonl", {
        **record_of(config, wall=60.0, earlier=120.0),
        "config": {key: config[key] for key in config.final_config_dict if isinstance(config[key], int | str | list)},
        **{"model": "SASRec", "dataset": "ring", "seed": 0, "result": {}},
    })  # fmt: skip
    assert cli.main(["table", "main", "--dataset=ring", "--models=SASRec", "--seeds=2", "--dry_run"]) == 0
    first, _, total = capsys.readouterr().out.splitlines()
    assert first.endswith(": about 3.0 min, 0.1 GB")
    assert total == "2 runs; to do: about 2.0 to 6.0 min one after another"


def test_the_main_table_on_the_data_that_recbole_brings_is_costed_before_its_first_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = read_plan("main", read_yaml(preset("table", "main")))
    plan, made = narrowed(whole, datasets=["ml-100k"], backbones=["tiny"]), Experiments({})
    runs = [plan.run(row, column, 2020, {"device": "cpu"}) for _, row in plan.rows() for column in plan.columns()]
    assert runs and all(expected.where for expected in made.expected(runs).values())


def test_every_shipped_cost_says_where_it_is_from():
    for cost in read_yaml(properties_folder() / like_runs.SHIPPED)["costs"]:
        assert 0 < cost["own_seconds"] <= cost["seconds"] and cost["memory_mb"] > 100
        assert cost["where"] and cost["runs"] and cost["commits"] and cost["torch"]
