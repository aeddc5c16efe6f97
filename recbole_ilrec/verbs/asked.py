"""What a call of ``table`` or ``figure`` asks for: its plan and its options, checked against each other.

Quick to import: nothing is looked up in data or runs.
"""

from pathlib import Path
from typing import Any

from recbole_ilrec.configuration.arguments import Arguments, listed
from recbole_ilrec.configuration.presets import preset, preset_names, read_yaml
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.report.plan import Plan, narrowed, read_plan

_OF_ONE_RUN = {
    "seed": "give --seeds=3 for three of them, or a list, --seeds=1,2,3 or --seeds=[1]",
    "model": "give --models=A,B",
    "resume_from_checkpoint": "give the same command again, and what was interrupted goes on",
    "result_file": "the results are in --out",
    "eval_test": "what is shown are test metrics",
    "saved": "runs are found again by what they saved",
}
"""Option of ``run`` that makes no sense for many -> what to do instead."""
_OF_RUNS = ("archive", "from_archive", "dry_run", "jobs", "quick", "against")
"""Options without a meaning where data are counted and no run is made."""
_MOST_SEEDS = 100
"""A greater number is a seed that is meant itself."""


class Asked:
    """One call.

    Args:
        arguments: of the command line; its options are taken out.
        verb: ``table`` or ``figure``.

    Attributes:
        call: the call as it can be given again.
        whole: the plan as it was read.
        plan: the part of it that is wanted.
        given: settings for every run.
        quick, paper, dry_run, out, archive, into, sources, jobs: the options; see the help of the verbs.
        against: label of the line that the others are compared with, seed by seed; ``None`` for no such table.
        mark: between which lines of the page ``into`` the table belongs.

    Raises:
        UserError: no such plan or option, or options that contradict each other or the plan.
    """

    def __init__(self, arguments: Arguments, verb: str):
        if len(arguments.words) != 1:
            raise UserError(f"{verb} takes one name: recbole-ilrec {verb} NAME. Names: {', '.join(_names(verb))}.")
        self.verb = verb
        self.call = {"verb": verb, "words": arguments.words[:], "options": dict(arguments.options)}
        self.whole = _plan(arguments.words[0], verb)
        self._check_options(arguments.options)
        self.quick, self.paper = bool(arguments.take("quick")), bool(arguments.take("paper"))
        self.dry_run = bool(arguments.take("dry_run"))
        self.out = Path(str(arguments.take("out", "tables")))
        against = arguments.take("against")
        self.against = None if against is None else str(against)
        self.archive = _path(arguments.take("archive"))
        page, _, mark = str(arguments.take("into", "")).partition("#")
        self.into = _path(page or None)
        self.mark = mark or (f"{self.whole.name}-quick" if self.quick else self.whole.name)
        self.sources = [Path(str(path)) for path in listed(arguments.take("from_archive"))]
        jobs = arguments.take("jobs")
        self.jobs = None if jobs is None else _whole_number("jobs", jobs)
        self.plan = narrowed(
            self.whole,
            datasets=listed(arguments.take("dataset")),
            backbones=listed(arguments.take("backbone")),
            models=listed(arguments.take("models")),
            columns=listed(arguments.take("columns")),
            seeds=_seeds(arguments.take("seeds"), self.whole.seeds[0]),
        )
        labels = [row.label for _, row in self.plan.rows()]
        if self.against is not None and self.against not in labels:
            raise unknown_name("line of the table, to compare with,", self.against, labels)
        if self.against is not None and not any("@" in metric for metric in self.plan.metrics):
            raise UserError(
                f"--against compares metrics such as ndcg@10, and table {self.whole.name} shows none: leave it out."
            )
        self.given = dict(arguments.options)
        self.plan.refuse_overwritten(self.given)

    def _check_options(self, options: dict[str, Any]) -> None:
        for key, instead in _OF_ONE_RUN.items():
            if key in options:
                raise UserError(f"--{key} is one run's: {instead}.")
        if "from_archive" in options and "archive" in options:
            raise UserError("--from_archive runs nothing, so there is nothing for --archive to keep: give one of them.")
        if "against" in options and self.verb == "figure":
            raise UserError(f"--against makes a second table: recbole-ilrec table {self.whole.name}.")
        for key in _OF_RUNS if self.whole.kind == "datasets" else ():
            if key in options:
                raise UserError(f"{self.verb} {self.whole.name} counts data and makes no runs: leave --{key} out.")


def _plan(name: str, verb: str) -> Plan:
    if name.endswith((".yaml", ".yml")):
        plan = read_plan(Path(name).stem, read_yaml(Path(name)))
    elif name in list(preset_names("table")):
        plan = read_plan(name, read_yaml(preset("table", name)))
    else:
        raise unknown_name(verb, name, _names(verb))
    if verb == "figure" and not plan.figure:
        raise UserError(f"'{name}' is a table: recbole-ilrec table {name}. Figures: {', '.join(_names(verb))}.")
    return plan


def _names(verb: str) -> list[str]:
    plans = [read_plan(name, read_yaml(preset("table", name))) for name in preset_names("table")]
    return [plan.name for plan in plans if verb == "table" or plan.figure]


def _path(value: Any) -> Path | None:
    return None if value is None else Path(str(value))


def _seeds(value: Any, first: int) -> list[int]:
    """A number says how many, from ``first`` on; a list says which."""
    if value is None:
        return []
    if isinstance(value, list) or (isinstance(value, str) and ("," in value or value.startswith("["))):
        return [_whole_number("seeds", seed) for seed in listed(value)]
    count = _whole_number("seeds", value)
    if not 1 <= count <= _MOST_SEEDS:
        raise UserError(
            f"seeds={value} is not allowed: give how many, 1 to {_MOST_SEEDS}, or a list, e.g. --seeds=[{value}]."
        )
    return list(range(first, first + count))


def _whole_number(key: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < (1 if key == "jobs" else 0):
        raise UserError(f"{key}={value!r} is not allowed: give whole numbers, e.g. --{key}=2.")
    return number
