"""The trials of a search: which one comes next, and the ledger of those that were made.

The ledger is the only state. What comes next follows from it, from the space and from the seed alone, so a search that
was killed goes on as it would have gone on itself, and a run that was under way is asked for again with the same
settings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.record import append_record
from recbole_ilrec.report.runs import flat
from recbole_ilrec.report.space import Around, OneOf, Phase, Range
from recbole_ilrec.settings import FLAT_KEYS

LEDGER = "trials.jsonl"
STARTUP = 5
"""Trials of a phase that are drawn evenly, before what was good is looked at."""


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        number: place in the search, from 0.
        phase: name of its phase.
        params: the searched settings.
        score: the best validation score; ``None`` while there is none.
        valid: all validation metrics of the best epoch.
        error: why there is no score.
        run: key of the run.
        folder: where the run was saved.
        seconds: wall-clock seconds it took.
    """

    number: int
    phase: str
    params: Mapping[str, Any]
    score: float | None = None
    valid: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    run: str = ""
    folder: str = ""
    seconds: float = 0.0


class Ledger:
    """Trials in a file of JSON lines, one appended whole when it is over; the last line of a number counts.

    Raises:
        UserError: a line that is no trial.
    """

    def __init__(self, folder: Path):
        self.path = folder / LEDGER
        self._trials: dict[int, Trial] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                trial = Trial(**json.loads(line))
            except (ValueError, TypeError):
                raise UserError(f"{self.path}:{number}: no trial: remove that line, it is made again.") from None
            self._trials[trial.number] = trial

    @property
    def trials(self) -> list[Trial]:
        """All trials that are over, by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def add(self, trial: Trial) -> None:
        """Note a trial that is over."""
        append_record(self.path, asdict(trial))
        self._trials[trial.number] = trial


def best_of(trials: Sequence[Trial], *, bigger: bool) -> Trial | None:
    """The trial with the best score, the first of equal ones; ``None`` where none has a score."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: (_score(trial, bigger), -trial.number), default=None)


def _score(trial: Trial, bigger: bool) -> float:
    assert trial.score is not None
    return trial.score if bigger else -trial.score


class Proposals:
    """What to try next.

    Args:
        phases: of the search.
        seed: of the drawn values.
        bigger: whether a greater score is better.
        presets: the values that settings have where no trial says another: ranges are laid around them then.
    """

    def __init__(
        self, phases: Sequence[Phase], seed: int, *, bigger: bool, presets: Mapping[str, Any] = MappingProxyType({})
    ):
        self.phases, self.seed, self.bigger, self.presets = phases, seed, bigger, presets

    def next(self, trials: Sequence[Trial], under_way: Sequence[Trial] = ()) -> Trial | None:
        """The trial that comes after ``trials``; ``None`` at the end, or where a whole phase has failed.

        With trials ``under_way`` it is one that does not depend on how they end, so that the same trials are made
        however many at a time; ``None`` too where there is no such trial.
        """
        base: Mapping[str, Any] = {}
        known = {trial.number for trial in (*trials, *under_way)}
        number = next(free for free in count() if free not in known)
        before = 0
        for phase in self.phases:
            own = [trial for trial in trials if trial.phase == phase.name]
            open_ = [trial for trial in under_way if trial.phase == phase.name]
            params = self._params(phase, base, trials, open_, number - before)
            if params is not None:
                return Trial(number, phase.name, params)
            best = best_of([trial for trial in trials if trial.phase in self._until(phase)], bigger=self.bigger)
            if open_ or best is None:
                return None
            base = best.params
            before += len(own)
        return None

    def batch(self, trials: Sequence[Trial], room: int) -> list[Trial]:
        """Up to ``room`` trials that can be made at a time after ``trials``, since none depends on another's end."""
        found: list[Trial] = []
        while len(found) < room and (trial := self.next(trials, found)) is not None:
            found.append(trial)
        return found

    def _until(self, last: Phase) -> set[str]:
        return {phase.name for phase in self.phases[: self.phases.index(last) + 1]}

    def _params(
        self, phase: Phase, base: Mapping[str, Any], trials: Sequence[Trial], under_way: Sequence[Trial], place: int
    ) -> dict[str, Any] | None:
        """What comes next in a phase after all ``trials``, as the trial at a ``place`` in it."""
        if phase.sampler == "each":
            return self._each(phase, base, trials, under_way)
        own = [trial for trial in trials if trial.phase == phase.name]
        if phase.sampler == "grid":
            made = [trial.params for trial in (*own, *under_way)]
            return next((params for params in combinations(phase, base) if params not in made), None)
        asked = len(own) + len(under_way)
        if asked >= phase.trials or (under_way and phase.sampler == "tpe" and asked >= STARTUP):
            return None
        return {**base, **_drawn(phase, {**self.presets, **base}, own, self.seed + place, bigger=self.bigger)}

    def _each(
        self, phase: Phase, base: Mapping[str, Any], trials: Sequence[Trial], under_way: Sequence[Trial]
    ) -> dict[str, Any] | None:
        """The first value not tried of the first setting not done; those before it stand at their best.

        Where all values of a setting did worse than a trial without it, its preset stays.
        """
        own = [trial for trial in trials if trial.phase == phase.name]
        current = dict(base)
        for key, values in phase.space.items():
            assert isinstance(values, OneOf)
            wanted = [{**current, key: value} for value in values.values]
            tried = [trial for trial in own if trial.params in wanted]
            being = [trial.params for trial in under_way if trial.params in wanted]
            missing = [params for params in wanted if params not in [*(trial.params for trial in tried), *being]]
            if missing or being:
                return missing[0] if missing else None
            preset = [trial for trial in trials if trial.params == current]
            best = best_of([*preset, *tried], bigger=self.bigger)
            current = dict(best.params) if best else current
        return None


