"""What a run is expected to take, part by part, from a few measurements; as text and as plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recbole_ilrec.report.costs import gigabytes

ONCE = "once"
"""Unit of what is done once in a run."""
TEXTS = (0, 2, 4)
"""Columns of the table that stand to the left."""


@dataclass(frozen=True)
class Part:
    """One kind of work of a run.

    Attributes:
        name: what is done.
        each: seconds of one ``unit``, the mean of those measured.
        times: how often it is done, at most where ``stops_early``.
        unit: what is done once, e.g. ``"step"``; :data:`ONCE` for what a run does one time.
        error: standard error of ``each``, in seconds; 0 where it is not known.
        stops_early: validation may end it before.
        note: what else is to be known of it.
    """

    name: str
    each: float
    times: int
    unit: str
    error: float = 0.0
    stops_early: bool = False
    note: str = ""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.each * self.times


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take on the machine it was measured on.

    Attributes:
        title: model, data and machine.
        facts: sizes of the run, a line each.
        parts: in the order in which a run does them.
        memory_mb: most memory that the measurements needed, in MiB as in a record.
        gpu_memory_mb: the same of the GPU; ``None`` without one.
        disk_mb: most that checkpoints take at a time, in MiB; ``None`` where they are not looked at or not kept.
    """

    title: str
    facts: tuple[str, ...]
    parts: tuple[Part, ...]
    memory_mb: int
    gpu_memory_mb: int | None = None
    disk_mb: int | None = None

    @property
    def seconds(self) -> float:
        """All parts."""
        return sum(part.seconds for part in self.parts)

    @property
    def stops_early(self) -> bool:
        """Whether it may be less."""
        return any(part.stops_early and part.times for part in self.parts)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        parts = [{**asdict(part), "seconds": part.seconds} for part in self.parts]
        return {**asdict(self), "parts": parts, "seconds": self.seconds, "at_most": self.stops_early}


def may_stop(validations: int, patience: int) -> bool:
    """Whether a training of so many validations can end before the last one, as RecBole counts its ``stopping_step``.

    The first validation is always the best so far, so ``patience + 1`` worse ones end with number ``patience + 2``.
    """
    return validations > patience + 2


def duration(seconds: float) -> str:
    """Seconds in the unit one would say: ``4.1 ms``, ``38.0 s``, ``4.2 min``, ``3.1 h``, ``2.5 d``."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"


def render(estimate: Estimate) -> str:
    """The estimate as one reads it on a screen."""
    return "\n".join(_lines(estimate)) + "\n"


def _lines(estimate: Estimate) -> Iterator[str]:
    yield estimate.title
    yield from estimate.facts
    yield ""
    yield from _table(estimate.parts)
    most = "at most " if estimate.stops_early else ""
    yield ""
    yield f"together: {most}{duration(estimate.seconds)}"
    memory = f"memory: {gigabytes(estimate.memory_mb):.1f} GB"
    if estimate.gpu_memory_mb is not None:
        memory += f", of the GPU {gigabytes(estimate.gpu_memory_mb):.1f} GB"
    if estimate.disk_mb is not None:
        memory += f"; checkpoints: up to {gigabytes(estimate.disk_mb):.2f} GB"
    yield memory


def _table(parts: Sequence[Part]) -> Iterator[str]:
    rows = [("", "each", "", "times", "", "in all", ""), *map(_row, parts)]
    width = [max(len(row[n]) for row in rows) for n in range(6)]
    for row in rows:
        cells = (f"{row[n]:<{width[n]}}" if n in TEXTS else f"{row[n]:>{width[n]}}" for n in range(6))
        yield "  ".join([*cells, row[6]]).rstrip()


def _row(part: Part) -> tuple[str, ...]:
    early = "at most, stops early" if part.stops_early and part.times else ""
    note = "; ".join(filter(None, (early, part.note)))
    if part.times < 2 and part.unit == ONCE:
        return part.name, "", "", "", "", duration(part.seconds), note
    if not part.times:
        return part.name, "", "", "", "", "none", note
    error = f"± {100 * part.error / part.each:.0f}%" if part.error and part.each else ""
    unit = part.unit if part.times == 1 else f"{part.unit}s"
    return part.name, duration(part.each), error, f"{part.times:,}", unit, duration(part.seconds), note
