"""What a hyper-parameter search may try: read from YAML or from a range file of RecBole, phase by phase.

Knows plain values only: what a setting means, and how values are drawn, is none of its business.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_ilrec.errors import UserError, did_you_mean, unknown_name

SAMPLERS = ("each", "grid", "random", "tpe")
_KEYS = ("title", "model", "phases")
_PHASE_KEYS = ("sampler", "trials", "space")
_RANGE_KEYS = ("low", "high", "log", "step")
_KINDS = ("choice", "uniform", "quniform", "loguniform")
TRIALS = 20
"""Trials of a phase that draws them, unless it says another number."""


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both allowed; whole where both are, and the step is."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


@dataclass(frozen=True)
class Around:
    """Near the best value of the phases before: from best / ``times`` to best * ``times``, or best +- ``plus``.

    What is not negative stays so.

    Attributes:
        whole: whether only whole numbers are meant; it follows from the phases before.
    """

    times: float | None = None
    plus: float | None = None
    whole: bool = field(default=False, repr=False)

    def near(self, best: float) -> Range:
        """The range around ``best``."""
        if self.times is not None:
            low, high = sorted((best / self.times, best * self.times))
        else:
            assert self.plus is not None
            low, high = max(best - self.plus, 0) if best >= 0 else best - self.plus, best + self.plus
        low, high = (math.ceil(low), math.floor(high)) if self.whole else (low, high)
        return Range(low, high, log=self.times is not None and best > 0)


Values = OneOf | Range | Around


@dataclass(frozen=True)
class Phase:
    """Settings that are searched together.

    Attributes:
        sampler: ``grid``, every combination; ``each``, one setting after another, the others at the best so far;
            ``random``; ``tpe``, drawn by what was good so far.
        trials: how many are drawn; the first two samplers come to an end by themselves.
    """

    name: str
    sampler: str
    trials: int
    space: Mapping[str, Values]


@dataclass(frozen=True)
class Space:
    """A whole search: its phases in order. ``model`` is the one it is made for, if any."""

    name: str
    title: str
    model: str | None
    phases: tuple[Phase, ...]


def read_space(name: str, content: Mapping[str, Any]) -> Space:
    """A search from the mapping in its YAML file: ``phases``, or the keys of a single one.

    Raises:
        UserError: a key or value that is unknown, missing or of the wrong kind, with the name of the space.
    """
    where = f"search space '{name}'"
    for key in content:
        if key not in (*_KEYS, *_PHASE_KEYS):
            raise _unknown(where, key, (*_KEYS, *_PHASE_KEYS))
    phases = content.get("phases") or {"search": {key: content[key] for key in _PHASE_KEYS if key in content}}
    if not isinstance(phases, Mapping):
        raise UserError(f"{where}: 'phases' is a mapping from a name to sampler, trials and space. See docs/search.md.")
    read: list[Phase] = []
    for label, phase in phases.items():
        read.append(_after(where, read, _phase(f"{where}, phase '{label}'", str(label), phase)))
    model = content.get("model")
    return Space(name, str(content.get("title", name)), None if model is None else str(model), tuple(read))


def _after(where: str, before: Sequence[Phase], phase: Phase) -> Phase:
    """A phase whose :class:`Around` fit what the phases before it search."""
    space = dict(phase.space)
    for key, values in phase.space.items():
        if isinstance(values, Around):
            earlier = [found for one in before if (found := one.space.get(key)) is not None and _all_numbers(found)]
            if not earlier:
                raise UserError(
                    f"{where}, phase '{phase.name}': {key} is to be near its best value, but no phase before searches "
                    "it among numbers: give a list, or low and high."
                )
            space[key] = replace(values, whole=all(map(_all_whole, earlier)))
    return replace(phase, space=space)


def _phase(where: str, name: str, content: Any) -> Phase:
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: give sampler, trials and space. See docs/search.md.")
    for key in content:
        if key not in _PHASE_KEYS:
            raise _unknown(where, key, _PHASE_KEYS)
    given = content.get("space")
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{where}: 'space' is missing: map each setting to a list of values, or to low and high.")
    space = {str(key): _values(f"{where}: {key}", values) for key, values in given.items()}
    lists = all(isinstance(values, OneOf) for values in space.values())
    return checked_phase(where, name, content.get("sampler", "grid" if lists else "tpe"), content.get("trials"), space)


def checked_phase(where: str, name: str, sampler: Any, trials: Any, space: Mapping[str, Values]) -> Phase:
    """A phase whose sampler exists and can take its space.

    Raises:
        UserError: it cannot.
    """
    if sampler not in SAMPLERS:
        raise unknown_name(f"sampler of {where}:", sampler, SAMPLERS)
    if sampler in ("grid", "each"):
        for key, values in space.items():
            if not isinstance(values, OneOf):
                raise UserError(f"{where}: sampler={sampler} needs a list of values for {key}: give one, or use tpe.")
    trials = TRIALS if trials is None else trials
    if type(trials) is not int or trials < 1:
        raise UserError(f"{where}: trials={trials!r} is not allowed: give a whole number of at least 1.")
    return Phase(name, sampler, trials, space)


def _values(where: str, given: Any) -> Values:
    if isinstance(given, list) and given:
        return OneOf(tuple(given))
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: {given!r} is not allowed: give a list of values, or {{low: 0.1, high: 1}}.")
    if set(given) in ({"times"}, {"plus"}):
        ((kind, number),) = given.items()
        if not _number(number) or number <= (1 if kind == "times" else 0):
            raise UserError(f"{where}: {dict(given)} is not allowed: times is greater than 1, plus greater than 0.")
        return Around(**given)
    for key in given:
        if key not in _RANGE_KEYS:
            raise _unknown(where, key, (*_RANGE_KEYS, "times", "plus"))
    return _range(where, given.get("low"), given.get("high"), bool(given.get("log", False)), given.get("step"))


def _range(where: str, low: Any, high: Any, log: bool, step: Any) -> Range:
    if not _number(low) or not _number(high) or not low < high:
        raise UserError(f"{where}: low={low!r}, high={high!r} is not allowed: give two numbers, the smaller first.")
    if log and (low <= 0 or step is not None):
        raise UserError(f"{where}: with log, low has to be positive and there is no step.")
    if step is not None and (not _number(step) or step <= 0):
        raise UserError(f"{where}: step={step!r} is not allowed: give a positive number.")
    return Range(low, high, log, step)


def _all_numbers(values: Values) -> bool:
    return not isinstance(values, OneOf) or all(map(_number, values.values))


def _all_whole(values: Values) -> bool:
    return all(type(value) is int for value in values.values) if isinstance(values, OneOf) else values.whole


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unknown(where: str, key: Any, known: Sequence[str]) -> UserError:
    return UserError(f"{where}: unknown key '{key}'. {did_you_mean(str(key), known)}See docs/search.md.")


def first_of(phase: Phase) -> dict[str, Any]:
    """The first value of each list and the lower end of each range; nothing for what depends on earlier phases."""
    first = {key: values.values[0] for key, values in phase.space.items() if isinstance(values, OneOf)}
    return first | {key: values.low for key, values in phase.space.items() if isinstance(values, Range)}


# ---- RecBole's range files


def read_range_file(name: str, text: str) -> Space:
    """A search from RecBole's ``hyper.test``: a setting, how it is drawn, and its values on each line.

    ``choice [a,b]``, ``uniform low,high``, ``quniform low,high,step`` and ``loguniform low,high``, whose bounds are
    exponents of e as in hyperopt, which RecBole hands them to. Where all lines are choices every combination is tried,
    RecBole's own default; otherwise values are drawn.

    Source: https://recbole.io/docs/user_guide/usage/parameter_tuning.html

    Raises:
        UserError: a line that cannot be read, with its number.
    """
    space: dict[str, Values] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        where = f"{name}:{number}"
        if len(words) < 3 or words[1] not in _KINDS:
            raise UserError(f"{where}: '{line.strip()}' cannot be read: write 'NAME {'|'.join(_KINDS)} VALUES'.")
        if words[0] in space:
            raise UserError(f"{where}: '{words[0]}' stands twice: keep one of the lines.")
        space[words[0]] = _drawn(where, words[1], words[2])
    if not space:
        raise UserError(f"{name} holds no setting: write lines such as 'learning_rate choice [0.01,0.001]'.")
    lists = all(isinstance(values, OneOf) for values in space.values())
    phase = Phase("search", "grid" if lists else "tpe", TRIALS, space)
    return Space(name, name, None, (phase,))


def _drawn(where: str, kind: str, text: str) -> Values:
    try:
        given = ast.literal_eval(text if kind == "choice" else f"[{text}]")
    except (ValueError, SyntaxError):
        raise UserError(f"{where}: '{text}' cannot be read: write a list such as [0.1,0.2], or low,high.") from None
    if kind == "choice":
        return _values(where, list(given) if isinstance(given, tuple) else given)
    if len(given) != (3 if kind == "quniform" else 2) or not all(map(_number, given)):
        raise UserError(f"{where}: {kind} takes {'low,high,step' if kind == 'quniform' else 'low,high'}, not '{text}'.")
    if kind == "loguniform":
        return _range(where, math.exp(given[0]), math.exp(given[1]), log=True, step=None)
    low, high, *step = given
    return _range(where, float(low) if kind == "uniform" else low, high, log=False, step=step[0] if step else None)
