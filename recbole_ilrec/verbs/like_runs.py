"""What a run will take: from runs like it that have a record here, else from those whose costs are shipped.

``properties/costs.yaml`` holds what runs took where this project made them, so that a plan can be judged before its
first run; ``shipped_costs.py`` writes it.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.lookup import MODELS
from recbole_ilrec.configuration.presets import properties_folder, read_yaml
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
SHIPPED = "costs.yaml"


@dataclass(frozen=True)
class Expected:
    """What a run will take, from like runs; ``None`` where there are none.

    Attributes:
        seconds: by the clock, with the stages that it may find kept from other runs.
        own_seconds: without them.
        memory_mb: most memory, in MiB.
        where: the machine of the like runs, where it is not this one.
    """

    seconds: float | None = None
    own_seconds: float | None = None
    memory_mb: float | None = None
    where: str = ""


def expected_from(records: Iterable[Mapping[str, Any]], config: Config) -> Expected:
    """Median time and greatest memory of the runs among ``records`` that differ in nothing that costs much.

    Where there are none, those of the runs whose costs are shipped.
    """
    wanted = likeness(config)
    like = [record for record in records if _likeness_of(record) == wanted]
    if like:
        return Expected(**taken(like))
    for cost in _shipped():
        if cost["like"] == wanted:
            return Expected(*(cost[key] for key in ("seconds", "own_seconds", "memory_mb", "where")))
    return Expected()


def seconds(record: Mapping[str, Any]) -> float:
    """Wall-clock seconds of a run with all that earlier processes did for it."""
    return record["wall_seconds"] + seconds_before(record.get("stages", {}))


def likeness(config: Config) -> dict[str, Any]:
    """What runs of about the same cost share; typed settings only where the run reads them."""
    return _likeness(config["device"].type, config.as_dict(), config.settings.model_dump(mode="json"))


def taken(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What runs that are alike took: the numbers of :class:`Expected`."""
    return {
        "seconds": round(statistics.median(map(seconds, records)), 1),
        "own_seconds": round(statistics.median(record["wall_seconds"] for record in records), 1),
        "memory_mb": max(record["peak_memory_mb"] for record in records),
    }


@cache
def _shipped() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_yaml(properties_folder() / SHIPPED)["costs"]
    return found


def _likeness_of(record: Mapping[str, Any]) -> dict[str, Any]:
    device = str(record.get("device", "cpu")).partition(":")[0]
    return _likeness(device, record["config"], record["settings"] or {})


def _likeness(device: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    plain = flat(settings)
    typed = {name: plain.get(name) for name in ("eval_users", *(_COSTLY if config["model"] in MODELS else ()))}
    shared = {"device": device, **{name: config.get(name) for name in _COSTLY_OF_RECBOLE}, **typed}
    return {name: value for name, value in shared.items() if value is not None}
