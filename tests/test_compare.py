"""Two runs user by user: metrics, tests and parts against known answers, and the verb on files that it reads."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from recbole_ilrec import cli
from recbole_ilrec.checks.comparison import common_users
from recbole_ilrec.checks.paired import (
    Places,
    by_size,
    difference,
    furthest_apart,
    higher,
    hit,
    interval,
    ndcg,
    permutation_test,
    sign_test,
)
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import data_key, request_of
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces, hit_and_ndcg
from recbole_ilrec.evaluation.user_ranks import ranks_file, read_ranks
from recbole_ilrec.evaluation.user_ranks import write_ranks as write_file
from recbole_ilrec.metrics.rank_metrics import keep_ranks
from recbole_ilrec.runtime.checkpoint import save_state
from recbole_ilrec.verbs.compare import read_user_ranks
from tests.worlds import ring_world, write_dataset

INF = math.inf


def at(*rank):
    """Users whose true items stand alone at these ranks."""
    rank = np.asarray(rank, float)
    return Places(rank - 1, np.ones(len(rank)))


def write_ranks(folder, user, rank, about=None, group=1):
    """A run's file of ranks, 1 the best; every true item shares its identifier with ``group - 1`` others below it."""
    rank = torch.tensor(np.asarray(rank, float))
    before = torch.where(rank.isfinite(), rank - 1, MISSING).long()
    group = torch.full_like(before, group)
    places = TargetPlaces(before=before, group=group, within=torch.zeros_like(before), beam=before)
    write_file(ranks_file(folder, "test"), torch.tensor(np.asarray(user)), places, about or {})
    return folder


def test_metrics_are_means_over_users():
    a, b = at(1, 2, 11, INF), at(3, INF, 1, INF)
    hit = difference("hit", a, b, 10)
    assert (hit.a, hit.b, hit.better, hit.worse, hit.p) == (0.5, 0.5, 1, 1, 1.0)
    ndcg = difference("ndcg", a, b, 10)
    assert ndcg.a == pytest.approx((1 + 1 / math.log2(3)) / 4) and ndcg.b == pytest.approx((0.5 + 1) / 4)
    assert ndcg.difference == pytest.approx(ndcg.a - ndcg.b) and ndcg.low < ndcg.difference < ndcg.high


def test_an_interval_is_students_at_95_percent():
    delta = np.array([1.0, 2.0, 4.0])
    assert interval(delta) == pytest.approx(stats.t.interval(0.95, 2, delta.mean(), stats.sem(delta)))


def test_mcnemar_is_the_sign_test_of_users_whom_one_run_hits():
    a = np.r_[np.ones(8), np.full(2, INF), np.ones(90)]
    b = np.r_[np.full(8, INF), np.ones(2), np.ones(90)]
    found = difference("hit", at(*a), at(*b), 5)
    assert found.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert (found.better, found.worse) == (8, 2) and found.difference == pytest.approx(0.06)


def test_permutation_test_agrees_with_scipys():
    delta = np.random.default_rng(0).normal(0.3, 1, 40)
    reference = stats.permutation_test((delta,), np.mean, permutation_type="samples", n_resamples=9999, rng=1).pvalue
    assert permutation_test(np.r_[delta, np.zeros(500)], 0) == pytest.approx(reference, abs=0.02)


def test_equal_runs_do_not_differ():
    rank = at(1, 4, INF)
    found = difference("ndcg", rank, rank, 10)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1.0) and sign_test(0, 0) == 1.0


def test_a_large_difference_is_significant_and_its_seed_fixes_the_p_value():
    chance = np.random.default_rng(0)
    a, b = at(*chance.integers(1, 5, 300)), at(*chance.integers(3, 12, 300))
    found = difference("ndcg", a, b, 10, seed=3)
    assert found.p == difference("ndcg", a, b, 10, seed=3).p == 1e-4 and found.low > 0
    few, others = a[np.arange(60)], at(*chance.integers(1, 5, 60))
    assert len({difference("ndcg", few, others, 10, seed=seed).p for seed in range(4)}) > 1


