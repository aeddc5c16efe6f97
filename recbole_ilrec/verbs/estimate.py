"""``recbole-ilrec estimate``: what a run will take here, measured on a few steps and users of it."""

import math
import sys
from pathlib import Path

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.errors import UserError
from recbole_ilrec.runs.result_file import check_result_file, write_result
from recbole_ilrec.runtime.imports import quick_imports

HELP = """usage: recbole-ilrec estimate --model=MODEL --dataset=DATASET [--measure=10] [--json=PATH] [--key=value ...]

How long will it take, and does it fit? Builds what a run with the same settings would build, takes a few of its
training steps, searches for a few of its users, and says what all of it would take on this machine: each part, memory,
and the disk for checkpoints. Trains nothing but what the model cannot be built without and a run keeps: identifiers
that are neither given nor kept, and the collaborative model where they are learned from its vectors.

  -m, --model=ILRec          as for run
  -d, --dataset=ml-100k      as for run
  --measure=10               seconds for which steps, and users, are measured
  --json=PATH                also write it as JSON

Every setting of run is allowed. docs/estimate.md says what is measured and what is not.
"""

MEASURE = 10.0


def estimate(arguments: Arguments) -> int:
    """The verb ``estimate``."""
    files = arguments.config_files()
    target, measure = arguments.take("json"), arguments.take("measure", MEASURE)
    if isinstance(measure, bool) or not isinstance(measure, int | float) or not 0 <= measure < math.inf:
        raise UserError(f"--measure={measure} is no time: give seconds, e.g. --measure=10.")
    for key in ("result_file", "print_config"):
        if key in arguments.options:
            raise UserError(f"--{key} is of run: estimate prints what it finds, and --json=PATH keeps it.")
    if target is not None:
        check_result_file(Path(target), "json")
    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    from recbole_ilrec.quick_start import configure, set_up
    from recbole_ilrec.report.estimate import render

    config = configure(arguments.take("model"), arguments.take("dataset"), files, arguments.options)
    config["show_progress"] = False
    set_up(config)
    with quick_imports():
        from recbole_ilrec.runs.estimation import estimate_run

    found = estimate_run(config, float(measure))
    sys.stdout.write(render(found))
    if target is not None:
        write_result(Path(target), found.plain())
    return 0
