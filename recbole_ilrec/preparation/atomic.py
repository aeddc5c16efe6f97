"""RecBole's atomic files as this package writes and reads them: tab separated, ``field:type`` header, UTF-8.

The item texts have a reader of their own because a general CSV reader loses some of them: a title that starts with a
quote breaks it, ``NA`` becomes a missing value, ``token_seq`` splits on blanks. Here a field is the raw text between
two tabs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import write_atomically

TEXT_FIELDS = {"title": "token_seq", "description": "token_seq", "brand": "token", "categories": "token_seq"}
"""Text fields of an item in column order, with RecBole's type."""

INTERACTION_HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
FIELD_TYPES = ("token", "token_seq", "float", "float_seq")

# What RecBole's CSV reader takes for a missing value; such a token would silently become [PAD].
_MISSING = frozenset(
    ("#N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN")
    + ("None", "n/a", "nan", "null", "[PAD]")
)
_SEPARATORS = re.compile(r"[\t\r\n]+")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_NO_TOKEN = re.compile(r"^ | $|[^\S ]|[\0\"\ud800-\udfff]")


def write_interactions(path: Path, sequences: Iterable[tuple[str, Sequence[str]]]) -> dict[str, int]:
    """Write ``.inter``: rows grouped by user, in sequence order, the rank (0, 1, ...) in place of the time.

    Choice: RecBole turns timestamps into float32, where seconds less than about 128 apart collapse. Ranks below 2^24
    are exact, so ``order: TO`` gives back the sequence as written.

    Args:
        path: file to write, atomically.
        sequences: (user token, its item tokens in time order); every user once.

    Returns:
        Counts: ``users``, ``items`` (distinct), ``interactions``.

    Raises:
        UserError: a token that RecBole's reader would change (empty, with a tab, line break or quote, or read as
            missing).
    """
    users = interactions = 0
    items: set[str] = set()
    with write_atomically(path) as stream:
        stream.write(INTERACTION_HEADER)
        for user, sequence in sequences:
            check_token("user", user)
            for item in sequence:
                if item not in items:
                    check_token("item", item)
                    items.add(item)
            stream.writelines(f"{user}\t{item}\t{rank}\n" for rank, item in enumerate(sequence))
            users += 1
            interactions += len(sequence)
    return {"users": users, "items": len(items), "interactions": interactions}


def check_token(kind: str, token: str) -> None:
    """Refuse an id that does not survive RecBole's reader unchanged (UserError)."""
    if not token or token in _MISSING or _NO_TOKEN.search(token):
        raise UserError(
            f"The {kind} id {token!r} cannot be a RecBole token: it is empty, holds a quote, a NUL or white space "
            f"other than blanks inside, or reads as a missing value ([PAD] too). Rename it in the source."
        )


def write_items(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Write ``.item``: one row an item, in the order of ``rows``; :func:`read_items` gives the same texts back.

    Columns are the fields that occur, those of :data:`TEXT_FIELDS` first; an item without a field gets ``""``.
    Two things do not survive: a run of tabs and line breaks becomes one blank, and half of a surrogate pair (which
    UTF-8 cannot hold) becomes U+FFFD.

    Raises:
        UserError: an item id or a field name that cannot stand in the file.
    """
    occurring = dict.fromkeys(field for texts in rows.values() for field in texts)
    fields = [f for f in TEXT_FIELDS if f in occurring] + [f for f in occurring if f not in TEXT_FIELDS]
    for field in fields:
        if not re.fullmatch(r"\w+", field) or field == "item_id":
            raise UserError(f"'{field}' cannot name a text field of {path.name}: use letters, digits and underscores.")
    with write_atomically(path) as stream:
        stream.write("\t".join(["item_id:token", *(f"{f}:{TEXT_FIELDS.get(f, 'token_seq')}" for f in fields)]) + "\n")
        for item, texts in rows.items():
            check_token("item", item)
            stream.write("\t".join([item, *(_one_line(texts.get(field, "")) for field in fields)]) + "\n")


def _one_line(text: str) -> str:
    return _SURROGATES.sub("\ufffd", _SEPARATORS.sub(" ", text))


def read_items(path: Path, *, item_field: str = "item_id") -> dict[str, dict[str, str]]:
    """Item texts of an ``.item`` file, ours or RecBole's own (such as ``ml-100k.item``), unchanged.

    Args:
        path: the file. A line ends at LF or CR LF, a field at a tab; nothing else is special.
        item_field: name of the column that holds the item token.

    Returns:
        Item token -> field -> raw text, in file order; the types of the header are dropped.

    Raises:
        UserError: the file is missing or not UTF-8, the header is not ``field:type``, a row has another number of
            columns, an item token is empty or stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: item texts are read from a tab-separated file of that name.")
    rows: dict[str, dict[str, str]] = {}
    number = 0
    try:
        # newline="\n": other characters that Python counts as line ends (form feed, U+2028) belong to the text.
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            fields = _header_fields(path, stream.readline(), item_field)
            key = fields.index(item_field)
            for number, line in enumerate(stream, start=2):
                values = line.removesuffix("\n").removesuffix("\r").split("\t")
                _check_row(path, number, values, len(fields), key, rows)
                rows[values[key]] = {f: v for f, v in zip(fields, values, strict=True) if f != item_field}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after line {number}: not UTF-8 ({error.reason}). Convert the file.") from None
    return rows


def _header_fields(path: Path, header: str, item_field: str) -> list[str]:
    columns = [column.rpartition(":") for column in header.rstrip("\r\n").split("\t")]
    fields = [field for field, _, _ in columns]
    bad = next((":".join((f, t)).strip(":") for f, _, t in columns if not f or t not in FIELD_TYPES), None)
    if bad is not None or item_field not in fields or len(set(fields)) != len(fields):
        problem = f"column '{bad}' is not field:type" if bad is not None else f"no single column '{item_field}:token'"
        raise UserError(
            f"{path}, line 1: {problem}. The header must name tab-separated, distinct columns with a type of "
            f"{', '.join(FIELD_TYPES)}, e.g. 'item_id:token<TAB>title:token_seq'."
        )
    return fields


def _check_row(path: Path, number: int, values: list[str], width: int, key: int, rows: Mapping[str, object]) -> None:
    if len(values) != width:
        raise UserError(f"{path}, line {number}: {len(values)} columns, the header has {width}. Mend the row.")
    if not values[key]:
        raise UserError(f"{path}, line {number}: the item token is empty. Give the item an id or remove the row.")
    if values[key] in rows:
        raise UserError(f"{path}, line {number}: item '{values[key]}' stands there twice. Keep one row an item.")
