"""The evaluation certificate of a finished run: what exactly its numbers are numbers of.

Made from the files that the run left (where the true items stood) and from its settings, not from the trainer's word;
whatever does not fit together is raised, never written.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import keys_of
from recbole_ilrec.data.dataset import Data
from recbole_ilrec.evaluation.topk import MISSING
from recbole_ilrec.evaluation.user_ranks import ranks_file, read_ranks
from recbole_ilrec.metrics.rank_metrics import RankMetrics
from recbole_ilrec.runtime.checkpoint import fingerprint

GENERATED = (
    "items that share an identifier share its places: each order equally likely (expected), item order (strict), one "
    "place for all (optimistic); identifiers of equal score in the order of the search"
)
SCORED = (
    "the headline takes items of equal score as torch.topk orders them; under the policies they share their places: "
    "each order equally likely (expected), item order (strict), the first place (optimistic)"
)
WEIGHTS = "best"


def evaluation_certificate(
    config: Config, data: Data, result: Mapping[str, Any], made: Mapping[str, Any]
) -> dict[str, Any]:
    """Valid and test metrics under every collision policy, who was evaluated, by which rules, of what.

    Args:
        config: the run's settings.
        data: its data.
        result: what ``run_llm`` or ``run_classical`` returned.
        made: its ``folder``, and how full the users' ``lists`` are.

    Returns:
        plain values for the record.

    Raises:
        RuntimeError: not every user of a split was evaluated exactly once, or the numbers of the result are not those
            of the places that were kept.
    """
    folder, keys = Path(made["folder"]), config.keys or keys_of(config)
    splits = {}
    evaluated = {"valid": data.valid, **({"test": data.test} if config["eval_test"] else {})}
    for split, loader in evaluated.items():
        if ranks_file(folder, split).is_file():
            splits[split] = _of_split(config, data, folder, split, loader._dataset.inter_feat[config["USER_ID_FIELD"]])
    if "test" in splits:
        _check_headline(config, result["test_result"], splits["test"])
    if "valid" in splits and result["best_valid_result"]:
        _check_headline(config, result["best_valid_result"], splits["valid"])
    candidates = config["eval_args"]["mode"]
    if config.settings.task == "candidates":
        candidates = config.settings.candidates.model_dump(mode="json")
    return {
        **splits,
        "collisions": config.settings.decode.collisions if config.is_llm else "torch.topk",
        "history_masked": config.settings.decode.exclude_history,
        "candidates": candidates,
        "lists": made["lists"],
        "tie_rule": GENERATED if config.is_llm else SCORED,
        "data": keys.data,
        "settings": keys.settings,
        "run": keys.run,
        "configuration": keys.configuration,
        "code": keys.code,
        "weights": fingerprint(folder / WEIGHTS) if (folder / WEIGHTS).is_dir() else None,
    }


def _of_split(config: Config, data: Data, folder: Path, split: str, users: Tensor) -> dict[str, Any]:
    rows = len(users)
    user, places, _ = read_ranks(ranks_file(folder, split))
    part = config.settings.train.valid_users if split == "valid" and config.is_llm else None
    wanted = min(rows, part) if part else rows
    if len(user) != wanted:
        raise RuntimeError(f"{folder}: {len(user)} rows of the {split} part were evaluated, {wanted} had to be")
    if more := Counter(user.tolist()) - Counter(users.tolist()):
        raise RuntimeError(f"{folder}: users {sorted(more)[:5]} of the {split} part were evaluated more than once")
    return {
        "rows_in_split": data.rows[split],
        "rows_evaluated": len(user),
        "users_evaluated": len(user.unique()),
        "limited_by": "eval_users" if rows < data.rows[split] else "train.valid_users" if wanted < rows else None,
        "found": round(float((places.before < MISSING).double().mean()), 6),
        "tied": round(float((places.group > 1).double().mean()), 6),
        "policies": RankMetrics(config)(places),
        "ranks": ranks_file(folder, split).name,
    }


def _check_headline(config: Config, result: Mapping[str, float], split: Mapping[str, Any]) -> None:
    """The result is that of the places, up to rounding and, for a scoring model, to users with ties."""
    policies = split["policies"]
    policy = config.settings.decode.collisions if config.is_llm else "expected"
    slack = 1.01 * 10.0 ** -config["metric_decimal_place"] + (0 if config.is_llm else split["tied"])
    for name, value in policies[policy].items():
        if abs(value - result[name]) > slack:
            raise RuntimeError(f"{name} is {result[name]} in the result and {value} by the places of the true items")
