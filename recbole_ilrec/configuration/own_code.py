"""Which text the user's own classes were made from, as hashes of files."""

import hashlib
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from uuid import uuid4
from weakref import WeakKeyDictionary

from recbole_ilrec.errors import UserError

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
_READ: dict[str, tuple[object, str]] = {}
"""Name of a module -> its spec, a new one whenever it is read, and the hash of its file when it was first looked at."""
_UNFILED: "WeakKeyDictionary[type, str]" = WeakKeyDictionary()


def code_hash(own: type) -> str:
    """SHA-256 over the file of a class and what it imports, step by step, from files in the same folder or below.

    A class without a file, typed in at a prompt or in a notebook, has one that no other class ever has: nobody can see
    whether two such are the same.

    Raises:
        UserError: one of the files has changed since it was looked at first, so that it is not what would run.
    """
    start = sys.modules.get(own.__module__)
    if own not in _UNFILED and not (start and getattr(start, "__file__", None)):
        _UNFILED[own] = uuid4().hex
        logger.warning(
            "%s is in no file: no run of it is found again, and no other process can load it; put it into a module, "
            "e.g. my_models.py, and import it.",
            own.__name__,
        )
    return _UNFILED.get(own) or _hash_of_files(own, start)


def _hash_of_files(own: type, start: ModuleType | None) -> str:
    home = Path(str(getattr(start, "__file__", ""))).resolve().parent
    found: dict[Path, str] = {}
    modules = [sys.modules.get(parent.__module__) for parent in own.__mro__]
    while modules:
        file = getattr(module := modules.pop(), "__file__", None)
        path = Path(file).resolve() if file else home
        if path in found or home not in path.parents or "site-packages" in path.parts or _PACKAGE in path.parents:
            continue
        found[path] = _hash_when_read(module, path)
        for value in vars(module).values():
            named = str(getattr(value, "__module__", ""))
            modules.append(value if isinstance(value, ModuleType) else sys.modules.get(named))
    content = [[path.relative_to(home).as_posix(), found[path]] for path in sorted(found)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _hash_when_read(module: ModuleType | None, path: Path) -> str:
    name, spec, now = getattr(module, "__name__", ""), getattr(module, "__spec__", None), file_hash(path)
    known, before = _READ.get(name, (None, ""))
    if before and known is spec and before != now:
        raise UserError(
            f"{path} has changed since it was imported, and Python still runs the old text: start Python (a notebook's "
            "kernel) anew."
        )
    _READ[name] = spec, now
    return now


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
