"""``recbole-ilrec doctor``: look at data, split, identifiers and prompts of a run before it is started."""

import sys
from pathlib import Path

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.runs.result_file import check_result_file, write_result

NEEDS_ATTENTION = 1

HELP = """usage: recbole-ilrec doctor --dataset=DATASET [--model=ILRec] [--json=PATH] [--key=value ...]

Checks what a run with the same settings would be trained and evaluated on, and trains no language model: counts, equal
times, copied rows, histories and training rows that hold the future, repeated and unseen targets, titles,
identifiers, prompts. Identifiers that are neither given nor cached are learned, as the run would.

  -d, --dataset=ml-100k      as for run
  -m, --model=ILRec          as for run; a model of RecBole leaves out identifiers and prompts
  --json=PATH                also write the findings as JSON

Every setting of run is allowed. Exit status: 0 nothing is wrong (notes allowed), 1 something needs attention,
2 the settings or files have to be corrected. docs/doctor.md explains each check.
"""


def doctor(arguments: Arguments) -> int:
    """The verb ``doctor``."""
    files = arguments.config_files()
    target = arguments.take("json")
    if target is not None:
        check_result_file(Path(target), "json")
    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    from recbole_ilrec.checks.finding import as_plain, needing_attention, render
    from recbole_ilrec.data.dataset import build_data
    from recbole_ilrec.quick_start import configure
    from recbole_ilrec.runs.diagnosis import diagnose

    config = configure(arguments.take("model", "ILRec"), arguments.take("dataset"), files, arguments.options)
    data = build_data(config)
    model = config.model_class(config, data.train._dataset) if config.is_llm else None
    findings = diagnose(config, data, model)
    sys.stdout.write(f"{config.dataset} for {config.model}\n\n{render(findings)}\n")
    if target is not None:
        write_result(Path(target), {"dataset": config.dataset, "model": config.model, "findings": as_plain(findings)})
    return NEEDS_ATTENTION if needing_attention(findings) else 0
