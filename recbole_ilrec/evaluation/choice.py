"""Answers to a choice among candidates: which candidate an answer names, and how often that is the true item.

Two rules. ``exact``: the answer is a candidate's name. ``substring``: the answer contains the name of exactly one
candidate, as the published evaluation of S-DPO (arXiv:2406.09215) has it. Knows texts; never models.

Choice: a name that is part of another candidate's name ("Hope", "Hope Sandoval") makes a right answer invalid under the
substring rule, and an answer cut short can name the wrong one. So ``candidates.matching`` is ``exact`` unless the
published rule is asked for; a run's result holds both.
"""

from collections.abc import Sequence

MATCHINGS = ("exact", "substring")
SURROUNDINGS = ' \t\r\n"'
"""What is taken off answers and names before they are compared or embedded: blanks and quotes (and so, from both, the
inch mark at the end of ``Drum 14"``)."""


def named(answer: str, names: Sequence[str], matching: str) -> str | None:
    """The candidate's name that an answer names, ``None`` where it names none or more than one.

    Args:
        answer: what was written.
        names: of the candidates, as they stand in the prompt; the same name twice counts once.
        matching: ``exact`` or ``substring``.
    """
    answer, own = answer.strip(SURROUNDINGS), {name.strip(SURROUNDINGS) for name in names}
    if matching == "exact":
        return answer if answer in own else None
    found = [name for name in own if name in answer]
    return found[0] if len(found) == 1 else None


def choice_ratios(
    answers: Sequence[str], names: Sequence[Sequence[str]], targets: Sequence[str], matching: str
) -> dict[str, float]:
    """HitRatio@1 and ValidRatio.

    Args:
        answers: one for each row.
        names: of each row's candidates.
        targets: name of each row's true item.
        matching: ``exact`` or ``substring``.

    Returns:
        ``validratio``: share of the answers that name a candidate; ``hitratio@1``: share that name the true item, out
        of all answers, the invalid ones included.
    """
    found = [named(answer, own, matching) for answer, own in zip(answers, names, strict=True)]
    hits = sum(name == target.strip(SURROUNDINGS) for name, target in zip(found, targets, strict=True))
    return {"hitratio@1": hits / len(found), "validratio": sum(name is not None for name in found) / len(found)}
