"""Clicks of one's own: tables and JSON lines become a dataset in time order, and whatever is wrong names its line."""

import gzip
import json
import logging
from datetime import UTC, datetime

import polars as pl
import pytest

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import prepare, read_items

CLICKS = """time,user,item,stars
2024-05-02T10:00:00+02:00,Zoë B,tee 2,5
2024-05-01T09:00:00Z,Zoë B,tee 1,4
2024-05-01T09:00:00Z,Zoë B,tee 1,4
2024-05-02 08:00:00,Zoë B,"tee, 3",1
2024-05-02T08:00:00Z,Zoë B,tee 2,5
2024-05-03,Zoë B,tee 1,2
2024-05-01,loner,tee 2,3
"""
"""Out of order; copies, near and far; two equal times in two zones; an item again later; a user with one click."""
ITEMS = 'item_id:token;title;maker\ntee 1;"Früchte; „süß“";日本\ntee, 3;;\ntee 9;never clicked;x\n'


def rows_of(folder, name="mine"):
    lines = (folder / name / f"{name}.inter").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]


def put(folder, **files):
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return folder


def test_a_table_of_clicks_becomes_sequences_in_time_order(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    made = prepare("mine", "clicks", put(tmp_path, mine_csv=CLICKS, items_csv=ITEMS), tmp_path / "out")
    in_order = ["tee 1", "tee 2", "tee, 3", "tee 1"]  # the second and third by line: 10:00 in +02:00 is 08:00 in UTC
    assert rows_of(tmp_path / "out") == [
        *(("Zoë B", t, str(n)) for n, t in enumerate(in_order)),
        ("loner", "tee 2", "0"),
    ]
    assert made.counts["users"] == 2 and made.counts["items_with_text"] == 1
    texts = read_items(tmp_path / "out/mine/mine.item")
    assert texts == {"tee 1": {"title": "Früchte; „süß“", "maker": "日本"}}
    assert "2 of 7 rows are copies" in caplog.text and "1 of 2 users have fewer than 3 clicks" in caplog.text
    assert "2 of 3 items have no text: tee 2, tee, 3." in caplog.text
    assert prepare("mine", "clicks", tmp_path, tmp_path / "out").up_to_date


def test_json_lines_and_other_tables_give_the_same_dataset(tmp_path):
    rows = [("u1", 3, 12.5), ("u1", 1, 11), ("u2", 3, 1e12)]
    text = "".join(json.dumps({"user_id": u, "item_id": i, "timestamp": t, "x": None}) + "\n" for u, i, t in rows)
    tsv = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n\n" for u, i, t in rows)
    expected = [("u1", "1", "0"), ("u1", "3", "1"), ("u2", "3", "0")]
    files = {"a": {"clicks_jsonl": text}, "b": {"clicks_tsv": tsv}, "c": {"c_csv": tsv, "clicks_csv": HEAD}}
    files["e"] = {"clicks_csv": f"\ufeff{tsv}"}  # as spreadsheets write it
    for name, file in files.items():
        (tmp_path / name).mkdir()
        prepare(name, "clicks", put(tmp_path / name, **file), tmp_path / "out")
        assert rows_of(tmp_path / "out", name) == expected
    (tmp_path / "d").mkdir()
    (tmp_path / "d/d.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "f").mkdir()
    (tmp_path / "f/f.csv.gz").write_bytes(whole := gzip.compress(tsv.encode()))
    for name in "df":
        prepare(name, "clicks", tmp_path / name, tmp_path / "out")
        assert rows_of(tmp_path / "out", name) == expected
    for broken in (whole[:-20], b"no gzip"):
        (tmp_path / "f/f.csv.gz").write_bytes(broken)
        with pytest.raises(UserError, match="f.csv.gz is damaged or cut short"):
            prepare("f", "clicks", tmp_path / "f", tmp_path / "out")


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_a_parquet_table_with_numbers_for_ids_and_moments_for_times_is_read(tmp_path, zone):
    moments = [datetime(2024, 5, day, 12, tzinfo=UTC) for day in (3, 1, 2)]
    times = pl.Series(moments).dt.convert_time_zone(zone) if zone else [when.replace(tzinfo=None) for when in moments]
    pl.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "a"], "time": times}).write_parquet(tmp_path / "p.parquet")
    prepare("p", "clicks", tmp_path, tmp_path / "out")
    assert rows_of(tmp_path / "out", "p") == [("1", "b", "0"), ("1", "a", "1"), ("2", "a", "0")]
    pl.DataFrame({"user": [1], "item": [None], "time": [1]}).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="p.parquet, row 1: the item id None is no text"):
        prepare("p", "clicks", tmp_path, tmp_path / "out")
    (tmp_path / "p.parquet").write_text("no table")
    with pytest.raises(UserError, match="p.parquet is no Parquet file"):
        prepare("p", "clicks", tmp_path, tmp_path / "out")


