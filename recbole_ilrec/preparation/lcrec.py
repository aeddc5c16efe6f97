"""LC-Rec's data folder: ``X.inter.json``, ``X.index.json`` and, where published, ``X.item.json`` and ``X.user.json``.

Public reference: the data layout of LC-Rec (Zheng et al., ICDE 2024), which LETTER and others ship as well.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.atomic import TEXT_FIELDS
from recbole_ilrec.preparation.source import Source, SourceData
from recbole_ilrec.preparation.user_texts import SUFFIX as USERS
from recbole_ilrec.preparation.user_texts import user_records

logger = logging.getLogger(__name__)

INTERACTIONS, INDEX, TEXTS = ".inter.json", ".index.json", ".item.json"


def find(folder: Path, name: str) -> dict[str, Path]:
    """The files of one dataset in ``folder``, found by suffix: ``X`` need not be ``name``, but there must be one ``X``.

    Raises:
        UserError: no folder, no ``.inter.json``, several of them and none called ``name``, or neither texts nor index.
    """
    if not folder.is_dir():
        raise UserError(f"--path={folder} is not a folder: give the folder that holds LC-Rec's X{INTERACTIONS}.")
    stems = sorted(path.name.removesuffix(INTERACTIONS) for path in folder.glob(f"*{INTERACTIONS}"))
    if not stems:
        raise UserError(f"No *{INTERACTIONS} in {folder}: the lcrec source needs X{INTERACTIONS} and X{INDEX} there.")
    if len(stems) > 1 and name not in stems:
        raise UserError(
            f"{folder} holds several datasets ({', '.join(stems)}) and none is called '{name}': leave one there, or "
            f"use one of these names."
        )
    stem = name if name in stems else stems[0]
    candidates = {"interactions": INTERACTIONS, "index": INDEX, "texts": TEXTS, "users": USERS}
    files = {role: folder / f"{stem}{suffix}" for role, suffix in candidates.items()}
    files = {role: path for role, path in files.items() if path.is_file()}
    if not files.keys() & {"index", "texts"}:
        raise UserError(
            f"Neither {stem}{TEXTS} nor {stem}{INDEX} is in {folder}: items need texts or semantic IDs. Put one beside "
            f"{stem}{INTERACTIONS}."
        )
    return files


def read(files: Mapping[str, Path], work: Path) -> SourceData:
    """Validated sequences, texts, index and users' texts; ``work`` is not used, the files fit in memory.

    Choice: sequences are taken as they are, repeats of an item included, since LC-Rec has filtered them already; the
    order of the published list is the order in time.

    Raises:
        UserError: a file is not JSON or has another shape, or the index misses items or has different depths.
    """
    sequences = _sequences(files["interactions"])
    items = list(dict.fromkeys(item for sequence in sequences.values() for item in sequence))
    index = _index(files["index"], items) if "index" in files else None
    texts = _texts(files["texts"]) if "texts" in files else None
    if texts is not None:
        missing = [item for item in items if item not in texts]
        if missing and index is None:
            raise UserError(f"{files['texts']} has no text for {_some(missing)}, and there is no index: add the items.")
        if missing:
            logger.warning("%s has no text for %s.", files["texts"].name, _some(missing))
    users = _users(files["users"], sequences) if "users" in files else None
    return SourceData(sequences.items(), tie_rule="order of the published list", texts=texts, index=index, users=users)


def _some(items: Sequence[str]) -> str:
    return f"{len(items):,} items ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"


def _mapping(path: Path, shape: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise UserError(f"{path}: key '{twice}' stands there twice. Keep one of them.")
        return content

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}). Convert it or copy it again.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}). Copy the file again.") from None
    except RecursionError:
        raise UserError(f"{path}: not the expected JSON (nested too deeply). It must be {shape}.") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} must be {shape}; its top level is {_kind(content)}.")
    return content


def _kind(value: object) -> str:
    if value == {} or value == []:
        return "empty"
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), repr(value))


def _sequences(path: Path) -> dict[str, list[str]]:
    shape = "an object {user: [items in time order]}"
    sequences: dict[str, list[str]] = {}
    for user, items in _mapping(path, shape).items():
        if not isinstance(items, list) or not items:
            raise UserError(f"{path}, user '{user}': {_kind(items)} in place of a list of items. It must be {shape}.")
        bad = [item for item in items if isinstance(item, bool) or not isinstance(item, int | str)]
        if bad:
            raise UserError(f"{path}, user '{user}': item {bad[0]!r} is no number or text. It must be {shape}.")
        sequences[user] = [str(item) for item in items]
    return sequences


def _index(path: Path, items: Iterable[str]) -> dict[str, list[str]]:
    shape = 'an object {item: ["<a_1>", "<b_7>", ...]}'
    index: dict[str, list[str]] = {}
    depth, first = 0, ""
    for item, tokens in _mapping(path, shape).items():
        if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t.strip() for t in tokens):
            raise UserError(f"{path}, item '{item}': {tokens!r} is not a list of tokens. It must be {shape}.")
        depth, first = depth or len(tokens), first or item
        if len(tokens) != depth:
            raise UserError(
                f"{path}: item '{first}' has {depth} tokens and item '{item}' has {len(tokens)}. All items need the "
                f"same number; mend the index or remove the file to have one learned."
            )
        index[item] = tokens
    missing = [item for item in items if item not in index]
    if missing:
        raise UserError(
            f"{path} has no tokens for {_some(missing)} of the interactions. Take the index that belongs to them, or "
            f"remove the file to have one learned."
        )
    return index


def _texts(path: Path) -> dict[str, dict[str, str]]:
    shape = "an object {item: {title, description, brand, categories}}"
    texts: dict[str, dict[str, str]] = {}
    for item, fields in _mapping(path, shape).items():
        if not isinstance(fields, dict):
            raise UserError(f"{path}, item '{item}': {_kind(fields)} in place of an object. It must be {shape}.")
        texts[item] = {name: _text(fields[name]) for name in TEXT_FIELDS if name in fields}
    if not any("title" in fields for fields in texts.values()):
        raise UserError(f"{path}: no item has a title. It must be {shape}.")
    return texts


def _users(path: Path, sequences: Mapping[str, object]) -> dict[str, object]:
    content = _mapping(path, "an object")
    if not user_records(path, content, need_intentions=False).keys() & sequences.keys():
        raise UserError(f"{path} names no user of the interactions: take the file that belongs to them, or remove it.")
    return content


def _text(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


LCREC = Source(find, read)
