"""Tables of what run records say beside their results: costs, stages, every rule for ties, counts of the data.

Knows plain values only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_ilrec.report.costs import SECONDS, epochs_of, gigabytes, seconds_before
from recbole_ilrec.report.runs import Run, in_order, metric_label
from recbole_ilrec.report.table import Cell, Line, Table

COUNTS = ("users", "items", "interactions", "sparsity")


def costs_table(runs: Sequence[Run]) -> Table:
    """What each run cost as a whole, work done for it by earlier processes included."""
    lines = []
    for run in runs:
        record, stages = run.record, run.record.get("stages", {})
        wall = record["wall_seconds"] + seconds_before(stages)
        before = sum(entry.get("earlier", {}).get("cpu_seconds", 0.0) for entry in stages.values())
        gpu, trained = record.get("peak_gpu_memory_mb"), record.get("parameters")
        numbers: list[tuple[float | None, int]] = [
            (wall / 60, 1),
            ((record["cpu_seconds"] + before) / 60, 1),
            (sum(epochs_of(stages)) if stages else None, 1),
            (gigabytes(record["peak_memory_mb"]), 2),
            (gpu and gigabytes(gpu), 2),
            (trained and trained / 1e6, 3),
        ]
        cells = [Cell(text="-") if n is None else Cell((n,), n, digits=digits) for n, digits in numbers]
        lines.append(Line(run.name, (*cells, Cell(text=str(record.get("threads", "-"))))))
    head = ("Wall (min)", "CPU (min)", "Epochs", "Memory (GB)", "GPU memory (GB)", "Parameters (M)", "Threads")
    caption = (
        "Cost of each run: wall-clock and CPU time with stages that earlier processes did for it, greatest resident "
        "memory of its process, parameters trained. Epochs are those of the model itself."
    )
    return Table("costs", caption, (head,), (("", tuple(lines)),))


def stages_table(record: Mapping[str, Any]) -> Table | None:
    """Seconds of each stage of a run; ``None`` where the record has none."""
    lines = []
    for path, entry in record.get("stages", {}).items():
        sources = (entry, entry.get("earlier", {}))
        times = [source.get(key) for source in sources for key in SECONDS]
        cells = [Cell(text="-") if t is None else Cell((t,), t, digits=1) for t in times]
        counts = {k: v for k, v in entry.items() if k not in (*SECONDS, "earlier")}
        text = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in counts.items())
        lines.append(Line(path.replace("/", " / "), (*cells, Cell(text=text or "-"))))
    if not lines:
        return None
    head = (("This process", "This process", "Earlier", "Earlier", ""), ("wall (s)", "CPU (s)") * 2 + ("counted",))
    caption = "Stages; one inside another is part of it. Earlier: before an interruption, or shared by several runs."
    return Table("stages", caption, head, (("", tuple(lines)),))


def policies_table(run: Run) -> Table | None:
    """Metrics of both splits under every rule for ties; ``None`` without a certificate."""
    splits = {split: run.certificate.get(split) for split in ("valid", "test")}
    blocks, metrics = [], list[str]()
    for split, part in splits.items():
        if part:
            metrics = in_order([*metrics, *next(iter(part["policies"].values()))])
            rows = f"{part['rows_evaluated']:,} of {part['rows_in_split']:,} rows, {part['users_evaluated']:,} users"
            limit = f", limited by {part['limited_by']}" if part["limited_by"] else ""
            found = f"{part['found']:.1%} of true items in the list, {part['tied']:.1%} tied"
            lines = [
                Line(policy, tuple(Cell((n[m],), n[m]) if m in n else Cell(text="n/a") for m in metrics))
                for policy, n in part["policies"].items()
            ]
            blocks.append((f"{'Validation' if split == 'valid' else 'Test'}: {rows}{limit}; {found}", tuple(lines)))
    if not blocks:
        return None
    caption = "Certificate: metrics by the rule for items that share an identifier or a score."
    return Table("certificate", caption, (tuple(map(metric_label, metrics)),), tuple(blocks))


def counts_table(runs: Sequence[Run]) -> Table | None:
    """Counts of the datasets as the paper's Table 3 gives them; ``None`` where no record has them."""
    found = {run.record["dataset"]: run.record["data"] for run in runs if run.record.get("data")}
    if not found:
        return None
    lines = [counts_line(name, data) for name, data in sorted(found.items())]
    return Table("data", "Users and items as RecBole counts them, each with [PAD].", (COUNTS,), (("", tuple(lines)),))


def counts_line(dataset: str, counts: Mapping[str, float]) -> Line:
    """A line of :data:`COUNTS`."""
    texts = (f"{counts[key]:.2%}" if key == "sparsity" else f"{counts[key]:,}" for key in COUNTS)
    return Line(dataset, tuple(Cell(text=text) for text in texts))
