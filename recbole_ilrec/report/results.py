"""A table of run records in Markdown, and the block of a page that holds it.

``python -m recbole_ilrec.report.results docs/records.jsonl docs/tuning.md`` writes the table between the markers.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError
from recbole_ilrec.report.costs import gigabytes

BLOCK = "results"
METRICS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
HEAD = (
    "Dataset", "Model", "History", "Hit@5", "Hit@10", "NDCG@5", "NDCG@10", "Seed", "CPU minutes", "Memory",
    "Commit", "Command",
)  # fmt: skip


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def results_table(records: Iterable[Mapping[str, Any]]) -> str:
    """One row a run: test metrics of all users under the headline collision policy, cost, and what was typed.

    *History* says whether items of the history could be recommended.
    """
    rows = [[*_cells(record)] for record in records]
    lines = [f"| {' | '.join(row)} |" for row in [HEAD, ["---"] * len(HEAD), *rows]]
    return "\n".join(lines)


def _cells(record: Mapping[str, Any]) -> Iterable[str]:
    test = record["result"]["test_result"]
    yield record["dataset"]
    yield record["model"]
    yield "left out" if record["config"]["exclude_history"] else "kept"
    yield from (f"{test[name]:.4f}" for name in METRICS)
    yield str(record["seed"])
    yield f"{record['cpu_seconds'] / 60:.1f}"
    yield f"{gigabytes(record['peak_memory_mb']):.1f} GB"
    yield (record["commit"] or "-")[:7]
    yield f"`{_typed(record['command'])}`"


def _typed(command: str) -> str:
    """What a reader would type, without the folders of the machine it ran on."""
    script, *arguments = command.split(" ")
    private = ("--result_file=", "--checkpoint_dir=", "--cache_dir=", "--data_path=", "--show_progress=")
    program = ["python", Path(script).name] if script.endswith(".py") else [script]
    return " ".join([*program, *(a for a in arguments if not a.startswith(private))])


def between_marks(text: str, name: str, content: str) -> str:
    """``text`` with the part between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` replaced.

    Raises:
        UserError: a mark is missing.
    """
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"The page has no lines '{first}' and '{last}': write both where the table belongs.")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[2])
    table = results_table(read_records(Path(sys.argv[1])))
    page.write_text(between_marks(page.read_text(encoding="utf-8"), BLOCK, table), encoding="utf-8")
