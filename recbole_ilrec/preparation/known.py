"""The paper's datasets: where their raw files are public, and the counts to expect (Table 3)."""

from dataclasses import dataclass
from pathlib import Path

from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.preparation.download import DownloadError, download_file

BASES = (
    "https://jmcauley.ucsd.edu/data/amazon_v2",
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
)
"""Amazon Reviews 2018 at its publisher, tried in this order. The data carry no licence, so they are not shipped."""


@dataclass(frozen=True)
class KnownDataset:
    """A dataset of the paper.

    Attributes:
        name: as the paper and ``--dataset`` call it.
        category: as Amazon Reviews 2018 calls it.
        users: RecBole's ``user_num``, which counts ``[PAD]``, as Table 3 prints it.
        items: RecBole's ``item_num``, likewise.
        interactions: number of interactions.
        published: SHA-256 of ``NAME.inter`` as ``prepare --source=lcrec`` writes it from the sequences that LC-Rec's
            authors publish; ``None`` where they were not at hand.
    """

    name: str
    category: str
    users: int
    items: int
    interactions: int
    published: str | None = None

    def files(self) -> tuple[str, str]:
        """Ratings and metadata, as paths below a base address."""
        return f"categoryFilesSmall/{self.category}.csv", f"metaFiles2/meta_{self.category}.json.gz"

    def urls(self) -> tuple[str, str]:
        """Addresses of ratings and metadata at the first base."""
        ratings, metadata = self.files()
        return f"{BASES[0]}/{ratings}", f"{BASES[0]}/{metadata}"


KNOWN: dict[str, KnownDataset] = {
    known.name: known
    for known in (
        KnownDataset(
            *("Instrument", "Musical_Instruments", 24_773, 9_923, 206_153),
            published="c12a607b5c5ee8085c7b24ce9ede86b282aa3e6c03b216b0d058c1c637104dfc",
        ),
        KnownDataset("Art", "Arts_Crafts_and_Sewing", 45_142, 20_957, 390_832),
        KnownDataset("Game", "Video_Games", 50_547, 16_860, 452_989),
    )
}
"""Name -> dataset."""


def known_dataset(name: str) -> KnownDataset | None:
    """The paper's dataset of that name (exact, since it also names the folder), or ``None``."""
    return KNOWN.get(name)


def how_to_get(name: str, source: str | None = None) -> str:
    """One line of commands that make the dataset, for error messages; generic for a name that is not the paper's.

    Args:
        name: of the dataset.
        source: what its raw files are, where that is known.
    """
    known = KNOWN.get(name)
    if known is None or (source or "amazon18") != "amazon18":
        ways = source or "clicks|lcrec|amazon18|sdpo"
        return f"Run: recbole-ilrec prepare {name} --source {ways} --path DIR, with the raw files in DIR."
    ratings, metadata = known.urls()
    return (
        f"Download {ratings} and {metadata} into a folder DIR and run: recbole-ilrec prepare {name} --source amazon18 "
        f"--path DIR (or, with LC-Rec's files in DIR: recbole-ilrec prepare {name} --source lcrec --path DIR)."
    )


def download(name: str, folder: Path, *, bases: tuple[str, ...] | None = None, timeout: float = 30.0) -> list[Path]:
    """Fetch the raw files of one of the paper's datasets into ``folder``; files that are there stay.

    Args:
        name: a key of :data:`KNOWN`.
        folder: made when missing. An interrupted file stays as ``.part`` and is resumed by the next call.
        bases: addresses to try, in order; default: :data:`BASES`.
        timeout: seconds to wait for a server at a time.

    Returns:
        Ratings and metadata.

    Raises:
        UserError: unknown name, or no address answers: which files to fetch elsewhere, and what to run then.
    """
    if name not in KNOWN:
        raise unknown_name("dataset to download", name, KNOWN)
    done = []
    for file in KNOWN[name].files():
        failures = []
        for base in BASES if bases is None else bases:
            try:
                done.append(download_file(f"{base}/{file}", Path(folder) / Path(file).name, timeout=timeout))
                break
            except DownloadError as error:
                failures.append(str(error))
        else:
            raise UserError(f"{name} cannot be downloaded: {'; '.join(failures)}. {how_to_get(name)}")
    return done
