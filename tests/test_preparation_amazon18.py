"""Amazon 2018: the streamed pipeline equals a naive one; every fault of the raw files is one clear line."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import amazon18, prepare, read_items
from recbole_ilrec.preparation.item_text import clean_text, item_texts

Rating = tuple[str, str, int]


def ratings(seed: int = 3) -> list[Rating]:
    """(item, user, time) with few distinct times (ties), repeats, and a chain that the 5-core eats link by link."""
    draw = random.Random(seed)
    rows = [
        (f"B{draw.randrange(14):03}", f"A{draw.randrange(40)}", 1_400_000_000 + draw.randrange(4)) for _ in range(420)
    ]
    # User Ci has items B000 .. B003 and L(i); L(i) has users C(i) and C(i+1), so the chain falls from its end.
    rows += [(f"B{n:03}", f"C{i}", 1_500_000_000) for i in range(6) for n in range(4)]
    rows += [(f"L{i}", f"C{j}", 1_500_000_001) for i in range(6) for j in (i, i + 1) if j < 6]
    draw.shuffle(rows)
    return rows


DESCRIBED = [f"B{n:03}" for n in range(13)] + [f"L{i}" for i in range(6)] + ["UNSEEN"]  # B013 has no metadata


def metadata() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "asin": item,
            "title": f'Title &amp; {item} <b>bold</b>\n"quoted"...',
            "description": ["first", f"second {item}"] if n % 2 else f"only {item}",
            "brand": "by\n  Maker" if n % 3 else "Maker",
            "category": ["Top", "Middle &amp; Co", "</span></span>page source", "lost"],
        }
        for n, item in enumerate(DESCRIBED)
    ]
    return [{"asin": "B000", "title": "older line"}, *rows]


def naive(rows: list[Rating], described: set[str]) -> list[list[str]]:
    """The pipeline as a page of plain Python: sequences of raw item ids, users in order of their raw ids."""
    events = sorted((user, time, line, item) for line, (item, user, time) in enumerate(rows, start=1))
    seen: set[tuple[str, str]] = set()
    kept = []
    for user, _, _, item in events:
        if (user, item) not in seen and item in described:
            kept.append((user, item))
        seen.add((user, item))
    while True:
        users = [user for user, _ in kept]
        items = [item for _, item in kept]
        stay = [(u, i) for u, i in kept if users.count(u) >= 5 and items.count(i) >= 5]
        if stay == kept:
            return [[i for v, i in kept if v == u] for u in dict.fromkeys(users)]
        kept = stay


def write_csv(folder: Path, rows: list[Rating], name: str = "Toys.csv") -> None:
    (folder / name).write_text("".join(f"{item},{user},5.0,{time}\n" for item, user, time in rows))


def write_json_lines(path: Path, records: list[dict[str, object]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_csv(folder, ratings())
    write_json_lines(folder / "meta_Toys.json.gz", metadata())
    return folder


def sequences(folder: Path, name: str) -> list[list[str]]:
    by_user: dict[str, list[str]] = {}
    for line in (folder / f"{name}.inter").read_text().splitlines()[1:]:
        user, item, rank = line.split("\t")
        assert int(rank) == len(by_user.setdefault(user, []))
        by_user[user].append(item)
    assert list(by_user) == [str(n) for n in range(len(by_user))]
    return list(by_user.values())


def numbered(expected: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    order = list(dict.fromkeys(item for sequence in expected for item in sequence))
    return [[str(order.index(item)) for item in sequence] for sequence in expected], order


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_ratings_give_what_the_naive_pipeline_gives(tmp_path, raw, seed):
    rows = ratings(seed)
    write_csv(raw, rows)
    expected, order = numbered(naive(rows, set(DESCRIBED)))
    assert len(expected) > 5
    assert "L5" not in order and "B013" not in order
    done = prepare("toy", "amazon18", raw, tmp_path / "out")
    assert sequences(done.folder, "toy") == expected
    texts = read_items(done.folder / "toy.item")
    assert list(texts) == [str(n) for n in range(len(order))]
    for number, item in enumerate(order):
        n = DESCRIBED.index(item)
        assert texts[str(number)] == {
            "title": f'Title & {item} bold "quoted".',
            "description": f"first second {item}" if n % 2 else f"only {item}",
            "brand": "Maker",
            "categories": "Top, Middle & Co",
        }
    assert sorted(p.name for p in done.folder.iterdir()) == ["toy.inter", "toy.item", "toy.manifest.json"]
    assert "line number" in str(done.manifest["tie_rule"])


def test_the_generated_data_have_ties_repeats_and_a_cascade():
    rows = ratings()
    assert len({(user, item) for item, user, _ in rows}) < len(rows)
    assert len({(user, time) for _, user, time in rows}) < len(rows)
    described = set(DESCRIBED)
    pairs = {(user, item) for item, user, _ in rows if item in described}
    chain_users = {user for user, _ in pairs if user.startswith("C")}
    assert chain_users and not any("L" in item for sequence in naive(rows, described) for item in sequence)


def test_only_a_repeat_of_both_user_and_item_is_dropped_whatever_their_numbers():
    import polars as pl

    most = 2**32 - 1
    pairs = [(u, i) for u in (0, 1, 2**31, most - 1, most) for i in (0, 1, most)]
    schema = {"user": pl.UInt32, "item": pl.UInt32, "time": pl.Int64, "line": pl.Int64}
    rows = [(*pair, 7, line) for line, pair in enumerate([*pairs, *pairs], start=1)]
    events = pl.DataFrame(rows[::-1], schema=schema, orient="row")
    assert amazon18.first_occurrences(events).rows() == pairs


def test_reviews_give_the_same_as_ratings_however_they_are_cut_into_parts(tmp_path, raw, monkeypatch):
    first = prepare("toy", "amazon18", raw, tmp_path / "one").folder
    reviews = [{"reviewerID": user, "asin": item, "unixReviewTime": time} for item, user, time in ratings()]
    (raw / "Toys.csv").unlink()
    write_json_lines(raw / "Toys_5.json.gz", reviews)
    monkeypatch.setattr(amazon18, "ROWS_PER_PART", 37)
    second = prepare("toy", "amazon18", raw, tmp_path / "two").folder
    for name in ("toy.inter", "toy.item"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_blank_lines_and_windows_line_ends_change_nothing(tmp_path, raw):
    first = prepare("toy", "amazon18", raw, tmp_path / "one").folder
    lines = (raw / "Toys.csv").read_text().splitlines()
    (raw / "Toys.csv").write_bytes("\r\n".join(["", *lines[:200], "", *lines[200:], "", ""]).encode())
    second = prepare("toy", "amazon18", raw, tmp_path / "two").folder
    assert (first / "toy.inter").read_bytes() == (second / "toy.inter").read_bytes()


def test_the_result_does_not_depend_on_the_hash_seed(tmp_path, raw):
    code = "import sys; from recbole_ilrec.preparation import prepare; prepare('toy', 'amazon18', *sys.argv[1:])"
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(raw), str(tmp_path / seed)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    for name in ("toy.inter", "toy.item", "toy.manifest.json"):
        assert (tmp_path / "1/toy" / name).read_bytes() == (tmp_path / "2/toy" / name).read_bytes()


def test_a_kill_while_filtering_leaves_nothing(tmp_path, raw, monkeypatch):
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(amazon18, "k_core", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare("toy", "amazon18", raw, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_category_is_found_by_dataset_name_or_by_being_alone(tmp_path, raw):
    assert amazon18.find(raw, "anything")["interactions"].name == "Toys.csv"
    write_csv(raw, ratings(), "Musical_Instruments.csv")
    write_json_lines(raw / "meta_Musical_Instruments.json.gz", metadata())
    assert amazon18.find(raw, "Instrument")["metadata"].name == "meta_Musical_Instruments.json.gz"
    assert amazon18.find(raw, "Toys")["interactions"].name == "Toys.csv"
    with pytest.raises(UserError, match=r"several categories \((Toys, Musical|Musical_Instruments, Toys)"):
        amazon18.find(raw, "anything")


def test_ratings_come_before_reviews_and_all_reviews_before_the_5_core(raw):
    for file in ("Toys.json.gz", "Toys_5.json.gz"):
        write_json_lines(raw / file, [])
    found = []
    for _ in range(3):
        found.append(amazon18.find(raw, "toy")["interactions"])
        found[-1].unlink()
    assert [file.name for file in found] == ["Toys.csv", "Toys.json.gz", "Toys_5.json.gz"]


def test_missing_files_are_named_with_the_way_to_get_them(tmp_path, raw):
    with pytest.raises(UserError, match="is not a folder"):
        amazon18.find(tmp_path / "no", "toy")
    with pytest.raises(UserError, match="Game is made of Video_Games.*meta_Video_Games.json.gz into a folder DIR"):
        amazon18.find(raw, "Game")
    (raw / "Toys.csv").unlink()
    with pytest.raises(UserError, match=r"Neither Toys.csv \(ratings\) nor Toys_5.json.gz"):
        amazon18.find(raw, "toy")
    (raw / "meta_Toys.json.gz").unlink()
    with pytest.raises(UserError, match=r"No meta_\*.json.gz"):
        amazon18.find(raw, "toy")


GOOD = '{"reviewerID": "A", "asin": "B", "unixReviewTime": 1}\n'


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Toys.csv", "B,A,5.0,1\nB,A,5.0,soon\n", "Toys.csv, line 2: not 'item,user,rating,timestamp'"),
        ("Toys.csv", "item,user,rating,timestamp\nB,A,5.0,1\n", "Toys.csv, line 1: not"),
        ("Toys.csv", "B,A,5.0,1\nB,,5.0,1\n", "Toys.csv, line 2: not"),
        ("Toys.csv", "B,A,5.0,1\nB,A\n", "Toys.csv, line 2: not"),
        ("Toys.csv", "B,A\nB,A\n", "Toys.csv, line 1: not"),
        ("Toys.csv", "B,A,5.0,1\n\nB,A,5.0,1,9\n", "Toys.csv, line 3: not"),
        ("Toys.csv", "\ufeff\u0141".encode("utf-16-le").decode("latin-1"), "Toys.csv, line 1: not"),
        ("Toys.csv", "", "Toys.csv"),
        ("Toys.csv", "\n \r\n", "no interaction is left after the 5-core filter"),
        ("Toys.csv", "B000,A,5.0,1\n", "no interaction is left after the 5-core filter"),
        ("Toys.json.gz", GOOD + "[1]\n", "Toys.json.gz, line 2: not a JSON object"),
        ("Toys.json.gz", GOOD + "{\n", "Toys.json.gz, line 2: not a JSON object"),
        ("Toys.json.gz", GOOD.replace("1", '"1"'), "line 1: unixReviewTime is '1', must be whole seconds"),
        ("Toys.json.gz", GOOD.replace("asin", "ASIN"), "line 1: asin is None, must be a text"),
        ("Toys.json.gz", GOOD.replace('"A"', '" "'), "line 1: reviewerID is ' ', must be a text"),
        ("Toys.json.gz", GOOD.replace('"A"', '"\\ud83d"'), "line 1: reviewerID is '\\ud83d', must be a text"),
        ("Toys.json.gz", "", "no interaction is left after the 5-core filter"),
        ("meta_Toys.json.gz", '{"title": "t"}', "meta_Toys.json.gz, line 1: asin is None"),
        ("meta_Toys.json.gz", "", "no interaction is left after the 5-core filter"),
    ],
)
def test_every_fault_of_the_raw_files_is_one_clear_line_and_leaves_nothing(tmp_path, raw, file, content, message):
    if file == "Toys.json.gz":
        (raw / "Toys.csv").unlink()
    if file.endswith(".gz"):
        (raw / file).write_bytes(gzip.compress(content.encode()))
    else:
        (raw / file).write_text(content)
    with pytest.raises(UserError) as error:
        prepare("toy", "amazon18", raw, tmp_path / "out")
    assert message in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"no gzip at all",
        lambda data: data[:40] + b"\0" * 40 + data[80:],
    ],
)
def test_a_damaged_or_cut_archive_is_named(tmp_path, raw, damage):
    archive = raw / "meta_Toys.json.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match="meta_Toys.json.gz, (after )?line"):
        prepare("toy", "amazon18", raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        (None, ""),
        ("", ""),
        (["a ", None, "b"], "a b"),
        ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
        ("<p class='x'>one</p><br/>two<!-- hidden -->", "one two"),
        ("3 < 5 and 7 > 2", "3 < 5 and 7 > 2"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ('12" cable\r\n\tblack', '12" cable black'),
        ("wait...", "wait."),
        ("one ... two", "one ... two"),
        ("x" * 1999, "x" * 1999),
        ("x" * 2000, ""),
    ],
)
def test_texts_are_cleaned(given, clean):
    assert clean_text(given) == clean


def test_quotes_can_be_removed_as_lcrec_does():
    assert clean_text("12\" Tom's", keep_quotes=False) == "12 Toms"


def test_odd_metadata_fields_are_empty_texts():
    texts = item_texts({"title": 7, "brand": ["x"], "category": "Top"})
    assert texts == {"title": "", "description": "", "brand": "", "categories": ""}
