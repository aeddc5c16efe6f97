"""Checkpoints without pickle: tensors in safetensors, everything else in JSON.

A checkpoint is a folder with ``state.json`` and the tensor file that it names. ``state.json`` is renamed into place
last, so at every instant it describes a complete pair; it holds the SHA-256 of the tensor file. Any nesting of dicts,
lists, tuples, tensors, NumPy arrays and plain values can be stored, optimiser states and generator states among them.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import share, write_atomically

FORMAT = 1
STATE = "state.json"
_TENSOR, _ARRAY, _PAIRS, _TUPLE = "$tensor", "$array", "$pairs", "$tuple"


def save_state(folder: str | os.PathLike[str], content: Mapping[str, Any], *, kind: str) -> Path:
    """Write a checkpoint, atomically: whatever happens, the folder holds this one or the one before.

    Args:
        folder: made when missing; an older checkpoint in it is replaced.
        content: nested values, e.g. ``{"model": state_dict, "optimizer": ..., "epoch": 3}``.
        kind: what the checkpoint is of, e.g. ``"SASRec"``; compared by :func:`load_state`.

    Returns:
        The folder.

    Raises:
        TypeError: a value that is neither tensor, array nor plain.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = _Encoder()
    tree = encoder.encode(content)
    temporary = folder / f".tensors.tmp-{os.getpid()}"
    try:
        try:
            save_file(encoder.tensors, temporary)
        except SafetensorError as error:  # its way to report a full or read-only disk
            raise OSError(f"cannot write {temporary}: {error}") from None
        digest = _sync_and_hash(temporary)
        share(temporary)
        file = folder / f"tensors-{digest[:16]}.safetensors"
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    with write_atomically(folder / STATE) as stream:
        json.dump({"format": FORMAT, "kind": kind, "file": file.name, "sha256": digest, "content": tree}, stream)
    for old in folder.glob("tensors-*.safetensors"):
        if old != file:
            old.unlink(missing_ok=True)
    return folder


def load_state(folder: str | os.PathLike[str], *, kind: str | None = None) -> dict[str, Any]:
    """Read back what :func:`save_state` was given, on the CPU.

    Args:
        folder: the checkpoint's folder, or its ``state.json``.
        kind: refuse a checkpoint of anything else.

    Raises:
        UserError: missing, truncated, foreign, or of another kind.
    """
    path = Path(folder)
    path = path if path.name == STATE else path / STATE
    state = _state(path, kind)
    return _decode(state["content"], load_file(_whole(path.parent, state)))


def check_whole(folder: str | os.PathLike[str]) -> None:
    """Refuse, as :func:`load_state` does, a checkpoint that is not whole; its tensors are hashed and not loaded."""
    _whole(Path(folder), _state(Path(folder) / STATE, None))


def _whole(folder: Path, state: Mapping[str, Any]) -> Path:
    """The file of a checkpoint's tensors, which is as it was written."""
    file = folder / Path(str(state["file"])).name
    if not file.is_file():
        raise UserError(f"{folder} is incomplete: {file.name} is missing. Copy the whole folder again.")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != state["sha256"]:
            raise UserError(f"{file} is truncated or was changed: its checksum differs. Copy the whole folder again.")
    return file


def check_kind(folder: str | os.PathLike[str], kind: str) -> None:
    """Refuse, as :func:`load_state` does, what is no checkpoint or one of another kind, without reading its tensors."""
    _state(Path(folder) / STATE, kind)


def plain_entry(folder: str | os.PathLike[str], name: str) -> Any:
    """What :func:`save_state` was given under ``name``, if there is no tensor in it; ``None`` where it was not given.

    Raises:
        UserError: no checkpoint.
    """
    return _decode(_state(Path(folder) / STATE, None)["content"].get(name), {})


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint's tensors, as its state tells it; nothing is loaded.

    Raises:
        UserError: no checkpoint.
    """
    return str(_state(Path(folder) / STATE, None)["sha256"])


class _Encoder:
    """JSON in place of nested values; their tensors are collected, one that is shared (tied weights) only once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return {_TENSOR: self._name(value)}
        if isinstance(value, np.ndarray):
            return {_ARRAY: value.dtype.str, "values": value.tolist()}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: self.encode(entry) for key, entry in value.items()}
            return {_PAIRS: [[self.encode(key), self.encode(entry)] for key, entry in value.items()]}
        if isinstance(value, tuple):
            return {_TUPLE: [self.encode(entry) for entry in value]}
        if isinstance(value, list):
            return [self.encode(entry) for entry in value]
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")

    def _name(self, tensor: Tensor) -> str:
        # Empty tensors have no address, so they are told apart by number.
        address = tensor.data_ptr() if tensor.numel() else -len(self.tensors) - 1
        key = (address, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if key not in self._names:
            self._names[key] = f"{len(self.tensors):06d}"
            plain = tensor.detach().cpu().contiguous()
            storage = plain.untyped_storage()
            if storage.nbytes() != plain.numel() * plain.element_size() or storage.data_ptr() in self._storages:
                plain = plain.clone()  # a part of something larger, or seen in another shape
            self._storages.add(plain.untyped_storage().data_ptr())
            self.tensors[self._names[key]] = plain
        return self._names[key]


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _ARRAY in tree:
        return np.array(tree["values"], dtype=np.dtype(tree[_ARRAY]))
    if _PAIRS in tree:
        return {_decode(key, tensors): _decode(value, tensors) for key, value in tree[_PAIRS]}
    if _TUPLE in tree:
        return tuple(_decode(entry, tensors) for entry in tree[_TUPLE])
    return {key: _decode(value, tensors) for key, value in tree.items()}


def _sync_and_hash(path: Path) -> str:
    with path.open("rb+") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return digest


def _state(path: Path, kind: str | None) -> dict[str, Any]:
    state = _read_json(path)
    if kind is not None and state["kind"] != kind:
        raise UserError(
            f"{path.parent} is a checkpoint of another model: it holds {state['kind']}, this run is {kind}. Choose the "
            f"checkpoint of a {kind} run or set --model accordingly."
        )
    return state


def _read_json(path: Path) -> dict[str, Any]:
    if path.parent.is_file():
        raise UserError(
            f"{path.parent} is a file: a checkpoint of this package is a folder with {STATE}. RecBole's own .pth files "
            "are pickles and are not read; train the model again with this package."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent}: check the path.") from None
        raise UserError(
            f"{path.parent} is no checkpoint of this package: it has no {STATE}. A run has one from its first "
            "validation on; check the path."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is truncated or no checkpoint of this package. Copy the whole folder again.") from None
    needed = ("format", "kind", "file", "sha256", "content")
    if not isinstance(state, dict) or any(key not in state for key in needed):
        raise UserError(f"{path} was not written by this package: it lacks one of {', '.join(needed)}.")
    if state["format"] != FORMAT:
        raise UserError(f"{path} has format {state['format']}, this version reads {FORMAT}: use the one it is from.")
    return state
