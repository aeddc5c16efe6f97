"""Tables of the paper from run records: the cells of a plan, their marks, and their tests.

Knows plans, records and the files of ranks; how runs are made is :mod:`recbole_ilrec.verbs.experiments`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_ilrec.configuration.config import Config, MissingDataset
from recbole_ilrec.configuration.recbole_values import metric_names
from recbole_ilrec.data.dataset import SequenceDataset
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.accounts import COUNTS, counts_line
from recbole_ilrec.report.costs import epoch_seconds, epochs_of, gigabytes, total
from recbole_ilrec.report.plan import Block, Column, Plan, PlannedRun, Row
from recbole_ilrec.report.runs import in_order, less_is_better, metric_label
from recbole_ilrec.report.statistics import ALPHA, holm, mean_and_deviation, paired_p
from recbole_ilrec.report.table import Cell, Line, Table, marked
from recbole_ilrec.verbs.captions import caption
from recbole_ilrec.verbs.experiments import Experiments, Outcome
from recbole_ilrec.verbs.like_runs import seconds
from recbole_ilrec.verbs.progress import failures
from recbole_ilrec.verbs.user_metrics import OF_A_USER, by_user, unrounded

Outcomes = Mapping[PlannedRun, Outcome]
_COSTS = {
    "time": ("Time (min)", 1),
    "epoch_time": ("Epoch (s)", 1),
    "user_time": ("User (ms)", 2),
    "epochs": ("Epochs", 0),
    "samples": ("Samples", 0),
    "memory": ("Memory (GB)", 1),
    "gpu_memory": ("GPU memory (GB)", 1),
    "parameters": ("Parameters (M)", 2),
}
"""Metric of a run's cost -> its header, digits after the point."""
_OF_ANSWERS = frozenset(("hitratio@1", "validratio"))
"""Further metrics where a language model chooses among candidates."""
_BUNDLED = "ml-100k"
"""A dataset that is always there: RecBole carries it."""


@dataclass(frozen=True)
class Grid:
    """A narrowed plan with the settings given for all its runs.

    Attributes:
        given: settings of the command line, over those of the plan.
    """

    plan: Plan
    given: Mapping[str, Any]

    def runs(self, row: Row, column: Column) -> list[PlannedRun]:
        """One run a seed."""
        return [self.plan.run(row, column, seed, self.given) for seed in self.plan.seeds]

    def all_runs(self) -> list[PlannedRun]:
        """Every run of the plan once, line by line."""
        cells = (self.runs(row, column) for _, row in self.plan.rows() for column in self.plan.columns())
        return list(dict.fromkeys(run for cell in cells for run in cell))


def refuse_uncomputed(plan: Plan, runs: Iterable[PlannedRun], experiments: Experiments) -> None:
    """Refuse a metric of the plan that none of its runs computes; runs whose settings are refused do not count.

    Raises:
        UserError: naming the first such metric and those that are computed.
    """
    computed: set[str] = set()
    for config in filter(None, (_config(run, experiments) for run in runs)):
        computed |= metric_names(config) | (_OF_ANSWERS if config.settings.task == "candidates" else set())
    missing = [metric for metric in plan.metrics if metric not in computed and metric not in _COSTS]
    if computed and missing:
        raise UserError(
            f"table plan '{plan.name}': no run computes {missing[0]}: choose from {', '.join(in_order(computed))}, or "
            f"from the costs {', '.join(_COSTS)}; --metrics and --topk say what is computed."
        )


def _config(run: PlannedRun, experiments: Experiments) -> Config | None:
    try:
        return experiments.config(run)
    except MissingDataset:  # it will be made by the run; what is computed does not depend on it
        return experiments.config(replace(run, dataset=_BUNDLED))
    except UserError:
        return None


