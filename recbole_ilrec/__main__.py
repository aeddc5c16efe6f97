"""``python -m recbole_ilrec VERB`` is the command ``recbole-ilrec VERB``."""

import sys
from collections.abc import Sequence

FAULT = 70
"""Exit status of a mistake in the program, EX_SOFTWARE of sysexits.h."""


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`recbole_ilrec.cli.main`; also while it is still being imported, Ctrl-C is one line.

    What nobody foresaw ends with its traceback and :data:`FAULT`, which is not the 1 of work that needs attention.
    """
    try:
        from recbole_ilrec.cli import main as command

        return command(argv)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: nothing had begun\n")
        return 130
    except Exception as error:
        import traceback

        traceback.print_exc()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        what_now = "The lines above say where: mend it if that is code of your own, else report it."
        sys.stderr.write(f"fault: {told}. {what_now}\n")
        return FAULT


if __name__ == "__main__":
    sys.exit(main())
