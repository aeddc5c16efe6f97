"""``recbole-ilrec report``: what runs left, as one HTML page."""

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.preparation.files import require_writable, write_atomically

if TYPE_CHECKING:
    from recbole_ilrec.report.figure import Picture
    from recbole_ilrec.report.runs import Run
    from recbole_ilrec.report.table import Table

HELP = """usage: recbole-ilrec report [RECORDS ...] [--checkpoint_dir=saved] [--out=report.html] [--title=TEXT]

Writes one HTML file that needs no network: results by dataset with their conditions, the tables and figures that were
asked for, every run with its certificate, curves and cost, facts of the data, versions and commands. Makes no run.

  RECORDS                    files of records (records.jsonl) in place of those below --checkpoint_dir
  --checkpoint_dir=saved     where runs and their records are
  --out=report.html          the file; one that is no such page is never overwritten
  --title=TEXT               heading of the page

docs/report.md says what stands where.
"""

_HEAD = 4096
"""Characters of a file that tell whether it is a page of ours."""

logger = logging.getLogger(__name__)


def report(arguments: Arguments) -> int:
    """The verb ``report``."""
    out = Path(str(arguments.take("out", "report.html")))
    title = str(arguments.take("title", "Results"))
    given = arguments.take("checkpoint_dir")
    root = Path("saved" if given is None else str(given))
    if arguments.options:
        raise unknown_name("option of report", next(iter(arguments.options)), ["checkpoint_dir", "out", "title"])
    _check_target(out)
    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    from recbole_ilrec import __version__
    from recbole_ilrec.report.page import Content, page
    from recbole_ilrec.verbs.experiments import record_files

    files = [Path(word) for word in arguments.words]
    below = given is not None or not files
    files += record_files(root) if below else []
    found = _records(files)
    runs, missing = read_runs(found)
    if not runs:
        where = f"in {', '.join(map(str, arguments.words))}" if arguments.words else f"below --checkpoint_dir={root}"
        untested = " with numbers of the test part" if found else ""
        raise UserError(
            f"There is no record of a run{untested} {where}: make one with recbole-ilrec run, or name its file."
        )
    asked, gone = _asked(root) if below else ([], [])
    missing += gone + (_unfinished(root, [record for record, _ in found]) if below else [])
    content = Content(
        title=title,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        asked=asked,
        missing=missing,
        sources=[str(root)] if below and not arguments.words else [*map(str, arguments.words)],
        version=__version__,
    )
    text = page(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(out) as stream:
        stream.write(text)
    sys.stdout.write(f"{out}: {len(runs)} runs\n")
    return 0


def _check_target(out: Path) -> None:
    """Refuse, before the work, a path that cannot be written or holds something else."""
    from recbole_ilrec.report.page import is_page

    if out.is_dir():
        raise UserError(f"out={out} is a folder: give the path of a file, e.g. --out={out / 'report.html'}.")
    if out.exists():
        with out.open(encoding="utf-8", errors="replace") as stream:
            if not is_page(stream.read(_HEAD)):
                raise UserError(f"out={out} exists and is no report: choose another path, or remove it yourself.")
    require_writable(out.parent, f"out={out}")


def _records(files: Sequence[Path]) -> list[tuple[dict[str, Any], Path]]:
    """Records with the file each is from, the oldest first, each line once.

    Raises:
        UserError: no such file, or one that holds no records.
    """
    from recbole_ilrec.verbs.experiments import records_of

    found: dict[str, tuple[dict[str, Any], Path]] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"There is no file {file}: give files of records, e.g. saved/records.jsonl.")
        for record in records_of(file):
            found.setdefault(json.dumps(record, sort_keys=True), (record, file))
    return sorted(found.values(), key=lambda pair: str(pair[0].get("finished", "")))


