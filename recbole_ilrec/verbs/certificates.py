"""What the numbers of a table are numbers of: the certificates of its runs, a line each."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from recbole_ilrec.metrics.rank_metrics import POLICIES
from recbole_ilrec.report.runs import ranked_among
from recbole_ilrec.verbs.tables import Grid, Outcomes

_CERTIFIED = ("collisions", "tie_rule", "data", "settings", "run", "code", "weights")
_RECORDED = ("commit", "processor", "cores", "threads", "device", "finished")


def certificates(grid: Grid, outcomes: Outcomes) -> str:
    """A CSV file: each finished run of each line with who was evaluated by which rules, and under every policy."""
    rows = [
        {"line": row.label, "column": ", ".join(column.labels), "seed": run.settings["seed"], **_of_run(record)}
        for _, row in grid.plan.rows()
        for column in grid.plan.columns()
        for run in grid.runs(row, column)
        if (record := outcomes[run].record) is not None
    ]
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _of_run(record: Mapping[str, Any]) -> dict[str, Any]:
    certificate = record["evaluation"]
    lists = certificate.get("lists") or {}
    about: dict[str, Any] = {
        "history": "left out" if certificate["history_masked"] else "kept",
        "ranked among": ranked_among(record),
        **{f"lists: {name}": lists.get(name) for name in ("length", "valid", "distinct")},
    }
    for split in ("test", "valid"):
        part = certificate.get(split) or {}
        about |= {f"{split} {name}": part.get(name) for name in ("rows_in_split", "rows_evaluated", "users_evaluated")}
        policies = part.get("policies", {})
        about |= {
            f"{split} {name}, {policy}": value
            for policy in POLICIES
            for name, value in policies.get(policy, {}).items()
        }
    return about | {key: certificate.get(key) for key in _CERTIFIED} | {key: record.get(key) for key in _RECORDED}
