"""What a verb leaves as JSON for ``--result_file`` or ``--json``: checked before the work, written whole after it."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import require_writable, write_atomically
from recbole_ilrec.report.record import machine

logger = logging.getLogger(__name__)

RESULT = "result.json"
"""In the folder of a run: its metrics with their certificate, versions and command."""
GAMMA = "gamma"
"""In that file: the strength of the statistic in BIGRec's grounding, where it was chosen on validation."""


def keep_result(folder: Path, result: Mapping[str, Any], certificate: Mapping[str, Any]) -> None:
    """Leave the metrics in the folder of a run; a disk that is full now must not cost the result.

    Args:
        folder: the run's.
        result: what the run returned.
        certificate: what its numbers are numbers of.
    """
    content = {"valid": result["best_valid_result"], "test": result["test_result"], "evaluation": certificate}
    content |= {**machine(), **({GAMMA: result["gamma"]["value"]} if GAMMA in result else {})}
    try:
        with write_atomically(folder / RESULT) as stream:
            json.dump(content, stream, indent=1)
    except OSError as error:
        logger.warning("The metrics could not be written to %s: %s", folder / RESULT, error)


def check_result_file(path: Path, option: str = "result_file") -> None:
    """Refuse a result file that cannot be written: better now than after hours of training."""
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder: give the path of a file, e.g. {path / 'result.json'}.")
    if not _written_through(path):
        require_writable(path.parent, f"{option}={path}")


def _written_through(path: Path) -> bool:
    """Whether ``path`` is a link, pipe or device: to rename a file over /dev/stdout would remove the device."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, atomically where ``path`` is an ordinary file; infinity and not-a-number become null."""
    text = json.dumps(_finite(result), indent=2, default=str) + "\n"
    if _written_through(path):
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """``value`` with ``null`` for what JSON cannot say: infinity and not-a-number."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
