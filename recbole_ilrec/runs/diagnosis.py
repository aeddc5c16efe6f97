"""The doctor's look at a run; of it the run itself logs what needs attention.

Nothing is trained for it, but identifiers that are neither given nor cached are learned, as the run would.
"""

import logging
from collections.abc import Sequence
from typing import Any

from recbole_ilrec.checks.finding import Finding, needing_attention, summary
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import Data
from recbole_ilrec.runs.data_diagnosis import data_findings, leak_findings, list_findings

logger = logging.getLogger(__name__)


def diagnose(config: Config, data: Data, model: Any = None) -> list[Finding]:
    """All findings of a run.

    Args:
        config: its settings.
        data: its data.
        model: its language model; ``None`` leaves out what depends on one.
    """
    findings = [*data_findings(config, data), *leak_findings(config, data), *list_findings(config, data)]
    if model is None:
        return findings
    from recbole_ilrec.runs.model_diagnosis import item_findings, training_findings

    return [*findings, *training_findings(config, data, model), *item_findings(config, data, model)]


def log_findings(findings: Sequence[Finding]) -> None:
    """One line that counts, and one for each finding that needs attention."""
    logger.info("Data check: %s (the verb 'doctor' shows all)", summary(findings))
    for finding in needing_attention(findings):
        logger.warning("Data check, %s: %s", finding.name, finding.text)
