"""Clicks of one's own: a table of users, items and times, and texts of the items where there are any.

CSV, TSV or JSON lines, gzipped or not, or Parquet, whose columns or keys are found by name: ``user_id`` or ``user``,
``item_id`` or ``item``, ``timestamp`` or ``time``. Other columns of the clicks are not read: every row is a positive.
"""

import csv
import gzip
import logging
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.atomic import check_token
from recbole_ilrec.preparation.json_lines import read_json_lines
from recbole_ilrec.preparation.source import Source, SourceData

logger = logging.getLogger(__name__)

USER, ITEM, TIME = ("user_id", "user"), ("item_id", "item"), ("timestamp", "time")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")
TIE_RULE = "time, then line of the file; copies of a row (same user, item and time) dropped"
_SEPARATORS = ",;\t"
_TOLD = 6
"""Rows that are looked for after one cannot be read, itself included."""
_SPLIT = 3
"""Fewest interactions of a user with a validation and a test item."""

Row = tuple[str, Mapping[str, object]]
"""``file:line`` and the values of a row by the name of their column."""


def find(folder: Path, name: str) -> dict[str, Path]:
    """The clicks, ``NAME`` or ``clicks`` with one of :data:`SUFFIXES`, and item texts, ``NAME.items`` or ``items``.

    Raises:
        UserError: no folder, no clicks in it, or several files that could be meant.
    """
    if not folder.is_dir():
        raise UserError(f"--path={folder} is not a folder: give the folder that holds {name}.csv or clicks.csv.")
    clicks, texts = (_one(folder, stems) for stems in ((name, "clicks"), (f"{name}.items", "items")))
    if clicks is None:
        held = sorted(path.name for path in folder.iterdir())
        holds = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "") if held else "nothing"
        raise UserError(
            f"Neither {name}.csv nor clicks.csv is in {folder}, which holds {holds}: put the table of users, items and "
            f"times there, as {', '.join(SUFFIXES)}; and texts of the items, if there are any, as items.csv."
        )
    return {"interactions": clicks} | ({} if texts is None else {"texts": texts})


