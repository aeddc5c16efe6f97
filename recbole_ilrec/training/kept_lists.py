"""The lists of an evaluation under way, in the run's folder: an interrupted evaluation goes on where it was."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.report.costs import note_earlier
from recbole_ilrec.report.record import Stopwatch
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import STATE, load_state, save_state
from recbole_ilrec.runtime.weights import weights

logger = logging.getLogger(__name__)

KIND = "evaluation under way"
SECTIONS = {"decode", "bigrec", "candidates", "prompt", "task", "backbone"}
"""Settings that decide what comes out of an evaluation, beside weights, identifiers and rows."""


class KeptLists:
    """A :class:`~recbole_ilrec.decoding.passes.Keeper` that writes now and then, and when it is interrupted.

    What it finds counts only if it is of the same weights, identifiers, settings and rows. Nothing of that is looked at
    before there is something to read or to write, so an evaluation that is shorter than ``minutes`` costs nothing.

    Args:
        folder: the run's.
        model: with the weights that are evaluated.
        pairs: the rows.
        minutes: between two writes; ``None``: only when it is interrupted.
        counted: the seconds that were spent before are noted as an earlier process's.
    """

    def __init__(
        self, folder: Path, model: GenerativeRecommender, pairs: Pairs, minutes: float | None, *, counted: bool
    ):
        self.folder = folder / f"evaluating-{processes.rank()}-of-{processes.world()}"
        self.model = model
        self.pairs = pairs
        self.seconds = float("inf") if minutes is None else 60 * minutes
        self.counted = counted
        self._written, self._identity = time.monotonic(), ""
        self._watch, self._before = Stopwatch(), dict[str, float]()

    def restore(self, name: str, tables: Mapping[str, Tensor], done: Tensor) -> None:
        """See :class:`~recbole_ilrec.decoding.passes.Keeper`; what is broken or of something else is left alone."""
        place = self.folder / name
        if not (place / STATE).is_file():
            return
        try:
            kept = load_state(place, kind=KIND)
        except UserError as error:
            logger.warning("%s The evaluation begins anew.", error)
            return
        found = kept["tables"]
        shapes = {key: table.shape for key, table in tables.items()}
        if kept["identity"] != self.identity or {key: table.shape for key, table in found.items()} != shapes:
            return
        for key, table in tables.items():
            table.copy_(found[key])
        done.copy_(kept["done"])
        self._before = dict(kept["spent"])
        if self.counted:
            note_earlier(self._before, of=place)
        logger.info("Going on with the evaluation: %d of %d users are done", int(done.sum()), len(done))

    def keep(self, name: str, tables: Mapping[str, Tensor], done: Tensor, *, now: bool = False) -> None:
        """See :class:`~recbole_ilrec.decoding.passes.Keeper`; a full disk does not end an evaluation."""
        if not now and time.monotonic() - self._written < self.seconds:
            return
        spent = self._watch.read(self._before)
        content = {"identity": self.identity, "tables": dict(tables), "done": done, "spent": spent}
        with suppress(OSError):
            save_state(self.folder / name, content, kind=KIND)
        self._written = time.monotonic()

    def remove(self) -> None:
        """The evaluation is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def identity(self) -> str:
        """A hash of all that the lists depend on."""
        if not self._identity:
            digest = hashlib.sha256()
            settings = self.model.settings.model_dump(mode="json", include=SECTIONS)
            digest.update(json.dumps([settings, self.model.catalog.digest, self.model.frozen_key]).encode())
            for name, weight in weights(self.model).items():
                digest.update(name.encode())
                digest.update(weight.flatten().contiguous().view(torch.uint8).cpu().numpy().tobytes())
            for column in vars(self.pairs).values():
                digest.update(b"-" if column is None else column.tobytes())
            self._identity = digest.hexdigest()
        return self._identity


@contextmanager
def kept_lists(
    config: Any, folder: Path, model: GenerativeRecommender, pairs: Pairs, *, final: bool
) -> Iterator[KeptLists]:
    """What keeps the lists of an evaluation; they are removed when it is done.

    Args:
        config: the run's settings.
        folder: the run's.
        model: with the weights that are evaluated.
        pairs: the rows.
        final: its seconds before an interruption are counted; those of a validation are part of the training's.
    """
    keeper = KeptLists(folder, model, pairs, config.settings.train.save_minutes, counted=final)
    yield keeper
    keeper.remove()
