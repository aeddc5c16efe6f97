"""Writes ``properties/costs.yaml``: what the runs of archives took, for those who have made none of their own yet.

``python -m recbole_ilrec.verbs.shipped_costs ARCHIVE ...``, in the folder that holds ``dataset/``. A run is taken to
have the settings that its plan has today, so give archives whose presets have not changed since; language models with
another number of epochs than today's are refused.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mode
from typing import Any

import yaml

from recbole_ilrec.configuration.arguments import parse
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.presets import properties_folder
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import write_atomically
from recbole_ilrec.report.costs import epochs_of
from recbole_ilrec.report.plan import PlannedRun
from recbole_ilrec.verbs.archive import read_archive
from recbole_ilrec.verbs.experiments import Experiments
from recbole_ilrec.verbs.like_runs import SHIPPED, likeness, taken

_HEAD = """# What runs took where this project made them, for those who have none yet (docs/tables.md). From archives by
# python -m recbole_ilrec.verbs.shipped_costs ARCHIVE ...
"""


def shipped_costs(archives: Iterable[Path]) -> list[dict[str, Any]]:
    """One entry for all runs that are alike.

    Args:
        archives: of finished runs, as ``table --archive`` writes them.

    Raises:
        UserError: a broken archive, settings or data that are not there, or a run whose preset has changed.
    """
    alike: dict[str, list[tuple[dict[str, Any], Mapping[str, Any]]]] = {}
    for archive in archives:
        quick = json.loads(archive.read_text(encoding="utf-8").partition("\n")[0]).get("quick", False)
        planned = Experiments({}, quick=quick)
        for name, outcome in read_archive(archive, quick=quick).items():
            assert outcome.record is not None
            config = planned.config(_planned(name))
            _check(archive, name, config, outcome.record)
            like = likeness(config)
            alike.setdefault(json.dumps(like, sort_keys=True), []).append((like, outcome.record))
    return [_entry(runs[0][0], [record for _, record in runs]) for _, runs in sorted(alike.items())]


def _planned(name: str) -> PlannedRun:
    options = parse(name.split()).options
    return PlannedRun(options.pop("model"), options.pop("dataset"), options)


def _check(archive: Path, name: str, config: Config, record: Mapping[str, Any]) -> None:
    made, wanted = round(epochs_of(record["stages"])[0]), config["epochs"]
    fixed = config["model"] != "SPRec" and not config.settings.train.max_steps  # SPRec goes on in its rounds
    if config.is_llm and fixed and made != wanted:
        raise UserError(f"{archive}: '{name}' was made with {made} epochs and would take {wanted} now: leave it out.")


def _entry(like: Mapping[str, Any], records: list[Mapping[str, Any]]) -> dict[str, Any]:
    where = mode(f"{r['processor']}, {r['threads']} thread{'s' * (r['threads'] != 1)}" for r in records)
    commits = sorted({record["commit"][:7] for record in records})
    versions = sorted({record["versions"]["torch"] for record in records})
    numbers = {"runs": len(records), "commits": " ".join(commits), "torch": " ".join(versions)}
    return {"like": dict(like), **taken(records), "where": where, **numbers}


if __name__ == "__main__":
    costs = shipped_costs(map(Path, sys.argv[1:]))
    with write_atomically(properties_folder() / SHIPPED) as stream:
        stream.write(_HEAD + yaml.safe_dump({"costs": costs}, sort_keys=False, width=120))
