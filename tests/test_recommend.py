"""Lists of finished runs: the right items for whom they are asked, on screen and in files, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import polars
import pytest
from safetensors.torch import load_file, save_file

import recbole_ilrec
from recbole_ilrec import cli
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import held
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs.recommendation import Recommended, Recommender
from recbole_ilrec.runtime.checkpoint import save_state
from recbole_ilrec.verbs import lists_file
from tests.test_adapter import save_model
from tests.worlds import LEARN, QUICK, newest, ring_world, write_dataset, write_titled_ring

STEP = [(7 * item + 5) % 24 for item in range(24)]
CLASSICAL = {"device": "cpu", "show_progress": False, "state": "WARNING", "epochs": 2, "topk": [1, 5]}


def following(item: str) -> str:
    """What comes after an item of the ring world."""
    return f"i{STEP[int(item[1:]) - 1] + 1}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The ring world with a language model that knows it and models of RecBole that hardly do, from one folder."""
    root = tmp_path_factory.mktemp("recommend")
    write_dataset(root / "dataset", "ring", *ring_world())
    (root / "dataset" / "ring" / "ring.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tThing {min(n, 23)}\n" for n in range(1, 25))
    )
    places = {"data_path": str(root / "dataset"), "checkpoint_dir": str(root / "saved")}
    result = run_recbole_ilrec("LCRec", "ring", config_dict={**QUICK, **LEARN, **places})
    for name in ("SASRec", "Caser", "Pop"):
        epochs = {"epochs": 1} if name == "Pop" else {}
        run_recbole_ilrec(name, "ring", config_dict={**CLASSICAL, **places, **epochs})
    return root, result


@pytest.fixture
def known(world):
    return Recommender.load(newest(world[0], "LCRec"))


def test_what_comes_next_is_recommended_to_known_users_and_new_ones(known):
    users = known.names.users
    assert len(users) == 60
    histories = [known.names.history(user) for user in users]
    assert [len(history) for history in histories] == [9 + user % 3 for user in range(60)]
    histories = [history[:-1] for history in histories]  # no longer than those it has learned from
    lists = known.recommend(histories, topk=5)
    assert [places[0].item for places in lists] == [following(history[-1]) for history in histories]
    for places in lists:
        assert len(places) == 5 == len({place.item for place in places})
        assert [place.score for place in places] == sorted((place.score for place in places), reverse=True)
    by_id, by_title = known.recommend([["i1", "i6"], ["Thing 1", "thing 6"]], topk=3)
    assert by_id == by_title and by_id[0][:2] == (following("i6"), f"Thing {following('i6')[1:]}")


def test_lists_are_those_that_were_evaluated(world, known):
    """A list after a user's history without the last item holds it as often as the run's test says."""
    histories = [known.names.history(user) for user in known.names.users]
    lists = known.recommend([history[:-1] for history in histories], topk=5)
    hits = [history[-1] in [place.item for place in places] for history, places in zip(histories, lists, strict=True)]
    assert np.mean(hits) == pytest.approx(world[1]["test_result"]["hit@5"])


@pytest.mark.parametrize("name", ["LCRec", "SASRec", "Caser", "Pop"])
def test_items_of_the_history_are_left_out_where_that_is_asked_for(world, name):
    asked = Recommender.load(newest(world[0], name), exclude_history=True, device="cpu")
    history = asked.names.history("u0")
    (places,) = asked.recommend([history], users=["u0"], topk=24)
    assert not {place.item for place in places} & {*history}
    if name != "LCRec":  # whose lists are as long as there are beams
        assert len(places) == 24 - len({*history})
    (freely,) = Recommender.load(newest(world[0], name)).recommend([history], users=["u0"], topk=24)
    kept = [place for place in freely if place.item not in history]
    assert [place.score for place in kept[: len(places)]] == pytest.approx([place.score for place in places], abs=1e-5)


def test_scores_of_recboles_models_are_theirs(world):
    asked = Recommender.load(newest(world[0], "SASRec"))
    data = asked.trained.data
    rows = data.test._dataset.inter_feat
    scores = asked.trained.model.full_sort_predict(rows)[:, 1:].detach()
    histories = [asked.names.history(user)[:-1] for user in asked.names.users]
    lists = asked.recommend(histories, topk=3, batch_size=7)
    best, item = scores.topk(3)
    order = {user: row for row, user in enumerate(rows["user_id"].tolist())}
    for number, places in enumerate(lists, start=1):
        row = order[number]
        assert [place.score for place in places] == pytest.approx(best[row].tolist(), abs=1e-5)
        assert [place.item for place in places] == [asked.names.items[i + 1] for i in item[row].tolist()]


