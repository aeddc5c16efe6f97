"""``recbole-ilrec prepare``: find, read, write, seal with a manifest, put in place."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recbole_ilrec import __version__
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.atomic import write_interactions, write_items
from recbole_ilrec.preparation.candidate_lists import SUFFIX as CANDIDATES
from recbole_ilrec.preparation.candidate_lists import write_candidates
from recbole_ilrec.preparation.files import install, recover, sha256_of, staging_folder, write_atomically
from recbole_ilrec.preparation.known import download, how_to_get, known_dataset
from recbole_ilrec.preparation.source import SOURCES, SourceData
from recbole_ilrec.preparation.user_texts import SUFFIX as USERS

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same inputs would give other files; a dataset of another format is made again."""

MANIFEST = ".manifest.json"


@dataclass(frozen=True)
class PreparedDataset:
    """What :func:`prepare` made or found.

    Attributes:
        name: the dataset's name.
        folder: ``OUT/NAME``.
        manifest: content of ``NAME.manifest.json``.
        up_to_date: nothing was done, since the folder was made from the same inputs.
        replaced: the folder stands in the place of one that was made from other inputs.
    """

    name: str
    folder: Path
    manifest: Mapping[str, object]
    up_to_date: bool
    replaced: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """``users``, ``items``, ``interactions``, ``items_with_text``, ``items_with_index``, ``colliding_items``; and
        ``candidate_lists`` where the source has them."""
        return dict(self.manifest["counts"])  # type: ignore[call-overload]

    @property
    def summary(self) -> str:
        """Two or three lines for the log."""
        counts = self.counts
        done = f"Wrote {self.folder}."
        if self.up_to_date:
            done = f"{self.folder} was already prepared from the same inputs."
        elif self.replaced:
            done = (
                f"Wrote {self.folder} in the place of older data: runs trained on those may need them to be asked for "
                "lists. Under another name both stay."
            )
        lines = [
            f"{self.name}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} "
            f"interactions; {counts['items_with_text']:,} items with texts, {counts['items_with_index']:,} with "
            "semantic IDs" + (f"; {lists:,} lists of candidates" if (lists := counts.get("candidate_lists")) else ""),
            done,
        ]
        known = known_dataset(self.name)
        if known is not None:
            found = (counts["users"] + 1, counts["items"] + 1, counts["interactions"])
            expected = (known.users, known.items, known.interactions)
            told = "/".join(f"{count:,}" for count in found)
            verdict = "as in" if found == expected else f"but {'/'.join(f'{c:,}' for c in expected)} in"
            lines.append(f"Users/items/interactions as RecBole counts them (with [PAD]): {told}, {verdict} Table 3.")
        return "\n".join(lines)


