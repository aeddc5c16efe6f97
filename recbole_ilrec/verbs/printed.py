"""The numbers printed in the paper as tables of their own; they never stand among ours."""

from dataclasses import replace

from recbole_ilrec.report.accounts import COUNTS
from recbole_ilrec.report.plan import Plan
from recbole_ilrec.report.table import Cell, Line, Table, marked
from recbole_ilrec.verbs.tables import digits_of, head, smaller_is_better


def paper_table(plan: Plan, whole: Plan) -> Table | None:
    """What the paper prints for the lines and columns of ``plan``, a part of ``whole``; ``None`` if nothing.

    Lines that the paper does not have are left out.
    """
    wanted = {(column.axis, column.dataset) for column in plan.columns()}
    kept = [(n, column) for n, column in enumerate(whole.columns()) if (column.axis, column.dataset) in wanted]
    if not whole.paper or not kept:
        return None
    width = len(whole.metrics)
    blocks = []
    for block in plan.blocks:
        lines = []
        for row in block.rows:
            if row.label in whole.paper:
                numbers = [whole.paper[row.label][n * width + m] for n, _ in kept for m in range(width)]
                metrics = whole.metrics * len(kept)
                lines.append(Line(row.label, tuple(map(_printed, numbers, metrics))))
        if lines:
            blocks.append((block.label, tuple(lines) if block.plain else marked(lines)))
    if not blocks:
        return None
    return Table(f"{whole.name}-paper", _printed_caption(whole), head(plan, [c for _, c in kept]), tuple(blocks))


def _printed(number: float | str, metric: str = "") -> Cell:
    cell = Cell(text=number) if isinstance(number, str) else Cell((number,), float(number))
    return replace(cell, digits=digits_of(metric), lower=smaller_is_better(metric))


def _printed_caption(plan: Plan) -> str:
    return f"{plan.title}: the numbers printed in the paper. None of them was made here."


def printed_counts(plan: Plan) -> Table | None:
    """The counts that the paper prints for the datasets of the plan; ``None`` if it prints none."""
    lines = [Line(name, tuple(map(_printed, plan.paper[name]))) for name in plan.datasets if name in plan.paper]
    if not lines:
        return None
    return Table(f"{plan.name}-paper", _printed_caption(plan), (COUNTS,), (("", tuple(lines)),))
