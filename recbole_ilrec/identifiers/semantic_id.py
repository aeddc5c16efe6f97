"""Semantic IDs of LC-Rec: their tokens, their file, and how well they tell items apart.

The file is LC-Rec's ``*.index.json``: ``{item: ["<a_12>", "<b_7>", ...]}``, one token per level. Items that could not
be told apart carry one token more than the others (see :mod:`recbole_ilrec.identifiers.uniqueness`). Knows files and
token strings; nothing of vectors, prompts or token ids.
"""

import json
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from recbole_ilrec.errors import UserError

Identifier = tuple[str, ...]

SHOWN = 3
"""Examples named in an error message."""


def token_name(level: int, code: int) -> str:
    """Token of a code: ``token_name(0, 12) == "<a_12>"``. Levels count from 0: a, b, ..., z, aa, ab, ..."""
    letters = ""
    level += 1
    while level:
        level, letter = divmod(level - 1, len(ascii_lowercase))
        letters = ascii_lowercase[letter] + letters
    return f"<{letters}_{code}>"


def read_index(path: str | os.PathLike[str], item_tokens: Sequence[str]) -> list[Identifier]:
    """Identifiers of the given items from an index file; the file may hold other items too.

    Args:
        path: LC-Rec's ``*.index.json``.
        item_tokens: the dataset's external item ids, without padding.

    Returns:
        One tuple of tokens per item, in the order of ``item_tokens``. Tuples may repeat: files in circulation have
        collisions (see :func:`collision_report`).

    Raises:
        UserError: when the file is missing or no JSON object, lacks items, holds an entry that is no list of
            non-empty strings, or mixes depths in another way than :func:`write_index` does.
    """
    path = Path(path)
    index = _load(path)
    missing = [item for item in item_tokens if item not in index]
    if missing:
        raise UserError(
            f"{path}: no entry for {len(missing)} of {len(item_tokens)} items of the dataset ({_some(missing)}). Every"
            " item needs one; the keys are the dataset's item ids. Give the index of this dataset, or none to learn it."
        )
    identifiers = [_identifier(path, item, index[item]) for item in item_tokens]
    _check_depths(path, item_tokens, identifiers)
    return identifiers


def write_index(path: str | os.PathLike[str], item_tokens: Sequence[str], identifiers: Sequence[Identifier]) -> None:
    """Write LC-Rec's index file; the file appears complete or not at all."""
    path = Path(path)
    pairs = zip(item_tokens, identifiers, strict=True)
    text = json.dumps({item: list(tokens) for item, tokens in pairs}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private, and an index is meant to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class SemanticIdentifiers:
    """Semantic IDs of items 1 .. I; see :class:`~recbole_ilrec.identifiers.base.ItemIdentifiers`."""

    identifiers: Sequence[Identifier]

    @property
    def new_tokens(self) -> Sequence[str]:
        """Every token that occurs, sorted as text (LC-Rec's order)."""
        return sorted({token for identifier in self.identifiers for token in identifier})

    @property
    def texts(self) -> Sequence[str]:
        """None: every token is a new one."""
        return ()

    def token_ids(self, tokenizer: Any) -> list[list[int]]:
        """Token ids of every item."""
        return [tokenizer.convert_tokens_to_ids(list(identifier)) for identifier in self.identifiers]


@dataclass(frozen=True)
class CollisionReport:
    """How well identifiers tell items apart.

    Attributes:
        items: identifiers given.
        distinct: different ones.
        colliding_items: items that share their identifier with another item.
        largest_group: items of the most frequent identifier.
        tokens_per_level: distinct tokens at each level.
        perplexity_per_level: exp of the entropy of a level's tokens over the items that reach it: the number of
            equally used tokens that would carry as much information.
    """

    items: int
    distinct: int
    colliding_items: int
    largest_group: int
    tokens_per_level: tuple[int, ...]
    perplexity_per_level: tuple[float, ...]

    @property
    def summary(self) -> str:
        """All of it in one line."""
        tokens = "/".join(str(count) for count in self.tokens_per_level)
        perplexity = "/".join(f"{value:.0f}" for value in self.perplexity_per_level)
        return (
            f"{self.items} items, {self.distinct} distinct identifiers, {self.colliding_items} items collide"
            f" (largest group {self.largest_group}), tokens per level {tokens} (perplexity {perplexity})"
        )


def collision_report(identifiers: Sequence[Sequence[str]]) -> CollisionReport:
    """Count collisions and the use of each level's tokens."""
    groups = Counter(tuple(identifier) for identifier in identifiers)
    levels = zip_longest(*identifiers)
    counts = [Counter(token for token in level if token is not None) for level in levels]
    return CollisionReport(
        items=len(identifiers),
        distinct=len(groups),
        colliding_items=sum(size for size in groups.values() if size > 1),
        largest_group=max(groups.values(), default=0),
        tokens_per_level=tuple(len(count) for count in counts),
        perplexity_per_level=tuple(_perplexity(count) for count in counts),
    )


def _perplexity(count: Counter[str]) -> float:
    total = count.total()
    return math.exp(-sum(n / total * math.log(n / total) for n in count.values()))


def _load(path: Path) -> Mapping[str, object]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such index file. Give an existing *.index.json as index_file, or leave the key out to learn"
            " the identifiers."
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: the index file cannot be read ({error.strerror}). Mend that or give another."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path}: not valid JSON ({error}). An index file is a JSON object of item id to list of tokens, e.g."
            ' {"0": ["<a_1>", "<b_2>"]}.'
        ) from None
    if not isinstance(index, dict):
        raise UserError(
            f"{path}: holds a JSON {type(index).__name__}, not an object of item id to list of tokens, e.g."
            ' {"0": ["<a_1>", "<b_2>"]}.'
        )
    return index


def _identifier(path: Path, item: str, entry: object) -> Identifier:
    if isinstance(entry, list) and entry and all(isinstance(token, str) and token.strip() for token in entry):
        return tuple(entry)
    raise UserError(
        f"{path}: item {item!r} has the entry {str(entry)[:80]!r}; a list of non-empty strings such as"
        ' ["<a_1>", "<b_2>"] is needed. Correct the entry or learn the index anew.'
    )


def _check_depths(path: Path, item_tokens: Sequence[str], identifiers: Sequence[Identifier]) -> None:
    """Allow one depth, or one more for items that share all other tokens with an item that has it too."""
    by_depth = defaultdict(list)
    for item, identifier in zip(item_tokens, identifiers, strict=True):
        by_depth[len(identifier)].append((item, identifier))
    if len(by_depth) < 2:
        return
    depth = min(by_depth)
    extra = {token_name(depth, code) for code in range(len(identifiers))}
    shallow = {identifier for _, identifier in by_depth[depth]}
    first, second = token_name(depth, 0), token_name(depth, 1)
    for item, identifier in (pair for deeper in by_depth if deeper > depth for pair in by_depth[deeper]):
        if len(identifier) > depth + 1 or identifier[-1] not in extra or identifier[:depth] in shallow:
            raise UserError(
                f"{path}: item {item!r} has {len(identifier)} tokens where others have {depth}. All need the same"
                f" number (one more, {first}, {second}, ..., only for items that share all the others). Correct the"
                " entry or learn the index anew."
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
