"""From public raw files to RecBole atomic files: ``OUT/NAME/NAME.inter``, ``NAME.item``, ``NAME.index.json``.

Knows sources and file formats; never models, tokenizers, torch or RecBole. Polars is imported by the source that needs
it, when it runs.
"""

from recbole_ilrec.preparation.atomic import read_items, write_interactions, write_items
from recbole_ilrec.preparation.known import KNOWN, KnownDataset, download, how_to_get, known_dataset
from recbole_ilrec.preparation.pipeline import PreparedDataset, prepare
from recbole_ilrec.preparation.source import SOURCES

__all__ = [
    "KNOWN",
    "SOURCES",
    "KnownDataset",
    "PreparedDataset",
    "download",
    "how_to_get",
    "known_dataset",
    "prepare",
    "read_items",
    "write_interactions",
    "write_items",
]