def test_a_longer_list_than_the_runs_needs_no_setting_and_leaves_no_trace(known, monkeypatch):
    searched, rank = [], known.trained.model.rank
    monkeypatch.setattr(known.trained.model, "rank", lambda *a, **how: searched.append(how["count"]) or rank(*a, **how))
    (short,), (long,), (again,) = (known.recommend([["i1"]], topk=topk) for topk in (5, 20, 5))
    assert len(long) == 20 > known.trained.config.settings.decode.num_beams
    assert searched == [10, 20, 10] and short == again


def test_equal_scores_stand_in_the_order_of_ids_so_that_a_short_list_begins_a_longer_one(world):
    asked = Recommender.load(newest(world[0], "Pop"))
    lists = {topk: asked.recommend([["i1"]], topk=topk)[0] for topk in (3, 10, 24)}
    assert lists[24][:10] == lists[10] and lists[10][:3] == lists[3]
    order = {item: number for number, item in enumerate(asked.names.items)}
    for before, after in zip(lists[24], lists[24][1:], strict=False):
        assert (-before.score, order[before.item]) < (-after.score, order[after.item])


def test_histories_longer_than_the_window_are_cut_for_the_model_but_left_out_whole(world):
    asked = Recommender.load(newest(world[0], "LCRec"), exclude_history=True)
    window = asked.trained.config["MAX_ITEM_LIST_LENGTH"]
    ring = [f"i{number}" for number in range(1, 24)]
    long = [*ring, *ring, "i1", "i6"]
    assert len(long) > window
    assert [place.item for place in asked.recommend([long], topk=5)[0]] == ["i24"]
    freely = Recommender.load(newest(world[0], "LCRec"))
    assert freely.recommend([long], topk=5) == freely.recommend([long[-window:]], topk=5)


def test_blocks_and_batches_change_nothing(known):
    histories = [known.names.history(user)[:-1] for user in known.names.users]
    whole = known.recommend(histories, topk=4, batch_size=64)
    small = known.recommend(histories, topk=4, batch_size=3)
    assert [[place.item for place in places] for places in whole] == [[p.item for p in places] for places in small]


@pytest.mark.parametrize(
    ("histories", "how", "message"),
    [
        (["12"], {}, "A history is a list of ids or titles, not the text '12'"),
        ([[]], {}, "A history is empty"),
        ([["i1"], ["i6"]], {"users": ["u1"]}, "1 users for 2 histories"),
        ([[77]], {}, "There is no item '77'"),
    ],
)
def test_calls_from_python_are_checked(known, histories, how, message):
    with pytest.raises(UserError, match=message):
        known.recommend(histories, **how)


def test_numbers_of_beams_and_users_are_checked(world, known):
    for beams in (0, "5"):
        with pytest.raises(UserError, match=f"num_beams={beams} is not allowed"):
            Recommender.load(newest(world[0], "LCRec"), num_beams=beams)
    with pytest.raises(UserError, match="Unknown argument of Recommender.load 'seed'"):
        Recommender.load(newest(world[0], "LCRec"), seed=3)
    assert len(Recommender.load(newest(world[0], "LCRec"), num_beams=3).recommend([["i1"]], topk=2)[0]) == 2
    with pytest.raises(UserError, match="There is no user '7' in 'ring'"):
        known.names.history(7)
    assert known.recommend([]) == []


@pytest.mark.parametrize("name", ["DPO", "SPRec"])
def test_preference_models_are_asked_inspected_and_exported(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world(users=20))
    settings = {**QUICK, "max_steps": 2, "num_beams": 10, "mu": 0, "preference.examples": 8}
    run_recbole_ilrec(name, "ring", config_dict=settings)
    run = newest(tmp_path, name)
    assert len(Recommender.load(run).recommend([["i1", "i6"]], topk=5)[0]) == 5
    assert cli.main(["inspect", str(run), "--user=u1"]) == 0
    assert cli.main(["export", str(run), f"--out={tmp_path / 'out'}"]) == 0


