"""What a run leaves behind: its record, its certificate, where the true items stood, and what it cost."""

import json
import os
import shlex
import shutil
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("recbole")

from recbole_ilrec import __version__, quick_start, run_recbole_ilrec
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import contents, from_anywhere, keys_of, request_of, run_key, supervised_key
from recbole_ilrec.configuration.presets import properties_folder
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces, hit_and_ndcg, list_quality
from recbole_ilrec.evaluation.user_ranks import ranks_file, read_ranks, write_ranks
from recbole_ilrec.report.costs import (
    REWARD,
    epoch_seconds,
    epochs_of,
    note,
    note_earlier,
    noting_costs,
    seconds_before,
    spent_on,
    total,
)
from recbole_ilrec.report.record import machine
from recbole_ilrec.runs import certificate
from recbole_ilrec.runtime import run_folder
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.schema import Ranking
from tests.worlds import QUICK

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SHORT = {**QUICK, "epochs": 2, "eval_step": 1, "train_batch_size": 40, "num_beams": 10, "ilrec.cpd_share": 0.5}
CLASSICAL = {"epochs": 2, "hidden_size": 16, "inner_size": 16, "device": "cpu", "show_progress": False}


def record_of(result):
    return json.loads(open(result["record"], encoding="utf-8").read().splitlines()[-1])


@pytest.mark.parametrize(("model", "settings"), [("ILRec", SHORT), ("SASRec", {**CLASSICAL, "state": "WARNING"})])
def test_metrics_follow_from_the_kept_ranks_for_every_model(ring, model, settings):
    result = run_recbole_ilrec(model, "ring", config_dict=settings)
    assert type(result["best_valid_result"]) is type(result["test_result"]) is OrderedDict
    record = record_of(result)
    folder, about = ring / record["folder"], record["evaluation"]
    (ring / "new").touch()
    for split in ("valid", "test"):
        user, places, kept = read_ranks(ranks_file(folder, split))
        assert ranks_file(folder, split).stat().st_mode == (ring / "new").stat().st_mode  # others may compare runs
        assert kept["split"] == split and kept["data"] == about["data"]
        assert about[split]["rows_evaluated"] == about[split]["rows_in_split"] == len(user) == len(user.unique()) == 60
        for policy, values in about[split]["policies"].items():
            hit, ndcg = hit_and_ndcg(places, 10, policy)
            assert values["hit@10"] == pytest.approx(float(hit.mean()), abs=1e-4)
            assert values["ndcg@10"] == pytest.approx(float(ndcg.mean()), abs=1e-4)
    assert about["test"]["policies"]["expected"] == record["result"]["test_result"]
    assert about["valid"]["policies"]["expected"] == record["result"]["best_valid_result"]
    assert record["stages"]["supervised"]["epochs"] == 2 and record["parameters"] > 0
    assert about["run"] == run_key(Config(model, "ring", config_dict=settings))


def test_a_record_names_the_data_that_were_read_whatever_happens_to_the_files_meanwhile(ring, monkeypatch):
    path, work = ring / "dataset/ring/ring.inter", quick_start._train_and_evaluate
    before = keys_of(Config("SASRec", "ring", config_dict=CLASSICAL))

    def meanwhile(*arguments):
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        return work(*arguments)

    monkeypatch.setattr(quick_start, "_train_and_evaluate", meanwhile)
    record = record_of(run_recbole_ilrec("SASRec", "ring", config_dict={**CLASSICAL, "state": "WARNING"}))
    about = record["evaluation"]
    assert (about["data"], about["run"]) == (before.data, before.run)
    assert read_ranks(ranks_file(ring / record["folder"], "test"))[2]["data"] == before.data
    assert keys_of(Config("SASRec", "ring", config_dict=CLASSICAL)).data != before.data


def test_the_command_of_a_record_can_be_given_to_a_shell_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/recbole-ilrec", "run", "--reward.config={epochs: 2}", "--title=a'b"])
    about = machine()
    assert shlex.split(about["command"]) == ["recbole-ilrec", *sys.argv[1:]]
    assert about["versions"]["recbole_ilrec"] == __version__


def test_ranks_are_kept_as_agreed_and_read_back(tmp_path):
    places = TargetPlaces(*map(torch.tensor, ([0, 4, MISSING], [1, 3, 1], [0, 2, 0], [0, 2, MISSING])))
    path = write_ranks(ranks_file(tmp_path / "run", "test"), torch.tensor([5, 7, 9]), places, {"split": "test"})
    raw = load_file(path)
    assert raw["user"].tolist() == [5, 7, 9] and raw["user"].dtype == torch.int64
    assert raw["rank"].tolist() == [1.0, 6.0, torch.inf] and raw["rank"].dtype == torch.float32  # 5, 6 or 7: 6
    user, again, about = read_ranks(path)
    assert user.tolist() == [5, 7, 9] and about == {"split": "test"}
    assert all(torch.equal(a, b) for a, b in zip(vars(again).values(), vars(places).values(), strict=True))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="truncated"):
        read_ranks(path)
    with pytest.raises(UserError, match="does not exist"):
        read_ranks(tmp_path / "none")


