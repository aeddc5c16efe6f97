"""``python -m recbole_ilrec VERB`` is the command ``recbole-ilrec VERB``."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`recbole_ilrec.cli.main`; also while it is still being imported, Ctrl-C is one line."""
    try:
        from recbole_ilrec.cli import main as command

        return command(argv)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: nothing had begun\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
