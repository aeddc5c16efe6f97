"""RecBole 1.2.1 beside today's libraries: the NumPy names it still uses, and the switches it leaves on.

RecBole sets these names when a ``Config`` is built, and does so with names that NumPy 2 removed. Its metrics,
interactions and datasets read them later, at run time. They are therefore set when this package is imported; a name
that NumPy has (``np.bool`` and ``np.long`` came back in 2.0) is left alone.
"""

from importlib.util import find_spec

import numpy as np

from recbole_ilrec.errors import UserError

NUMPY_NAMES = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def set_numpy_names() -> None:
    """Give NumPy back the names that RecBole 1.2.1 reads, where they are missing."""
    for name, scalar in NUMPY_NAMES.items():
        if name not in vars(np):  # not hasattr: that warns for names NumPy plans to use again
            setattr(np, name, scalar)


def switch_off_anomaly_detection() -> None:
    """Undo what importing any sequential model of RecBole does to the whole process.

    Its ``sine`` module calls ``torch.autograd.set_detect_anomaly(True)`` when it is imported, and the package imports
    it with all others: every gradient of every model is then searched for NaN, about a quarter of a training step.
    """
    import torch

    torch.autograd.set_detect_anomaly(False)


def require_recbole() -> None:
    """Raise :class:`UserError` with the command to type when RecBole is not installed."""
    if find_spec("recbole") is None:
        raise UserError(
            "RecBole is not installed: run 'pip install --no-deps recbole==1.2.1' (--no-deps, because its metadata "
            "asks for an old 'ray' that it does not need here and that recent Pythons cannot install)."
        )


set_numpy_names()
