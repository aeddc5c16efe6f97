"""Large, possibly gzipped files of one JSON object a line, read as a stream."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from recbole_ilrec.errors import UserError

REPORT_EVERY = 2000  # lines between two updates of the progress bar


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number from 1, object) for each line that is not blank; progress counts the bytes of the file on disk.

    Raises:
        UserError: a line is not a JSON object, or the compressed file is damaged or cut short.
    """
    from tqdm import tqdm

    number = 0
    with (
        path.open("rb") as raw,
        tqdm(total=path.stat().st_size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None) as bar,
    ):
        lines = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        try:
            for number, line in enumerate(lines, start=1):
                if number % REPORT_EVERY == 0:
                    bar.update(raw.tell() - bar.n)
                if line.strip():
                    yield number, _parse(path, number, line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path}, after line {number}: damaged or cut short ({error}). Delete it and download it again."
            ) from None
        bar.update(raw.tell() - bar.n)


def _parse(path: Path, number: int, line: bytes) -> dict[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, line {number}: not a JSON object. The file must hold one object a line: mend the line, "
            f"or delete a published file and download it again."
        )
    return record
