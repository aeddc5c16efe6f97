"""Metrics of generated rankings by RecBole's own evaluator, under each collision policy."""

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from recbole.evaluator.register import metric_information

from recbole_ilrec.decoding.users import banned_positions
from recbole_ilrec.evaluation.topk import ListQuality, TargetPlaces, list_quality, locate, unroll
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.metrics.collector import Collector
from recbole_ilrec.metrics.rank_metrics import RankMetrics, evaluator
from recbole_ilrec.prompt.rows import Pairs
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
        banned = self._banned(pairs)
        places = locate(ranking, self.catalog, torch.from_numpy(pairs.target), banned)
        self.quality = list_quality(ranking, max(self.config["topk"]))
        shared: dict[str, float] = {}
        if self._lists.metrics:
            items = unroll(ranking, self.catalog, max(self.config["topk"]), banned)
            self.collector.collect_hits(places.ranks("strict")[0][:, 0], items)
            shared = self._lists.evaluate(self.collector.get_data_struct())
        return places, self._ranks(places, shared)

    def _banned(self, pairs: Pairs) -> torch.Tensor | None:
        """Trie positions of items that may carry an identifier of a ranking and are no recommendation."""
        lists = pairs.seen() if self.config.settings.decode.exclude_history else [pairs.history[:0, 0]] * len(pairs)
        choices, group = pairs.choices(np.arange(len(pairs))), self.catalog.leaf_of_item.numpy()
        if choices is not None and self.catalog.num_leaves < self.catalog.num_items:
            twins = (np.setdiff1d(np.flatnonzero(np.isin(group, group[own])), own) for own in choices)
            lists = [np.concatenate(both) for both in zip(lists, twins, strict=True)]
        return banned_positions(self.catalog, lists) if any(map(len, lists)) else None