def test_the_key_follows_what_decides_the_outcome_and_nothing_else(ring):
    def key(model="ILRec", **changes):
        return run_key(Config(model, "ring", config_dict={**SHORT, **changes}))

    first = key()
    assert key(checkpoint_dir="elsewhere", device="auto", eval_batch_size=7, save_steps=3, cache_dir="c") == first
    others = [key(seed=1), key(alpha=0.5), key(epochs=3), key("LCRec"), key(eval_users=9), key(topk=[3])]
    assert len({first, *others}) == 7
    assert key("LCRec", **{"preference.beta": 0.3, "ilrec.k": 1}) == key("LCRec"), "of no concern to it"
    assert len({key("SDPO"), key("SDPO", **{"preference.beta": 0.3})}) == 2
    assert run_key(Config("SASRec", "ring", config_dict={"alpha": 0.1})) == run_key(Config("SASRec", "ring"))
    index = ring / "dataset/ring/ring.index.json"
    index.write_text(index.read_text() + "\n")
    assert key() != first


def test_the_key_follows_the_content_of_what_a_setting_points_to(ring):
    prompt, backbone = ring / "own.yaml", ring / "model"
    prompt.write_text((properties_folder() / "prompt/compact.yaml").read_text())
    backbone.mkdir()
    (backbone / "config.json").write_text("{}")
    given = {**SHORT, "prompt.template": "own.yaml", "reward.checkpoint": "model"}
    config = Config("ILRec", "ring", config_dict=given)
    keys = [run_key(config)]
    for changed in (prompt, backbone / "config.json"):
        changed.write_text(changed.read_text() + "\n")
        keys.append(run_key(config))
    assert len(set(keys)) == 3
    request, settings = request_of(config)["config_dict"], from_anywhere(config.settings)
    assert request["prompt.template"] == settings.prompt.template == str(prompt)
    assert settings.reward.checkpoint == str(backbone) and settings.index.file is None
    os.chdir(ring / "dataset")
    assert Config("ILRec", "ring", config_dict=request).settings.prompt.template == str(prompt)


def test_a_file_has_one_key_however_it_is_typed_and_a_template_is_no_folder(ring, monkeypatch):
    def keys(**given):
        config = Config("LCRec", "ring", config_dict={**SHORT, **given})
        return run_key(config), supervised_key(config)

    (ring / "ids.json").write_bytes((ring / "dataset/ring/ring.index.json").read_bytes())
    plain, typed = keys(), keys(index_file="ids.json")
    assert keys(index_file=str(ring / "ids.json")) == keys(index_file="./ids.json") == typed != plain
    (ring / "compact").mkdir()  # the name of the template of tiny
    (ring / "lcrec").mkdir()
    (ring / "lcrec" / "raw.txt").write_text("anything")
    assert keys() == plain


def test_another_model_under_the_same_name_is_read_anew(ring):
    backbone = ring / "model"
    backbone.mkdir()
    (backbone / "config.json").write_text("{}")
    settings = Config("LCRec", "ring", config_dict={**SHORT, "backbone.path": "model"}).settings
    before = contents(settings, "backbone")
    (backbone / "config.json").write_text("{} ")
    assert before and contents(settings, "backbone") != before
    assert contents(settings, "index") == {}


def test_costs_go_to_the_stage_they_belong_to():
    with noting_costs() as costs:
        with spent_on("supervised"):
            note(epochs=2)
            with spent_on("validation"):
                pass
            note_earlier({"wall_seconds": 5.0, "cpu_seconds": 4.0, "epochs": 3, "stage": "LCRec"})
        with spent_on("supervised"):
            note(epochs=1)
            with spent_on(REWARD):  # where it is trained or read depends on what a run finds done
                note(epochs=50)
    assert set(costs.stages) == {"supervised/validation", "supervised", f"supervised/{REWARD}"}
    assert total(costs.stages, "epochs", within="supervised") == 6
    assert seconds_before(costs.stages) == 5.0
    note(epochs=1)  # no costs are noted
    assert total(costs.stages, "epochs") == 56


def test_an_interrupted_run_counts_what_it_spent_before(ring, monkeypatch):
    first = record_of(run_recbole_ilrec("LCRec", "ring", config_dict=SHORT))
    again = {**SHORT, "resume_from_checkpoint": first["folder"]}
    second = record_of(run_recbole_ilrec("LCRec", "ring", config_dict=again))
    earlier = second["stages"]["supervised"]["earlier"]
    assert earlier["epochs"] == 2 and 0 < earlier["wall_seconds"] <= first["wall_seconds"]
    assert total(second["stages"], "epochs") == 2 and checkpoints(ring / first["folder"])
    assert second["evaluation"] == first["evaluation"]


