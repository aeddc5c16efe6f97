"""What counts as a hit."""

import pytest
import torch

pytest.importorskip("recbole")

from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator

from recbole_ilrec.evaluation.topk import MISSING
from recbole_ilrec.metrics.collector import Collector

BEYOND = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage", "ShannonEntropy"]


def settings(metrics=("Hit", "NDCG"), topk=(2, 4)):
    return {
        "metrics": list(metrics),
        "topk": list(topk),
        "device": torch.device("cpu"),
        "eval_args": {"mode": {"valid": "full", "test": "full"}},
        "metric_decimal_place": 4,
        "ITEM_ID_FIELD": "item_id",
        "USER_ID_FIELD": "user_id",
        "tail_ratio": 0.1,
    }


class Bag(dict):
    """Reads like RecBole's Config: a missing key is ``None``."""

    def __missing__(self, key):
        return None


def result_of(collector, config):
    return Evaluator(config).evaluate(collector.get_data_struct())


def collect(scores, targets, **kwargs):
    config = Bag(settings(**kwargs))
    collector = Collector(config)
    collector.eval_batch_collect(scores, Interaction({}), torch.arange(len(targets)), torch.tensor(targets))
    return collector, config


def test_a_target_with_score_minus_infinity_is_never_a_hit():
    scores = torch.full((6, 6), -torch.inf)
    scores[:, 5] = 1.0
    for target in range(5):
        assert set(result_of(*collect(scores, [target] * 6)).values()) == {0.0}
    assert result_of(*collect(scores, [5] * 6))["hit@2"] == 1.0


def test_a_target_with_score_nan_is_never_a_hit():
    scores = torch.full((3, 6), torch.nan)
    assert set(result_of(*collect(scores, [1, 2, 3])).values()) == {0.0}


def test_hits_stand_where_the_target_is_ranked():
    scores = torch.tensor([[0.0, 4, 3, 2, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    result = result_of(*collect(scores, [1, 3, 1]))  # ranks 0, 1, 3
    assert result["hit@2"] == pytest.approx(2 / 3, abs=1e-4) and result["hit@4"] == 1.0
    assert result["ndcg@4"] == pytest.approx((1 + 0.63093 + 0.43068) / 3, abs=1e-4)


def test_several_targets_of_a_user_are_all_counted():
    config = Bag(settings(metrics=["Recall"], topk=[2]))
    collector = Collector(config)
    scores = torch.tensor([[0.0, 4, 3, 2], [0, 1, 2, 3]])
    collector.eval_batch_collect(scores, Interaction({}), torch.tensor([0, 0, 1]), torch.tensor([1, 3, 3]))
    assert result_of(collector, config)["recall@2"] == pytest.approx((0.5 + 1) / 2)


def test_ranks_fed_directly_equal_a_score_matrix():
    scores = torch.randn(50, 21, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = -torch.inf
    targets = torch.randint(1, 21, (50,), generator=torch.Generator().manual_seed(1))
    dense = result_of(*collect(scores, targets.tolist()))
    config = Bag(settings())
    collector = Collector(config)
    rank = (scores > scores[torch.arange(50), targets][:, None]).sum(1)
    collector.collect_hits(rank[:20])
    collector.collect_hits(rank[20:].where(rank[20:] < 4, -1))
    assert result_of(collector, config) == dense


def test_places_count_what_scores_higher_and_what_scores_the_same():
    """The true items 3, 1, 4, 4: of equals the first by id, the first of four equals, and two without a score."""
    inf = torch.inf
    scores = torch.tensor(
        [[-inf, 0.5, 0.9, 0.5, 0.1], [-inf, 0.5, 0.9, 0.5, 0.5], [-inf, 1, 2, 3, -inf], [-inf, 1, 2, 3, torch.nan]]
    )
    collector, users = Collector(Bag(settings(topk=(2, 3)))), torch.arange(7, 11)
    collector.eval_batch_collect(scores, Interaction({"user_id": users}), torch.arange(4), torch.tensor([3, 1, 4, 4]))
    found, places = collector.take_places()
    assert found.tolist() == users.tolist()
    assert places.before.tolist() == places.beam.tolist() == [1, 1, MISSING, MISSING]
    assert places.group.tolist() == [2, 3, 1, 1] and places.within.tolist() == [1, 0, 0, 0]
    assert places.ranks("strict")[0][:2].tolist() == [[2], [1]]


@pytest.mark.parametrize("metric", BEYOND)
def test_metrics_beyond_accuracy_work_and_can_be_asked_again(metric):
    config = Bag(settings(metrics=["Hit", metric]))
    collector = Collector(config)

    class Rows:
        item_counter = __import__("collections").Counter({1: 5, 2: 3, 3: 1})

        @staticmethod
        def num(_field):
            return 5

    class Loader:
        dataset = Rows()

    collector.data_collect(Loader())
    results = []
    for _ in range(2):
        collector.collect_hits(torch.tensor([0, -1]), torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))
        results.append(result_of(collector, config))
    assert results[0] == results[1] and results[0]["hit@4"] == 0.5 and len(results[0]) == 4


def test_coverage_needs_the_recommended_items():
    collector = Collector(Bag(settings(metrics=["ItemCoverage"])))
    with pytest.raises(ValueError, match="recommended items"):
        collector.collect_hits(torch.tensor([0]))