def read_runs(records: Sequence[tuple[dict[str, Any], Path]]) -> "tuple[list[Run], list[str]]":
    """Runs with numbers of the test part, and what could not be read or shown beside them."""
    from recbole_ilrec.configuration.outcome import HOW_RUN, OUTCOME_FREE
    from recbole_ilrec.report.runs import Run, deciding

    free = {*OUTCOME_FREE, *(f"train.{name}" for name in (*HOW_RUN["train"], "layer_losses"))}
    runs: list[Run] = []
    missing: list[str] = []
    tested = [(record, file) for record, file in records if record["result"].get("test_result")]
    for record, file in tested:
        folder = _folder(record, file)
        history, problem = _history(record, folder)
        exact, unread = _unrounded({**record, "folder": folder and str(folder)})
        missing += filter(None, (problem, unread))
        runs.append(Run(len(runs) + 1, record, deciding(record, free), history, exact))
    untested = len(records) - len(tested)
    if untested:
        missing.append(f"Runs without numbers of the test part (eval_test=false, as in a search): {untested}.")
    return runs, missing


def _folder(record: dict[str, Any], file: Path) -> Path | None:
    """The folder of a run, which lies beside its record, wherever both were moved; ``None`` where it is gone."""
    given = record.get("folder")
    places = [file.parent / Path(given).name, Path(given)] if given else []
    return next((place for place in places if place.is_dir()), None)


def _history(record: dict[str, Any], folder: Path | None) -> tuple[list[dict[str, Any]], str]:
    """Lines of a run's history, or why there are none."""
    from recbole_ilrec.runtime.history import read_history

    if folder is None:
        gone = f"The folder of {record['model']} on {record['dataset']}, {record.get('folder')}, is gone: no losses."
        return [], gone if record.get("folder") else ""
    try:
        return [line for line in read_history(folder) if isinstance(line, dict)], ""
    except (ValueError, KeyError) as error:
        return [], f"The history in {folder} cannot be read: {error}."


def _unrounded(record: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Test metrics from the places that a run kept, or why they are those of the record."""
    from recbole_ilrec.verbs.user_metrics import unrounded

    try:
        found = {metric: unrounded(metric, record) for metric in record["result"]["test_result"]}
    except UserError as error:
        return {}, f"Means over seeds take four digits of {record['model']}, seed {record['seed']}: {error}"
    return {metric: value for metric, value in found.items() if value is not None}, ""


def _asked(root: Path) -> "tuple[list[tuple[Table, Picture | None]], list[str]]":
    """Tables and figures that were asked for, from the runs there are; and what could not be shown of them."""
    from recbole_ilrec.report.results import read_records
    from recbole_ilrec.verbs.experiments import ASKED, PLANNED
    from recbole_ilrec.verbs.table import asked_before

    path = root / PLANNED / ASKED
    try:
        calls = {json.dumps(call, sort_keys=True): call for call in read_records(path)} if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: a line is no call of table or figure ({error}): remove that line.") from None
    shown, gone = [], []
    for call in calls.values():
        try:
            shown += asked_before(call, root)
        except UserError as error:
            gone.append(f"Not shown, {call['verb']} {' '.join(call['words'])}: {error}")
    drawn = [table for table, picture in shown if picture is not None]
    once: list[tuple[Table, Picture | None]] = []
    # A figure stands with its numbers: the same ones, asked for as a table too or in other words, are read once.
    for table, picture in shown:
        if table not in [*([] if picture else drawn), *(other for other, _ in once)]:
            once.append((table, picture))
    return once, gone


def _unfinished(root: Path, records: Sequence[dict[str, Any]]) -> list[str]:
    """Folders of runs without a record."""
    named = {Path(record["folder"]).name for record in records if record.get("folder")}
    marks = [*root.glob("*/run.json"), *root.glob("planned/*/*/run.json")]
    left = sorted(mark.parent.name for mark in marks if mark.parent.name not in named)
    return [f"{name} left no record: interrupted, failed, not saved, or still at work." for name in left]
