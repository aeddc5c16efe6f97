"""LC-Rec's file ``X.user.json``: what users like and what they look for, in words.

Source: the file as LC-Rec (Zheng et al., ICDE 2024) publishes it: ``user_explicit_preference`` is ``{user: [texts]}``,
``user_vague_intention`` holds under ``train`` ``{user: {item, querys: [what the user wants, what the item is like]}}``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError

SUFFIX = ".user.json"
_PREFERENCES, _INTENTIONS, _TRAIN = "user_explicit_preference", "user_vague_intention", "train"
_SHAPE = (
    f'{{"{_PREFERENCES}": {{user: [text, ...]}}, "{_INTENTIONS}": {{"{_TRAIN}": {{user: {{"item": item, '
    '"querys": [text, text]}}}}'
)


@dataclass(frozen=True)
class UserRecord:
    """What the file says of one user.

    Attributes:
        preferences: what the user likes.
        item: external id of the item that is looked for, empty where none is.
        queries: what the user wants, and what the item is like; both empty where nothing is looked for.
    """

    preferences: tuple[str, ...]
    item: str
    queries: tuple[str, str]


def user_records(path: Path, content: Any, *, need_intentions: bool) -> dict[str, UserRecord]:
    """The users of a file, by external id.

    Args:
        path: of the file, for messages.
        content: what its JSON holds.
        need_intentions: refuse a file without intentions.

    Raises:
        UserError: another shape.
    """
    preferences = _mapping(path, content, _PREFERENCES)
    intentions: Mapping[str, Any] = {}
    if need_intentions or _INTENTIONS in content:
        intentions = _mapping(path, _mapping(path, content, _INTENTIONS), _TRAIN)
    return {user: _record(path, user, preferences, intentions) for user in {**preferences, **intentions}}


def _mapping(path: Path, content: Any, key: str) -> dict[str, Any]:
    inner = content.get(key) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise UserError(f"{path} has no object '{key}': it must be {_SHAPE}.")
    return inner


def _record(path: Path, user: str, preferences: Mapping[str, Any], intentions: Mapping[str, Any]) -> UserRecord:
    likes, wish = preferences.get(user, []), intentions.get(user, {"item": None, "querys": ["", ""]})
    likes = [likes] if isinstance(likes, str) else likes
    queries = wish.get("querys") if isinstance(wish, dict) else None
    if not _are_texts(likes) or not isinstance(queries, list) or not _are_texts(queries) or len(queries) != 2:
        raise UserError(f"{path}, user '{user}': a text is missing or is none. The file must be {_SHAPE}.")
    item = wish.get("item")
    return UserRecord(tuple(likes), "" if item is None else str(item), (queries[0], queries[1]))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
