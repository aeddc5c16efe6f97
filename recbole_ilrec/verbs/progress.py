"""What is said of the runs of a plan before they are made and as they come."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from recbole_ilrec.errors import UserError
from recbole_ilrec.report.costs import gigabytes
from recbole_ilrec.verbs.experiments import Experiments, Outcome
from recbole_ilrec.verbs.like_runs import Expected, seconds

logger = logging.getLogger(__name__)


class OutcomeLog:
    """Notes outcomes as they come, with one line each."""

    def __init__(self, count: int, outcomes: dict[Any, Outcome]):
        self.count, self.outcomes, self.made = count, outcomes, 0

    def __call__(self, run: Any, outcome: Outcome) -> None:
        self.made += 1
        self.outcomes[run] = outcome
        took = "" if outcome.record is None else f" in {seconds(outcome.record) / 60:.1f} min"
        logger.info("[%d/%d] %s: %s", self.made, self.count, run, outcome.error or f"done{took}")


def failures(outcomes: Mapping[Any, Outcome]) -> dict[str, list[Any]]:
    """Why runs fail -> which, in the order of the runs; the same line for many runs is to be read once."""
    found: dict[str, list[Any]] = {}
    for run, outcome in outcomes.items():
        if outcome.error:
            found.setdefault(outcome.error, []).append(run)
    return found


def refuse_hopeless(what: str, outcomes: Mapping[Any, Outcome]) -> None:
    """Stop where no run of a plan can be made, before a page of failed cells is.

    Args:
        what: the plan, as it was asked for.
        outcomes: what is known of its runs before any is made.

    Raises:
        UserError: every run fails: why, each reason once.
    """
    found = failures(outcomes)
    if not outcomes or sum(map(len, found.values())) < len(outcomes):
        return
    reasons = [error if len(found) == 1 else f"{len(runs)} of them: {error}" for error, runs in found.items()]
    raise UserError(f"{what}: none of its {len(outcomes)} runs can be made: {' '.join(reasons)}")


def dry_run(outcomes: Mapping[Any, Outcome], experiments: Experiments) -> str:
    """A line a run: whether it is there, or what like ones took; why others will fail; and what is to do in all."""
    possible = {run: outcome.record is not None for run, outcome in outcomes.items() if not outcome.error}
    expected = experiments.expected(run for run, finished in possible.items() if not finished)
    lines = [
        f"{run}: {'finished' if finished else _said(expected[run], needs_download=experiments.needs_download(run))}"
        for run, finished in possible.items()
    ]
    for error, runs in failures(outcomes).items():
        lines.append(f"{_some(runs)} will fail: {error}")
    failing = sum(bool(outcome.error) for outcome in outcomes.values())
    which = "all" if failing == len(outcomes) else failing
    count = f"{len(outcomes)} runs" + (f", {which} of them will fail" if failing else "")
    return "\n".join([*lines, f"{count}; to do: {_to_do(expected.values())}", ""])


def _said(expected: Expected, *, needs_download: bool) -> str:
    if expected.seconds is not None:
        elsewhere = f" (as on {expected.where})" if expected.where else ""
        return f"about {expected.seconds / 60:.1f} min, {gigabytes(expected.memory_mb or 0):.1f} GB{elsewhere}"
    if needs_download:
        return "time and memory unknown: its data are not here and would be downloaded first"
    return "time and memory unknown: no like run has a record"


def _to_do(all_expected: Collection[Expected]) -> str:
    """The time of all runs one after another; less where they share stages, such as a reward model."""
    known = [expected for expected in all_expected if expected.seconds is not None]
    unknown = len(all_expected) - len(known)
    parts = []
    if known:
        least, most = (f"{sum(getattr(each, name) for each in known) / 60:.1f}" for name in ("own_seconds", "seconds"))
        elsewhere = sorted({each.where for each in known if each.where})
        where = f" (as on {'; '.join(elsewhere)})" if elsewhere else ""
        parts.append(f"about {least if least == most else f'{least} to {most}'} min one after another{where}")
    if unknown:
        parts.append(f"{unknown} of unknown length (measure one: recbole-ilrec estimate and its options)")
    return " and ".join(parts) or "nothing"


def _some(runs: Sequence[Any]) -> str:
    return str(runs[0]) if len(runs) == 1 else f"{len(runs)} runs, the first of them {runs[0]},"