def presets_of(config: Config, phases: Sequence[Phase]) -> dict[str, float]:
    """The numbers that the settings of some phases have in ``config``."""
    typed = flat(config.settings.model_dump(mode="json", by_alias=True))
    names = [name for phase in phases for name in phase.space]
    found: dict[str, Any] = {
        name: typed.get(FLAT_KEYS.get(name, name), config.final_config_dict.get(name)) for name in names
    }
    return {
        name: value for name, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def combinations(phase: Phase, base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of a phase's lists, the last setting fastest."""
    lists = [values.values for values in phase.space.values() if isinstance(values, OneOf)]
    for combination in product(*lists):
        yield {**base, **dict(zip(phase.space, combination, strict=True))}


def _drawn(phase: Phase, base: Mapping[str, Any], own: Sequence[Trial], seed: int, *, bigger: bool) -> dict[str, Any]:
    """Values drawn by optuna from what the trials of this phase say, ranges around those of ``base``.

    The study is made anew for each trial, its sampler seeded by the trial's place: nothing of it has to be kept.
    """
    optuna = require_optuna()
    space = {
        key: values.near(base[key]) if isinstance(values, Around) else values
        for key, values in phase.space.items()
        if not isinstance(values, Around) or key in base
    }
    distributions = {key: _distribution(optuna, values) for key, values in space.items()}
    if phase.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)
    study = optuna.create_study(direction="maximize" if bigger else "minimize", sampler=sampler)
    for trial in own:
        # A trial that failed before and was made again may have moved the best value, and the range around it.
        if trial.score is not None and all(_inside(space[key], trial.params[key]) for key in space):
            params = {key: _coded(space[key], trial.params[key]) for key in space}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=float(trial.score))
            )
    asked = study.ask(distributions).params
    return {key: _decoded(space[key], value) for key, value in asked.items()}


def require_optuna() -> Any:
    """The library that draws values, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "Drawing values needs the package optuna: run 'pip install optuna' (or the extra 'search' of this "
            "package), or search lists with sampler each or grid."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(optuna: Any, values: OneOf | Range) -> Any:
    """Values of a list by their place in it: optuna takes no lists or mappings as choices."""
    kinds = optuna.distributions
    if isinstance(values, OneOf):
        return kinds.CategoricalDistribution(range(len(values.values)))
    if values.whole:
        return kinds.IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _inside(values: OneOf | Range, value: Any) -> bool:
    if isinstance(values, OneOf):
        return value in values.values
    return values.low * (1 - 1e-5) <= value <= values.high * (1 + 1e-5)  # as far as :func:`_decoded` rounds


def _coded(values: OneOf | Range, value: Any) -> Any:
    return values.values.index(value) if isinstance(values, OneOf) else min(max(value, values.low), values.high)


def _decoded(values: OneOf | Range, value: Any) -> Any:
    """A value that was drawn; of a number six digits are kept, so that settings stay readable."""
    if isinstance(values, OneOf):
        return values.values[value]
    return value if isinstance(value, int) else float(f"{value:.6g}")
