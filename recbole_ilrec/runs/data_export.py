"""A data set as LC-Rec's files, for programs that read these: ``recbole-ilrec export --dataset=NAME --out=DIR``."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.semantic_id import read_index
from recbole_ilrec.models.item_index import index_file
from recbole_ilrec.preparation.files import install, staging_folder, write_atomically
from recbole_ilrec.preparation.lcrec import INDEX, INTERACTIONS, TEXTS

logger = logging.getLogger(__name__)


def export_data(config: Config, out: Path) -> Path:
    """Write sequences, texts and semantic IDs of a data set in LC-Rec's format.

    Ids that are whole numbers stay as they are. Others are numbered from 0, in the order of RecBole's internal ids, and
    ``NAME.user2id`` and ``NAME.item2id`` say which is which (a tab between them), as files of this format have them.

    Args:
        config: names the data set; settings that filter its rows count, and ``index.file``.
        out: the folder to make.

    Returns:
        ``out``.

    Raises:
        UserError: ``out`` is there already, or the rows come ready made, so that there are no sequences.
    """
    if out.exists():
        raise UserError(f"--out={out} is there already: give the name of a new folder.")
    dataset: Any = build_data(config).dataset
    sequences = getattr(dataset, "sequences", None)
    if sequences is None:
        raise UserError(f"the rows of '{config.dataset}' come ready made: there are no sequences to write.")
    tokens = {kind: dataset.field2id_token[field][1:].tolist() for kind, field in _fields(dataset).items()}
    numbers = {kind: _numbered(names) for kind, names in tokens.items()}
    start, items = sequences.start.tolist(), sequences.items.tolist()
    done = {
        str(number): [numbers["item"][item - 1] for item in items[start[user] : start[user + 1]]]
        for user, number in enumerate(numbers["user"], start=1)
    }
    with staging_folder(out) as staging:
        folder = staging / "data"
        folder.mkdir()
        _write(folder / f"{config.dataset}{INTERACTIONS}", done)
        keys = list(map(str, numbers["item"]))
        if (Path(config["data_path"]) / f"{config.dataset}.item").is_file():
            _write(folder / f"{config.dataset}{TEXTS}", dict(zip(keys, dataset.item_texts[1:], strict=True)))
        if (index := index_file(config)) is not None:
            identifiers = map(list, read_index(index, tokens["item"]))
            _write(folder / f"{config.dataset}{INDEX}", dict(zip(keys, identifiers, strict=True)))
        for kind, names in tokens.items():
            if list(map(str, numbers[kind])) != names:
                _write_numbers(folder / f"{config.dataset}.{kind}2id", names, numbers[kind])
        install(folder, out)
    logger.info("%s: %d users, %d items", out, len(tokens["user"]), len(tokens["item"]))
    return out


def _fields(dataset: Any) -> dict[str, str]:
    return {"user": dataset.uid_field, "item": dataset.iid_field}


def _numbered(names: Sequence[str]) -> list[int]:
    """The names as whole numbers, or numbers in their place where one of them is none."""
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names):
        return list(map(int, names))
    return list(range(len(names)))


def _write(path: Path, content: Any) -> None:
    with write_atomically(path) as stream:
        json.dump(content, stream, ensure_ascii=False)


def _write_numbers(path: Path, names: Sequence[str], numbers: Sequence[int]) -> None:
    with write_atomically(path) as stream:
        stream.writelines(f"{name}\t{number}\n" for name, number in zip(names, numbers, strict=True))
