"""The runs behind a table in one small file: the table again, tests included, from the file alone.

A line of JSON a run: what was planned, the parts of its record that tables read, and the places of the true items of
all test users, compressed. Neither data nor checkpoints are needed to read it, so it can stand beside a page that shows
the table.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import TargetPlaces
from recbole_ilrec.evaluation.user_ranks import ranks_file, read_ranks
from recbole_ilrec.preparation.files import write_atomically
from recbole_ilrec.report.plan import PlannedRun
from recbole_ilrec.verbs.experiments import Outcome

KEPT = (
    "model", "dataset", "seed", "result", "evaluation", "stages", "wall_seconds", "cpu_seconds", "peak_memory_mb",
    "peak_gpu_memory_mb", "parameters", "threads", "cores", "device", "processor", "versions", "python", "commit",
    "finished",
)  # fmt: skip
"""Keys of a record that an archive keeps; the others repeat the plan's settings at length or name folders."""
_NEEDED = {"result": ("test_result",), "evaluation": ("code", "collisions", "history_masked")}
"""Parts of a record without which there is no table."""
_RUN, _QUICK, _PLACES, _USER = "run", "quick", "places", "user"


def write_archive(path: Path, outcomes: Mapping[PlannedRun, Outcome], *, quick: bool) -> None:
    """Write all finished runs of a table, atomically.

    Args:
        path: the file.
        outcomes: of the runs of a table.
        quick: whether they were made with ``--quick``, which is no part of what was planned.

    Raises:
        OSError: it cannot be written.
    """
    with write_atomically(path) as stream:
        for run, outcome in outcomes.items():
            if outcome.record is not None:
                kept = {key: outcome.record[key] for key in KEPT if key in outcome.record}
                line = {_RUN: str(run), _QUICK: quick, **kept}
                places = places_in_test(outcome.record)
                if places is not None:
                    line[_PLACES] = {name: _packed(column) for name, column in _columns(*places).items()}
                stream.write(json.dumps(line, sort_keys=True) + "\n")


def read_archive(path: Path, *, quick: bool) -> dict[str, Outcome]:
    """What was planned, as ``str(PlannedRun)`` -> its outcome.

    Args:
        path: the file; a line without a mark, of an earlier version, was not made with ``--quick``.
        quick: whether numbers made with ``--quick`` are asked for.

    Raises:
        UserError: no such file, a line that is no run or lacks a part of it, a second line of a run, or numbers of the
            other kind.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): table NAME --archive={path} writes it.") from None
    outcomes = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            run, was_quick = record.pop(_RUN), bool(record.pop(_QUICK, False))
        except (ValueError, KeyError, AttributeError):
            raise UserError(
                f"{path}:{number}: no run of an archive: write it anew, table NAME --archive=FILE."
            ) from None
        if was_quick != quick:
            how = "with --quick: give --quick here too" if was_quick else "without --quick: leave --quick out"
            raise UserError(f"{path}:{number}: these numbers were made {how}.")
        if run in outcomes:
            raise UserError(f"{path}:{number}: a second line of a run, '{run}': take out the one that is not meant.")
        if (fault := _fault(record)) is not None:
            raise UserError(f"{path}:{number}: {fault}: write it anew, table NAME --archive=FILE.")
        outcomes[run] = Outcome(record)
    return outcomes


def _fault(record: Mapping[str, Any]) -> str | None:
    """What a table would miss in a line of an archive."""
    for part, keys in _NEEDED.items():
        held = record.get(part)
        missing = [key for key in keys if not isinstance(held, dict) or key not in held]
        if missing:
            return f"'{part}' is missing or has no '{missing[0]}'"
    try:
        found = places_in_test(record)
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError):
        return f"'{_PLACES}' is garbled"
    lengths = set() if found is None else {len(column) for column in _columns(*found).values()}
    return f"the columns of '{_PLACES}' are not equally long" if len(lengths) > 1 else None


def places_in_test(record: Mapping[str, Any]) -> tuple[Tensor, TargetPlaces] | None:
    """``[B]`` ids of the test users and the places of their true items, from the archive or from the run's folder."""
    if _PLACES in record:
        columns = {name: _unpacked(text) for name, text in record[_PLACES].items()}
        return columns.pop(_USER), TargetPlaces(**columns)
    folder = record.get("folder")
    if not folder or not ranks_file(Path(folder), "test").is_file():
        return None
    user, places, _ = read_ranks(ranks_file(Path(folder), "test"))
    return user, places


def _columns(user: Tensor, places: TargetPlaces) -> dict[str, Tensor]:
    return {_USER: user, **vars(places)}


def _packed(column: Tensor) -> str:
    return base64.b85encode(zlib.compress(column.numpy().astype("<i8").tobytes(), 9)).decode("ascii")


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype="<i8").copy())