def prepare(name: str, source: str, path: str | Path | None = None, out: str | Path = "dataset") -> PreparedDataset:
    """Make the RecBole dataset ``OUT/NAME`` from raw files.

    The folder appears at once and complete, the manifest in it written last; when anything fails nothing is left and
    an older finished folder stays. A folder made from the same inputs (by SHA-256) is left alone.

    Args:
        name: dataset name, as in ``--dataset``.
        source: a key of :data:`SOURCES`: ``clicks``, ``lcrec``, ``amazon18`` or ``sdpo``.
        path: folder with the raw files; ``None`` downloads those of one of the paper's datasets (``amazon18``) to
            ``OUT/.amazon18``.
        out: folder of datasets.

    Raises:
        UserError: see the sources; or ``OUT/NAME`` holds files that this function did not write, or has not left so.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"'{name}' cannot name a dataset: use letters, digits, '_', '-' and '.', e.g. Instrument.")
    reader, out = SOURCES.get(source), Path(out)
    target = out / name
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file. Give a folder for the datasets.")
    recover(target)
    previous = _previous_manifest(target, name)
    files = reader.find(_raw_folder(name, source, path, out), name)
    identity = {
        "format": FORMAT,
        "source": source.lower(),
        "settings": dict(reader.settings),
        "inputs": {role: {"file": file.name, "sha256": sha256_of(file)} for role, file in files.items()},
    }
    if previous is not None:
        if all(previous.get(key) == value for key, value in identity.items()) and _intact(target, previous):
            return PreparedDataset(name, target, previous, up_to_date=True)
        _refuse_foreign_files(target, name, previous)
    with staging_folder(target) as staging:
        built, work = staging / name, staging / "work"
        for folder in (built, work):
            folder.mkdir()
        manifest = _build(name, reader.read(files, work), built, identity)
        install(built, target)
    return PreparedDataset(name, target, manifest, up_to_date=False, replaced=previous is not None)


def tie_rule(folder: Path, name: str) -> str | None:
    """How equal times of a user were ordered when ``folder`` was prepared; ``None`` where no manifest tells it."""
    try:
        return str(json.loads((folder / f"{name}{MANIFEST}").read_text(encoding="utf-8"))["tie_rule"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _raw_folder(name: str, source: str, path: str | Path | None, out: Path) -> Path:
    if path is not None:
        return Path(path)
    if source.lower() != "amazon18" or known_dataset(name) is None:
        raise UserError(
            f"--path is missing: the folder with the raw files of {name}. {how_to_get(name, source.lower())}"
        )
    folder = out / ".amazon18"
    download(name, folder)
    return folder


def _previous_manifest(target: Path, name: str) -> dict[str, object] | None:
    """Manifest of a finished folder, ``None`` when there is no folder; anything else is not ours to replace."""
    if not target.exists():
        return None
    try:
        manifest = json.loads((target / f"{name}{MANIFEST}").read_text(encoding="utf-8"))
        dict(manifest["outputs"])
        dict(manifest["counts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{target} exists and was not written by 'prepare' (no readable {name}{MANIFEST}): its files are not "
            f"replaced. Move them away, or choose another name or --out."
        ) from None
    return manifest


def _outputs(manifest: Mapping[str, object]) -> dict[str, str]:
    return dict(manifest["outputs"])  # type: ignore[call-overload]


def _refuse_foreign_files(target: Path, name: str, manifest: Mapping[str, object]) -> None:
    ours = {f"{name}{MANIFEST}", *_outputs(manifest)}
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in ours)
    if foreign:
        raise UserError(
            f"{target} has to be made again and holds files that 'prepare' did not write: {', '.join(foreign[:3])}. "
            f"Move them away, or choose another name or --out."
        )
    for file, digest in _outputs(manifest).items():
        if (target / file).is_file() and sha256_of(target / file) != digest:
            raise UserError(
                f"{target / file} has been changed since 'prepare' wrote it, and would be replaced: move it away, or "
                "choose another name or --out."
            )


def _intact(target: Path, manifest: Mapping[str, object]) -> bool:
    return all((target / f).is_file() and sha256_of(target / f) == digest for f, digest in _outputs(manifest).items())


def _build(name: str, data: SourceData, folder: Path, identity: Mapping[str, object]) -> dict[str, object]:
    """Write all files of the dataset into ``folder``, the manifest last, and return the manifest."""
    counts = write_interactions(folder / f"{name}.inter", data.sequences)
    texts, index = data.texts or {}, data.index or {}
    if texts:
        write_items(folder / f"{name}.item", texts)
    if index:
        _write_json(folder / f"{name}.index.json", index, indent=None)
    if data.users is not None:
        _write_json(folder / f"{name}{USERS}", data.users, indent=None)
    if data.candidates is not None:
        write_candidates(folder / f"{name}{CANDIDATES}", data.candidates)
        counts |= {
            "items": len(texts),
            "candidate_lists": len(data.candidates),
        }  # items that are only offered count too
    sharing = Counter(tuple(tokens) for tokens in index.values()).values()
    counts |= {
        "items_with_text": len(texts),
        "items_with_index": len(index),
        "colliding_items": sum(count for count in sharing if count > 1),
    }
    manifest: dict[str, object] = {
        "name": name,
        "package": f"recbole_ilrec {__version__}",
        **identity,
        "counts": counts,
        "recbole_counts": _recbole_counts(counts),
        "tie_rule": data.tie_rule,
        "outputs": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    _write_json(folder / f"{name}{MANIFEST}", manifest)
    return manifest


def _recbole_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """RecBole's ``user_num`` and ``item_num`` count ``[PAD]``; Table 3 prints those."""
    return {
        "user_num": counts["users"] + 1,
        "item_num": counts["items"] + 1,
        "inter_num": counts["interactions"],
    }


def _write_json(path: Path, content: object, indent: int | None = 2) -> None:
    with write_atomically(path) as stream:
        json.dump(content, stream, ensure_ascii=True, indent=indent)
        stream.write("\n")