def test_a_shared_supervised_stage_is_counted_in_every_preference_run(ring):
    settings = {**SHORT, "preference.epochs": 1, "preference.iterations": 2, "preference.supervised_epochs": 1}
    runs = [
        record_of(run_recbole_ilrec("SPRec", "ring", config_dict={**settings, "preference.beta": b})) for b in (1, 2)
    ]
    for record in runs:
        assert total(record["stages"], "epochs", within="supervised") == 2 + 2 * 1
        assert total(record["stages"], "epochs", within="preference") == 2
        assert total(record["stages"], "search_passes") == 2
    assert runs[1]["stages"]["supervised"]["earlier"]["epochs"] >= 2


def test_a_user_who_was_left_out_is_an_error_and_not_a_number(ring, monkeypatch):
    kept = certificate.read_ranks

    def one_short(path):
        user, places, about = kept(path)
        return user[1:], TargetPlaces(*(column[1:] for column in vars(places).values())), about

    monkeypatch.setattr(certificate, "read_ranks", one_short)
    with pytest.raises(RuntimeError, match="59 rows of the valid part were evaluated, 60 had to be"):
        run_recbole_ilrec("SASRec", "ring", config_dict={**CLASSICAL, "epochs": 1, "state": "WARNING"})


def test_users_who_were_evaluated_twice_in_place_of_others_are_an_error(ring, monkeypatch):
    kept = certificate.read_ranks

    def first_again(path):
        user, places, about = kept(path)
        return user[[*range(len(user) - 1), 0]], places, about

    monkeypatch.setattr(certificate, "read_ranks", first_again)
    with pytest.raises(RuntimeError, match="of the valid part were evaluated more than once"):
        run_recbole_ilrec("SASRec", "ring", config_dict={**CLASSICAL, "epochs": 1, "state": "WARNING"})


def test_among_drawn_items_too_a_record_says_who_was_evaluated(ring):
    drawn = {**CLASSICAL, "eval_args": {"mode": "uni10"}, "topk": [5], "valid_metric": "NDCG@5", "state": "WARNING"}
    record = record_of(run_recbole_ilrec("SASRec", "ring", config_dict=drawn))
    about = record["evaluation"]
    assert about["candidates"] == {"valid": "uni10", "test": "uni10"}
    for split, result in (("valid", "best_valid_result"), ("test", "test_result")):
        assert about[split]["rows_evaluated"] == about[split]["users_evaluated"] == 60
        assert about[split]["policies"]["expected"] == pytest.approx(record["result"][result], abs=2e-4)
        _, places, _ = read_ranks(ranks_file(ring / record["folder"], split))
        assert places.before.max() <= 10
    assert record["settings"]["decode"] == {"exclude_history": False}


def test_a_run_that_goes_on_with_other_settings_is_taken_for_neither(ring, caplog):
    first = record_of(run_recbole_ilrec("LCRec", "ring", config_dict=SHORT))
    shutil.rmtree(ring / "saved/cache/supervised")
    given = {**SHORT, "epochs": 4, "weight_decay": 0.3, "resume_from_checkpoint": first["folder"]}
    mixed = record_of(run_recbole_ilrec("LCRec", "ring", config_dict=given))
    assert "begun with other settings or data" in caplog.text
    keys = {run_key(Config("LCRec", "ring", config_dict=settings)) for settings in (SHORT, given)}
    assert mixed["evaluation"]["run"] not in keys and len(keys) == 2
    assert not (ring / "saved/cache/supervised").exists(), "no stage for preference models"
    caplog.clear()
    again = {
        **SHORT,
        "resume_from_checkpoint": record_of(run_recbole_ilrec("LCRec", "ring", config_dict=SHORT))["folder"],
    }
    assert record_of(run_recbole_ilrec("LCRec", "ring", config_dict=again))["evaluation"]["run"] in keys
    assert "begun with other settings" not in caplog.text


def test_a_checkpoint_that_does_not_say_of_what_run_it_is_gives_no_run_of_these_settings(ring, caplog):
    first = record_of(run_recbole_ilrec("LCRec", "ring", config_dict=SHORT))
    newest = max((ring / first["folder"]).glob("checkpoint-*"))
    shutil.copytree(newest, ring / "elsewhere" / newest.name)
    given = {**SHORT, "weight_decay": 0.3, "resume_from_checkpoint": str(ring / "elsewhere" / newest.name)}
    found = record_of(run_recbole_ilrec("LCRec", "ring", config_dict=given))
    assert "lies in no run's folder" in caplog.text
    assert found["evaluation"]["weights"] == first["evaluation"]["weights"], "nothing was trained"
    keys = {run_key(Config("LCRec", "ring", config_dict=settings)) for settings in (SHORT, given)}
    assert found["evaluation"]["run"] not in keys