def results_table(grid: Grid, outcomes: Outcomes, *, quick: bool = False) -> Table:
    """The table of a plan; a cell whose runs failed says so, and the error stands below."""
    plan, columns = grid.plan, grid.plan.columns()
    blocks = [(block, [_line(grid, row, columns, outcomes) for row in block.rows]) for block in plan.blocks]
    notes = _failed(grid, columns, outcomes)
    tested = _tested(grid, blocks, outcomes, notes)
    marks = [(block.label, tuple(lines) if block.plain else marked(lines)) for block, lines in tested]
    records = [outcome.record for outcome in outcomes.values() if outcome.record]
    count = sum(cell.p is not None for _, lines in tested for line in lines for cell in line.cells)
    return Table(
        name=f"{plan.name}-quick" if quick else plan.name,
        caption=caption(plan, records, count, quick, grid.given),
        head=head(plan, columns),
        blocks=tuple(marks),
        notes=tuple(dict.fromkeys([*notes, *_partly(grid, columns, outcomes)])),
    )


def head(plan: Plan, columns: Sequence[Column]) -> tuple[tuple[str, ...], ...]:
    """Header rows from the outermost inwards, each with one label a column and metric."""
    outer = [tuple(c.labels[depth] for c in columns for _ in plan.metrics) for depth in range(len(columns[0].labels))]
    return (*outer, tuple(metric_name(metric) for _ in columns for metric in plan.metrics))


def metric_name(metric: str) -> str:
    """``ndcg@10`` as ``NDCG@10``; costs with their unit."""
    return _COSTS[metric][0] if metric in _COSTS else metric_label(metric)


def _failed(grid: Grid, columns: Sequence[Column], outcomes: Outcomes) -> list[str]:
    """Why runs failed, a line that is the same for many of them once; a run of two lines of the plan counts once."""
    names: dict[PlannedRun, str] = {}
    for _, row in grid.plan.rows():
        for column in columns:
            for run in grid.runs(row, column):
                names.setdefault(run, f"{row.label}, {', '.join(column.labels)}, seed {run.settings['seed']}")
    notes = []
    for error, runs in failures({run: outcomes[run] for run in names}).items():
        more = f" and {len(runs) - 1} more of the runs" if len(runs) > 1 else ""
        notes.append(f"Failed: {names[runs[0]]}{more}: {error}")
    return notes


def _partly(grid: Grid, columns: Sequence[Column], outcomes: Outcomes) -> list[str]:
    """The lines of which some runs are there and some are not made yet: their empty cells are no failure."""
    found = []
    for _, row in grid.plan.rows():
        runs = [run for column in columns for run in grid.runs(row, column)]
        made = sum(outcomes[run].record is not None for run in runs)
        if 0 < made < len(runs) and not any(outcomes[run].error for run in runs):
            found.append(f"{row.label} ({made} of {len(runs)})")
    return [f"Not all runs are there yet: {', '.join(found)}."] if found else []


def _line(grid: Grid, row: Row, columns: Sequence[Column], outcomes: Outcomes) -> Line:
    cells: list[Cell] = []
    for column in columns:
        runs = grid.runs(row, column)
        failed = any(outcomes[run].error for run in runs)
        records = [record for run in runs if (record := outcomes[run].record)]
        for metric in grid.plan.metrics:
            cells.append(_cell(metric, records, failed=failed, wanted=len(runs)))
    return Line(row.label, tuple(cells))


def _cell(metric: str, records: Sequence[Mapping[str, Any]], *, failed: bool, wanted: int) -> Cell:
    """A number over all seeds; over some of them it would be another number, so there is none."""
    digits, lower = digits_of(metric), smaller_is_better(metric)
    if failed or len(records) < wanted:
        return Cell(text="failed" if failed else "", digits=digits, lower=lower)
    values = [_value(metric, record) for record in records]
    if any(value is None for value in values):
        return Cell(text="n/a", digits=digits, lower=lower)
    numbers = tuple(float(value) for value in values if value is not None)
    mean, deviation = mean_and_deviation(numbers)
    text = ""
    if metric == "epochs":
        parts = {_epochs(record) for record in records}
        text, digits = (parts.pop(), digits) if len(parts) == 1 else ("", 1)  # a mean has no parts
    return Cell(numbers, mean, deviation, text=text, digits=digits, lower=lower)


def digits_of(metric: str) -> int:
    """Digits shown after the point."""
    return _COSTS[metric][1] if metric in _COSTS else 4