def test_the_strength_that_was_chosen_on_validation_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_titled_ring(tmp_path)
    own = {"topk": [5], "valid_metric": "NDCG@5", "bigrec.ranker": "grounding", "bigrec.gamma": [0, 2, 8]}
    result = run_recbole_ilrec("BIGRec", "ring", config_dict={**QUICK, "max_steps": 2, **own})
    run = newest(tmp_path, "BIGRec")
    asked = Recommender.load(run)
    assert asked.trained.model.title_ranker.gamma == json.loads((run / "result.json").read_text())["gamma"]
    histories = [asked.names.history(user) for user in asked.names.users]
    lists = asked.recommend([history[:-1] for history in histories], topk=5)
    hits = [history[-1] in [place.item for place in places] for history, places in zip(histories, lists, strict=True)]
    assert np.mean(hits) == pytest.approx(result["test_result"]["hit@5"], abs=1e-4)
    (run / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"does not say which bigrec.gamma was chosen"):
        Recommender.load(run)


def test_adapters_are_not_put_on_another_base_and_paths_may_be_relative_or_moved(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    sequences, identifiers = ring_world(users=20)
    folder = write_dataset(tmp_path / "dataset", "ring", sequences, identifiers)
    (folder / "ring.index.json").rename(tmp_path / "own.json")
    save_model(tmp_path / "model", "Llama", tied=True)
    settings = {**QUICK, "max_steps": 1, "num_beams": 10, "backbone": "./model", "index_file": "own.json", "lora": True}
    settings = {key: value for key, value in settings.items() if not key.startswith("backbone.")}
    run_recbole_ilrec("LCRec", "ring", config_dict={**settings, "adapter.r": 2})
    run = newest(tmp_path, "LCRec")
    places = Recommender.load(run).recommend([["i1"]], topk=3)
    (tmp_path / "own.json").rename(tmp_path / "moved.json")
    (tmp_path / "model").rename(tmp_path / "base")
    moved = Recommender.load(run, index_file="moved.json", backbone="./base").recommend([["i1"]], topk=3)
    assert moved == places
    save_model(tmp_path / "other", "Llama", tied=True)
    weights = load_file(tmp_path / "other" / "model.safetensors")
    noisy = {name: value + 0.1 for name, value in weights.items()}
    save_file(noisy, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="was trained on another"):
        Recommender.load(run, index_file="moved.json", backbone="./other")


def test_data_split_by_files_are_asked_by_histories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_dataset(tmp_path / "dataset", "ring", *ring_world(users=20))
    rows = (folder / "ring.inter").read_text().splitlines()
    head = "user_id:token\titem_id:token\titem_id_list:token_seq"
    for part in ("train", "valid", "test"):
        lines = [f"u{n}\ti{n + 2}\ti{n + 1}" for n in range(8)]
        (folder / f"ring.{part}.inter").write_text("\n".join([head, *lines]) + "\n")
    assert rows
    settings = {**CLASSICAL, "benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"]}
    settings["load_col"] = {"inter": ["user_id", "item_id", "item_id_list"]}
    run_recbole_ilrec("SASRec", "ring", config_dict={**settings, "topk": [5], "epochs": 1})
    asked = Recommender.load(newest(tmp_path, "SASRec"))
    assert len(asked.recommend([["i1"]], topk=3)[0]) == 3
    with pytest.raises(UserError, match="was split by files"):
        asked.names.history("u1")


def test_presets_that_change_do_not_change_a_model(world, monkeypatch):
    """RecBole's models are built with the settings they were trained with, not with today's defaults."""
    run = newest(world[0], "SASRec")
    before = Recommender.load(run).trained.config
    best = run / "best" / "state.json"
    kept = json.loads(best.read_text())
    changed = json.loads(best.read_text().replace('"n_heads": 2', '"n_heads": 1'))
    assert kept != changed
    best.write_text(json.dumps(changed))
    try:
        after = Recommender.load(run).trained.config
    finally:
        best.write_text(json.dumps(kept))
    assert (before["n_heads"], after["n_heads"]) == (2, 1)


