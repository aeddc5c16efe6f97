"""``python -m recbole_ilrec VERB`` is the command ``recbole-ilrec VERB``."""

import sys

from recbole_ilrec.cli import main

if __name__ == "__main__":
    sys.exit(main())
