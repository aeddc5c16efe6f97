"""Figures of the paper from run records: the numbers of a plan's table, or of the layers, as pictures."""

from collections.abc import Sequence

from recbole_ilrec.errors import UserError
from recbole_ilrec.report.curves import LAYERS, layer_series
from recbole_ilrec.report.figure import Panel, Picture, Series
from recbole_ilrec.report.plan import Column
from recbole_ilrec.report.statistics import ALPHA
from recbole_ilrec.report.table import MARK, Cell, Table
from recbole_ilrec.runtime.history import USERS_OF_LAYERS
from recbole_ilrec.verbs.captions import MARKED, QUICK, framed, spread
from recbole_ilrec.verbs.tables import Grid, Outcomes, metric_name


def picture(grid: Grid, table: Table, outcomes: Outcomes) -> Picture:
    """The picture of a plan.

    Args:
        grid: the plan; its ``figure`` says how to draw it.
        table: its numbers.
        outcomes: its runs, for what stands in no table.

    Raises:
        UserError: the plan is no figure, or no run has the numbers.
    """
    how = grid.plan.figure
    if not how:
        raise UserError(f"'{grid.plan.name}' is a table only: recbole-ilrec table {grid.plan.name}.")
    caption = " ".join([_spoken(table.caption), *table.notes])
    if how["kind"] == "curves":
        panels = _curves(grid, outcomes)
        caption = " ".join([_of_layers(grid, outcomes, table.caption.startswith(QUICK)), *table.notes])
    else:
        panels = {"lines": _lines, "bars": _bars}[how["kind"]](grid, table)
    return Picture(table.name, how["kind"], caption, how.get("x", ""), tuple(panels))


def _of_layers(grid: Grid, outcomes: Outcomes, quick: bool) -> str:
    """Whose losses the curves are: not those of the users of the table."""
    records = [outcome.record for outcome in outcomes.values() if outcome.record]
    parts = [record["evaluation"].get("valid", {}).get("rows_evaluated", USERS_OF_LAYERS) for record in records]
    users = " or ".join(str(count) for count in sorted({min(USERS_OF_LAYERS, part) for part in parts}))
    said = [f"Mean over the tokens of the validation item of {users} users, each after the true tokens before it."]
    said.append(f"{_bars_for(spread(grid.plan)).capitalize()}.")
    return framed(grid.plan, records, said, quick, grid.given)


def _bars_for(said: str) -> str:
    return said.replace("mean ± standard deviation", "mean and, as error bars, standard deviation")


def _spoken(caption: str) -> str:
    """The caption without what it says of marks, which a picture has not."""
    before, _, after = caption.partition(MARKED)
    tested, end, rest = after.partition(f"p < {ALPHA}).")
    return _bars_for(before).strip() + (rest if end and MARK in tested else after).rstrip()


def _cells(grid: Grid, table: Table, metric: str) -> tuple[list[Column], list[tuple[str, list[Cell]]]]:
    """Columns, and for each line its cells of one metric."""
    metrics = grid.plan.metrics
    lines = [line for _, block in table.blocks for line in block]
    return grid.plan.columns(), [
        (line.label, list(line.cells[metrics.index(metric) :: len(metrics)])) for line in lines
    ]


def _series(label: str, x: Sequence[float | str], cells: Sequence[Cell]) -> Series:
    mean = tuple(float("nan") if cell.mean is None else cell.mean for cell in cells)
    return Series(label, tuple(x), mean, tuple(cell.deviation or 0.0 for cell in cells))


def _short(columns: Sequence[Column]) -> list[str]:
    """Labels of the columns without the parts that all of them share; a single one keeps all of its own."""
    if len(columns) == 1:
        return [", ".join(columns[0].labels)]
    parts = list(zip(*(column.labels for column in columns), strict=True))
    telling = [labels for labels in parts if len(set(labels)) > 1] or parts[-1:]
    return ["\n".join(labels) for labels in zip(*telling, strict=True)]


def _lines(grid: Grid, table: Table) -> list[Panel]:
    """A panel a metric, a line a column, the plan's lines along the axis."""
    panels = []
    for metric in grid.plan.metrics:
        columns, rows = _cells(grid, table, metric)
        x = [label for label, _ in rows]
        names = [name.replace("\n", " ") for name in _short(columns)]
        series = [_series(name, x, [cells[n] for _, cells in rows]) for n, name in enumerate(names)]
        panels.append(Panel(names[0] if len(names) == 1 else "", metric_name(metric), tuple(series)))
    return panels


def _bars(grid: Grid, table: Table) -> list[Panel]:
    """A panel a metric, a group of bars a column, a colour a line of the plan."""
    panels = []
    for metric in grid.plan.metrics:
        columns, rows = _cells(grid, table, metric)
        series = [_series(label, _short(columns), cells) for label, cells in rows]
        panels.append(Panel("", metric_name(metric), tuple(series)))
    return panels


def _curves(grid: Grid, outcomes: Outcomes) -> list[Panel]:
    """A panel for each line and column, a curve a layer: mean over all seeds of the losses noted while training."""
    panels = []
    for _, row in grid.plan.rows():
        for column in grid.plan.columns():
            runs = [outcomes[run].record for run in grid.runs(row, column)]
            logs = [log for record in runs if record and (log := record["result"].get("layer_losses"))]
            if len(logs) == len(runs):  # over some of the seeds it would be another mean
                title = ", ".join([row.label, *column.labels])
                panels.append(Panel(title, LAYERS, layer_series(logs)))
    if not panels:
        raise UserError(
            f"No line of '{grid.plan.name}' has the losses of its layers in the runs of all seeds: "
            "train.layer_losses=true notes them."
        )
    return panels
