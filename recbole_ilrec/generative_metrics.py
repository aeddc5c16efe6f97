"""Metrics of generated rankings by RecBole's own evaluator, under each collision policy.

RecBole's ranking metrics are means over users of a function of the hit positions, so the expectation over the order of
items that share an identifier is a weighted mean over evaluations with each possible position.
"""

from collections import OrderedDict
from typing import Any

import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.register import metric_information

from recbole_ilrec.collector import Collector
from recbole_ilrec.decoding.users import banned_positions
from recbole_ilrec.evaluation.topk import TargetPlaces, locate, unroll
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.schema import Ranking

POLICIES = ("expected", "strict", "optimistic")
FULL_PRECISION = 15


class GenerativeMetrics:
    """Turns rankings of identifiers into RecBole's metrics.

    Args:
        config: the run's settings (``metrics``, ``topk``, ``metric_decimal_place``).
        catalog: which items carry which identifier.
    """

    def __init__(self, config: Any, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self.collector = Collector(config)
        names = [name.lower() for name in config["metrics"]]
        of_lists = [name for name in names if "rec.items" in metric_information[name]]
        self._ranks = self._evaluator([name for name in names if name not in of_lists])
        self._lists = self._evaluator(of_lists)

    def _evaluator(self, names: list[str]) -> Evaluator:
        options = {**self.config.final_config_dict, "metrics": names, "metric_decimal_place": FULL_PRECISION}
        return Evaluator(options)

    def __call__(self, ranking: Ranking, pairs: Pairs) -> tuple[TargetPlaces, dict[str, OrderedDict[str, float]]]:
        """Places of the true items, and metrics by policy.

        Args:
            ranking: ``[B, W]`` identifiers of every user.
            pairs: histories and true items of the same users.
        """
        banned = None
        if self.config.settings.decode.exclude_history:
            banned = banned_positions(self.catalog, pairs.seen())
        places = locate(ranking, self.catalog, torch.from_numpy(pairs.target), banned)
        shared: dict[str, float] = {}
        if self._lists.metrics:
            items = unroll(ranking, self.catalog, max(self.config["topk"]), banned)
            self.collector.collect_hits(places.ranks("strict")[0][:, 0], items)
            shared = self._lists.evaluate(self.collector.get_data_struct())
        decimals = self.config["metric_decimal_place"]
        policies = {}
        for policy in POLICIES:
            values = {**self._by_rank(places, policy), **shared}
            policies[policy] = OrderedDict((name, round(float(value), decimals)) for name, value in values.items())
        return places, policies

    def _by_rank(self, places: TargetPlaces, policy: str) -> dict[str, float]:
        """Users with groups of one size are evaluated together, once for each place the target may take."""
        if not self._ranks.metrics:
            return {}
        rank, weight = places.ranks(policy)
        ways = (weight > 0).sum(1)
        total: dict[str, float] = {}
        for size in ways.unique().tolist():
            users = ways == size
            self.collector.collect_hits(rank[users][:, :size].flatten(), self._no_items(int(users.sum()) * size))
            values = self._ranks.evaluate(self.collector.get_data_struct())
            share = float(users.sum()) / len(users)
            total = {name: total.get(name, 0.0) + share * float(value) for name, value in values.items()}
        return total

    def _no_items(self, rows: int) -> torch.Tensor | None:
        need = self.collector.register.need("rec.items")
        return torch.zeros(rows, max(self.config["topk"]), dtype=torch.long) if need else None
