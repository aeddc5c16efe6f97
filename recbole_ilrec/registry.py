"""Names to classes, found lazily.

A registry maps a name that a user types to ``"module:attribute"`` below this package or to an object registered by a
decorator. Nothing heavy is imported until a name is asked for, so ``import recbole_ilrec`` stays cheap.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Generic, TypeVar

from recbole_ilrec.errors import unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """A named table of components of one kind.

    Args:
        kind: the word used in messages, e.g. ``"objective"``.
        lazy: name -> ``"package.module:attribute"``, resolved at the first :meth:`get`.
    """

    def __init__(self, kind: str, lazy: dict[str, str] | None = None):
        self.kind = kind
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
        return str(name).lower() in {known.lower() for known in self._entries}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
