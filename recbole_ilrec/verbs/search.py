"""The verb ``search``: settings chosen on validation. The test part is not looked at by any of its runs."""

import csv
import hashlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.configuration.presets import preset, preset_names, read_yaml
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.preparation.files import held, require_writable, write_atomically
from recbole_ilrec.report.plan import PlannedRun
from recbole_ilrec.report.space import Space, checked_phase, first_of, read_range_file, read_space
from recbole_ilrec.runtime.plain_log import plain_log

if TYPE_CHECKING:
    from recbole_ilrec.verbs.experiments import Outcome
    from recbole_ilrec.verbs.trials import Trial

logger = logging.getLogger(__name__)

SEARCHES = "searches"
_NOT_OF_A_SEARCH = {
    "resume_from_checkpoint": "give the same command again, and what was interrupted goes on",
    "result_file": "the results are in the folder of the search",
    "eval_test": "no trial looks at the test part; run best.yaml for that",
    "saved": "what was found is found again by what was saved",
    "config_files": "give the settings as --KEY=VALUE",
}

HELP = """usage: recbole-ilrec search NAME|--space=FILE --model=MODEL --dataset=DATASET [--key=value ...]

Makes runs with other settings and keeps those that are best on validation. The test part is not evaluated.

  NAME                       ilrec (the paper's grids, then finer), sasrec, ...: a file in properties/search
  --space=FILE               a space of your own: YAML (docs/search.md), or a range file of RecBole (hyper.test)
  -m, --model=MODEL          as for run; may be left out where the space names one
  -d, --dataset=DATASET      as for run
  --sampler=tpe              each, grid, random or tpe in place of that of a space with one phase
  --trials=N                 make no more than N trials, those made before included
  --timeout=SECONDS          start no trial after so many seconds
  --jobs=N                   trials at a time, which share the cores; default: one on each GPU, without one as many as
                             there are cores and 4 GB of free memory. The same trials are made with any number
  --seed=2020                of the runs, and of what is drawn
  --dry_run                  show what would be run, with what like runs took, and stop
  --quick                    a few steps on few users, only to see that all works
  --checkpoint_dir=saved     where runs are; those that are there are reused by content
  --KEY=VALUE                any other setting, for every run (docs/settings.md)

Leaves in CHECKPOINT_DIR/searches/NAME-MODEL-DATASET-KEY: trials.jsonl (one line a trial), trials.csv, summary.md, and
best.yaml, the best settings for 'recbole-ilrec run --config_files=best.yaml'. Stop it however you like: the same
command goes on.
A trial that fails is shown, tried again by the next call, and does not stop the others. docs/search.md has more.
"""


def search(arguments: Arguments) -> int:
    """The verb ``search``: 0, or 1 when no trial has a score."""
    return _Search(arguments).run()


