"""A file of recommended lists, made part by part: what a stopped process had made is not made again.

Parts lie beside the file in a hidden folder, named by all that their lists depend on, and go when the file is there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import held

if TYPE_CHECKING:
    from recbole_ilrec.runs.recommendation import Recommended

Make = Callable[[slice, Callable[[int], Any]], "Sequence[Sequence[Recommended]]"]
"""``(which users, what to tell how many are done) -> their lists``."""
PART = 1024
"""Users of a part: what a killed call loses at most."""


def write_lists(path: Path, names: Sequence[str], what: Mapping[str, Any], make: Make) -> int:
    """One row for each place of each user's list; the file is there whole or not at all.

    Args:
        path: the file, ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        names: of the users.
        what: all that the lists depend on, as JSON can say it.
        make: the lists of some of the users.

    Returns:
        the number of places.

    Raises:
        UserError: another process makes the same file, or the disk is full.
    """
    from polars.exceptions import PolarsError

    key = hashlib.sha256(json.dumps([PART, what, list(names)], sort_keys=True, default=str).encode()).hexdigest()[:16]
    # One folder for all that was ever begun for this file: who holds it is alone, and takes all of it away in the end.
    parts = path.with_name(f".{path.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    with held(parts):
        try:
            count = _join(path, _made(parts / key, names, make), parts)
        except BaseException as error:
            for torn in (*parts.glob("whole.*"), *(parts / key).glob("*.tmp")):
                torn.unlink(missing_ok=True)
            with suppress(OSError):
                (parts / key).rmdir()  # only when no part is in it
                parts.rmdir()
            if isinstance(error, PolarsError):  # so polars reports a full disk; nothing else here calls it
                why = str(error).splitlines()[0]
                raise UserError(
                    f"out={path} cannot be written ({why}): make room or choose another path; what is done of it is "
                    f"kept in {parts} for the next call."
                    if parts.is_dir()
                    else f"out={path} cannot be written ({why}): make room or choose another path."
                ) from None
            raise
        shutil.rmtree(parts, ignore_errors=True)
    return count


def _made(folder: Path, names: Sequence[str], make: Make) -> list[Path]:
    """All parts, those that are there already among them."""
    folder.mkdir(exist_ok=True)
    files = []
    with tqdm(total=len(names), desc="Recommend", ncols=100, unit="user") as bar:
        for low in range(0, len(names), PART):
            some = slice(low, min(low + PART, len(names)))
            files.append(folder / f"{low:010d}.parquet")
            if files[-1].is_file():
                bar.update(some.stop - low)
            else:
                _write_part(files[-1], names[some], make(some, bar.update))
    return files


def _join(path: Path, parts: list[Path], folder: Path) -> int:
    """Write the file from its parts, never all of them in memory; returns the number of rows."""
    import polars

    frame, whole = polars.scan_parquet(parts, glob=False), folder / f"whole{path.suffix}"
    match path.suffix:
        case ".parquet":
            frame.sink_parquet(whole)
        case ".jsonl":
            frame.sink_ndjson(whole)
        case suffix:
            frame.sink_csv(whole, separator="\t" if suffix == ".tsv" else ",")
    count = frame.select(polars.len()).collect().item()
    os.replace(whole, path)
    return int(count)


def _write_part(file: Path, names: Sequence[str], lists: "Sequence[Sequence[Recommended]]") -> None:
    import polars

    rows = [
        (name, rank, *place) for name, places in zip(names, lists, strict=True) for rank, place in enumerate(places, 1)
    ]
    columns = {
        "user": polars.String, "rank": polars.Int64, "item": polars.String, "title": polars.String,
        "score": polars.Float64,
    }  # fmt: skip
    temporary = file.with_suffix(".tmp")
    polars.DataFrame(rows, schema=columns, orient="row").write_parquet(temporary)
    os.replace(temporary, file)
