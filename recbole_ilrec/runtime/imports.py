"""How the large libraries are imported: torch, RecBole with scikit-learn, transformers with peft.

Most of the time before a run's first step goes into it.
"""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_COMPILER = "TORCHDYNAMO_DISABLE"
"""Torch's own switch: while it is 1, ``torch.compile`` returns the function that it is given."""


@contextmanager
def quick_imports(compiler: bool = False) -> Iterator[None]:
    """Around ``import`` statements: spares what they set off and no run needs, a third of the time to the first step.

    * Python's cyclic garbage collector pauses, and what was imported is set aside from its later rounds: modules are
      millions of objects that live to the end, and it would go through all of them again and again.
    * Torch's compiler stays away. Where bitsandbytes is installed, transformers' trainer imports peft and that
      bitsandbytes, which hands four functions for quantised weights to ``torch.compile``; only for this it is loaded.
    * What bitsandbytes warns of while it loads, that a kernel for quantised weights is missing, is not said.

    Args:
        compiler: let ``torch.compile`` do its work and bitsandbytes speak, for a run with quantised weights.
    """
    gc.collect()  # what is garbage now must not be set aside
    modules, collecting, switch = len(sys.modules), gc.isenabled(), os.environ.get(_NO_COMPILER)
    quantisation = logging.getLogger("bitsandbytes")
    level = quantisation.level
    gc.disable()
    if not compiler:
        os.environ[_NO_COMPILER] = "1"
        quantisation.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if not compiler:
            quantisation.setLevel(level)
            del os.environ[_NO_COMPILER]
            os.environ.update({} if switch is None else {_NO_COMPILER: switch})
        if len(sys.modules) > modules:
            gc.freeze()
        if collecting:
            gc.enable()
