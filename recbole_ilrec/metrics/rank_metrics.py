"""RecBole's metrics from the places of the true items, under each collision policy.

RecBole's ranking metrics are means over users of a function of the hit positions, so the expectation over the order of
items that share an identifier is a weighted mean over evaluations with each possible position.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.register import metric_information
from torch import Tensor

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import data_key
from recbole_ilrec.evaluation.topk import TargetPlaces
from recbole_ilrec.evaluation.user_ranks import ranks_file, write_ranks
from recbole_ilrec.metrics.collector import Collector
from recbole_ilrec.preparation.candidate_lists import SUFFIX as LISTS
from recbole_ilrec.preparation.files import share

logger = logging.getLogger(__name__)

POLICIES = ("expected", "strict", "optimistic")
FULL_PRECISION = 15


def evaluator(config: Any, names: list[str]) -> Evaluator:
    """RecBole's evaluator for some metrics, unrounded."""
    options = {**config.final_config_dict, "metrics": names, "metric_decimal_place": FULL_PRECISION}
    return Evaluator(defaultdict(lambda: None, options))  # RecBole's own bag has None for what is not set


def keep_ranks(
    config: Config, folder: Path, split: str, user: Tensor, places: TargetPlaces, length: int | None = None
) -> None:
    """Write where the true items stood beside a run; a disk that is full now must not cost its result.

    The file says what it is of; internal user ids mean the same users where its ``data`` is equal.

    Args:
        config: the run's settings.
        folder: the run's.
        split: ``valid`` or ``test``.
        user: ``[B]`` internal user ids.
        places: where their true items stood.
        length: identifiers in a list; ``None``: all items were ranked.
    """
    about = {"model": config["model"], "dataset": config["dataset"], "split": split, **_rules(config, split)}
    about["list_length"] = length
    path = ranks_file(folder, split)
    try:
        share(write_ranks(path, user, places, {**about, "data": data_key(config)}))
    except OSError as error:
        logger.warning("The places of the true items could not be written to %s: %s", path, error)


def _rules(config: Config, split: str) -> dict[str, Any]:
    """What places depend on beside the data: ties, history and candidates, with their seed where one was looked at."""
    own, collisions = config.settings.candidates, config.settings.decode.collisions if config.is_llm else "torch.topk"
    among: Any = config["eval_args"]["mode"][split]
    if config.settings.task == "candidates":
        published = own.lists == "published" and (Path(config["data_path"]) / f"{config['dataset']}{LISTS}").is_file()
        drawn = {"lists": "drawn", "count": own.count, "seeding": own.seeding}
        drawn |= {"seed": config["seed"]} if own.seeding == "row" else {}
        among = {"lists": "published"} if published else drawn
    return {"collisions": collisions, "history_masked": config.settings.decode.exclude_history, "candidates": among}


class RankMetrics:
    """Those of a run's metrics that depend on hit positions alone.

    Args:
        config: the run's settings (``metrics``, ``topk``, ``metric_decimal_place``).
    """

    def __init__(self, config: Any):
        self.config = config
        self._collector = Collector(config)
        names = [name.lower() for name in config["metrics"]]
        self._evaluator = evaluator(config, [name for name in names if metric_information[name] == ["rec.topk"]])

    def __call__(
        self, places: TargetPlaces, shared: Mapping[str, float] | None = None
    ) -> dict[str, OrderedDict[str, float]]:
        """Metrics by policy, rounded; ``shared`` are further ones, the same under every policy."""
        decimals = self.config["metric_decimal_place"]
        return {
            policy: OrderedDict(
                (name, round(float(value), decimals))
                for name, value in {**self._by_rank(places, policy), **(shared or {})}.items()
            )
            for policy in POLICIES
        }

    def _by_rank(self, places: TargetPlaces, policy: str) -> dict[str, float]:
        """Users with groups of one size are evaluated together, once for each place the target may take.

        A place past the longest list is no hit, and every metric of hits is 0 there, so none is evaluated.
        """
        if not self._evaluator.metrics:
            return {}
        longest = max(self.config["topk"])
        rank, _ = places.ranks(policy, longest)
        group = places.group if policy == "expected" else torch.ones_like(places.group)
        total: dict[str, float] = {}
        for size in group.unique().tolist():
            users, ways = group == size, min(size, longest)
            self._collector.collect_hits(rank[users][:, :ways].flatten(), self._no_items(int(users.sum()) * ways))
            values = self._evaluator.evaluate(self._collector.get_data_struct())
            share = float(users.sum()) / len(users) * (ways / size)
            total = {name: total.get(name, 0.0) + share * float(value) for name, value in values.items()}
        return total

    def _no_items(self, rows: int) -> torch.Tensor | None:
        need = self._collector.register.need("rec.items")
        return torch.zeros(rows, max(self.config["topk"]), dtype=torch.long) if need else None