HEAD = "user,item,time\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "which holds nothing: put the table of users, items and times there"),
        ({"mine_CSV": HEAD, "mine.csv_zip": ""}, "which holds mine.CSV, mine.csv.zip: put the table"),
        ({"mine_csv": HEAD, "mine_tsv": HEAD}, "holds mine.csv, mine.tsv: leave the one that is meant"),
        ({"mine_csv": ""}, "mine.csv has no row"),
        ({"mine_csv": HEAD}, "mine.csv has no row"),
        ({"mine_csv": "user|item|time\nu|i|1\n"}, "mine.csv:1: one column, 'user|item|time': separate the columns by"),
        ({"mine_csv": "user,item,time,time\n"}, "mine.csv:1: a column stands there twice"),
        (
            {"mine_csv": "user,sku,time\nu,i,1\n"},
            "mine.csv:2: there is no column item_id or item, only user, sku, time",
        ),
        ({"mine_csv": HEAD + "u,i,1\nu,i\n"}, "mine.csv:3: 2 columns, the header has 3"),
        ({"mine_csv": HEAD + "u,i,soon\n"}, "mine.csv:2: the time 'soon' is no number and no date"),
        ({"mine_csv": HEAD + "u,i,1700000000\nu,i,1700000000000\n"}, "times are in different units, e.g. 1700000000 "),
        ({"mine_csv": HEAD + "u,i,nan\n"}, "mine.csv:2: the time 'nan' is no number"),
        ({"mine_csv": HEAD + "u,i,1\nu,i,2024-01-01\n"}, "mine.csv:3: the times before are numbers"),
        (
            {"mine_csv": HEAD + "u,i,soon\nu,i,1\nu,,1\nu,j,2024-01-01\n"},
            "mine.csv:2: the time 'soon' is no number and no date of ISO 8601 such as 2024-05-31T12:00:00Z. Mend or "
            "remove the row. Also wrong: lines 4, 5.",
        ),
        ({"mine_csv": HEAD + "u,i,\n" * 9}, "Mend or remove the row. Also wrong: lines 3, 4, 5, 6, 7, and maybe later"),
        ({"mine_csv": HEAD + "u,,1\n"}, "mine.csv:2: The item id '' cannot be a RecBole token"),
        ({"mine_csv": HEAD + 'u,"a,1\n'}, "no row of a table"),
        ({"mine_csv": HEAD + "u,NA,1\n"}, "mine.csv:2: The item id 'NA' cannot be"),
        ({"mine_jsonl": '{"user": true, "item": 1, "time": 1}\n'}, "mine.jsonl:1: the user id True is no text"),
        ({"mine_jsonl": '{"user": 1, "item": 1, "time": null}\n'}, "mine.jsonl:1: the time None is no number"),
        ({"mine_jsonl": "[1]\n"}, "mine.jsonl, line 1: not a JSON object"),
        (
            {"mine_csv": HEAD + "u,7.0,1\n", "items_csv": "item,title\n7,x\n"},
            "items.csv has no text for any item of the clicks: check that the item ids of both are the same (first '7' "
            "there, '7.0' in the clicks)",
        ),
        ({"mine_csv": HEAD + "u,i,1\n", "items_csv": "item,title\ni,x\ni,y\n"}, "items.csv:3: item 'i' stands there"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_stays(tmp_path, files, message):
    with pytest.raises(UserError) as caught:
        prepare("mine", "clicks", put(tmp_path, **files), tmp_path / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_file_that_was_changed_by_hand_is_not_replaced(tmp_path):
    folder = put(tmp_path, mine_csv=HEAD + "u,i,1\nu,j,2\n")
    out = prepare("mine", "clicks", folder, tmp_path / "out").folder
    with (out / "mine.inter").open("a") as stream:
        stream.write("u\ti\t3\n")
    with pytest.raises(UserError, match=r"mine.inter has been changed since 'prepare' wrote it"):
        prepare("mine", "clicks", folder, tmp_path / "out")
    assert (out / "mine.inter").read_text().endswith("u\ti\t3\n")
