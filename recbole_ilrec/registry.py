"""Names to classes, found lazily.

A registry maps a name that a user types to ``"module:attribute"`` below this package or to an object registered by a
decorator. Nothing heavy is imported until a name is asked for, so ``import recbole_ilrec`` stays cheap. Where a kind
takes the user's own code, ``"module:Class"`` stands for a name (docs/extending.md).
"""

import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from recbole_ilrec.errors import UserError, did_you_mean, unknown_name

T = TypeVar("T")
_PLACE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_place(name: object) -> bool:
    """Whether ``name`` is written ``module:Class``: code of the user's own."""
    return isinstance(name, str) and _PLACE.fullmatch(name) is not None


def as_listed(name: str) -> str:
    """A name as registries list it, in whatever case it was typed; ``module:Class`` stays as it is."""
    return name if is_place(name) else name.lower()


def own_class(kind: str, place: str) -> type:
    """The class that ``module:Class`` names; the module lies in the working folder or where Python looks for modules.

    An exception raised by the module itself is left as it is: its traceback shows the user's own line.

    Raises:
        UserError: there is no such module, or no such class in it.
    """
    module, _, name = place.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the user's must not hide a library
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{kind} '{place}': there is no module '{error.name}' in {folder} nor where Python looks. Start in the "
            f"folder of {error.name.partition('.')[0]}.py, or name that folder in PYTHONPATH."
        ) from None
    own = getattr(found, name, None)
    if not isinstance(own, type):
        classes = sorted(key for key, value in vars(found).items() if isinstance(value, type))
        raise UserError(
            f"{kind} '{place}': {getattr(found, '__file__', None) or module} has no class '{name}'. "
            f"{did_you_mean(name, classes)}Its classes: {', '.join(classes) or 'none'}."
        )
    return own


class Registry(Generic[T]):
    """A named table of components of one kind.

    Args:
        kind: the word used in messages, e.g. ``"objective"``.
        lazy: name -> ``"package.module:attribute"``, resolved at the first :meth:`get`.
        own: whether ``module:Class`` of the user's own may stand for a name.
    """

    def __init__(self, kind: str, lazy: dict[str, str] | None = None, *, own: bool = False):
        self.kind = kind
        self.own = own
        self._entries: dict[str, T | str] = dict(lazy or {})

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a component under ``name``; a second component of that name is an error."""

        def add(component: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = component
            return component

        return add

    def get(self, name: str) -> T:
        """The component called ``name`` (case does not matter); :class:`UserError` with a suggestion otherwise."""
        if self.own and is_place(name):
            component: Any = own_class(self.kind, name)
            return component
        by_lower = {known.lower(): known for known in self._entries}
        known = by_lower.get(str(name).lower())
        if known is None:
            raise unknown_name(self.kind, name, self._entries)
        entry = self._entries[known]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[known] = getattr(import_module(module), attribute)
        return entry

    def __contains__(self, name: str) -> bool:
        """Whether :meth:`get` knows ``name``; whether a class of the user's own exists, it alone finds out."""
        return (self.own and is_place(name)) or str(name).lower() in {known.lower() for known in self._entries}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
