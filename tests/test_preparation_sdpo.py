"""S-DPO's files become a data set whose users, choices and split are the published ones; faults are one clear line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import prepare, read_items
from recbole_ilrec.preparation.candidate_lists import CandidateRow, read_candidates, write_candidates

SHARED = Path(__file__).parents[1].parent / "shared/data"


def choice(history, shown, chosen):
    return {"historyList": "::".join(history), "itemList": list(shown), "trueSelection": chosen}


def user(letters, others="xyz", window=4):
    """The rows of one user: histories of at least 3 and at most ``window`` items."""
    return [
        choice(letters[max(0, at - window) : at], [others[0], letters[at], *others[1:]], letters[at])
        for at in range(3, len(letters))
    ]


def raw(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"toy-{name}.json").write_text(text, encoding="utf-8")
    return folder


def sequences(folder):
    titles = {item: fields["title"] for item, fields in read_items(folder / f"{folder.name}.item").items()}
    users: dict[str, str] = {}
    for line in (folder / f"{folder.name}.inter").read_text().splitlines()[1:]:
        name, item, _ = line.split("\t")
        users[name] = users.get(name, "") + titles[item]
    return users, titles


def test_rows_become_whole_sequences_and_choices_by_file(tmp_path):
    path = raw(
        tmp_path / "raw",
        train=[*user("abcdefgh"), *user("ijkl"), *user("abcd")],
        val=user("mnopq"),
        test=[*user("efghijk"), *user("efgh")],
    )
    done = prepare("Toy", "sdpo", path, tmp_path)
    users, titles = sequences(done.folder)
    assert users == {
        "train-1": "abcdefgh",
        "train-2": "ijkl",
        "train-3": "abcd",
        "valid-1": "mnopq",
        "test-1": "efghijk",
        "test-2": "efgh",
    }
    rows = read_candidates(done.folder / "Toy.candidates.jsonl")
    assert [(row.phase, row.user, row.place) for row in rows][:7] == [
        *(("train", "train-1", place) for place in range(3, 8)),
        ("train", "train-2", 3),
        ("train", "train-3", 3),
    ]
    for row in rows:
        shown = [titles[item] for item in row.candidates]
        assert shown == ["x", users[row.user][row.place], "y", "z"]
    assert done.counts["items"] == 20 and done.counts["candidate_lists"] == len(rows) == 14
    assert prepare("Toy", "sdpo", path, tmp_path).up_to_date


def test_without_a_training_file_each_tenth_user_of_the_validation_file_validates(tmp_path):
    letters = "abcdefghijklmnopqrstuvw"
    path = raw(tmp_path / "raw", val=[r for n in range(20) for r in user(letters[n : n + 4])], test=user("mnopq"))
    users, _ = sequences(prepare("Toy", "sdpo", path, tmp_path).folder)
    assert sum(name.startswith("train") for name in users) == 18
    assert [users["valid-1"], users["valid-2"]] == [letters[9:13], letters[19:23]]


GOOD = user("abcde")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no \*-test.json: the sdpo source needs X-test.json and X-train.json or X-val.json"),
        ({"test": GOOD}, "holds toy-test.json alone: the sdpo source needs"),
        ({"test": GOOD, "val": "[{"}, r"toy-val.json is not JSON in UTF-8 .*\. Copy the file again"),
        ({"test": GOOD, "val": {}}, "toy-val.json must be a list of rows"),
        ({"test": GOOD, "val": [*GOOD, 5]}, r'toy-val.json, row 3: not {"historyList": "a::b"'),
        ({"test": GOOD, "val": [choice("abc", ["d", " "], "d")]}, "row 1: not .* with names of items"),
        (
            {"test": GOOD, "val": [choice("abc", "de", "x")]},
            "row 1: itemList must hold .* trueSelection 'x' among them",
        ),
        ({"test": GOOD, "val": [choice("abc", "dd", "d")]}, "row 1: itemList must hold at least two names, none twice"),
    ],
)
def test_faults_are_one_line_that_names_file_and_row(tmp_path, files, message):
    path = raw(tmp_path / "raw", **files)
    with pytest.raises(UserError, match=message) as error:
        prepare("Toy", "sdpo", path, tmp_path / "out")
    assert "\n" not in str(error.value) and not list((tmp_path / "out").glob("*"))


def test_several_datasets_in_a_folder_are_told_apart_by_name(tmp_path):
    path = raw(tmp_path / "raw", val=GOOD, test=GOOD)
    for name in ("val", "test"):
        (path / f"other-{name}.json").write_text(json.dumps(user("vwxyz", "abc")))
    with pytest.raises(UserError, match=r"holds several datasets \(other, toy\)"):
        prepare("Third", "sdpo", path, tmp_path)
    assert "abcde" in sequences(prepare("Toy", "sdpo", path, tmp_path).folder)[0].values()


ROW = {"phase": "train", "user": "u", "place": 3, "candidates": ["1", "2"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": "dev"}, "line 4: not"),
        ({"place": 0}, "line 4: not"),
        ({"place": True}, "line 4: not"),
        ({"more": 1}, "line 4: not"),
        ({"candidates": ["1", "1"]}, "line 4: the candidates must be at least two different"),
        ({"candidates": ["1", 2]}, "line 4: the candidates must be"),
        ({}, "line 4: user 'u', place 3 stands twice"),
    ],
)
def test_a_faulty_list_of_candidates_is_named_by_its_line(tmp_path, change, message):
    lines = [{**ROW, "phase": phase, "place": place} for phase, place in (("train", 3), ("valid", 4), ("test", 5))]
    (tmp_path / "x").write_text("\n".join(json.dumps(line) for line in [*lines, {**ROW, **change}]))
    with pytest.raises(UserError, match=message):
        read_candidates(tmp_path / "x")


def test_lists_are_read_as_written_and_all_phases_are_needed(tmp_path):
    rows = [CandidateRow(phase, "u", place, ("1", "é")) for place, phase in enumerate(("test", "valid", "train"), 1)]
    assert write_candidates(tmp_path / "x", rows) == 3 and read_candidates(tmp_path / "x") == rows
    write_candidates(tmp_path / "x", rows[:1])
    with pytest.raises(UserError, match="has no row of phase train, valid: all of train, valid, test are needed"):
        read_candidates(tmp_path / "x")


@pytest.mark.skipif(not (SHARED / "lastfm").is_dir(), reason="the shared LastFM files are not here")
def test_the_published_lists_give_their_answer_away():
    """The figures of docs/candidates.md: rules that never look at the history of the row they answer."""
    rows = {
        part: json.loads((SHARED / f"lastfm/lastfm-{part}.json").read_text(encoding="utf-8"))
        for part in ("val", "test")
    }
    lists: dict[str, list[set[str]]] = {}
    for row in rows["val"]:
        lists.setdefault(row["trueSelection"], []).append(set(row["itemList"]))
    popular = Counter(row["trueSelection"] for row in rows["val"])
    popular += Counter(
        name for row in rows["val"] if row["historyList"].count("::") == 2 for name in row["historyList"].split("::")
    )
    remembered = frequent = 0
    for row in rows["test"]:
        shown, truth = row["itemList"], row["trueSelection"]
        shared = [max((len(known & set(shown)) for known in lists.get(name, [])), default=0) for name in shown]
        remembered += max(shared) > 0 and shown[shared.index(max(shared))] == truth
        counts = [popular[name] for name in shown]
        frequent += (counts[shown.index(truth)] == max(counts)) / counts.count(max(counts))
    places: dict[str, list[int]] = {}
    for row in rows["test"]:
        places.setdefault(row["trueSelection"], []).append(row["itemList"].index(row["trueSelection"]))
    repeated = [found for found in places.values() if len(found) > 1]
    assert len(repeated) == 508 and all(len(set(found)) == 1 for found in repeated)
    assert len(rows["test"]) == 2495
    assert round(remembered / 2495, 3) == 0.579 and round(frequent / 2495, 2) == 0.26


@pytest.mark.skipif(not (SHARED / "lastfm").is_dir(), reason="the shared LastFM files are not here")
def test_lastfm_as_published(tmp_path):
    done = prepare("LastFM", "sdpo", SHARED / "lastfm", tmp_path)
    assert done.counts["users"] == 244 and done.counts["items"] == 4606 and done.counts["interactions"] == 5994
    rows = read_candidates(done.folder / "LastFM.candidates.jsonl")
    assert [sum(row.phase == phase for row in rows) for phase in ("train", "valid", "test")] == [2345, 422, 2495]
    users, titles = sequences(done.folder)
    published = json.loads((SHARED / "lastfm/lastfm-test.json").read_text(encoding="utf-8"))
    ours = [row for row in rows if row.phase == "test"]
    assert [[titles[item] for item in row.candidates] for row in ours] == [row["itemList"] for row in published]
