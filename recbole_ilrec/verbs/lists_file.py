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

from recbole_ilrec.preparation.files import held

if TYPE_CHECKING:
    from recbole_ilrec.runs.recommendation import Recommended

    Lists = Sequence[Sequence[Recommended]]

PART = 4096
"""Users of a part."""


def write_lists(path: Path, names: Sequence[str], what: Mapping[str, Any], make: Callable[[slice], "Lists"]) -> int:
    """One row for each place of each user's list; the file is there whole or not at all.

    Args:
        path: the file, ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        names: of the users.
        what: all that the lists depend on, as JSON can say it.
        make: the lists of some of the users.

    Returns:
        the number of places.

    Raises:
        UserError: another process makes the same file.
    """
    key = hashlib.sha256(json.dumps([what, list(names)], sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = _parts(path, key)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder):
            count = _join(path, _made(folder, names, make), folder)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # only when no part is in it
        raise
    for left in path.parent.glob(_parts(path, "*").name):
        shutil.rmtree(left, ignore_errors=True)
    return count


def _made(folder: Path, names: Sequence[str], make: Callable[[slice], "Lists"]) -> list[Path]:
    """All parts, those that are there already among them."""
    files = []
    with tqdm(total=len(names), desc="Recommend", ncols=100, unit="user") as bar:
        for low in range(0, len(names), PART):
            some = slice(low, min(low + PART, len(names)))
            files.append(folder / f"{low:010d}.parquet")
            if not files[-1].is_file():
                _write_part(files[-1], names[some], make(some))
            bar.update(some.stop - low)
    return files


def _join(path: Path, parts: list[Path], folder: Path) -> int:
    """Write the file from its parts, never all of them in memory; returns the number of rows."""
    import polars

    frame, whole = polars.scan_parquet(parts), folder / f"whole{path.suffix}"
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


def _parts(path: Path, key: str) -> Path:
    return path.with_name(f".{path.name}.parts-{key}")


def _write_part(file: Path, names: Sequence[str], lists: "Lists") -> None:
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
