"""The folder of a run: its name, what tells it from others, and the newest one that the same command may go on with.

Knows settings and folders; never what is trained in them.
"""

import glob
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from recbole.utils import get_local_time

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import held, write_atomically
from recbole_ilrec.runtime.checkpoint import STATE
from recbole_ilrec.runtime.resumption import LOOP_STATE, clear_up

logger = logging.getLogger(__name__)

AUTO = "auto"
"""Value of ``resume_from_checkpoint`` for the newest run of the same settings and data."""
MARK = "run.json"


def new_folder(config: Any) -> Path:
    """``<checkpoint_dir>/<Model>-<dataset>-<time>``, with a number where a run of the same second has that name.

    It is not made: until it is, another process may take the same, see :func:`claimed` and :func:`at_work`.
    """
    folder = Path(str(config["checkpoint_dir"])) / f"{config['model']}-{config['dataset']}-{get_local_time()}"
    return next(free for free in _numbered(folder) if not free.exists())


def claimed(folder: Path) -> Path:
    """A new folder that no other process takes, made now: ``folder``, or with a number where another was faster."""
    for free in _numbered(folder):
        with suppress(FileExistsError):
            free.mkdir(parents=True)
            return free
    raise AssertionError


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in count(2))


def mark(folder: Path, config: Any) -> None:
    """Leave in a run's folder by what :func:`newest_run` knows it again."""
    if config.keys is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder / MARK) as stream:
            json.dump({"run": config.keys.run, "model": config["model"], "dataset": config["dataset"]}, stream)


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """A run's folder without what a killed process left unfinished, and for this process alone.

    Raises:
        UserError: another process works in it.
    """
    with held(folder):
        clear_up(folder)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # only where nothing was written


def newest_run(config: Any) -> Path | None:
    """Folder of the run with the same key that wrote the newest checkpoint, or ``None``."""
    name = glob.escape(f"{config['model']}-{config['dataset']}-")
    found: list[tuple[float, Path]] = []
    for folder in Path(str(config["checkpoint_dir"])).glob(f"{name}*"):
        states = [*folder.glob(f"checkpoint-*/{LOOP_STATE}"), *folder.glob(f"last/{STATE}")]
        if states and _marked(folder).get("run") == config.keys.run:
            found.append((max(state.stat().st_mtime for state in states), folder))
    return max(found)[1] if found else None


def begun_as(resumed: Path) -> str | None:
    """Key of the run whose folder, or checkpoint in it, ``resumed`` is; ``None`` where it is not known."""
    return _marked(resumed).get("run")


def refuse_other_data(resumed: Path, dataset: str) -> None:
    """Raise :class:`UserError` where the run that ``resumed`` is of, a folder or a checkpoint, had another dataset."""
    before = _marked(resumed).get("dataset", dataset)
    if before != dataset:
        raise UserError(f"{resumed} is of a run on '{before}': go on with it under --dataset={before}.")


def _marked(folder: Path) -> dict[str, str]:
    """What :func:`mark` left in a run's folder or in the one that a checkpoint is in; empty where that is no run's."""
    for place in (folder, folder.parent):
        with suppress(OSError, ValueError):
            found = json.loads((place / MARK).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {}
