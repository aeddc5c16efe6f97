"""How a training step and a search grow with what they are given, as curves."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import ROUNDS, paired
from benchmarks.search import World
from benchmarks.steps import CASES, Case, step
from recbole_ilrec.report.figure import Panel, Picture, Series, draw

Points = dict[float | str, dict[str, float]]
"""Size -> milliseconds by name."""

TINY = CASES[1_000]
SEQUENCE = {
    "rows of 80 tokens": {n: replace(TINY, rows=n) for n in (5, 10, 20, 40)},
    "tokens of 20 rows": {n: replace(TINY, length=n) for n in (20, 40, 80, 160)},
    "vocabulary": {n: replace(TINY, vocab=n) for n in (1_000, 2_000, 4_000, 8_000)},
}
KS, BEAMS, ITEMS = (1, 2, 3), (5, 10, 20, 50), (1_000, 10_000, 100_000)


def step_ms(case: Case, ks: Mapping[str, int], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of plain fine-tuning and of ILRec with each k, all positions supervised."""
    backbone = case.backbone()
    work = {"SFT": step(backbone, case, "sequence", "sft", 1.0)}
    work |= {name: step(backbone, case, "sequence", "ilrec", 0.25, k) for name, k in ks.items()}
    return {name: 1e3 * spent["seconds"] for name, spent in paired(work, rounds).items()}


def curves(rounds: int = ROUNDS) -> Iterator[tuple[str, Points]]:
    """What grows, and the milliseconds of a step, or of a user's search, at each size."""
    for title, cases in SEQUENCE.items():
        yield f"Step: {title}", {n: step_ms(case, {"ILRec": 2}, rounds) for n, case in cases.items()}
    yield "Step: candidate layers k", {str(k): step_ms(TINY, {"ILRec": k}, rounds) for k in KS}
    world = World(64, 33, 5_000)
    yield "Search: beams", {n: world.search_ms(n, rounds) for n in BEAMS}
    yield "Search: items", {f"{n:,}": World(64, 33, n).search_ms(20, rounds) for n in ITEMS}


def figures(found: Mapping[str, Points], folder: Path, caption: str) -> list[Path]:
    """The curves of steps and those of searches side by side, as ``step.png``, ``search.png`` and the same in SVG."""
    written = []
    for name, unit in (("Step", "ms"), ("Search", "ms a user")):
        panels = [_panel(title, unit, points) for title, points in found.items() if title.startswith(name)]
        picture = Picture(name.lower(), "curves", caption, "", tuple(panels), from_zero=True)
        written += draw(picture, folder) if panels else []
    return written


def _panel(title: str, unit: str, points: Points) -> Panel:
    names = next(iter(points.values()))
    nothing = (0.0,) * len(points)
    lines = {name: tuple(point[name] for point in points.values()) for name in names}
    return Panel(title, unit, tuple(Series(name, tuple(points), line, nothing) for name, line in lines.items()))