def test_parts_hold_every_user_once_and_equal_values_together():
    values = np.array([0, 0, 1, 1, 1, 2, 3, 8, 9])
    parts = by_size(values, at(*range(1, 10)), at(*[5] * 9), 10)
    assert [(part.label, part.users) for part in parts] == [("0", 2), ("1", 3), ("2", 1), ("3", 1), ("8-9", 2)]
    assert sum(part.better for part in parts) == 4 and sum(part.worse for part in parts) == 4


def test_a_part_has_the_ndcg_of_its_users_and_an_interval_around_their_difference():
    (part,) = by_size(np.ones(20, int), at(*[1, 2] * 10), at(*[4] * 20), 3)
    assert (part.a, part.b) == (pytest.approx((1 + 1 / math.log2(3)) / 2), 0)
    assert 0 < part.low < part.a - part.b < part.high


def test_a_run_that_ranks_all_items_is_not_higher_by_places_that_the_others_list_does_not_have():
    """A lists two places, B ranks all: only the first three users are told apart."""
    a, b = at(1, 2, INF, INF, INF), at(2, 1, 1, 40, 900)
    assert higher(a, b).tolist() == [1, -1, -1, 0, 0] and higher(b, a).tolist() == [-1, 1, 1, 0, 0]
    assert higher(at(1, 40), at(900, 41)).tolist() == [1, 1], "both rank all items"
    (part,) = by_size(np.ones(5, int), a, b, 10)
    assert (part.better, part.worse) == (1, 2)


def test_the_length_of_a_list_is_what_its_file_says_and_not_its_last_hit(tmp_path):
    """A lists ten places and hits nobody, B lists all and hits everybody at once."""
    b = read_user_ranks(write_ranks(tmp_path / "b", range(4), [1, 1, 9, 12], {"list_length": None})).places
    for about, expected in (({"list_length": 10}, [-1, -1, -1, 0]), ({}, [0, 0, 0, 0])):
        a = read_user_ranks(write_ranks(tmp_path / "a", range(4), [INF] * 4, about)).places
        assert higher(a, b).tolist() == expected, "without a word on it, the list ends at its last hit"


def test_examples_are_the_users_furthest_apart():
    a, b = np.array([1, 5, INF, 2, 3]), np.array([2, INF, 1, 2, 30])
    assert furthest_apart(a, b, 2) == {"a": [0, 4], "b": [2]}


def test_only_common_users_are_compared(tmp_path):
    first = read_user_ranks(write_ranks(tmp_path / "a", [3, 1, 7, 2], [30, INF, 7, 20]))
    second = read_user_ranks(ranks_file(write_ranks(tmp_path / "b", [4, 2, 3], [1, 2, 3], group=4), "test"))
    users = common_users(first, second)
    assert first.places.rank.tolist() == [INF, 20, 30, 7] and (first.name, second.name) == ("a", "b")
    assert users.user.tolist() == [2, 3] and users.a.rank.tolist() == [20, 30] and users.b.rank.tolist() == [3.5, 4.5]
    assert (users.only_a, users.only_b) == (2, 1)


def test_items_that_share_an_identifier_count_as_in_the_runs_own_metrics(tmp_path):
    """Two items on places 1 and 2: NDCG (1 + 1 / log2(3)) / 2 = .815, not 1 / log2(2.5) = .756; Hit@1 a half."""
    ranks = read_user_ranks(write_ranks(tmp_path / "a", range(6), [1, 1, 2, 3, 1, INF], group=2))
    _, places, _ = read_ranks(ranks_file(tmp_path / "a", "test"))
    for k in (1, 2, 3, 5):
        own = hit_and_ndcg(places, k, "expected")
        assert hit(ranks.places, k).tolist() == pytest.approx(own[0].tolist())
        assert ndcg(ranks.places, k).tolist() == pytest.approx(own[1].tolist())
    assert ndcg(ranks.places, 5)[0] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    for a, b in ((ranks.places, at(*[1] * 6)), (at(*[1] * 6), ranks.places)):
        assert difference("hit", a, b, 1).test == "paired permutation"
    assert difference("hit", ranks.places, at(*[1] * 6), 20).test == "McNemar, exact"
    about = {"collisions": "optimistic"}
    assert read_user_ranks(write_ranks(tmp_path / "o", [1], [1], about, group=2)).places.rank.tolist() == [1]


def test_one_user_says_nothing_of_others():
    found = difference("ndcg", at(1), at(2), 10)
    assert (found.low, found.high, found.p) == (-INF, INF, 1.0)


