"""What a run is made of, as hashes; :mod:`recbole_ilrec.configuration.outcome` takes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunKeys:
    """Hashes of what a run is made of, as it began: files that change while it works are no part of it.

    Attributes:
        data: files of the data set and what selects from them.
        interactions: the file of interactions alone; ``None`` where the parts of the split are files of their own.
        settings: those that decide the outcome.
        run: tells runs with different outcomes apart.
        code: the modules of this package.
    """

    data: str
    interactions: str | None
    settings: str
    run: str
    code: str