def smaller_is_better(metric: str) -> bool:
    """Whether the smallest number of a column is the best."""
    return metric in _COSTS or less_is_better(metric)


def _value(metric: str, record: Mapping[str, Any]) -> float | None:
    stages = record.get("stages", {})
    if metric == "time":
        return seconds(record) / 60
    if metric == "epoch_time":
        return epoch_seconds(stages)
    if metric == "user_time":
        rows, test = (record["evaluation"].get("test") or {}).get("rows_evaluated"), stages.get("evaluation")
        return 1000 * test["wall_seconds"] / rows if rows and test and "earlier" not in test else None
    if metric == "epochs":
        return sum(epochs_of(stages))
    if metric == "samples":
        return total(stages, "sampling_passes")
    if metric == "memory":
        return gigabytes(record["peak_memory_mb"])
    if metric == "gpu_memory":
        return gigabytes(record.get("peak_gpu_memory_mb") or 0)
    if metric == "parameters":
        return record["parameters"] / 1e6
    return unrounded(metric, record)


def _epochs(record: Mapping[str, Any]) -> str:
    """``8 (5 + 3)``: supervised and preference epochs, as the paper counts them."""
    supervised, preference = epochs_of(record.get("stages", {}))
    whole = f"{supervised + preference:g}"
    return f"{whole} ({supervised:g} + {preference:g})" if preference else whole


# ---- significance


def _tested(
    grid: Grid, blocks: list[tuple[Block, list[Line]]], outcomes: Outcomes, notes: list[str]
) -> list[tuple[Block, list[Line]]]:
    """The lines with p-values: ours against the best other line of its block, by column, corrected over the table."""
    cells = [(c, m) for c in grid.plan.columns() for m in grid.plan.metrics]
    found: dict[tuple[int, int, int], tuple[float, bool]] = {}
    for b, (block, lines) in enumerate(blocks):
        own = next((n for n, line in enumerate(lines) if line.label == block.ours), None)
        for place, (column, metric) in enumerate(cells):
            means = [line.cells[place].mean for line in lines]
            others = [n for n, mean in enumerate(means) if n != own and mean is not None]
            if own is None or means[own] is None or not others or metric.partition("@")[0] not in OF_A_USER:
                continue
            rival = max(others, key=lambda n: means[n] or 0.0)
            runs = (grid.runs(block.rows[n], column) for n in (own, rival))
            pair = [by_user([outcomes[run].record for run in some], metric) for some in runs]
            if pair[0] is None or pair[1] is None or not pair[0].same_users(pair[1]):
                against = f"{block.ours} and {lines[rival].label}"
                notes.append(
                    f"Not tested: the places of the true items of {against} are not kept, or of other users or data."
                )
            else:
                ours, other = pair[0].values, pair[1].values
                found[b, own, place] = paired_p(ours, other), bool(ours.mean() > other.mean())
    adjusted = dict(zip(found, holm([p for p, _ in found.values()]), strict=True))
    for (b, n, place), p in adjusted.items():
        line = blocks[b][1][n]
        cell = replace(line.cells[place], p=p, significant=p < ALPHA and found[b, n, place][1])
        blocks[b][1][n] = replace(line, cells=(*line.cells[:place], cell, *line.cells[place + 1 :]))
    return blocks


# ---- the data


def datasets_table(grid: Grid, experiments: Experiments) -> Table:
    """Counts of the datasets as RecBole gives them, with ``[PAD]`` (the paper's Table 3)."""
    lines, notes = [], []
    for name in grid.plan.datasets:
        try:
            data = SequenceDataset(experiments.config(PlannedRun("SASRec", name, grid.given)))
            lines.append(counts_line(name, data.counts()))
        except UserError as error:
            lines.append(Line(name, (Cell(text="failed"),) * len(COUNTS)))
            notes.append(f"Failed: {name}: {error}")
    caption = f"{grid.plan.title}. Users and items as RecBole counts them, each with [PAD]."
    return Table(grid.plan.name, caption, (COUNTS,), (("", tuple(lines)),), tuple(notes))
