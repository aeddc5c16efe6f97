"""Atomic files: texts survive unchanged, ids that RecBole would change are refused, nothing half-written stays."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import read_items, write_interactions, write_items
from recbole_ilrec.preparation.files import write_atomically

NASTY = [
    "",
    " ",
    '"begins with a quote, and a comma',
    'both " and \' inside "',
    "NA",
    "nan",
    "#1 comment-like; 50% off \\n \\t",
    "naïve Ω 漢字 🎸",
    "vertical\x0btab, form\x0cfeed, line\u2028separator, next\x85line, record\x1eseparator",
    "nul \x00 inside",
    "\ufeffbyte order mark",
    "  leading and trailing  ",
]


def test_texts_round_trip_without_loss(tmp_path):
    rows = {str(n): {"title": text, "description": text * 2, "brand": text} for n, text in enumerate(NASTY)}
    write_items(tmp_path / "toy.item", rows)
    assert read_items(tmp_path / "toy.item") == rows
    header = (tmp_path / "toy.item").read_bytes().split(b"\n")[0]
    assert header == b"item_id:token\ttitle:token_seq\tdescription:token_seq\tbrand:token"


def test_separators_become_one_blank_and_lone_surrogates_the_replacement_character(tmp_path):
    write_items(tmp_path / "toy.item", {"0": {"title": "a\t\r\nb\n\nc\rd \ud83d"}})
    assert read_items(tmp_path / "toy.item") == {"0": {"title": "a b c d \ufffd"}}


def test_absent_fields_read_as_empty_and_unknown_fields_are_kept(tmp_path):
    write_items(tmp_path / "toy.item", {"a": {"colour": "red"}, "b": {"title": "t"}})
    assert read_items(tmp_path / "toy.item") == {"a": {"title": "", "colour": "red"}, "b": {"title": "t", "colour": ""}}


def test_windows_line_ends_and_a_missing_last_one_are_read(tmp_path):
    (tmp_path / "x.item").write_bytes(b"\xef\xbb\xbfitem_id:token\ttitle:token_seq\r\n1\tone\r\n2\ttwo")
    assert read_items(tmp_path / "x.item") == {"1": {"title": "one"}, "2": {"title": "two"}}


def test_recboles_own_item_file_is_read():
    spec = find_spec("recbole")
    if spec is None or spec.origin is None:
        pytest.skip("recbole is not installed, so its ml-100k is not there")
    rows = read_items(Path(spec.origin).parent / "dataset_example/ml-100k/ml-100k.item")
    assert len(rows) == 1682
    assert rows["1"] == {
        "movie_title": "Toy Story",
        "release_year": "1995",
        "class": "Animation Children's Comedy",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"item_id:token\ttitle\n", "line 1: column 'title' is not field:type"),
        (b"item_id:token\ttitle:text\n", "line 1: column 'title:text' is not field:type"),
        (b"id:token\n1\n", "line 1: no single column 'item_id:token'"),
        (b"item_id:token\titem_id:token\n", "line 1: no single column 'item_id:token'"),
        (b"", "line 1: column '' is not field:type"),
        (b"item_id:token\ttitle:token_seq\n1\ta\n2\n", "line 3: 1 columns, the header has 2"),
        (b"item_id:token\ttitle:token_seq\n\ta\n", "line 2: the item token is empty"),
        (b"item_id:token\ttitle:token_seq\n1\ta\n1\tb\n", "line 3: item '1' stands there twice"),
        (b"item_id:token\ttitle:token_seq\n1\t\xff\n", "not UTF-8"),
    ],
)
def test_a_broken_item_file_is_one_line_with_file_and_line(tmp_path, content, message):
    (tmp_path / "x.item").write_bytes(content)
    with pytest.raises(UserError, match="x.item") as error:
        read_items(tmp_path / "x.item")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_item_file_is_named(tmp_path):
    with pytest.raises(UserError, match="x.item does not exist"):
        read_items(tmp_path / "x.item")


def test_interactions_carry_ranks_in_place_of_times(tmp_path):
    counts = write_interactions(tmp_path / "x.inter", [("u", ["b", "a"]), ("v", ["a"])])
    assert counts == {"users": 2, "items": 2, "interactions": 3}
    assert (tmp_path / "x.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\nu\tb\t0\nu\ta\t1\nv\ta\t0\n"
    )


def test_an_id_of_several_words_is_read_back_by_recboles_reader(tmp_path):
    write_interactions(tmp_path / "x.inter", [("user 1", ["Früchte Nº 5", "b"])])
    columns = pd.read_csv(tmp_path / "x.inter", delimiter="\t", dtype={"user_id:token": str, "item_id:token": str})
    assert columns["user_id:token"].tolist() == ["user 1"] * 2 and columns["item_id:token"][0] == "Früchte Nº 5"


@pytest.mark.parametrize("token", ["", "NA", "nan", "[PAD]", "u\0", " a", "tab\t", "line\u2028", 'quote"', "\ud83d"])
def test_ids_that_recbole_would_change_are_refused_and_no_file_stays(tmp_path, token):
    with pytest.raises(UserError, match="cannot be a RecBole token"):
        write_interactions(tmp_path / "x.inter", [("u", ["a", token])])
    with pytest.raises(UserError, match="cannot be a RecBole token"):
        write_items(tmp_path / "x.item", {token: {"title": "t"}})
    assert list(tmp_path.iterdir()) == []


def test_a_field_name_that_would_break_the_header_is_refused(tmp_path):
    with pytest.raises(UserError, match="'a:b' cannot name a text field"):
        write_items(tmp_path / "x.item", {"0": {"a:b": "t"}})


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), write_atomically(tmp_path / "x") as stream:
        stream.write("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_importing_the_package_brings_in_nothing_heavy():
    code = "import sys, recbole_ilrec.preparation; print(*sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "polars", "pandas", "recbole", "tqdm", "transformers"} & set(done.stdout.split())
