"""ILRec and its baselines as RecBole models: self-hard negatives from the intermediate layers of a language model."""

from typing import TYPE_CHECKING, Any

from recbole_ilrec.runtime import compat as compat
from recbole_ilrec.runtime.imports import quick_imports

if TYPE_CHECKING:
    from recbole_ilrec.quick_start import run_recbole_ilrec as run_recbole_ilrec

__version__ = "0.1.0"
__all__ = ["run_recbole_ilrec"]


def __getattr__(name: str) -> Any:
    """``run_recbole_ilrec``, imported when it is asked for: torch and RecBole take seconds to load."""
    if name != "run_recbole_ilrec":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    compat.require_recbole()
    with quick_imports():
        from recbole_ilrec.quick_start import run_recbole_ilrec

    return run_recbole_ilrec