def test_what_is_no_file_of_ranks_is_refused(tmp_path):
    with pytest.raises(UserError, match="several test rows"):
        read_user_ranks(write_ranks(tmp_path / "bad", [1, 1], [1, 2]))
    save_file({"user": torch.tensor([1])}, ranks_file(tmp_path / "bad", "test"))
    with pytest.raises(UserError, match="no file of ranks"):
        read_user_ranks(tmp_path / "bad")
    with pytest.raises(UserError, match="does not exist"):
        read_user_ranks(tmp_path / "nowhere")


# ---- the verb


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sequences, identifiers = ring_world(users=30, items=12, length=7)
    folder = write_dataset(tmp_path / "dataset", "ring", sequences, identifiers)
    titles = [f"i{n}\tItem called {n}" for n in range(1, 13)]
    (folder / "ring.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]) + "\n")
    user = np.arange(1, 31)
    write_ranks(tmp_path / "A", user, np.where(user % 3 == 0, 9, 1), {"dataset": "ring"})
    write_ranks(tmp_path / "B", user, np.where(user % 2, 2, INF), {"dataset": "ring"})
    return tmp_path


def test_two_runs_are_compared_with_examples(runs, capsys):
    assert cli.main(["compare", "A", "B", "--json=found.json", "--examples=1"]) == 0
    text, found = capsys.readouterr().out, json.loads((runs / "found.json").read_text())
    assert "McNemar, exact" in text and "paired permutation" in text and "Item called" in text
    assert found["users"] == 30 and found["names"] == ["A", "B"] and found["k"] == 10
    ranks = {"a": np.where(np.arange(1, 31) % 3 == 0, 9, 1), "b": np.where(np.arange(1, 31) % 2, 2, INF)}
    metrics = {entry["metric"]: entry for entry in found["metrics"]}
    for run, rank in ranks.items():
        assert metrics["hit@5"][run] == pytest.approx((rank <= 5).mean())
    assert sum(part["users"] for part in found["by_history"]) == 30
    assert {part["label"] for part in found["by_history"]} <= {"6", "7", "8", "6-7", "7-8", "6-8"}
    (example,) = found["examples"]["a"]
    assert example["rank_a"] == 1 and example["rank_b"] is None
    sequences, _ = ring_world(users=30, items=12, length=7)
    own = [f"Item called {item}" for item in sequences[int(example["user"][1:])]]
    assert example["target"] == own[-1] and example["history"] == own[-4:-1]
    times = np.bincount(np.concatenate([sequence[1:-2] for sequence in sequences]))  # a target of training rows
    popular = times[[sequence[-1] for sequence in sequences]]
    ends = [int(end) for part in found["by_popularity"] for end in part["label"].split("-")]
    assert (min(ends), max(ends)) == (popular.min(), popular.max()) and popular.max() > 5


def test_runs_of_every_family_say_the_same_of_the_same_data_and_are_compared(runs, capsys):
    configs = Config("SASRec", "ring"), Config("ILRec", "ring"), Config("BIGRec", "ring"), Config("Pop", "ring")
    (data,) = {data_key(config) for config in configs}
    for name in "AB":
        write_ranks(runs / name, np.arange(1, 31), np.ones(30), {"dataset": "ring", "data": data})
    assert cli.main(["compare", "A", "B"]) == 0
    assert cli.main(["compare", "A", "B", "--user_inter_num_interval=[8,inf)"]) == 2
    assert "The data of ring are not those of the runs" in capsys.readouterr().err


def test_data_are_found_and_filtered_as_the_runs_had_them_from_any_folder(runs, monkeypatch, capsys):
    config = Config("Pop", "ring", None, {"user_inter_num_interval": "[1,inf)"})
    for name in "AB":
        write_ranks(runs / name, np.arange(1, 31), np.ones(30), {"dataset": "ring", "data": data_key(config)})
    assert cli.main(["compare", "A", "B"]) == 2  # their folders say nothing, and the filter enters the hash
    save_state(runs / "B" / "best", {"request": request_of(config)}, kind="Pop")
    monkeypatch.chdir((runs / "elsewhere").mkdir() or runs / "elsewhere")
    assert cli.main(["compare", "../A", "../B/ranks-test.safetensors"]) == 0
    assert cli.main(["compare", "../A", "../B", "--user_inter_num_interval=[2,inf)"]) == 2
    assert "The data of ring are not those of the runs" in capsys.readouterr().err


def test_what_runs_differ_in_beside_their_lists_is_said(runs, capsys):
    def said(a, b):
        for name, about in (("A", a), ("B", b)):
            about = about if about is None else {"history_masked": True, "candidates": "full", **about}
            write_ranks(runs / name, np.arange(1, 31), np.ones(30), {"dataset": "ring", **(about or {})})
        assert cli.main(["compare", "A", "B", "--json=found.json"]) == 0
        remarks = json.loads((runs / "found.json").read_text())["remarks"]
        assert all(remark in capsys.readouterr().out for remark in remarks[:1])
        return " ".join(remarks)

    drawn = {"lists": "drawn", "count": 20, "seeding": "row"}
    assert said({}, {"collisions": "torch.topk"}) == ""
    assert "left out in A and kept in B" in said({}, {"history_masked": False})
    assert "expected rank in A and the optimistic one in B" in said({}, {"collisions": "optimistic"})
    assert "The file of B, of an earlier version" in said({}, None)
    assert "among other items" in said(*({"candidates": {**drawn, "seed": seed}} for seed in (1, 2)))
    assert said(*[{"candidates": {**drawn, "seed": 1}}] * 2) == ""
    with pytest.raises(AssertionError):
        said({}, {"candidates": {**drawn, "seed": 1}})
    assert "A ranked true items among all items and B among 20 drawn candidates" in capsys.readouterr().err


def test_a_run_notes_by_which_rules_its_places_came_about(runs):
    places = TargetPlaces(*[torch.zeros(1, dtype=torch.long)] * 4)
    drawn = {"lists": "drawn", "count": 20, "seeding": "row", "seed": 7}
    for settings, noted in (
        ({"exclude_history": True}, {"history_masked": True, "candidates": "full"}),
        ({"exclude_history": False}, {"history_masked": False}),
        ({"task": "candidates", "seed": 7}, {"candidates": drawn}),
    ):
        keep_ranks(Config("SASRec", "ring", None, settings), runs / "kept", "test", torch.tensor([1]), places)
        _, _, about = read_ranks(ranks_file(runs / "kept", "test"))
        assert noted.items() <= about.items() and about["collisions"] == "torch.topk"


def test_bad_comparisons_end_with_one_line(runs, capsys):
    write_ranks(runs / "other", [1], [1], {"dataset": "beauty"})
    write_ranks(runs / "strangers", [900], [1], {"dataset": "ring"})
    write_ranks(runs / "silent", [1], [1])
    write_ranks(runs / "filtered", [1], [1], {"dataset": "ring", "data": "0123456789"})
    write_ranks(runs / "valid", [1], [1], {"dataset": "ring", "split": "valid"})
    write_ranks(runs / "whole", [1], [1], {"dataset": "ring", "data": "abcdefghij"})
    write_ranks(runs / "short", np.arange(1, 31), np.ones(30), {"dataset": "ring", "list_length": 10})
    for argv, told in (
        (["A"], "two runs"),
        (["A", "nowhere"], "does not exist"),
        (["A", "valid"], "holds ranks of the valid part"),
        (["A", "other"], "different data"),
        (["A", "strangers"], "no user in common"),
        (["filtered", "whole"], "their user ids may mean other people"),
        (["filtered", "whole", "--dataset=ring"], "hashes 01234567 and abcdefgh"),
        (["A", "filtered"], "The data of ring are not those of the runs"),
        (["strangers", "strangers"], "no test row"),
        (["silent", "silent"], "--dataset is missing"),
        (["A", "short", "--topk=[5,11]"], "topk=11: short (B) ranked 10 items for each user"),
        (["A", "B", "--topk=0"], "whole numbers from 1 on"),
        (["A", "B", "--examples=-1"], "whole number from 0 on"),
        (["A", "B", "--alhpa=1"], "Unknown setting 'alhpa'"),
    ):
        assert cli.main(["compare", *argv]) == 2
        error = capsys.readouterr().err.strip()
        assert told in error and len(error.splitlines()) == 1, argv
