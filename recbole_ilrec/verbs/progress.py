"""What is said of the runs of a plan before they are made and as they come."""

import logging
from typing import Any

from recbole_ilrec.verbs.experiments import Experiments, Outcome, seconds

logger = logging.getLogger(__name__)


class Progress:
    """Notes outcomes as they come, with one line each."""

    def __init__(self, count: int, outcomes: dict[Any, Outcome]):
        self.count, self.outcomes, self.made = count, outcomes, 0

    def __call__(self, run: Any, outcome: Outcome) -> None:
        self.made += 1
        self.outcomes[run] = outcome
        took = "" if outcome.record is None else f" in {seconds(outcome.record) / 60:.1f} min"
        logger.info("[%d/%d] %s: %s", self.made, self.count, run, outcome.error or f"done{took}")


def dry_run(outcomes: dict[Any, Outcome], experiments: Experiments) -> str:
    """A line a run: whether it is there, or what like ones took; and what is to do in all."""
    lines, known, unknown = [], 0.0, 0
    for run, outcome in outcomes.items():
        if outcome.record is not None:
            state = "finished"
        elif outcome.error:
            state = f"will fail: {outcome.error}"
        else:
            estimate = experiments.estimate(run)
            state = "time and memory unknown: no like run has a record"
            if estimate.seconds is None:
                unknown += 1
            else:
                known += estimate.seconds
                state = f"about {estimate.seconds / 60:.1f} min, {(estimate.memory_mb or 0) / 1000:.1f} GB"
        lines.append(f"{run}: {state}")
    to_do = [f"about {known / 60:.1f} min"] if known or not unknown else []
    to_do += [f"{unknown} of unknown length"] if unknown else []
    return "\n".join([*lines, f"{len(outcomes)} runs; to do: {' and '.join(to_do)}", ""])
