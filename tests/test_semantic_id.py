"""Semantic IDs: token names, the index file, collisions, uniqueness."""

import json
import logging
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.semantic_id import collision_report, read_index, token_name, write_index
from recbole_ilrec.identifiers.uniqueness import learn_identifiers, make_unique
from recbole_ilrec.settings import IndexSettings

INSTRUMENTS = Path(__file__).parents[1].parent / "shared/data/Instruments/Instruments.index.json"


def assert_unique_and_prefix_free(identifiers):
    """In sorted order a beginning stands right before a longer one, so neighbours are all there is to look at."""
    for first, second in pairwise(sorted(identifiers)):
        assert first != second
        assert second[: len(first)] != first


# --- tokens and reports


@pytest.mark.parametrize(
    ("level", "code", "token"),
    [(0, 12, "<a_12>"), (3, 0, "<d_0>"), (25, 1, "<z_1>"), (26, 1, "<aa_1>"), (52, 7, "<ba_7>")],
)
def test_token_names_count_levels_in_letters(level, code, token):
    assert token_name(level, code) == token


def test_token_names_of_different_levels_never_meet():
    assert len({token_name(level, 0) for level in range(800)}) == 800


def test_report_counts_items_in_collisions_not_groups():
    report = collision_report([("a", "x"), ("a", "x"), ("a", "x"), ("b", "x"), ("b", "y")])
    assert (report.items, report.distinct, report.colliding_items, report.largest_group) == (5, 3, 3, 3)
    assert report.tokens_per_level == (2, 2)
    assert "\n" not in report.summary and "3 items collide" in report.summary


def test_perplexity_is_the_number_of_tokens_when_they_are_used_alike():
    report = collision_report([(a, "x") for a in "pqrs"])
    assert report.perplexity_per_level == pytest.approx((4.0, 1.0))


def test_report_of_no_items_is_empty():
    assert collision_report([]).largest_group == 0


def test_extra_level_is_counted_only_where_it_exists():
    report = collision_report([("a", "0"), ("a", "1"), ("b",)])
    assert report.tokens_per_level == (2, 2)
    assert report.perplexity_per_level[1] == pytest.approx(2.0)


# --- index file


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_written_index_is_read_back_in_the_order_asked_for(tmp_path):
    path = tmp_path / "new" / "toy.index.json"
    write_index(path, ["i1", "é", "i3"], [("<a_1>", "<b_0>"), ("<a_1>", "<b_1>", "<c_0>"), ("<a_1>", "<b_1>", "<c_1>")])
    assert read_index(path, ["i3", "i1"]) == [("<a_1>", "<b_1>", "<c_1>"), ("<a_1>", "<b_0>")]
    assert json.loads(path.read_text(encoding="utf-8"))["é"] == ["<a_1>", "<b_1>", "<c_0>"]
    assert [file.name for file in path.parent.iterdir()] == ["toy.index.json"]
    assert path.stat().st_mode & 0o777 == 0o644, "others may read it"


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "toy.index.json", {"i": ["<a_0>"]})

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_index(path, ["i"], [("<a_1>",)])
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text()) == {"i": ["<a_0>"]}


def test_collisions_of_a_given_file_are_kept(tmp_path):
    path = write(tmp_path / "x.index.json", {"1": ["<a_0>"], "2": ["<a_0>"]})
    assert read_index(path, ["1", "2"]) == [("<a_0>",), ("<a_0>",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([["<a_0>"]], "holds a JSON list"),
        ({"1": ["<a_0>"]}, r"no entry for 1 of 2 items of the dataset \('2'\)"),
        ({"1": ["<a_0>"], "2": "<a_0>"}, "item '2' has the entry '<a_0>'"),
        ({"1": ["<a_0>"], "2": []}, "item '2'"),
        ({"1": ["<a_0>"], "2": [""]}, "item '2'"),
        ({"1": ["<a_0>"], "2": [3]}, "item '2'"),
        ({"1": ["<a_0>"], "2": None}, "item '2'"),
        ({"1": ["<a_0>"], "2": ["<a_0>", "<b_0>", "<c_0>"]}, "item '2' has 3 tokens where others have 1"),
        ({"1": ["<a_0>"], "2": ["<a_1>", "<c_0>"]}, "item '2' has 2 tokens where others have 1.*<b_0>"),
        ({"1": ["<a_0>"], "2": ["<a_0>", "<b_0>"]}, "item '2' has 2 tokens"),
    ],
)
def test_bad_index_files_are_refused_in_one_line(tmp_path, content, message):
    path = write(tmp_path / "bad.index.json", content)
    with pytest.raises(UserError, match=message) as caught:
        read_index(path, ["1", "2"])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_missing_and_unreadable_index_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such index file"):
        read_index(tmp_path / "none.index.json", ["1"])
    with pytest.raises(UserError, match="cannot be read"):
        read_index(tmp_path, ["1"])
    binary = tmp_path / "binary.index.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid JSON"):
        read_index(binary, ["1"])


def test_only_the_first_missing_items_are_named(tmp_path):
    path = write(tmp_path / "few.index.json", {"x": ["<a_0>"]})
    with pytest.raises(UserError, match=r"9 of 9 items of the dataset \('0', '1', '2', \.\.\.\)"):
        read_index(path, [str(item) for item in range(9)])


@pytest.mark.skipif(not INSTRUMENTS.exists(), reason="shared Instruments index is not at hand")
def test_published_instruments_index_has_the_counted_collisions():
    items = [str(item) for item in range(9922)]
    report = collision_report(read_index(INSTRUMENTS, items))
    assert (report.items, report.distinct, report.colliding_items) == (9922, 9897, 48)
    assert report.tokens_per_level == (150, 256, 256, 256)
    assert all(
        1 < used <= tokens for used, tokens in zip(report.perplexity_per_level, report.tokens_per_level, strict=True)
    )


