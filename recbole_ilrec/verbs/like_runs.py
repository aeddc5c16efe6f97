"""What a run will take, from runs like it that have a record."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.lookup import MODELS
from recbole_ilrec.report.costs import seconds_before
from recbole_ilrec.report.runs import flat

_COSTLY_OF_RECBOLE = ("model", "dataset", "epochs", "train_batch_size", "MAX_ITEM_LIST_LENGTH", "eval_test")
_COSTLY = (
    "paradigm",
    "task",
    "backbone_name",
    "adapter.lora",
    "backbone.quantization",
    "train.rows",
    "train.max_steps",
    "train.init_from",
    "decode.num_beams",
    "preference.examples",
    "preference.epochs",
)
"""Settings on which the time of a run depends most."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from like runs; ``None`` where there are none."""

    seconds: float | None = None
    memory_mb: float | None = None


def estimate_from(records: Iterable[Mapping[str, Any]], config: Config) -> Estimate:
    """Median time and greatest memory of the runs among ``records`` that differ in nothing that costs much."""
    wanted = [config["device"].type, *_likeness(config.as_dict(), config.settings.model_dump(mode="json"))]
    like = [r for r in records if [_device(r), *_likeness(r["config"], r["settings"] or {})] == wanted]
    if not like:
        return Estimate()
    return Estimate(statistics.median(map(seconds, like)), max(r["peak_memory_mb"] for r in like))


def seconds(record: Mapping[str, Any]) -> float:
    """Wall-clock seconds of a run with all that earlier processes did for it."""
    return record["wall_seconds"] + seconds_before(record.get("stages", {}))


def _device(record: Mapping[str, Any]) -> str:
    return str(record.get("device", "cpu")).partition(":")[0]


def _likeness(config: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Any]:
    """What runs of about the same cost share; typed settings only where the run reads them."""
    plain = flat(settings)
    typed = [plain.get(name) for name in ("eval_users", *(_COSTLY if config["model"] in MODELS else ()))]
    return [*(config.get(name) for name in _COSTLY_OF_RECBOLE), *typed]
