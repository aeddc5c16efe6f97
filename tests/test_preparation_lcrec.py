"""LC-Rec folders become RecBole folders; every fault of the files is one clear line; a killed run leaves nothing."""

import fcntl
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import pipeline, prepare, read_items
from recbole_ilrec.preparation.files import recover
from recbole_ilrec.preparation.lcrec import LCREC

SHARED = Path(__file__).parents[1].parent / "shared/data"

INTER = {"0": [0, 1, 2], "7": [2, 2, 1]}
INDEX = {"0": ["<a_1>", "<b_1>"], "1": ["<a_1>", "<b_2>"], "2": ["<a_1>", "<b_1>"], "3": ["<a_2>", "<b_2>"]}
TEXTS = {
    "0": {"title": '"Quoted" 12" cable', "description": ["one", "two"], "brand": "Ω", "categories": None, "url": "x"},
    "1": {"title": "line\nbreak", "description": "", "brand": "", "categories": "A, B"},
    "2": {"title": "NA", "description": "d", "brand": "b", "categories": ""},
}


def raw(folder: Path, stem: str = "X", **files: object) -> Path:
    """A folder with ``stem.<role>.json`` for each keyword; text is written as it is."""
    folder.mkdir(exist_ok=True)
    for role, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{role}.json").write_text(text, encoding="utf-8")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_texts_and_index_becomes_a_recbole_dataset(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX, item=TEXTS)
    done = prepare("toy", "lcrec", path, tmp_path / "out")
    folder = tmp_path / "out/toy"
    assert done.folder == folder and not done.up_to_date
    assert sorted(p.name for p in folder.iterdir()) == ["toy.index.json", "toy.inter", "toy.item", "toy.manifest.json"]
    rows = [line.split("\t") for line in (folder / "toy.inter").read_text().splitlines()]
    assert rows[0] == ["user_id:token", "item_id:token", "timestamp:float"]
    assert rows[1:] == [[u, str(i), str(t)] for u, items in INTER.items() for t, i in enumerate(items)]
    assert json.loads((folder / "toy.index.json").read_text()) == INDEX
    assert read_items(folder / "toy.item") == {
        "0": {"title": '"Quoted" 12" cable', "description": "one, two", "brand": "Ω", "categories": ""},
        "1": {"title": "line break", "description": "", "brand": "", "categories": "A, B"},
        "2": {"title": "NA", "description": "d", "brand": "b", "categories": ""},
    }
    manifest = json.loads((folder / "toy.manifest.json").read_text())
    assert manifest["counts"] == {
        "users": 2,
        "items": 3,
        "interactions": 6,
        "items_with_text": 3,
        "items_with_index": 4,
        "colliding_items": 2,
    }
    assert manifest["recbole_counts"] == {"user_num": 3, "item_num": 4, "inter_num": 6}
    assert {entry["file"] for entry in manifest["inputs"].values()} == {"X.inter.json", "X.index.json", "X.item.json"}
    assert "2 users, 3 items, 6 interactions" in done.summary and "Wrote" in done.summary


def test_the_same_inputs_are_not_prepared_twice_and_changed_inputs_are(tmp_path, monkeypatch):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    prepare("toy", "lcrec", path, tmp_path / "out")
    stamp = (tmp_path / "out/toy/toy.inter").stat().st_mtime_ns
    again = prepare("toy", "LCREC", path, tmp_path / "out")
    assert again.up_to_date and "already prepared" in again.summary
    assert (tmp_path / "out/toy/toy.inter").stat().st_mtime_ns == stamp
    raw(path, inter={"0": [1, 2]})
    changed = prepare("toy", "lcrec", path, tmp_path / "out")
    assert changed.replaced and "in the place of older data: runs trained on those" in changed.summary
    assert not changed.up_to_date and changed.counts["interactions"] == 2
    for name, value in (("FORMAT", 99), ("SOURCES", {"lcrec": replace(LCREC, settings={"core": 5})})):
        monkeypatch.setattr(pipeline, name, value)  # another version of this package
        assert not prepare("toy", "lcrec", path, tmp_path / "out").up_to_date, name
        assert prepare("toy", "lcrec", path, tmp_path / "out").up_to_date
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["toy"]


def test_an_item_with_tokens_needs_no_text_and_is_named(tmp_path, caplog):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX, item={"0": TEXTS["0"], "2": TEXTS["2"]})
    assert prepare("toy", "lcrec", path, tmp_path / "out").counts["items_with_text"] == 2
    assert "X.item.json has no text for 1 items (1)" in caplog.text


