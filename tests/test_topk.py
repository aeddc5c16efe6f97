"""Ranks of the true item under the three collision policies, on lists worked out by hand."""

import math

import pytest
import torch

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.evaluation.topk import TargetPlaces, hit_and_ndcg, locate, unroll
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.metrics.rank_metrics import RankMetrics, evaluator
from recbole_ilrec.schema import Ranking
from tests.worlds import QUICK

# Items 1..5; 2, 3 and 5 share the identifier (7,). Leaves in trie order: (4,)=0, (7,)=1, (9,)=2.
CATALOG = Catalog([(4,), (7,), (7,), (9,), (7,)])


def places(leaves, target, banned=None):
    ranking = Ranking(torch.tensor([leaves]), torch.zeros(1, len(leaves)))
    return locate(ranking, CATALOG, torch.tensor([target]), None if banned is None else torch.tensor([banned]))


def test_three_policies_on_a_shared_identifier():
    """List [(9,), (7,)]: items 4, then 2, 3, 5. Target 3: strict rank 2, optimistic 1, expected 1, 2 or 3."""
    where = places([2, 1], 3)
    assert where.ranks("strict")[0].tolist() == [[2]]
    assert where.ranks("optimistic")[0].tolist() == [[1]]
    hit, ndcg = hit_and_ndcg(where, 2, "expected")
    assert hit.item() == pytest.approx(1 / 3)
    assert ndcg.item() == pytest.approx(1 / 3 / math.log2(3))
    hit, _ = hit_and_ndcg(where, 4, "expected")
    assert hit.item() == pytest.approx(1)


def test_a_target_that_was_not_generated_is_never_a_hit():
    for policy in ("strict", "expected", "optimistic"):
        hit, ndcg = hit_and_ndcg(places([2, -1], 1), 100, policy)
        assert hit.item() == ndcg.item() == 0


def test_a_banned_neighbour_neither_takes_a_place_nor_counts_in_the_group():
    """Item 2 (trie position 1) is banned: the list is 4, 3, 5."""
    where = places([2, 1], 5, banned=[1, 5])
    assert where.group.item() == 2
    assert where.ranks("strict")[0].tolist() == [[2]]
    assert places([2, 1], 2, banned=[1, 5]).ranks("strict")[0].item() > 10**9


def test_a_metric_of_long_tails_needs_no_setting_of_its_own(ring):
    config = Config("LCRec", "ring", None, {**QUICK, "metrics": ["Hit", "TailPercentage"], "topk": [2]})
    assert config["tail_ratio"] is None and evaluator(config, ["tailpercentage"]).metrics == ["tailpercentage"]


def test_a_group_beyond_the_list_counts_in_full_however_large_it_is(ring):
    """As many users as here would need 32 TB if each place of a group of all scores equal were written down."""
    group = torch.tensor([1, 3, 7, 10**9]).repeat(1000)
    before = torch.arange(8).repeat_interleave(500)
    where = TargetPlaces(before, group, torch.zeros_like(group), before)
    config = Config(
        "LCRec", "ring", None, {**QUICK, "metrics": ["Hit", "NDCG"], "topk": [2, 5], "valid_metric": "Hit@2"}
    )
    values = RankMetrics(config)(where)["expected"]
    for k in (2, 5):
        hit, ndcg = hit_and_ndcg(where, k, "expected")
        for user in (0, 1, 2, 3, 501, 1002, 3999):
            places = range(int(before[user]), min(int(before[user] + group[user]), k))
            assert hit[user].item() == pytest.approx(len(places) / int(group[user]))
            assert ndcg[user].item() == pytest.approx(sum(1 / math.log2(p + 2) for p in places) / int(group[user]))
        assert values[f"hit@{k}"] == pytest.approx(hit.mean().item(), abs=1e-4)
        assert values[f"ndcg@{k}"] == pytest.approx(ndcg.mean().item(), abs=1e-4)


def test_places_are_proven_down_to_the_bound_of_what_was_cut():
    ranking = Ranking(torch.zeros(2, 3), torch.tensor([[-1.0, -2.0, -5.0]] * 2), bound=torch.tensor([-2.0, -1.5]))
    proven = [ranking.certified(places).tolist() for places in (1, 2, 3, 9)]
    assert proven == [[True, True], [True, False], [False, False], [False, False]]


def test_unrolled_lists_are_items_in_strict_order():
    ranking = Ranking(torch.tensor([[2, 1], [0, -1]]), torch.zeros(2, 2))
    assert unroll(ranking, CATALOG, 3).tolist() == [[4, 2, 3], [1, 0, 0]]
    banned = torch.tensor([[1, 5], [5, 5]])
    assert unroll(ranking, CATALOG, 3, banned).tolist() == [[4, 3, 5], [1, 0, 0]]
