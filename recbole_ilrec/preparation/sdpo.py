"""S-DPO's files for choosing among candidates: ``X-train.json``, ``X-val.json``, ``X-test.json``.

Each is a list of ``{"historyList": "a::b::c", "itemList": ["d", ...], "trueSelection": "d"}`` with names of items.
Public reference: the LastFM files of S-DPO (Chen et al., NeurIPS 2024, arXiv:2406.09215).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.candidate_lists import CandidateRow
from recbole_ilrec.preparation.source import Source, SourceData

logger = logging.getLogger(__name__)

FILES = {"train": "-train.json", "valid": "-val.json", "test": "-test.json"}
BETWEEN = "::"
EVERY = 10
"""Where there is no training file, each tenth user of the validation file validates and the others train."""


@dataclass
class _User:
    """Names of a user's items in order, and the candidates of each choice by its place in them."""

    items: list[str]
    choices: list[tuple[int, list[str]]] = field(default_factory=list)


def find(folder: Path, name: str) -> dict[str, Path]:
    """The files of one dataset in ``folder``, found by suffix: ``X`` need not be ``name``, but there must be one ``X``.

    Raises:
        UserError: no folder, no ``X-test.json`` or several of them, or neither a training nor a validation file.
    """
    wanted = f"the sdpo source needs X{FILES['test']} and X{FILES['train']} or X{FILES['valid']} there"
    if not folder.is_dir():
        raise UserError(f"--path={folder} is not a folder: {wanted}.")
    stems = sorted(path.name.removesuffix(FILES["test"]) for path in folder.glob(f"*{FILES['test']}"))
    stems = [stem for stem in stems if stem.lower() == name.lower()] or stems
    if len(stems) != 1:
        found = f"holds several datasets ({', '.join(stems)})" if stems else f"has no *{FILES['test']}"
        raise UserError(f"{folder} {found}: {wanted}, of one dataset or of one called '{name}'.")
    files = {phase: folder / f"{stems[0]}{suffix}" for phase, suffix in FILES.items()}
    files = {phase: path for phase, path in files.items() if path.is_file()}
    if len(files) == 1:
        raise UserError(f"{folder} holds {files['test'].name} alone: {wanted}.")
    return files


def read(files: Mapping[str, Path], work: Path) -> SourceData:
    """Sequences of users, their choices, and the names as titles; ``work`` is not used, the files fit in memory.

    Choice: the files name no users. Rows follow each other, and where a history is that of the row before with the item
    chosen there (cut to the longest history of the files), it is the same user's; so the sequences are whole again,
    and what is trained on them sees no choice of another file.

    Choice: the training file of LastFM is not published with the others. Without it, nine of ten users of the
    validation file train and each tenth one validates; the test file is taken as it is.

    Raises:
        UserError: a file is not JSON or has another shape, or a true selection is not among its candidates.
    """
    rows = {phase: _rows(path) for phase, path in files.items()}
    window = max(len(history) for some in rows.values() for history, _, _ in some)
    users = {phase: _users(some, window) for phase, some in rows.items()}
    if "train" not in users or "valid" not in users:
        given = "train" if "train" in users else "valid"
        users |= {
            "train": [user for number, user in enumerate(users[given], start=1) if number % EVERY],
            "valid": users[given][EVERY - 1 :: EVERY],
        }
        logger.info("%s is cut by users: nine of ten train, each tenth validates", files[given].name)
    named = {f"{phase}-{n}": (phase, u) for phase in FILES for n, u in enumerate(users[phase], start=1)}
    names = [name for _, user in named.values() for name in user.items]
    names += [name for _, user in named.values() for _, choice in user.choices for name in choice]
    number = {name: str(n) for n, name in enumerate(dict.fromkeys(names), start=1)}
    choices = [
        CandidateRow(phase, token, place, tuple(number[name] for name in shown))
        for token, (phase, user) in named.items()
        for place, shown in user.choices
    ]
    return SourceData(
        [(token, [number[name] for name in user.items]) for token, (_, user) in named.items()],
        tie_rule="order of the published histories",
        texts={token: {"title": name} for name, token in number.items()},
        candidates=choices,
    )


def _users(rows: list[tuple[list[str], list[str], str]], window: int) -> list[_User]:
    users: list[_User] = []
    for history, shown, chosen in rows:
        if not users or users[-1].items[-window:] != history:
            users.append(_User(list(history)))
        users[-1].choices.append((len(users[-1].items), shown))
        users[-1].items.append(chosen)
    return users


def _rows(path: Path) -> list[tuple[list[str], list[str], str]]:
    """(history, candidates, chosen) of each row."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}). Copy the file again.") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must be a list of rows and is none, or is empty. Copy the file again.")
    return [_row(path, number, record) for number, record in enumerate(content, start=1)]


def _row(path: Path, number: int, record: object) -> tuple[list[str], list[str], str]:
    fields = record if isinstance(record, dict) else {}
    history, shown, chosen = (fields.get(key) for key in ("historyList", "itemList", "trueSelection"))
    past = history.split(BETWEEN) if isinstance(history, str) else []
    if not (past and isinstance(shown, list) and all(isinstance(name, str) and name.strip() for name in past + shown)):
        raise UserError(
            f'{path}, row {number}: not {{"historyList": "a{BETWEEN}b", "itemList": ["c", ...], "trueSelection": "c"}} '
            "with names of items. Mend or remove the row."
        )
    if chosen not in shown or len(set(shown)) < max(len(shown), 2):
        raise UserError(
            f"{path}, row {number}: itemList must hold at least two names, none twice, and trueSelection {chosen!r} "
            "among them. Mend or remove the row."
        )
    return past, shown, str(chosen)


SDPO = Source(find, read, settings={"every": EVERY})