def _one(folder: Path, stems: Iterable[str]) -> Path | None:
    for stem in stems:
        found = [path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
        if len(found) > 1:
            raise UserError(f"{folder} holds {', '.join(path.name for path in found)}: leave the one that is meant.")
        if found:
            return found[0]
    return None


def read(files: Mapping[str, Path], work: Path) -> SourceData:
    """Sequences in time order and the texts of their items; ``work`` is not used.

    Choice: a row that stands twice (same user, item and time) counts once, an item that a user comes back to at another
    time stays, and so does every user, however short the sequence. Equal times are taken in the order of the lines. A
    date without a zone is read as UTC.

    Memory holds three numbers a row and every id once.

    Raises:
        UserError: file:line of the first thing wrong, and where the next ones are.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, time = array("q"), array("q"), array("d")
    dates: bool | None = None
    wrong: dict[str, UserError] = {}
    for where, row in _rows(files["interactions"]):
        try:
            of_user = _number(users, where, "user", _value(where, row, USER))
            of_item = _number(items, where, "item", _value(where, row, ITEM))
            seconds, date = _seconds(where, _value(where, row, TIME))
            if date != (dates if dates is not None else date):
                before = "dates" if dates else "numbers"
                raise UserError(f"{where}: the times before are {before}: write all in one way.")
        except UserError as error:
            wrong[where] = error
            if len(wrong) == _TOLD:
                break
            continue
        dates = date
        user.append(of_user)
        item.append(of_item)
        time.append(seconds)
    if wrong:
        raise _unreadable(wrong)
    if not user:
        raise UserError(f"{files['interactions']} has no row: add one for each click, user, item and time.")
    if not dates:
        _check_unit(files["interactions"], np.asarray(time))
    texts = _texts(files["texts"], items) if "texts" in files else None
    sequences = _sequences(np.asarray(user), np.asarray(item), np.asarray(time), list(users), list(items))
    return SourceData(sequences, tie_rule=TIE_RULE, texts=texts)


def _unreadable(wrong: Mapping[str, UserError]) -> UserError:
    """The complaint about the first row, and where the next ones are that cannot be read either."""
    first, *others = wrong
    if not others:
        return wrong[first]
    unit = "row" if ", row " in first else "line"
    numbers = ", ".join(re.split("[: ]", where)[-1] for where in others)
    more = ", and maybe later ones" if len(wrong) == _TOLD else ""
    return UserError(f"{wrong[first]} Also wrong: {unit}{'s' * (len(others) > 1)} {numbers}{more}.")


def _check_unit(file: Path, time: np.ndarray) -> None:
    """Times of our days are 1e9 seconds, 1e12 milliseconds, 1e15 or 1e18: two of them together are in two units."""
    unit = np.digitize(time, [1e8, 1e11, 1e14, 1e17])
    seen = np.unique(unit[unit > 0])
    if len(seen) > 1:
        few, many = (f"{time[unit == each][0]:.0f}" for each in seen[[0, -1]])
        raise UserError(f"{file}: times are in different units, e.g. {few} and {many}: write all in seconds.")


def _sequences(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, users: list[str], items: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Each user's items in time order, without copies of a row; arrays are ``[R]`` in the order of the lines."""
    line = np.arange(len(user))
    order = np.lexsort((line, item, time, user))
    same = [column[order][1:] == column[order][:-1] for column in (user, time, item)]
    kept = np.ones(len(user), dtype=bool)
    kept[order[1:][np.logical_and.reduce(same)]] = False
    order = np.lexsort((line, time, user))
    order = order[kept[order]]
    lengths = np.bincount(user[order], minlength=len(users))
    logger.info(f"{(~kept).sum():,} of {len(user):,} rows are copies and dropped.")
    short = int((lengths < _SPLIT).sum())
    if short:
        logger.info(f"{short:,} of {len(users):,} users have fewer than {_SPLIT} clicks: none of them is tested.")
    for name, part in zip(users, np.split(item[order], np.cumsum(lengths)[:-1]), strict=True):
        yield name, [items[number] for number in part]


def _texts(path: Path, items: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Texts of the items that occur, an item without any left out."""
    texts: dict[str, dict[str, str]] = {}
    for where, row in _rows(path):
        token = _token(where, "item", _value(where, row, ITEM))
        if token in texts:
            raise UserError(f"{where}: item '{token}' stands there twice. Keep one row an item.")
        texts[token] = {name: _text(value) for name, value in row.items() if name not in ITEM}
    named = {item: texts[item] for item in items if any(texts.get(item, {}).values())}
    if not named:
        ids = f" (first '{next(iter(texts))}' there, '{next(iter(items))}' in the clicks)" if texts else ""
        raise UserError(
            f"{path} has no text for any item of the clicks: check that the item ids of both are the same{ids}."
        )
    missing = [item for item in items if item not in named]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        logger.warning(f"{len(missing):,} of {len(items):,} items have no text: {some}.")
    return named


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value).strip()


# ---- values


def _value(where: str, row: Mapping[str, object], names: tuple[str, ...]) -> object:
    for name in names:
        if name in row:
            return row[name]
    raise UserError(
        f"{where}: there is no column {' or '.join(names)}, only {', '.join(map(str, row))}: rename the column that "
        f"holds it to {names[0]}."
    )


def _number(numbers: dict[str, int], where: str, kind: str, value: object) -> int:
    """The number of an id, a new one when it was not seen before."""
    if isinstance(value, str) and (known := numbers.get(value)) is not None:
        return known
    return numbers.setdefault(_token(where, kind, value), len(numbers))


def _token(where: str, kind: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: the {kind} id {value!r} is no text and no whole number. Mend or remove the row.")
    token = str(value).strip()
    try:
        check_token(kind, token)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return token


def _seconds(where: str, value: object) -> tuple[float, bool]:
    """A time as a number, and whether it was written as a date."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number, False
    try:
        date = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise UserError(
            f"{where}: the time {value!r} is no number and no date of ISO 8601 such as 2024-05-31T12:00:00Z. Mend or "
            "remove the row."
        ) from None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp(), True


# ---- files


def _rows(path: Path) -> Iterator[Row]:
    if path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
        yield from _table(path)
        return
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    for number, record in read_json_lines(path):
        yield f"{path}:{number}", record


def _table(path: Path) -> Iterator[Row]:
    """Rows of a table with a header; what separates columns is what occurs most in it. Blank lines are skipped."""
    from tqdm import tqdm

    reader = None
    try:
        with _opened(path) as stream:
            header = stream.readline()
            separator = max(_SEPARATORS, key=header.count)
            # A type as in RecBole's own files, 'user_id:token', is no part of the name.
            names = [name.partition(":")[0].strip() for name in next(csv.reader([header], delimiter=separator), [])]
            if len(set(names)) < len(names):
                raise UserError(f"{path}:1: a column stands there twice ({', '.join(names)}): give each its own name.")
            if len(names) == 1:
                raise UserError(
                    f"{path}:1: one column, '{header.strip()}': separate the columns by commas, semicolons or tabs."
                )
            reader = csv.reader(stream, delimiter=separator, strict=True)
            for values in tqdm(reader, desc=f"reading {path.name}", unit="row", disable=None):
                where = f"{path}:{reader.line_num + 1}"
                if len(values) == len(names):
                    yield where, dict(zip(names, values, strict=True))
                elif values:
                    raise UserError(
                        f"{where}: {len(values)} columns, the header has {len(names)}. Mend or remove the row."
                    )
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}). Convert the file.") from None
    except csv.Error as error:
        line = reader.line_num + 1 if reader else 1
        raise UserError(f"{path}:{line}: no row of a table ({error}). Mend the row.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut short ({error}). Write it anew.") from None


def _parquet(path: Path) -> Iterator[Row]:
    import polars as pl
    from polars.exceptions import PolarsError

    try:
        table = pl.read_parquet(path)
    except PolarsError as error:
        raise UserError(f"{path} is no Parquet file that can be read ({str(error).splitlines()[0]}).") from None
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield f"{path}, row {number}", row


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


CLICKS = Source(find, read)
