"""Who reads what a run writes while it works."""

import sys


def shows_bars() -> bool:
    """Whether somebody watches, in a terminal or a notebook; in a file a progress bar is a thousand lines."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
