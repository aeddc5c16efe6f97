"""How a run went, as pictures: losses by part and by layer, validation metrics. Knows plain values only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_ilrec.report.figure import Panel, Picture, Series, layer_names
from recbole_ilrec.report.runs import Run, in_order, metric_label

LOSSES = {"train/loss": "total", "train/monitor/ce": "cross-entropy"}
"""What stands in the first panel, by name in the history."""
LAYERS = "Cross-entropy (nats per token)"
_PART, _VALID = "train/part/", "valid/"


def run_picture(run: Run) -> Picture | None:
    """The curves of a run over its epochs, a panel each for what has a scale of its own; ``None`` without any."""
    lines = run.history
    names = list(dict.fromkeys(name for line in lines for name in line))
    losses = [_over_epochs(lines, name, label) for name, label in LOSSES.items() if name in names]
    panels = [Panel("Training", "Loss", tuple(losses))] if losses else []
    valid = [name for name in names if name.startswith(_VALID)]
    metrics = dict.fromkeys(name.removeprefix(_VALID).partition("@")[0] for name in valid)
    for metric in metrics:
        own = [name for name in valid if name.removeprefix(_VALID).partition("@")[0] == metric]
        series = [_over_epochs(lines, name, metric_label(name.removeprefix(_VALID))) for name in in_order(own)]
        panels.append(Panel("Validation", metric_label(metric), tuple(series)))
    layers = run.record["result"].get("layer_losses")
    if layers:
        panels.append(Panel("Layers, validation", LAYERS, layer_series([layers])))
    parts = [name.removeprefix(_PART) for name in names if name.startswith(_PART)]
    for part in parts if len(parts) > 1 else ():  # a single part is the total
        panels.append(Panel(f"Training, part {part}", part, (_over_epochs(lines, f"{_PART}{part}", part),)))
    if not panels:
        return None
    return Picture(f"run-{run.number}", "curves", _caption(run, bool(valid)), "Epochs", tuple(panels))


def _caption(run: Run, validated: bool) -> str:
    """Seed, users and rule of the curves."""
    which = f"Run {run.name}, {run.record['dataset']}, seed {run.record['seed']}."
    said = f"{which} Losses are means since the point before; parts are not weighted."
    if not validated:
        return f"{said} Metrics of the validations were not kept."
    valid = run.certificate.get("valid")
    users = f" on {valid['rows_evaluated']:,} of {valid['rows_in_split']:,} validation rows" if valid else ""
    policy = run.certificate.get("collisions")
    rule = f", ties: {policy}" if policy else ""
    return f"{said} Validation{users}{rule}."


def _over_epochs(lines: Sequence[Mapping[str, Any]], name: str, label: str) -> Series:
    """One number over the epochs done; a step that was made twice counts as it was made last."""
    points = {float(line["epoch"]): float(line[name]) for line in lines if name in line and "epoch" in line}
    epochs = sorted(points)
    return Series(label, tuple(epochs), tuple(points[epoch] for epoch in epochs), (0.0,) * len(epochs))


def layer_series(logs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Series, ...]:
    """A curve a layer: mean over seeds, and standard deviation.

    Args:
        logs: of each seed the validations with ``epoch`` and ``losses``; an early stop cuts all to the shortest.
    """
    length = min(map(len, logs))
    losses = np.array([[entry["losses"] for entry in log[:length]] for log in logs])  # [seeds, evaluations, layers]
    epochs = [float(entry["epoch"]) for entry in logs[0][:length]]
    spread = losses.std(0, ddof=1) if len(logs) > 1 else np.zeros(losses.shape[1:])
    return tuple(
        Series(name, tuple(epochs), tuple(losses.mean(0)[:, n].tolist()), tuple(spread[:, n].tolist()))
        for n, name in enumerate(layer_names(losses.shape[2]))
    )
