"""Messages of a verb as plain lines on stderr."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_log() -> Iterator[None]:
    """Show messages meanwhile, unless whoever called shows them already; also a decorator.

    Nothing stays: a run in the same process, as in a notebook, would show each of its lines once more.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler, level = logging.StreamHandler(), root.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