class _Search:
    """One call of the verb: its options, then its steps."""

    def __init__(self, arguments: Arguments):
        self.trials = _positive("trials", arguments.take("trials"))
        self.space = _sampled(_space(arguments), arguments.take("sampler"), self.trials)
        self.timeout = _positive("timeout", arguments.take("timeout"))
        self.jobs = _positive("jobs", arguments.take("jobs"))
        self.dry_run, self.quick = bool(arguments.take("dry_run")), bool(arguments.take("quick"))
        self.model = arguments.take("model", self.space.model)
        self.dataset = arguments.take("dataset")
        for key, instead in _NOT_OF_A_SEARCH.items():
            if key in arguments.options:
                raise UserError(f"--{key} makes no sense for a search: {instead}.")
        for phase in self.space.phases:
            for key in phase.space:
                if key in arguments.options:
                    raise UserError(f"{key} is searched by '{self.space.name}': leave --{key} out, or search it not.")
        self.given = dict(arguments.options)

    @plain_log()
    def run(self) -> int:
        """Make the trials that are missing, and leave what was found."""
        from recbole_ilrec.runtime.compat import require_recbole

        require_recbole()
        from recbole_ilrec.configuration.outcome import OUTCOME_FREE, run_key
        from recbole_ilrec.verbs.experiments import Experiments, default_jobs
        from recbole_ilrec.verbs.trials import Ledger, Proposals, presets_of, require_optuna

        if any(phase.sampler in ("random", "tpe") for phase in self.space.phases):
            require_optuna()
        self.places = {key: self.given.pop(key) for key in list(self.given) if key in OUTCOME_FREE}
        self.experiments = Experiments(self.places, quick=self.quick)
        self.jobs = self.jobs or default_jobs()
        config = self._checked()
        self.seed, self.bigger, self.metric = (config[k] for k in ("seed", "valid_metric_bigger", "valid_metric"))
        phases = [replace(phase, trials=1) for phase in self.space.phases]  # more trials are the same search
        key = hashlib.sha256(json.dumps([run_key(config), repr(phases)]).encode()).hexdigest()[:8]
        self.folder = self.experiments.root / SEARCHES / f"{self.space.name}-{config.model}-{config.dataset}-{key}"
        presets = presets_of(config, self.space.phases)
        self.proposals = Proposals(self.space.phases, self.seed, bigger=self.bigger, presets=presets)
        if self.dry_run:
            return self._show(Ledger(self.folder).trials)
        require_writable(self.folder, f"checkpoint_dir={self.experiments.root}")
        with held(self.folder):
            self.ledger = Ledger(self.folder)
            self._make()
            return self._write()

    def _planned(self, params: Any) -> PlannedRun:
        return PlannedRun(self.model, self.dataset, {**self.given, **params, "eval_test": False})

    def _checked(self) -> Any:
        """The settings without those searched, once all names of the space have been seen to be settings.

        A value that no run can take is only found when its turn comes, and is then a failed trial.

        Raises:
            UserError: a name that nothing reads; the model or the dataset is missing.
        """
        from recbole_ilrec.configuration.config import Config, MissingDataset
        from recbole_ilrec.configuration.lookup import place_of
        from recbole_ilrec.configuration.unread import refuse_unread
        from recbole_ilrec.quick_start import configure

        try:
            config: Config = self.experiments.config(self._planned({}))
        except MissingDataset:
            configure(self.model, self.dataset, None, self.experiments.places)
            config = self.experiments.config(self._planned({}))
        self.model, self.dataset = place_of(config.model_class), config.dataset
        for phase in self.space.phases:
            try:
                refuse_unread(self.experiments.config(self._planned(first_of(phase))), phase.space)
            except UserError as error:
                raise UserError(f"search space '{self.space.name}': {error}") from None
        if not config["eval_step"]:
            raise UserError("eval_step=0 leaves out the validation that a search goes by: use at least 1.")
        return config

    # ---- the trials

    def _make(self) -> None:
        started = time.monotonic()
        failed = [trial for trial in self.ledger.trials if trial.error]
        if failed:
            logger.info("%d trials failed before and are tried again", len(failed))
        while batch := self._next(failed):
            if self.timeout is not None and time.monotonic() - started >= self.timeout:
                logger.info("timeout=%s: no further trial is started; the same command goes on", self.timeout)
                return
            for trial in batch:
                logger.info("[%d] %s: %s", trial.number, trial.phase, _typed(trial.params))
            of_run = {self._planned(trial.params): trial for trial in batch}  # of two equal ones the other comes again
            self.experiments.make(of_run, self.jobs, _Note(self, of_run))

    def _next(self, failed: "list[Trial]") -> "list[Trial]":
        """Trials to make at a time, those that failed before first; none when there is no more."""
        again, failed[: self.jobs] = failed[: self.jobs], []
        made = self.ledger.trials
        room = self.jobs if self.trials is None else min(self.jobs, self.trials - len(made))
        return again or self.proposals.batch(made, room)

    # ---- what is left

    def _write(self) -> int:
        from recbole_ilrec.verbs.trials import best_of

        trials, best = self.ledger.trials, best_of(self.ledger.trials, bigger=self.bigger)
        keys = list(dict.fromkeys(key for phase in self.space.phases for key in phase.space))
        with write_atomically(self.folder / "trials.csv") as stream:
            table = csv.writer(stream)
            table.writerow(["trial", "phase", *keys, self.metric, "seconds", "run", "error"])
            for t in trials:
                values = [t.params.get(key, "") for key in keys]
                table.writerow([t.number, t.phase, *values, t.score, t.seconds, t.run, t.error])
        if best is not None:
            with write_atomically(self.folder / "best.yaml") as stream:
                stream.write(self._best_settings(best))
        text = self._summary(trials, best, keys)
        with write_atomically(self.folder / "summary.md") as stream:
            stream.write(text)
        sys.stdout.write(text)
        return int(best is None)

    def _best_settings(self, best: "Trial") -> str:
        import yaml

        from recbole_ilrec.verbs.experiments import quick_settings

        quick = quick_settings(self.model) if self.quick else {}
        settings = {"model": self.model, "dataset": self.dataset, **quick, **self.given, **best.params}
        count = len(self.ledger.trials)
        head = f"# Best of {count} trials by {self.metric} on validation ({best.score}); seed {self.seed}.\n"
        return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

    def _summary(self, trials: "Sequence[Trial]", best: "Trial | None", keys: Sequence[str]) -> str:
        from tabulate import tabulate

        head = ["", "phase", *keys, self.metric, "minutes"]
        rows = [
            [
                f"{t.number}{' *' if t is best else ''}",
                t.phase,
                *(t.params.get(key, "preset") for key in keys),
                "failed" if t.score is None else f"{t.score:.4f}",
                f"{t.seconds / 60:.1f}",
            ]
            for t in trials
        ]
        lines = [f"# {self.space.title}", "", f"{self.model} on {self.dataset}, seed {self.seed}, by {self.metric} on"]
        lines[-1] += " validation; the test part was not looked at. * is the best."
        if self.quick:
            lines.append("QUICK SETTINGS: the numbers say nothing.")
        lines += ["", tabulate(rows, head, tablefmt="github", disable_numparse=True), ""]
        lines += [f"Failed: {t.number}: {t.error}" for t in trials if t.error]
        if best is not None:
            again = f"recbole-ilrec run --config_files={self.folder / 'best.yaml'}"
            lines += ["The best settings; their weights are evaluated on the test part, without training again, by", ""]
            lines += ["```bash", f"{again}{self._kept(best)}", "```"]
        return "\n".join([*lines, ""])

    def _kept(self, best: "Trial") -> str:
        """Options that find the data and the weights of a trial."""
        options = {**self.places, "resume_from_checkpoint": best.folder}
        return "".join(f" --{key}={shlex.quote(str(value))}" for key, value in options.items())

    def _show(self, trials: "list[Trial]") -> int:
        """The runs there are and will be; those after a result that is not there yet as if it were no better."""
        from recbole_ilrec.verbs.progress import dry_run

        drawn = [phase for phase in self.space.phases if phase.sampler in ("random", "tpe")]
        while (trial := self.proposals.next(trials)) is not None and trial.phase not in {p.name for p in drawn}:
            trials = [*trials, trial]
        finished = self.experiments.finished()
        runs = [self._planned(trial.params) for trial in trials]
        sys.stdout.write(dry_run({run: self.experiments.outcome(run, finished) for run in runs}, self.experiments))
        for phase in drawn:
            made = sum(trial.phase == phase.name for trial in trials)
            sys.stdout.write(f"phase {phase.name}: {phase.trials - made} more are drawn by {phase.sampler}\n")
        if self.trials is not None:
            sys.stdout.write(f"of all of them no more than {self.trials} trials\n")
        return 0


