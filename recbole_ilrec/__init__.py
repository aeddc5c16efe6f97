"""ILRec and its baselines as RecBole models: self-hard negatives from the intermediate layers of a language model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recbole_ilrec.runtime import compat as compat
from recbole_ilrec.runtime.imports import quick_imports

if TYPE_CHECKING:
    from recbole_ilrec.quick_start import run_recbole_ilrec as run_recbole_ilrec
    from recbole_ilrec.runs.recommendation import Recommender as Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "run_recbole_ilrec"]

_HOMES = {"run_recbole_ilrec": "recbole_ilrec.quick_start", "Recommender": "recbole_ilrec.runs.recommendation"}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """What this package offers, imported when it is asked for: torch and RecBole take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    compat.require_recbole()
    with quick_imports():
        return getattr(import_module(_HOMES[name]), name)
