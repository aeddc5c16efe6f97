"""The measurements as lines of JSON and as the table ``RESULTS.md``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_ilrec.preparation.files import write_atomically

Line = Mapping[str, Any]


def replace_group(folder: Path, lines: Sequence[Line], order: Sequence[str]) -> None:
    """Put the lines of one group in the place of its older ones, in both files.

    Args:
        folder: of ``results.jsonl`` and ``RESULTS.md``.
        lines: one group's, all with the same ``name``.
        order: names of the groups; lines of others fall away.
    """
    path = folder / "results.jsonl"
    known = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
    kept = [line for line in known if line["name"] != lines[0]["name"] and line["name"] in order]
    together = sorted([*kept, *lines], key=lambda line: order.index(line["name"]))
    with write_atomically(path) as stream:
        stream.writelines(json.dumps(line) + "\n" for line in together)
    with write_atomically(folder / "RESULTS.md") as stream:
        stream.write(table(together))


def table(lines: Sequence[Line]) -> str:
    """The results as Markdown: how and when each was found stands below, by the number in its last column."""
    runs: dict[str, list[str]] = {}
    text = ["# Benchmarks", "", "| what | of | result | run |", "|---|---|---|---|"]
    for line in lines:
        finished = runs.setdefault(_run(line), [])
        finished.append(line["finished"])
        what, numbers = (", ".join(f"{k} {_short(v)}" for k, v in line[key].items()) for key in ("of", "numbers"))
        text.append(f"| {line['name']} | {what} | {numbers} | {list(runs).index(_run(line)) + 1} |")
    text += ["", "Runs:", ""]
    text += [f"{n}. {run}; finished {max(finished)}" for n, (run, finished) in enumerate(runs.items(), 1)]
    return "\n".join(text) + "\n"


def _run(line: Line) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    about = f"{line['processor']}, {line['device']}; Python {line['python']}, {versions}"
    return f"`{line['command']}` at commit {line['commit']}; {about}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
