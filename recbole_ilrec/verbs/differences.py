"""How far the lines of a table are from one of them, seed by seed: on the test part and on validation.

The marks of a table test users; this tests seeds: whether another training of the same two methods would tell the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_ilrec.report.plan import Column, Row
from recbole_ilrec.report.statistics import ALPHA, holm, paired_over_seeds
from recbole_ilrec.report.table import MARK, Cell, Line, Table
from recbole_ilrec.verbs.captions import framed
from recbole_ilrec.verbs.tables import Grid, Outcomes, metric_name, smaller_is_better
from recbole_ilrec.verbs.user_metrics import unrounded

PARTS = ("test", "validation")


def differences_table(grid: Grid, outcomes: Outcomes, against: str, *, quick: bool = False) -> Table:
    """Each line minus the line ``against``, over the seeds that both have.

    Args:
        grid: the table's plan and settings.
        outcomes: of its runs.
        against: label of a line of the plan.
        quick: whether the runs were made with ``--quick``.
    """
    plan, columns = grid.plan, grid.plan.columns()
    rows = {row.label: row for _, row in plan.rows()}
    metrics = _widest(plan.metrics)
    found = {
        (row.label, number): _compared(grid, row, rows[against], place, outcomes)
        for _, row in plan.rows()
        if row.label != against
        for number, place in enumerate((c, part, metric) for c in columns for part in PARTS for metric in metrics)
    }
    tested = {key: p for key, (_, p) in found.items() if p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    lower = [smaller_is_better(metric) for _ in columns for _ in PARTS for metric in metrics]

    def line(label: str) -> Line:
        cells = (_cell(*found[label, n], adjusted.get((label, n)), less) for n, less in enumerate(lower))
        return Line(label, tuple(cells))

    blocks = []
    for block in plan.blocks:
        lines = [line(row.label) for row in block.rows if row.label != against]
        blocks += [(block.label, tuple(lines))] if lines else []
    records = [outcome.record for outcome in outcomes.values() if outcome.record]
    return Table(
        name=f"{plan.name}{'-quick' if quick else ''}-against",
        caption=framed(plan, records, _said(against, len(tested)), quick, grid.given),
        head=_head(columns, metrics),
        blocks=tuple(blocks),
    )


def _widest(metrics: Sequence[str]) -> list[str]:
    """The metrics with the largest cutoff: the others say nearly the same."""
    cut = {metric: int(metric.partition("@")[2]) for metric in metrics if metric.partition("@")[2].isdecimal()}
    return [metric for metric, k in cut.items() if k == max(cut.values())]


def _head(columns: Sequence[Column], metrics: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    every = [(*c.labels, part, metric_name(metric)) for c in columns for part in PARTS for metric in metrics]
    return tuple(zip(*every, strict=True))


def _compared(
    grid: Grid, row: Row, other: Row, place: tuple[Column, str, str], outcomes: Outcomes
) -> tuple[np.ndarray, float | None]:
    """``[seeds]`` differences over the seeds that both lines have; chance of so large a mean, from two seeds on."""
    column, part, metric = place
    pairs = []
    for own, against in zip(grid.runs(row, column), grid.runs(other, column), strict=True):
        values = [_value(outcomes[run].record, part, metric) for run in (own, against)]
        if values[0] is not None and values[1] is not None:
            pairs.append(values)
    if not pairs:
        return np.empty(0), None
    ours, theirs = np.array(pairs, dtype=np.float64).T
    return ours - theirs, paired_over_seeds(ours, theirs)


def _value(record: Mapping[str, Any] | None, part: str, metric: str) -> float | None:
    if record is None:
        return None
    if part == "test":
        return unrounded(metric, record)
    return (record["result"].get("best_valid_result") or {}).get(metric)


def _cell(differences: np.ndarray, p: float | None, adjusted: float | None, lower: bool) -> Cell:
    if not len(differences):
        return Cell()
    mean, ahead = float(differences.mean()), int((differences < 0 if lower else differences > 0).sum())
    text = f"{mean:+.4f}"
    if len(differences) > 1:
        text += f" ({ahead} of {len(differences)}{'' if p is None else f', p {_p(p)}'})"
    significant = adjusted is not None and adjusted < ALPHA
    return Cell(tuple(differences.tolist()), mean, text=text, lower=lower, p=adjusted, significant=significant)


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")


def _said(against: str, tests: int) -> list[str]:
    parts = [f"Difference to {against}: mean over the seeds that both lines have."]
    if tests:
        parts.append(
            "In brackets how many seeds are ahead, and p of a paired two-sided t-test over seeds, not corrected; "
            f"{MARK}: below {ALPHA} after Holm over all {tests}."
        )
    return parts
