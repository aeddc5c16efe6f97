"""The checkpoints of a training run: which there are, which one it goes on from, what a killed run left behind."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.user_ranks import ranks_file, read_ranks
from recbole_ilrec.preparation.files import mirror
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import STATE, check_kind, check_whole, load_state

logger = logging.getLogger(__name__)

LOOP_STATE = "trainer_state.json"
"""Written by the training loop beside the state of a run that can go on from there."""
BEST = "best"
"""In a run's folder: the weights of its best validation; in a checkpoint: what they were then."""


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    complete = [path for path in found if (path / STATE).is_file() and (path / LOOP_STATE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.rpartition("-")[2]))


def resumable(folder: Path, *, kind: str) -> list[Path]:
    """Checkpoints to go on from: ``folder`` itself, or those of the run whose folder it is, newest first.

    Raises:
        UserError: there is none, it holds weights only, or all are broken or of another model. No tensors are read.
    """
    if (folder / STATE).is_file() and not (folder / LOOP_STATE).is_file():
        raise UserError(
            f"{folder} holds weights only, not the state of a training run; give the run's folder or a checkpoint-N."
        )
    found = [folder] if (folder / LOOP_STATE).is_file() else checkpoints(folder)[::-1]
    if not found:
        raise UserError(f"resume_from_checkpoint={folder}: no checkpoint-N in that folder; check the path.")
    good, first = [], None
    for path in found:
        try:
            check_kind(path, kind)
            good.append(path)
        except UserError as error:
            first = first or error
            logger.warning("%s Skipped.", error)
    if first and not good:
        raise first
    return good


def load_resumable(
    folder: Path, *, kind: str, check: Callable[[Path, Mapping[str, Any]], None] | None = None
) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of :func:`resumable` that can be read as a whole, and what it holds; bad ones are named.

    Args:
        folder: see :func:`resumable`.
        kind: likewise.
        check: raises UserError of a checkpoint whose content does not fit the run.

    Raises:
        UserError: none can; the message is about the newest one.
    """
    first = None
    for path in resumable(folder, kind=kind):
        try:
            state = load_state(path, kind=kind)
            json.loads((path / LOOP_STATE).read_text(encoding="utf-8"))
            _check_best(path)
            if check is not None:
                check(path, state)
            return path, state
        except UserError as error:
            problem = error
        except ValueError:
            problem = UserError(f"{path / LOOP_STATE} is truncated. Copy the whole folder again.")
        first = first or problem
        logger.warning("%s An older checkpoint is tried.", problem)
    assert first is not None
    raise first


def _check_best(checkpoint: Path) -> None:
    """Raise :class:`UserError` where what :func:`bring_back_best` would put in the run's place is broken."""
    best, ranks = (checkpoint / name for name in _best_of(checkpoint))
    if best.is_dir():
        check_whole(best)
    if ranks.is_file():
        read_ranks(ranks)


def clear_up(run_folder: Path) -> None:
    """Remove what a killed run left unfinished in its folder; call only when nothing else writes there."""
    for folder in run_folder.glob("checkpoint-*"):
        if not (folder / STATE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    for leftover in (*run_folder.glob(".*.tmp-*"), *run_folder.glob("*/.*.tmp-*")):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    own = f"evaluating-*-of-{processes.world()}"
    for folder in set(run_folder.glob("evaluating-*")) - set(run_folder.glob(own)):  # of another number of processes
        shutil.rmtree(folder, ignore_errors=True)


def set_aside_later(checkpoint: Path) -> None:
    """Rename the run's checkpoints after ``checkpoint``: going on from an older one, they are no part of the run."""
    for later in checkpoints(checkpoint.parent):
        if int(later.name.rpartition("-")[2]) > int(checkpoint.name.rpartition("-")[2]):
            aside = later.with_name(f"superseded-{later.name}")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
            logger.warning("%s is set aside as %s", later, aside.name)


def keep_best(checkpoint: Path) -> None:
    """Give a checkpoint the best weights of its run, and where the true items stood then."""
    for name in _best_of(checkpoint.parent):
        mirror(checkpoint.parent / name, checkpoint / name)


def bring_back_best(checkpoint: Path, *, validated: bool) -> None:
    """Make the best weights of the run those of the time of ``checkpoint``: later ones are no part of it any more.

    Args:
        checkpoint: from which the run goes on.
        validated: whether it had been validated by then; if so, a checkpoint without best weights is of a version that
            kept none, and the run's stay.
    """
    if validated and not (checkpoint / BEST).is_dir():
        return
    for name in _best_of(checkpoint.parent):
        mirror(checkpoint / name, checkpoint.parent / name)


def _best_of(folder: Path) -> tuple[str, str]:
    return BEST, ranks_file(folder, "valid").name


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted is none."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