def test_processes_that_draw_negatives_make_another_run_and_the_usual_none_do_not(ring):
    def key(**given):
        return run_key(Config("BERT4Rec", "ring", config_dict={**CLASSICAL, **given}))

    assert key(worker=2) != key() == key(worker=0)


def test_a_dataset_may_be_called_as_a_pattern_is(ring):
    folder = ring / "dataset/ring[1]"
    shutil.copytree(ring / "dataset/ring", folder)
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("ring.", "ring[1].")))
    before = run_key(Config("Pop", "ring[1]"))
    with (folder / "ring[1].inter").open("a") as stream:
        stream.write("1\t1\t99\n")
    assert run_key(Config("Pop", "ring[1]")) != before


def test_two_classical_runs_of_one_second_have_a_folder_each(ring, monkeypatch):
    monkeypatch.setattr(run_folder, "get_local_time", lambda: "now")
    monkeypatch.setattr(run_folder.Path, "exists", lambda self: False)  # what a process sees that looks too early
    quiet = {**CLASSICAL, "epochs": 1, "state": "WARNING"}
    runs = [record_of(run_recbole_ilrec("SASRec", "ring", config_dict={**quiet, "seed": s})) for s in (1, 2)]
    assert [record["folder"] for record in runs] == ["saved/SASRec-ring-now", "saved/SASRec-ring-now-2"]


def test_what_another_run_kept_is_counted_once_and_by_every_run(ring):
    (ring / "dataset/ring/ring.index.json").unlink()
    learned = {"index.embedding": "cf", "index.levels": 2, "index.codebook_size": 8, "index.epochs": 1}
    given = {**SHORT, **learned, "preference.epochs": 1, "reward.config": {"epochs": 1, "hidden_size": 16}}
    first = record_of(run_recbole_ilrec("ILRec", "ring", config_dict=given))
    assert seconds_before(first["stages"]) == 0, "all of it is this run's own work, the reward model too"
    again = record_of(run_recbole_ilrec("ILRec", "ring", config_dict={**given, "alpha": 0.5}))
    trained = first["stages"][f"identifiers/{REWARD}"]
    earlier = again["stages"][f"identifiers/{REWARD}"]["earlier"]
    assert 0 < earlier["wall_seconds"] <= trained["wall_seconds"]
    assert "earlier" not in again["stages"].get(REWARD, {}), "counted where it is first asked for"
    assert again["stages"]["identifiers"]["earlier"]["wall_seconds"] > 0
    rose, other = (
        record_of(run_recbole_ilrec("RosePO", "ring", config_dict={**given, **own}))
        for own in ({}, {"preference.beta": 0.5})
    )
    assert "earlier" not in rose["stages"]["sampling"]
    assert other["stages"]["sampling"]["earlier"]["wall_seconds"] > 0


def test_beams_that_are_no_items_or_twice_the_same_are_counted():
    leaf = torch.tensor([[3, 1, 2, 0], [2, 2, 5, -1]])
    quality = list_quality(Ranking(leaf=leaf, score=torch.zeros(2, 4)), 3)
    assert (quality.length, quality.valid, quality.distinct) == (4, 7 / 8, 6 / 8)


def test_lists_are_exact_as_far_as_the_metrics_look():
    score, leaf = torch.tensor([[-1.0, -2.0, -5.0]] * 2), torch.tensor([[0, 1, 2]] * 2)
    ranking = Ranking(leaf=leaf, score=score, bound=torch.tensor([-1.5, -3.0]))
    assert [list_quality(ranking, places).exact for places in (1, 2, 3)] == [1.0, 0.5, 0.0]


def test_the_time_of_an_epoch_is_without_validations_and_unknown_where_they_cannot_be_told_apart():
    whole = {"wall_seconds": 100.0, "epochs": 4}
    parts = {"supervised/validation": {"wall_seconds": 12.0}, "preference": {"wall_seconds": 50.0, "epochs": 3}}
    parts["supervised/validation/sampling"] = {"wall_seconds": 5.0}
    assert epoch_seconds({"supervised": whole, **parts}) == 22.0
    assert epoch_seconds({"supervised": {**whole, "earlier": {"wall_seconds": 9.0}}}) is None
    assert epoch_seconds({"supervised": {"wall_seconds": 3.0}}) is None is epoch_seconds({})


def test_epochs_of_a_run_are_not_those_of_its_reward_model():
    own = {"supervised": {"epochs": 3, "earlier": {"epochs": 2}}, "preference": {"epochs": 1}}
    assert epochs_of({**own, REWARD: {"epochs": 4}, f"supervised/{REWARD}": {"epochs": 4}}) == (5, 1)
