"""The one exception a user is meant to read.

Everything a user can get wrong (a name, a value, a file) is raised as :class:`UserError`: one line that says what
is wrong, where, what is allowed and how to fix it. The command line prints it after ``error:`` and exits with 2;
anything else that escapes is a fault of this package and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. ``str(error)`` is a single line: what, where, what is allowed, how to fix it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion such as ``"Did you mean 'ilrec'? "`` (with a trailing blank), or ``""`` when nothing is near."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean '{by_lower[near[0]]}'? " if near else ""


def unknown_name(kind: str, word: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list: ``Unknown objective 'ilerc'. Did you mean 'ilrec'? ...``."""
    names = sorted(known)
    return UserError(f"Unknown {kind} '{word}'. {did_you_mean(str(word), names)}Available: {', '.join(names)}.")
