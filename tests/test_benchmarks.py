"""The benchmarks run and compare like with like; their numbers are not tested here."""

import json

import pytest

from benchmarks import classical, growth, results, search, steps
from benchmarks.__main__ import GROUPS, wanted
from benchmarks.measure import paired
from recbole_ilrec.errors import UserError

FACTS = {"versions": {"torch": "2"}, "command": "c", "commit": "1", "processor": "p", "device": "cpu", "python": "3"}


def test_steps_of_both_kinds_of_rows_are_timed(monkeypatch):
    case = steps.Case(vocab=50, hidden=16, layers=4, rows=2, length=9)
    monkeypatch.setattr(steps, "CASES", {50: case})
    assert (case.batch("prefix").count, case.batch("sequence").count) == (8, 18)
    for kind in ("prefix", "sequence"):
        assert all(value > 0 for value in steps.ratios(50, kind, 0.5, rounds=1).values())


def test_steps_with_eq_8_on_the_items_tokens_and_with_adapters_are_timed(monkeypatch):
    monkeypatch.setattr(steps, "CASES", {50: steps.Case(vocab=50, hidden=16, layers=4, rows=2, length=9)})
    assert all(value > 0 for value in steps.ratios(50, "sequence", 1.0, rounds=1, support="item_tokens").values())
    assert all(value > 0 for value in steps.adapter(50, "sequence", rounds=1).values())


def test_our_search_finds_the_beams_of_the_library():
    assert search.beams(users=2, length=9, items=40, width=4, rounds=1)["same beams"] >= 0.75


def test_searches_in_catalogues_of_several_sizes_are_timed_by_the_smallest():
    found = search.decode((30, 300), users=2, width=4, rounds=1)
    assert list(found) == [30, 300] and found[30]["of the smallest's"] == 1 and found[300]["ms a user"] > 0


def test_trie_and_rewards_are_timed_and_shown():
    numbers = search.trie(300)
    assert numbers["nodes"] > 300
    assert search.rewards(300)["ms a target"] > 0
    line = {"name": "trie", "of": {"items": 300}, "numbers": numbers, "finished": "now", **FACTS}
    assert "| trie | items 300 | build s" in results.table([line])


def test_caser_is_timed_against_recbole_s_own():
    numbers = classical.caser(rows=4, length=3, width=8, users=5, items=9, rounds=1)
    assert all(value > 0 for value in numbers.values())


def test_a_group_measured_again_takes_the_place_of_its_own_lines_only(tmp_path):
    def line(name: str, items: int, commit: str) -> dict:
        return {
            "name": name,
            "of": {"items": items},
            "numbers": {"s": 1.0},
            "finished": "now",
            **FACTS,
            "commit": commit,
        }

    for lines in ([line("b", 1, "1"), line("b", 2, "1")], [line("c", 1, "1")], [line("gone", 1, "1")]):
        results.replace_group(tmp_path, lines, ["a", "b", "c", "gone"])
    results.replace_group(tmp_path, [line("b", 3, "2")], ["a", "b", "c"])
    results.replace_group(tmp_path, [line("a", 1, "2")], ["a", "b", "c"])
    stored = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert stored == [line("a", 1, "2"), line("b", 3, "2"), line("c", 1, "1")]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| b | items 3 | s 1 | 1 |\n| c | items 1 | s 1 | 2 |" in text
    assert "1. `c` at commit 2; p, cpu; Python 3, torch 2; finished now\n2. `c` at commit 1;" in text


def test_groups_are_asked_for_by_name():
    assert wanted(None) == list(GROUPS) and wanted("load,trie") == ["load", "trie"]
    with pytest.raises(
        UserError, match=r"^Unknown group of measurements in --only 'trei'\. Did you mean 'trie'\? Av.*load"
    ):
        wanted("load,trei")


def test_the_first_of_a_pair_is_what_the_others_are_measured_by():
    assert paired({"a": lambda: sum(range(20_000)), "b": lambda: None}, rounds=3)["a"]["ratio"] == 1


def test_curves_are_drawn_of_what_was_measured(tmp_path):
    case = steps.Case(vocab=50, hidden=16, layers=4, rows=2, length=9)
    point = growth.step_ms(case, {"ILRec": 1}, rounds=1)
    assert set(point) == {"SFT", "ILRec"} and min(point.values()) > 0
    searched = search.World(2, 9, 40).search_ms(4, rounds=1)
    found = {"Step: rows": {2: point, 4: point}, "Search: beams": {4: searched}}
    names = {path.name for path in growth.figures(found, tmp_path, "made up")}
    assert names == {"step.png", "step.svg", "search.png", "search.svg"}


def test_the_floor_of_a_step_counts_products():
    case = steps.Case(vocab=8, hidden=4, layers=1, rows=1, intermediate=0, length=8)
    assert case.floor("sequence", share=0.0, k=2) == 1 + 32 / (3 * (64 + 32))  # the ensemble's product alone
    assert case.floor("sequence", share=1.0, k=2) == 1 + 6 * 32 / (3 * (64 + 32))  # the students' alone
    narrow = case.floor("sequence", share=1.0, k=2, support="item_tokens")
    assert case.items == 2 and narrow == 1 + (1 + 6 / 4) * 32 / (3 * (64 + 32))  # the ensemble everywhere