def test_items_that_share_an_identifier_follow_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sequences, identifiers = ring_world(users=12)
    identifiers[3] = identifiers[4]
    write_dataset(tmp_path / "dataset", "ring", sequences, identifiers)
    run_recbole_ilrec("LCRec", "ring", config_dict={**QUICK, "max_steps": 2, "num_beams": 10})
    asked = Recommender.load(newest(tmp_path, "LCRec"))
    (places,) = asked.recommend([["i1"]], topk=24)
    assert len(places) == 24 == len({place.item for place in places})
    at = [place.item for place in places].index("i4")
    (twin,) = (n for n in (at - 1, at + 1) if 0 <= n < 24 and places[n].item == "i5")
    assert places[at].score == places[twin].score
    history = [["i1", "i4"]]
    (left,) = Recommender.load(newest(tmp_path, "LCRec"), exclude_history=True).recommend(history, topk=24)
    assert {place.item for place in left} == {f"i{n}" for n in range(1, 25)} - {"i1", "i4"}


def test_titles_by_grounding_are_recommended_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_titled_ring(tmp_path)
    settings = {**QUICK, "max_steps": 2, "topk": [5], "valid_metric": "NDCG@5", "bigrec.ranker": "grounding"}
    run_recbole_ilrec("BIGRec", "ring", config_dict=settings)
    asked = Recommender.load(newest(tmp_path, "BIGRec"))
    (places,) = asked.recommend([["i1", "Star Trek"]], topk=12)
    assert {place.item for place in places} == {f"i{n}" for n in range(1, 13)}


# ---- the verb


