"""``NAME.candidates.jsonl``: who chooses when, among which items, in which part of the data; one JSON object a line.

``{"phase": "train", "user": "a", "place": 3, "candidates": ["7", "2", ...]}`` says that user ``a``, after the first
three items of the sequence in ``NAME.inter``, chose one of these items: the fourth of the sequence is among them.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import write_atomically
from recbole_ilrec.preparation.json_lines import read_json_lines

SUFFIX = ".candidates.jsonl"
PHASES = ("train", "valid", "test")


@dataclass(frozen=True)
class CandidateRow:
    """One choice.

    Attributes:
        phase: ``train``, ``valid`` or ``test``.
        user: user token.
        place: items of the user's sequence before the one that was chosen.
        candidates: item tokens in the order in which they are shown, all different.
    """

    phase: str
    user: str
    place: int
    candidates: tuple[str, ...]


def write_candidates(path: Path, rows: Iterable[CandidateRow]) -> int:
    """Write the file, atomically; returns how many rows there are."""
    count = 0
    with write_atomically(path) as stream:
        for row in rows:
            stream.write(json.dumps(asdict(row)) + "\n")
            count += 1
    return count


def read_candidates(path: Path) -> list[CandidateRow]:
    """All rows in the order of the file.

    Raises:
        UserError: a line of another shape, a repeated candidate, a choice that stands twice, a phase without rows.
    """
    rows, seen = [], set()
    for number, record in read_json_lines(path):
        row = _row(path, number, record)
        if (row.user, row.place) in seen:
            raise UserError(f"{path}, line {number}: user '{row.user}', place {row.place} stands twice. Keep one line.")
        seen.add((row.user, row.place))
        rows.append(row)
    absent = [phase for phase in PHASES if all(row.phase != phase for row in rows)]
    if absent:
        raise UserError(f"{path} has no row of phase {', '.join(absent)}: all of {', '.join(PHASES)} are needed.")
    return rows


def _row(path: Path, number: int, record: dict[str, object]) -> CandidateRow:
    phase, user, place, items = (record.get(key) for key in ("phase", "user", "place", "candidates"))
    shape = phase in PHASES and isinstance(user, str) and type(place) is int and place >= 1 and isinstance(items, list)
    if not shape or set(record) != {"phase", "user", "place", "candidates"}:
        raise UserError(
            f'{path}, line {number}: not {{"phase": {"|".join(PHASES)}, "user": TOKEN, "place": NUMBER above 0, '
            '"candidates": [TOKEN, ...]}. Mend or remove the line.'
        )
    assert isinstance(items, list)
    if len(items) < 2 or not all(isinstance(item, str) and item for item in items) or len(set(items)) < len(items):
        raise UserError(
            f"{path}, line {number}: the candidates must be at least two different item tokens, as text. Mend the line."
        )
    return CandidateRow(str(phase), str(user), int(str(place)), tuple(items))
