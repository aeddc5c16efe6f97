"""What a check found, and how it is told: aligned text, plain values for JSON, a few lines for the log."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

WIDTH = 120
SEVERAL = 0.01
"""Share of users, items or rows from which on something needs attention instead of a note."""


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing when numbers are compared; nothing has to be done."""
    ATTENTION = "attention"
    """Results would mislead, or something is lost that a setting could keep."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        group: what was looked at: data, split, items, prompts, candidates.
        name: the check.
        level: see :class:`Level`.
        text: what was found and, where something can be done, what.
        numbers: the counts in it, for programs.
    """

    group: str
    name: str
    level: Level
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


def some_or_note(part: float, whole: float, *, limit: float = SEVERAL) -> Level:
    """``ok`` for none, ``attention`` from the share ``limit`` on, ``note`` between."""
    if not part:
        return Level.OK
    return Level.ATTENTION if part >= limit * whole else Level.NOTE


def of(part: int, whole: int) -> str:
    """``"12 of 1,000 (1.2%)"``."""
    return f"{part:,} of {whole:,} ({part / max(whole, 1):.1%})"


def needing_attention(findings: Sequence[Finding]) -> list[Finding]:
    """Those that make the doctor end with status 1."""
    return [finding for finding in findings if finding.level is Level.ATTENTION]


def summary(findings: Sequence[Finding]) -> str:
    """``"12 ok, 3 notes, 1 needs attention"``."""
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    notes = f"{count[Level.NOTE]} note{'' if count[Level.NOTE] == 1 else 's'}"
    attention = f"{count[Level.ATTENTION]} need{'s' if count[Level.ATTENTION] == 1 else ''} attention"
    return f"{count[Level.OK]} ok, {notes}, {attention}"


def render(findings: Sequence[Finding]) -> str:
    """Aligned columns (level, check, what was found) under the name of each group, ending with the summary."""
    name_width = max((len(finding.name) for finding in findings), default=0)
    level_width = max(map(len, Level))
    lines: list[str] = []
    group = None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group] if lines else [group]
        head = f"  {finding.level:<{level_width}}  {finding.name:<{name_width}}  "
        lines += textwrap.wrap(
            finding.text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
    return "\n".join([*lines, "", summary(findings)])


def as_plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as JSON holds them."""
    return [
        {"group": f.group, "check": f.name, "level": str(f.level), "text": f.text, **dict(f.numbers)} for f in findings
    ]
