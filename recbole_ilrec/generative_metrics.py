"""Metrics of generated rankings by RecBole's own evaluator, under each collision policy."""

from collections import OrderedDict
from typing import Any

import torch
from recbole.evaluator.register import metric_information

from recbole_ilrec.collector import Collector
from recbole_ilrec.decoding.users import banned_positions
from recbole_ilrec.evaluation.topk import ListQuality, TargetPlaces, list_quality, locate, unroll
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.rank_metrics import RankMetrics, evaluator
from recbole_ilrec.schema import Ranking


class GenerativeMetrics:
    """Turns rankings of identifiers into RecBole's metrics.

    Args:
        config: the run's settings (``metrics``, ``topk``, ``metric_decimal_place``).
        catalog: which items carry which identifier.

    Attributes:
        quality: how full the lists of the last call were; ``None`` before the first.
    """

    def __init__(self, config: Any, catalog: Catalog):
        self.config = config
        self.catalog = catalog
        self.collector = Collector(config)
        self.quality: ListQuality | None = None
        names = [name.lower() for name in config["metrics"]]
        self._ranks = RankMetrics(config)
        self._lists = evaluator(config, [name for name in names if "rec.items" in metric_information[name]])

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
        self.quality = list_quality(ranking, max(self.config["topk"]))
        shared: dict[str, float] = {}
        if self._lists.metrics:
            items = unroll(ranking, self.catalog, max(self.config["topk"]), banned)
            self.collector.collect_hits(places.ranks("strict")[0][:, 0], items)
            shared = self._lists.evaluate(self.collector.get_data_struct())
        return places, self._ranks(places, shared)