def test_lists_on_the_screen(world, capsys, monkeypatch):
    monkeypatch.chdir(world[0])
    run = str(newest(world[0], "LCRec"))
    assert cli.main(["recommend", run, "--users=u0,u7", "--topk=2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "LCRec on ring; items of the history may come again"
    assert shown[2].startswith("u0: 9 items, the last: Thing ") and shown[6].startswith("u7: 10 items")
    assert shown[3].split()[0] == "1" and shown[3].split()[1] == following(f"i{shown[2].split()[-1]}")
    assert cli.main(["recommend", run, "--history=i1,i6", "--topk=1"]) == 0
    one = capsys.readouterr().out
    assert cli.main(["recommend", run, "--history=Thing 1; Thing 6", "--topk=1", "--num_threads=1"]) == 0
    assert capsys.readouterr().out == one and f"  {following('i6')}  " in one


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_lists_of_all_users_as_a_file(world, tmp_path, capsys, suffix):
    out = tmp_path / "new" / f"lists.{suffix}"
    assert cli.main(["recommend", str(newest(world[0], "SASRec")), f"--out={out}", "--topk=3"]) == 0
    assert capsys.readouterr().out == f"60 lists, 180 places: {out}\n"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    match suffix:
        case "parquet":
            table = polars.read_parquet(out)
        case "jsonl":
            table = polars.DataFrame([json.loads(line) for line in out.read_text().splitlines()])
        case _:
            table = polars.read_csv(out, separator="\t" if suffix == "tsv" else ",")
    assert table.columns == ["user", "rank", "item", "title", "score"] and len(table) == 180
    assert table["rank"].to_list() == [1, 2, 3] * 60 and table["user"][0] == "u0"


def test_a_file_that_was_interrupted_goes_on_and_is_the_same(world, tmp_path, capsys, monkeypatch):
    call = ["recommend", str(newest(world[0], "LCRec")), "--topk=3"]
    assert cli.main([*call, f"--out={tmp_path / 'whole.csv'}"]) == 0
    monkeypatch.setattr(lists_file, "PART", 16)
    asked, out, whole = [], tmp_path / "lists.csv", Recommender.recommend

    def some(self, histories, **how):
        asked.append(how["users"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, histories, **how)

    monkeypatch.setattr(Recommender, "recommend", some)
    assert cli.main([*call, f"--out={out}"]) == cli.INTERRUPTED
    assert "give the same command again" in capsys.readouterr().err and not out.exists()
    assert cli.main([*call, f"--out={out}"]) == 0
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    assert [len(users) for users in asked] == [16, 16, 16, 16, 12] and asked[2] == asked[3]  # 60 users
    assert {path.name for path in tmp_path.iterdir()} == {"lists.csv", "whole.csv"}
    assert cli.main([*call[:-1], "--topk=2", f"--out={out}"]) == 0 and len(asked) == 9  # other lists: none is reused


def test_parts_of_other_lists_are_not_taken_and_two_processes_do_not_make_one_file(tmp_path):
    def make(some, done):
        done(some.stop - some.start)
        return [[Recommended("i", "t", 1.0)]] * (some.stop - some.start)

    def stopped(some, done):
        if some.start:
            raise UserError("stopped")
        return make(some, done)

    def rest(some, done):
        assert some.start
        return make(some, done)

    path, names = tmp_path / "a[1].jsonl", [str(number) for number in range(lists_file.PART + 9)]
    with pytest.raises(UserError, match="stopped"):
        lists_file.write_lists(path, names, {"topk": 1}, stopped)
    (parts,) = tmp_path.iterdir()
    assert [part.name for part in parts.glob("*/*")] == ["0000000000.parquet"]
    with held(parts), pytest.raises(UserError, match="another process is at work"):
        lists_file.write_lists(path, names, {"topk": 2}, make)
    with pytest.raises(UserError, match="stopped"):
        lists_file.write_lists(path, names[1:], {"topk": 1}, lambda *_: stopped(slice(1, 2), None))
    assert len([*parts.iterdir()]) == 1
    assert lists_file.write_lists(path, names, {"topk": 1}, rest) == len(names)
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(UserError, match="stopped"):
        lists_file.write_lists(path, names[1:], {"topk": 1}, lambda *_: stopped(slice(1, 2), None))
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_one_line_and_leaves_no_temporaries(tmp_path, monkeypatch):
    def full(_, file):
        file.write_bytes(b"half")
        raise polars.exceptions.ComputeError("No space left on device (os error 28)\nmore")

    monkeypatch.setattr(polars.DataFrame, "write_parquet", full)
    with pytest.raises(
        UserError, match=r"out=.*lists.csv cannot be written \(No space left on device \(os error 28\)\)"
    ):
        lists_file.write_lists(tmp_path / "lists.csv", ["u"], {}, lambda *_: [[Recommended("i", "t", 1.0)]])
    assert not [*tmp_path.iterdir()]


def test_lists_of_runs_that_differ_in_anything_that_decides_them_are_not_mixed(world, monkeypatch):
    one, same = (Recommender.load(newest(world[0], "LCRec")) for _ in range(2))
    assert one.identity() == same.identity() != Recommender.load(newest(world[0], "SASRec")).identity()
    fewer = Recommender.load(newest(world[0], "LCRec"), num_beams=3)
    assert fewer.identity() != one.identity() != Recommender.load(one.trained.folder, exclude_history=True).identity()


def test_lists_of_other_weights_or_other_data_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_dataset(tmp_path / "dataset", "ring", *ring_world(users=6))

    def identity():
        config = Config("Pop", "ring", None, {"device": "cpu"})
        asked = object.__new__(Recommender)  # of a run that is not trained
        asked.trained = SimpleNamespace(config=config, model=None, folder=tmp_path / "best", data=None)
        return asked.identity()

    save_state(tmp_path / "best", {"weights": 1}, kind="Pop")
    found = [identity(), identity()]
    with (folder / "ring.inter").open("a") as stream:
        stream.write("u0\ti3\t99\n")
    found.append(identity())
    save_state(tmp_path / "best", {"weights": 2}, kind="Pop")
    found.append(identity())
    assert [one == found[0] for one in found] == [True, True, False, False] and found[2] != found[3]


def test_new_users_from_a_table_of_clicks(world, tmp_path, capsys):
    rows = ["user_id,item_id,timestamp", "new,i6,20", "new,i1,10", "new,strange,30", "odd,strange,1"]
    (tmp_path / "clicks.csv").write_text("\n".join(rows) + "\n")
    run = str(newest(world[0], "LCRec"))
    assert cli.main(["recommend", run, f"--file={tmp_path / 'clicks.csv'}", "--topk=1"]) == 0
    said = capsys.readouterr()
    assert "new: 2 items, the last: Thing 1 | Thing 6" in said.out and "odd" not in said.out
    assert following("i6") in said.out.splitlines()[-1]
    assert "warning: 1 items of" in said.err and "are unknown to the model and left out: strange." in said.err
    assert "warning: 1 users of" in said.err and "have no known item and get no list: odd." in said.err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LCRec", ["--users=u99x"], "There is no user 'u99x' in 'ring'. Did you mean 'u9'?"),
        ("LCRec", ["--users=,"], "--users is empty"),
        ("LCRec", ["--history=i1,i99"], "There is no item 'i99' in 'ring'. Did you mean 'i9'?"),
        (
            "LCRec",
            ["--history=Thing 23"],
            "2 items are called 'Thing 23': give the id of the one that is meant (i24, i23)",
        ),
        ("LCRec", ["--history=;"], "A history is empty: give at least one item."),
        ("LCRec", [], "Lists of all users need --out=FILE"),
        (
            "LCRec",
            [f"--users={','.join(f'u{n}' for n in range(51))}"],
            "51 lists are too many for the screen (at most 50)",
        ),
        ("SASRec", ["--users=u1", "--num_beams=5"], "num_beams=5 is not read: "),
        ("LCRec", ["--out=lists.xlsx"], "--out=lists.xlsx is no table: end it in .csv, .tsv, .jsonl, .parquet."),
        ("LCRec", ["--users=u1", "--history=i1"], "--users and --history each say who gets lists"),
        ("LCRec", ["--users=u1", "--topk=25"], "topk=25 is not allowed: there are 24 items, so 1 to 24."),
        ("LCRec", ["--users=u1", "--topk=0"], "topk=0 is not allowed: give a whole number from 1 on"),
        ("LCRec", ["--users=u1", "--exclude_history=maybe"], "exclude_history=maybe is not allowed"),
        ("LCRec", ["--user=u1"], "Unknown option of recommend 'user'. Did you mean 'users'?"),
        ("LCRec", ["--file=nowhere.csv"], "--file=nowhere.csv is no file"),
        ("LCRec", ["--users=u1", "--data_path=nowhere"], "Unknown dataset 'ring': there is no folder 'nowhere/ring'."),
        (
            "Caser",
            ["--history=i1"],
            "Caser learns a vector for each user, so it knows the users of its training data only",
        ),
    ],
)
def test_what_is_refused_is_one_line(world, capsys, name, options, message):
    assert cli.main(["recommend", str(newest(world[0], name)), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_runs_that_cannot_recommend_are_named(world, tmp_path, capsys):
    assert cli.main(["recommend"]) == 2 and "recommend takes one run" in capsys.readouterr().err
    assert cli.main(["recommend", str(tmp_path), "--users=u1"]) == 2
    assert f"{tmp_path} is no checkpoint of this package" in capsys.readouterr().err
    last = newest(world[0], "SASRec") / "last"
    assert cli.main(["recommend", str(last), "--users=u1"]) == 2
    assert "does not say how its model was made: give the folder of a finished run" in capsys.readouterr().err


def test_data_with_other_items_are_refused(world, tmp_path):
    write_dataset(tmp_path, "ring", *ring_world(items=20))
    with pytest.raises(
        UserError, match=r"knows other items than 'ring' in .* has today, or the same in another order, "
    ):
        Recommender.load(newest(world[0], "SASRec"), data_path=str(tmp_path))


def test_choices_among_candidates_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_titled_ring(tmp_path)
    settings = {**CLASSICAL, "task": "candidates", "candidates.count": 4, "topk": [1], "valid_metric": "Hit@1"}
    run_recbole_ilrec("SASRec", "ring", config_dict={**settings, "metrics": ["Hit"], "epochs": 1})
    with pytest.raises(UserError, match="chooses among candidates: only runs that rank all items"):
        Recommender.load(newest(tmp_path, "SASRec"))


def test_it_is_offered_at_the_top():
    assert recbole_ilrec.Recommender is Recommender


@pytest.mark.parametrize("exact", [True, False])
def test_lists_asked_for_are_searched_until_they_are_proven_as_in_the_runs_evaluation(world, tmp_path, exact):
    """Weights that know nothing and two beams: only a search that goes on finds the best two of all items."""
    few = {"epochs": 1, "eval_step": 1, "learning_rate": 1e-9, "topk": [1, 2], "valid_metric": "Hit@1"}
    few |= {"num_beams": 2, "decode.exact": exact}
    places = {"data_path": str(world[0] / "dataset"), "checkpoint_dir": str(tmp_path / "saved")}
    run_recbole_ilrec("LCRec", "ring", config_dict={**QUICK, **LEARN, **few, **places})
    asked = Recommender.load(newest(tmp_path, "LCRec"), device="cpu")
    rows = asked.trained.data.test._dataset.inter_feat
    best = asked.trained.model.full_sort_predict(rows)[:, 1:].topk(2).values
    histories = [asked.names.history(asked.names.users[user - 1])[:-1] for user in rows["user_id"].tolist()]
    found = [[place.score for place in places] for places in asked.recommend(histories, topk=2)]
    assert np.allclose(found, best, atol=1e-4) == exact
