"""What a run is made of, as hashes; :mod:`recbole_ilrec.configuration.outcome` takes them."""

import hashlib
from dataclasses import dataclass, replace

UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunKeys:
    """Hashes of what a run is made of, as it began: files that change while it works are no part of it.

    Attributes:
        data: files of the data set and what selects from them.
        interactions: the file of interactions alone; ``None`` where the parts of the split are files of their own.
        settings: those that decide the outcome.
        run: tells runs with different outcomes apart.
        configuration: the same without the seed: equal in runs whose mean is of one thing.
        code: the modules of this package.
        training: ``run`` of all runs with this training: a trial of a search, which leaves the test part alone, is one.
        begun: ``run`` of the run that this one goes on with, where that was one with other settings or data, or
            :data:`UNKNOWN`: what comes out is neither of both.
    """

    data: str
    interactions: str | None
    settings: str
    run: str
    configuration: str
    code: str
    training: frozenset[str]
    begun: str | None = None

    def going_on(self, begun: str | None) -> "RunKeys":
        """The keys of a run that goes on with the run ``begun``; ``None`` where it does not say what it was."""
        if begun in self.training:
            return self
        begun = begun or UNKNOWN
        mixed = hashlib.sha256(f"{begun} {self.run}".encode()).hexdigest()[: len(self.run)]
        return replace(self, run=mixed, begun=begun)
