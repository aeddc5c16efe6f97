"""What the stages of a run cost: wall-clock and processor seconds by stage, and what was counted there.

A run opens its costs (:func:`noting_costs`); what is expensive stands in a :func:`spent_on`. Stages nest: one inside
another is named by its path (``supervised/validation``) and its time is part of the outer one's. Without that
nothing is noted. Knows plain values only.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from recbole_ilrec.report.record import Stopwatch

SECONDS = ("wall_seconds", "cpu_seconds")


@dataclass
class Costs:
    """Costs of a run.

    Attributes:
        stages: path of a stage -> ``wall_seconds``, ``cpu_seconds``, counts such as ``epochs``; and ``earlier``, the
            same of work that an earlier process did for this run: before an interruption, or kept for several runs.
        counted: names of kept work whose cost is in it.
    """

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    path: tuple[str, ...] = ()

    def entry(self) -> dict[str, Any]:
        """The entry of the stage that is running."""
        return self.stages.setdefault("/".join(self.path) or "run", {})


_open: ContextVar[Costs | None] = ContextVar("costs", default=None)


@contextmanager
def noting_costs() -> Iterator[Costs]:
    """Note the stages of this block, and of nothing before or after it."""
    token = _open.set(Costs())
    try:
        opened = _open.get()
        assert opened is not None
        yield opened
    finally:
        _open.reset(token)


@contextmanager
def spent_on(name: str) -> Iterator[None]:
    """Add the time of this block, or of a function it decorates, to the stage ``name`` inside the running one."""
    opened = _open.get()
    if opened is None:
        yield
        return
    watch, before = Stopwatch(), opened.path
    opened.path = (*before, name)
    try:
        yield
    finally:
        _add(opened.entry(), watch.read())
        opened.path = before


def note(**counts: float) -> None:
    """Add counts to the running stage, e.g. ``note(epochs=3)``."""
    opened = _open.get()
    if opened is not None:
        _add(opened.entry(), counts)


def note_earlier(costs: Mapping[str, Any], of: object = None) -> None:
    """Add what an earlier process spent on the running stage: seconds and counts; other keys are not looked at.

    Args:
        costs: what it spent.
        of: names the work, where a run may ask for it several times: it is counted once.
    """
    opened = _open.get()
    if opened is not None and (of is None or str(of) not in opened.counted):
        note_made(of)
        numbers = {key: value for key, value in costs.items() if key in (*SECONDS, "epochs") and value}
        if numbers:
            _add(opened.entry().setdefault("earlier", {}), numbers)


def note_made(work: object) -> None:
    """Say that this process did, and so counts, work that is kept: reading it again is no work of an earlier one."""
    opened = _open.get()
    if opened is not None and work is not None:
        opened.counted.add(str(work))


REWARD = "reward model"
"""Name of the stage in which the model behind Eq. 10 is trained or read."""


def total(stages: Mapping[str, Mapping[str, Any]], count: str, *, within: str = "") -> float:
    """Sum of a count such as ``epochs`` over stages, earlier work included.

    Args:
        stages: as in :attr:`Costs.stages`.
        count: its name.
        within: only stages whose path begins with this name; what the reward model took inside them is left out, since
            where it is trained or read depends on what a run finds done.
    """
    parts = {path: path.split("/") for path in stages}
    chosen = [
        stages[path] for path, names in parts.items() if not within or (names[0] == within and REWARD not in names)
    ]
    return sum(entry.get(count, 0) + entry.get("earlier", {}).get(count, 0) for entry in chosen)


def epochs_of(stages: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """Supervised and preference epochs of a run, those of its reward model left out."""
    return total(stages, "epochs", within="supervised"), total(stages, "epochs", within="preference")


def epoch_seconds(stages: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Wall-clock seconds of an epoch of supervised training, validations left out.

    ``None`` where the record does not say it: without epochs, and where an earlier process made some of them, whose
    validations are not told apart.
    """
    whole = stages.get("supervised", {})
    if not whole.get("epochs") or "earlier" in whole:
        return None
    within = (entry for path, entry in stages.items() if path.count("/") == 1 and path.startswith("supervised/"))
    return (whole["wall_seconds"] - sum(entry.get("wall_seconds", 0.0) for entry in within)) / whole["epochs"]


def seconds_before(stages: Mapping[str, Mapping[str, Any]]) -> float:
    """Wall-clock seconds that earlier processes spent for a run: to be added to its own."""
    return sum(entry.get("earlier", {}).get("wall_seconds", 0.0) for entry in stages.values())


def gigabytes(mebibytes: float) -> float:
    """Memory as people read it (1 GB = 10^9 bytes) of what records hold (MiB)."""
    return mebibytes * 2**20 / 1e9


def _add(entry: dict[str, Any], numbers: Mapping[str, float]) -> None:
    for key, value in numbers.items():
        entry[key] = round(entry.get(key, 0) + value, 2)