def test_a_damaged_output_is_made_again(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    prepare("toy", "lcrec", path, tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out/toy/toy.inter").write_text("cut")
    with pytest.raises(UserError, match="toy.inter has been changed since 'prepare' wrote it"):  # it may be an edit
        prepare("toy", "lcrec", path, tmp_path / "out")
    (tmp_path / "out/toy/toy.inter").unlink()
    assert not prepare("toy", "lcrec", path, tmp_path / "out").up_to_date
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("stop", ["write_interactions", "_write_json", "install"])
def test_an_exception_at_any_stage_leaves_what_was_there_before(tmp_path, monkeypatch, stop):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, stop, fail)
        prepare("toy", "lcrec", path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    prepare("toy", "lcrec", path, tmp_path / "out")
    before = tree(tmp_path / "out")
    raw(path, inter={"0": [1, 2]})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, stop, fail)
        prepare("toy", "lcrec", path, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_leftovers_of_a_killed_run_go_and_a_running_one_is_left_alone(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    out = tmp_path / "out"
    dead, alive, other = (out / name for name in (".toy.tmp-111111", ".toy.tmp-222222", ".toy2.tmp-333333"))
    for folder in (dead, alive, other):
        (folder / "toy").mkdir(parents=True)
    lock = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare("toy", "lcrec", path, out)
    finally:
        os.close(lock)
    assert sorted(p.name for p in out.iterdir()) == [alive.name, other.name, "toy"]


def test_a_kill_between_the_two_renames_of_the_swap_is_put_right(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    out = tmp_path / "out"
    prepare("toy", "lcrec", path, out)
    before = tree(out)
    os.rename(out / "toy", out / ".toy.old-111111")
    assert prepare("toy", "lcrec", path, out).up_to_date
    assert tree(out) == before
    (out / ".toy.old-111111").mkdir()
    recover(out / "toy")
    assert tree(out) == before and not (out / ".toy.old-111111").exists()


def test_files_of_somebody_else_are_never_replaced(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    (tmp_path / "out/toy").mkdir(parents=True)
    (tmp_path / "out/toy/toy.inter").write_text("mine")
    with pytest.raises(UserError, match="was not written by 'prepare'"):
        prepare("toy", "lcrec", path, tmp_path / "out")
    prepare("new", "lcrec", path, tmp_path / "out")
    (tmp_path / "out/new/notes.txt").write_text("mine")
    assert prepare("new", "lcrec", path, tmp_path / "out").up_to_date
    raw(path, inter={"0": [1]})
    with pytest.raises(UserError, match="'prepare' did not write: notes.txt"):
        prepare("new", "lcrec", path, tmp_path / "out")
    assert (tmp_path / "out/new/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "No *.inter.json in"),
        ({"index": INDEX}, "No *.inter.json in"),
        ({"inter": INTER}, "Neither X.item.json nor X.index.json"),
        ({"inter": "{", "index": INDEX}, "X.inter.json, line 1: not JSON"),
        ({"inter": [1], "index": INDEX}, "its top level is a list"),
        ({"inter": {}, "index": INDEX}, "its top level is empty"),
        ({"inter": {"0": "1 2"}, "index": INDEX}, "user '0': a text in place of a list of items"),
        ({"inter": {"0": []}, "index": INDEX}, "user '0': empty in place of a list of items"),
        ({"inter": {"0": [1.5]}, "index": INDEX}, "user '0': item 1.5 is no number or text"),
        ({"inter": {"0": [None]}, "index": INDEX}, "user '0': item None is no number or text"),
        ({"inter": {"0": [True]}, "index": INDEX}, "user '0': item True is no number or text"),
        ({"inter": '{"0": [1], "0": [2]}', "index": INDEX}, "key '0' stands there twice"),
        ({"inter": {"0": ["a\tb"]}, "index": {"a\tb": ["<a>"]}}, "The item id 'a\\tb' cannot be a RecBole token"),
        ({"inter": {"0": [8, 9, 10, 11, 1]}, "index": INDEX}, "no tokens for 4 items (8, 9, 10, ...)"),
        ({"inter": INTER, "index": {**INDEX, "3": ["<a_1>"]}}, "item '0' has 2 tokens and item '3' has 1"),
        ({"inter": INTER, "index": {**INDEX, "3": "<a_1>"}}, "item '3': '<a_1>' is not a list of tokens"),
        ({"inter": INTER, "index": {**INDEX, "3": []}}, "item '3': [] is not a list of tokens"),
        ({"inter": INTER, "index": {**INDEX, "3": [1, 2]}}, "item '3': [1, 2] is not a list of tokens"),
        ({"inter": INTER, "item": {**TEXTS, "1": "text"}}, "item '1': a text in place of an object"),
        ({"inter": INTER, "item": {"0": {"name": "n"}}}, "no item has a title"),
        ({"inter": {"0": [1, 5]}, "item": TEXTS}, "no text for 1 items (5)"),
    ],
)
def test_every_fault_of_the_files_is_one_clear_line_and_leaves_nothing(tmp_path, files, message):
    path = raw(tmp_path / "raw", **files)
    with pytest.raises(UserError) as error:
        prepare("toy", "lcrec", path, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


USERS = {
    "user_explicit_preference": {"0": ["likes cables"], "9": ["unknown"]},
    "user_vague_intention": {"train": {"7": {"item": 2, "querys": ["wants a pick", "a pick"]}}, "test": {}},
}


def test_a_file_of_users_texts_is_copied_whole_and_is_part_of_the_inputs(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    prepare("toy", "lcrec", path, tmp_path / "out")
    raw(path, user=USERS)
    done = prepare("toy", "lcrec", path, tmp_path / "out")
    assert not done.up_to_date and prepare("toy", "lcrec", path, tmp_path / "out").up_to_date
    assert json.loads((done.folder / "toy.user.json").read_text()) == USERS
    raw(path, user={"user_explicit_preference": {"0": ["likes cables"]}})
    assert not prepare("toy", "lcrec", path, tmp_path / "out").up_to_date


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ("{", "X.user.json, line 1: not JSON"),
        ({"users": {}}, "has no object 'user_explicit_preference'"),
        ({**USERS, "user_vague_intention": {}}, "has no object 'train'"),
        ({**USERS, "user_explicit_preference": {"0": [3]}}, "user '0': a text is missing"),
        ({"user_explicit_preference": {"9": ["likes cables"]}}, "names no user of the interactions"),
    ],
)
def test_every_fault_of_the_users_texts_is_one_clear_line_and_leaves_nothing(tmp_path, users, message):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX, user=users)
    with pytest.raises(UserError) as error:
        prepare("toy", "lcrec", path, tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = raw(tmp_path / "raw", inter=INTER, index=INDEX)
    (path / "X.inter.json").write_bytes(b'{"\xff": [1]}')
    with pytest.raises(UserError, match="X.inter.json is not UTF-8"):
        prepare("toy", "lcrec", path, tmp_path / "out")


def test_several_datasets_in_one_folder_need_a_name(tmp_path):
    path = raw(tmp_path / "raw", "X", inter=INTER, index=INDEX)
    raw(path, "Y", inter={"0": [1]}, index=INDEX)
    with pytest.raises(UserError, match=r"several datasets \(X, Y\)"):
        prepare("toy", "lcrec", path, tmp_path / "out")
    assert prepare("Y", "lcrec", path, tmp_path / "out").counts["interactions"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy", "lcrex", "."), "Unknown source 'lcrex'. Did you mean 'lcrec'?"),
        (("../toy", "lcrec", "."), "'../toy' cannot name a dataset"),
        ((".hidden", "lcrec", "."), "'.hidden' cannot name a dataset"),
        (("toy", "lcrec", "no/such/folder"), "--path=no/such/folder is not a folder"),
        (("toy", "lcrec", None), "--path is missing"),
        (("toy", "amazon18", None), "--path is missing"),
    ],
)
def test_every_bad_argument_is_one_clear_line(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        prepare(*arguments, out=tmp_path / "out")
    assert message in str(error.value)


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare("toy", "lcrec", raw(tmp_path / "raw", inter=INTER, index=INDEX), tmp_path / "out")


def test_the_public_instruments_give_table_3(tmp_path):
    if not (SHARED / "Instruments").is_dir():
        pytest.skip("the shared Instruments data are not beside the checkout")
    done = prepare("Instrument", "lcrec", SHARED / "Instruments", tmp_path)
    counts = done.counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (24_772, 9_922, 206_153)
    assert counts["colliding_items"] == 48
    assert "24,773/9,923/206,153, as in Table 3" in done.summary


def test_the_public_industrial_texts_are_kept_whole(tmp_path):
    if not (SHARED / "Industrial").is_dir():
        pytest.skip("the shared Industrial data are not beside the checkout")
    done = prepare("Industrial", "lcrec", SHARED / "Industrial", tmp_path)
    counts = done.counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (3_285, 3_541, 22_743)
    published = json.loads((SHARED / "Industrial/Industrial_and_Scientific.item.json").read_text(encoding="utf-8"))
    read = read_items(done.folder / "Industrial.item")
    assert list(read) == list(published)
    for item, texts in published.items():
        for field, text in texts.items():
            assert read[item][field] == re.sub(r"[\t\r\n]+", " ", text)
