"""Data sets as LC-Rec's files: read again they are what they were."""

import json

import pytest

from recbole_ilrec import cli
from recbole_ilrec.preparation.pipeline import prepare
from tests.worlds import ring_world, write_dataset


def put(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_numbers_stay_and_what_is_read_again_is_the_same_data_set(here):
    inter = {"0": [3, 1, 2, 0], "7": [1, 2, 3], "2": [0, 2, 1]}
    index = {str(item): [f"<a_{item}>", "<b_0>"] for item in range(4)}
    texts = {str(item): {"title": f"Thing {item}", "brand": ""} for item in range(4)}
    for suffix, content in (("inter", inter), ("index", index), ("item", texts)):
        put(here / "raw", f"X.{suffix}.json", content)
    first = prepare("X", "lcrec", here / "raw", here / "dataset").folder
    assert cli.main(["export", "--dataset=X", "--out=out"]) == 0
    assert json.loads((here / "out/X.inter.json").read_text()) == inter
    assert json.loads((here / "out/X.index.json").read_text()) == index
    assert not list((here / "out").glob("*2id"))
    again = prepare("X", "lcrec", here / "out", here / "again").folder
    for name in ("X.inter", "X.item", "X.index.json"):
        one, two = (sorted((folder / name).read_text().splitlines()) for folder in (first, again))
        assert json.loads(one[0]) == json.loads(two[0]) if name.endswith("json") else one == two


def test_other_ids_are_numbered_and_the_files_say_how(here):
    write_dataset(here / "dataset", "ring", *ring_world(users=5))
    assert cli.main(["export", "--dataset=ring", "--out=deep/out"]) == 0
    read = {kind: json.loads((here / f"deep/out/ring.{kind}.json").read_text()) for kind in ("inter", "index")}
    rows = {kind: (here / f"deep/out/ring.{kind}2id").read_text().splitlines() for kind in ("user", "item")}
    names = {kind: {int(n): name for name, n in (row.split("\t") for row in lines)} for kind, lines in rows.items()}
    back = {names["user"][int(user)]: [names["item"][item] for item in items] for user, items in read["inter"].items()}
    wanted = {}
    for line in (here / "dataset/ring/ring.inter").read_text().splitlines()[1:]:
        user, item, time = line.split("\t")
        wanted.setdefault(user, []).append((float(time), item))
    assert back == {user: [item for _, item in sorted(rows)] for user, rows in wanted.items()}
    given = json.loads((here / "dataset/ring/ring.index.json").read_text())
    found = {names["item"][int(item)]: tokens for item, tokens in read["index"].items()}
    assert found == {item: given[item] for item in names["item"].values()}
    assert not (here / "deep/out/ring.item.json").exists()


def test_what_cannot_be_is_one_line_and_nothing_is_written(here, capsys):
    write_dataset(here / "dataset", "ring", *ring_world(users=5))
    (here / "there").mkdir()
    for argv, message in (
        (["--dataset=ring", "--out=there"], "is there already"),
        (["--dataset=ring"], "export takes a data set and a new folder"),
        (["RUN", "--dataset=ring", "--out=new"], "export takes a data set and a new folder"),
        (["--dataset=ring", "--out=new", "--merge=true"], "Unknown setting 'merge'"),
        (["--dataset=rnig", "--out=new"], "Did you mean 'ring'"),
    ):
        assert cli.main(["export", *argv]) == 2 and message in capsys.readouterr().err
    assert not (here / "new").exists() and not list((here / "there").iterdir())
