"""Reader of ``.inter`` files that says which line is wrong, and the exact order of their rows.

RecBole's reader skips what it cannot place: a short row is filled up, ``NA`` becomes a missing id, a quote joins lines.
Here a field is the text between two separators, and a malformed row is an error with file and line.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_ilrec.checks.interactions import TimeOrder
from recbole_ilrec.errors import UserError

_EXACT_IN_FLOAT32 = 1 << 23
_TYPES = ("token", "token_seq", "float", "float_seq")
_EXAMPLE = "'user_id:token<TAB>item_id:token<TAB>timestamp:float'"


def read_interactions(
    path: Path,
    *,
    required: Mapping[str, str],
    wanted: Callable[[str], bool],
    separator: str = "\t",
    encoding: str = "utf-8-sig",
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Columns of an ``.inter`` file: tokens as text, floats as float64.

    Args:
        path: the file; a line ends at LF or CR LF, blank lines are skipped.
        required: fields that must be there -> their type.
        wanted: whether a field is to be loaded.
        separator: between two fields.
        encoding: of the file.

    Returns:
        The table, whose index is 0, 1, ... in file order, and the type of each of its columns.

    Raises:
        UserError: file:line of the first thing wrong, or a file without rows.
    """
    types, lines = _lines(path, required, separator, encoding)
    if not lines:
        raise UserError(f"{path} has a header and no interactions: add one row for each, user, item and time.")
    cells = [cell for line in lines for cell in line.split(separator)]
    kept = {field: kind for field, kind in types.items() if field in required or wanted(field)}
    columns = {field: cells[place :: len(types)] for place, field in enumerate(types) if field in kept}
    frame = pd.DataFrame({f: _column(path, f, c, kept[f], required) for f, c in columns.items()})
    return frame, kept


def _lines(path: Path, required: Mapping[str, str], separator: str, encoding: str) -> tuple[dict[str, str], list[str]]:
    """Types of the columns, and the rows that are not blank, each with as many columns as the header."""
    try:
        # newline="\n": other characters that Python counts as line ends belong to a field.
        with path.open(encoding=encoding, newline="\n") as stream:
            types = _header(path, stream.readline().rstrip("\r\n").split(separator), required)
            lines = [line.rstrip("\r") for line in stream.read().split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {encoding} ({error.reason}). Convert the file to UTF-8 or set 'encoding'."
        ) from None
    between = len(types) - 1
    for number, line in enumerate(lines, start=2):
        if line and line.count(separator) != between:
            raise UserError(
                f"{path}:{number}: {line.count(separator) + 1} columns, the header has {len(types)}. Mend or remove "
                "the row."
            )
    return types, [line for line in lines if line]


def _header(path: Path, columns: list[str], required: Mapping[str, str]) -> dict[str, str]:
    types: dict[str, str] = {}
    for column in columns:
        field, _, kind = column.rpartition(":")
        if not field or kind not in _TYPES or field in types:
            raise UserError(
                f"{path}:1: column '{column}' is not a distinct field:type with a type of {', '.join(_TYPES)}. "
                f"Write a tab-separated header such as {_EXAMPLE}."
            )
        types[field] = kind
    for field, kind in required.items():
        if types.get(field) != kind:
            raise UserError(
                f"{path}:1: the column '{field}:{kind}' is missing; there are {', '.join(columns)}. Write a header "
                f"such as {_EXAMPLE}, or name your columns by USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD."
            )
    return types


def _column(path: Path, field: str, column: list[str], kind: str, required: Mapping[str, str]) -> pd.Series:
    values = pd.Series(column, dtype=object)
    if kind != "float":
        for wrong, what in (("", "empty"), ("[PAD]", "[PAD], RecBole's name for none")):
            if field in required and wrong in column:
                line = _line(path, column.index(wrong))
                raise UserError(f"{path}:{line}: the {field} is {what}. Mend or remove the row.")
        return values
    numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    bad = ~np.isfinite(numbers.to_numpy())
    if field not in required:
        bad &= (values != "").to_numpy()  # an empty rating is a missing value, as in RecBole
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{path}:{_line(path, row)}: {field}='{column[row]}' is not a number. Mend or remove the row; "
            "dates are read by 'recbole-ilrec prepare NAME --source=clicks'."
        )
    return numbers


def _line(path: Path, row: int) -> int:
    """Line of the row-th interaction, counted from 0, in a file that may hold blank lines."""
    with path.open("rb") as stream:
        numbers = [number for number, line in enumerate(stream, start=1) if line.rstrip(b"\r\n")]
    return numbers[row + 1]


def refuse_one_moment(name: str, eval_args: Mapping[str, Any], order: TimeOrder) -> None:
    """A split at one moment for all users needs times that are the same clock for all of them.

    Args:
        name: of the dataset.
        eval_args: RecBole's setting.
        order: of the times as they stand in the file.

    Raises:
        UserError: there is no such clock.
    """
    split, group_by = eval_args["split"], eval_args["group_by"]
    across = {"TS"} | ({"RS"} if group_by in (None, "none", "None") else set())
    if not isinstance(split, dict) or not across & split.keys():
        return
    why = ""
    if order.positions:
        why = "the times are places 0, 1, 2, ... in each user's sequence, as prepare writes them"
    elif not orders_users(order.rows):
        why = f"{order.rows:,} interactions are ordered for each user alone"
    if why:
        raise UserError(
            f"{name}: eval_args.split={split} cuts all users at one moment, and {why}: use {{LS: valid_and_test}}, or "
            "RS with group_by: user."
        )


def orders_users(rows: int) -> bool:
    """Whether :func:`time_ranks` of so many rows also orders the users among each other."""
    return rows <= _EXACT_IN_FLOAT32


def time_ranks(users: np.ndarray, times: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """``[R]`` float64 places in the order of (time, user, line), which float32 holds exactly.

    Above 2^23 rows the places are counted for each user alone.

    Args:
        users: ``[R]`` a number for each user.
        times: ``[R]`` exact times.
        lines: ``[R]`` place of each row in the file.
    """
    order = np.lexsort((lines, users, times))
    ranks = np.arange(len(order))
    if not orders_users(len(order)):
        order = order[np.argsort(users[order], kind="stable")]
        ranks = ranks - np.searchsorted(users[order], users[order], side="left")
    exact = np.empty(len(order), dtype=np.float64)
    exact[order] = ranks
    return exact
