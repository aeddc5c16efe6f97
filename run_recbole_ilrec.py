"""``python run_recbole_ilrec.py --model=ILRec --dataset=Instrument``: the verb ``run`` from a checkout."""

import sys

from recbole_ilrec.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