class _Note:
    """Puts the outcomes of trials into the ledger."""

    def __init__(self, search: _Search, of_run: "Mapping[PlannedRun, Trial]"):
        self.search, self.of_run = search, of_run

    def __call__(self, run: PlannedRun, outcome: "Outcome") -> None:
        from recbole_ilrec.verbs.like_runs import seconds

        trial = replace(self.of_run[run], error="")
        if outcome.record is None:
            trial = replace(trial, error=outcome.error or "the run left no record")
        else:
            record, result = outcome.record, outcome.record["result"]
            trial = replace(
                trial,
                score=result["best_valid_score"],
                valid=result["best_valid_result"],
                run=record["evaluation"]["run"],
                folder=record["folder"],
                seconds=round(seconds(record), 2),
            )
        self.search.ledger.add(trial)
        logger.info("[%d] %s", trial.number, trial.error or f"{self.search.metric} {trial.score}")


def _typed(params: Any) -> str:
    return " ".join(f"{key}={value}" for key, value in params.items())


def _space(arguments: Arguments) -> Space:
    """The space that is named or given as a file."""
    file = arguments.take("space")
    if len(arguments.words) + (file is not None) != 1:
        names = ", ".join(preset_names("search"))
        raise UserError(f"search takes a name or --space=FILE: recbole-ilrec search NAME. Names: {names}.")
    if file is None:
        name = arguments.words[0]
        if name not in list(preset_names("search")):
            raise unknown_name("search", name, preset_names("search"))
        return read_space(name, read_yaml(preset("search", name)))
    path = Path(str(file))
    if path.suffix in (".yaml", ".yml"):
        return read_space(path.stem, read_yaml(path))
    try:
        return read_range_file(path.name, path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        why = f"space={path} cannot be read ({error})"
        raise UserError(f"{why}: give a YAML file, or a range file of RecBole.") from None


def _sampled(space: Space, sampler: Any, trials: Any) -> Space:
    """A space with one phase, with another sampler and number of trials where they are given."""
    if len(space.phases) != 1:
        if sampler is not None:
            raise UserError(f"--sampler is for a space with one phase, and '{space.name}' has more: leave it out.")
        return space
    phase, where = space.phases[0], f"search space '{space.name}'"
    changed = checked_phase(where, phase.name, sampler or phase.sampler, trials or phase.trials, phase.space)
    return replace(space, phases=(changed,))


def _positive(key: str, value: Any) -> Any:
    if value is not None and (type(value) is not int or value <= 0):
        raise UserError(f"{key}={value!r} is not allowed: give a positive whole number, e.g. --{key}=20.")
    return value
