"""How a run's losses and validation metrics went: ``history.jsonl`` in its folder, one JSON object a line.

It is written anew from the training's own state at every checkpoint, so an interrupted run goes on with the lines of
the checkpoint it goes back to, and a killed one leaves the file before or this one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_ilrec.preparation.files import write_atomically
from recbole_ilrec.runtime.resumption import LOOP_STATE, checkpoints

HISTORY = "history.jsonl"
VALIDATION = "valid/"
"""What the names of validation metrics begin with; those of training begin with ``train/``."""

USERS_OF_LAYERS = 256
"""Validation users on whom the losses of the layers are noted."""


def validation(epoch: float, step: int | None, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The line of a validation after ``epoch`` epochs."""
    named = {f"{VALIDATION}{name}": float(value) for name, value in metrics.items()}
    return {"epoch": epoch, **({} if step is None else {"step": step}), **named}


def write_history(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replace the history of the run in ``folder``, in the order of its epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / HISTORY) as stream:
        stream.writelines(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line.get("epoch", 0.0)))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run: ``epoch`` (epochs done) and numbers by name; empty where none were kept.

    A run without the file, which older versions did not write, has its training losses in its newest checkpoint.

    Raises:
        ValueError: a file that holds something else.
    """
    if (folder / HISTORY).is_file():
        return [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]
    for checkpoint in reversed(checkpoints(folder)):
        return json.loads((checkpoint / LOOP_STATE).read_text(encoding="utf-8"))["log_history"]
    return []
