"""What a source of raw data hands over, and the table of sources. A new source is one file and one line here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recbole_ilrec.preparation.candidate_lists import CandidateRow
from recbole_ilrec.registry import Registry


@dataclass(frozen=True)
class SourceData:
    """A dataset in memory or as a stream, ready to be written.

    Attributes:
        sequences: (user token, item tokens in time order), every user once; read once.
        tie_rule: how interactions of one user at one time are ordered, for the manifest.
        texts: item token -> field -> text, or ``None`` when the source has no texts.
        index: item token -> semantic-ID tokens, all of one length, or ``None``.
        users: content of LC-Rec's file of users' texts, or ``None``.
        candidates: published choices among candidates, every item of which has a text, or ``None``.
    """

    sequences: Iterable[tuple[str, Sequence[str]]]
    tie_rule: str
    texts: Mapping[str, Mapping[str, str]] | None = None
    index: Mapping[str, Sequence[str]] | None = None
    users: Mapping[str, object] | None = None
    candidates: Sequence[CandidateRow] | None = None


@dataclass(frozen=True)
class Source:
    """A kind of raw data.

    Attributes:
        find: ``(folder, dataset name) -> role -> file``; looks at names only; UserError when one is missing.
        read: ``(files, work folder) -> SourceData``; the work folder may hold parts and is removed afterwards.
        settings: what else decides the result, for the manifest.
    """

    find: Callable[[Path, str], Mapping[str, Path]]
    read: Callable[[Mapping[str, Path], Path], SourceData]
    settings: Mapping[str, object] = field(default_factory=dict)


SOURCES: Registry[Source] = Registry(
    "source",
    {
        "clicks": "recbole_ilrec.preparation.clicks:CLICKS",
        "lcrec": "recbole_ilrec.preparation.lcrec:LCREC",
        "amazon18": "recbole_ilrec.preparation.amazon18:AMAZON18",
        "sdpo": "recbole_ilrec.preparation.sdpo:SDPO",
    },
)
"""Value of ``--source`` -> the source."""