# --- uniqueness


@st.composite
def code_tables(draw):
    """Codes [I, L] over a small codebook, with distances that may tie, so that collisions are the rule."""
    codebook = draw(st.integers(2, 4))
    levels = draw(st.integers(1, 3))
    code = st.integers(0, codebook - 1)
    rows = draw(st.lists(st.tuples(*[code] * levels), min_size=1, max_size=30))
    seed = draw(st.integers(0, 99))
    distances = torch.rand(len(rows), codebook, generator=torch.Generator().manual_seed(seed))
    if draw(st.booleans()):
        distances = distances.round(decimals=0)
    return torch.tensor(rows), distances


@given(code_tables(), st.sampled_from([0.0, 0.003, 0.1]), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_item_gets_its_own_identifier_and_none_begins_another(table, epsilon, rounds):
    codes, distances = table
    unique = make_unique(codes, lambda items: distances[items], epsilon=epsilon, iterations=5, rounds=rounds)
    assert_unique_and_prefix_free(unique)
    levels, codebook = codes.shape[1], distances.shape[1]
    for before, after in zip(codes.tolist(), unique, strict=True):
        assert list(after[: levels - 1]) == before[:-1], "only the last level may change"
        assert after[levels - 1] < codebook
        assert len(after) in (levels, levels + 1)


@given(code_tables())
@settings(max_examples=80, deadline=None)
def test_extra_token_appears_only_under_a_prefix_without_room(table):
    codes, distances = table
    unique = make_unique(codes, lambda items: distances[items])
    levels, codebook = codes.shape[1], distances.shape[1]
    for identifier in unique:
        under_prefix = sum(other[: levels - 1] == identifier[: levels - 1] for other in unique)
        assert (len(identifier) > levels) <= (under_prefix > codebook)


def test_unique_codes_stay_as_they_are():
    codes = torch.tensor([[0, 1], [0, 2], [1, 1]])
    assert make_unique(codes, lambda _: pytest.fail("no distance needed"), epsilon=0.003, rounds=20) == [
        (0, 1),
        (0, 2),
        (1, 1),
    ]


def test_nearest_item_keeps_the_code_and_the_other_takes_its_nearest_free_one():
    codes = torch.tensor([[0, 0], [0, 0], [0, 1]])
    distances = torch.tensor([[0.5, 0.6, 0.9, 0.8], [0.1, 0.2, 0.9, 0.9], [9.0, 0.0, 9.0, 9.0]])
    assert make_unique(codes, lambda items: distances[items]) == [(0, 3), (0, 0), (0, 1)]


def test_of_all_that_leave_their_codes_the_one_nearest_to_its_own_chooses_first():
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1]])
    distances = torch.tensor([[0.0, 9, 9, 9], [2.0, 9, 3, 4], [9.0, 0, 9, 9], [9.0, 1, 3, 5]])
    assert make_unique(codes, lambda items: distances[items]) == [(0, 0), (0, 3), (0, 1), (0, 2)]


def test_equal_items_beyond_the_codebook_share_codes_evenly():
    unique = make_unique(torch.zeros(10, 2, dtype=torch.int64), lambda items: torch.zeros(len(items), 4))
    assert_unique_and_prefix_free(unique)
    assert {identifier[-1] for identifier in unique} == {0, 1, 2}
    assert {len(identifier) for identifier in unique} == {3}


def test_sinkhorn_rounds_separate_items_that_differ():
    codes = torch.zeros(3, 1, dtype=torch.int64)
    distances = torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.2, 1.0], [0.2, 0.9, 0.4]])
    unique = make_unique(codes, lambda items: distances[items], epsilon=0.01, rounds=20)
    assert unique == [(0,), (1,), (2,)]


@pytest.mark.parametrize("items", [1, 2, 7, 60])
def test_learned_identifiers_are_unique_even_when_all_vectors_are_equal(items, tmp_path, caplog):
    small = IndexSettings(levels=2, codebook_size=4, hidden=(8,), code_dim=4, epochs=2)
    with caplog.at_level(logging.INFO):
        identifiers = learn_identifiers(torch.ones(items, 5), small, seed=0)
    assert_unique_and_prefix_free(identifiers)
    assert f"Telling {items} items apart" in caplog.text
    names = [f"i{item}" for item in range(items)]
    write_index(tmp_path / "x.index.json", names, identifiers)
    assert read_index(tmp_path / "x.index.json", names) == identifiers, "our own depths must be readable"


def test_items_that_collide_are_moved_by_lcrecs_rounds_where_these_are_asked_for():
    vectors = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    small = IndexSettings(levels=2, codebook_size=6, hidden=(8,), code_dim=4, epochs=1)
    nearest, moved = (
        learn_identifiers(vectors, small.model_copy(update={"reassign_rounds": rounds}), seed=0) for rounds in (0, 9)
    )
    assert nearest != moved and [row[0] for row in nearest] == [row[0] for row in moved]


def test_learned_identifiers_with_mixed_depths_are_readable(tmp_path):
    vectors = torch.cat([torch.zeros(12, 5), torch.eye(5) * 10])
    small = IndexSettings(levels=2, codebook_size=3, hidden=(8,), code_dim=4, epochs=2)
    identifiers = learn_identifiers(vectors, small, seed=0)
    assert {len(identifier) for identifier in identifiers} == {2, 3}
    names = [str(item) for item in range(len(vectors))]
    write_index(tmp_path / "x.index.json", names, identifiers)
    assert read_index(tmp_path / "x.index.json", names) == identifiers
