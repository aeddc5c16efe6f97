"""Checkpoints without pickle: tensors in safetensors, everything else in JSON.

A checkpoint is a folder with ``state.json`` and the tensor file that it names. ``state.json`` is renamed into place
last, so at every instant it describes a complete pair; it holds the SHA-256 of the tensor file. Any nesting of dicts,
lists, tuples, tensors, NumPy arrays and plain values can be stored, optimiser states and generator states among them.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1
STATE = "state.json"
LOOP_STATE = "trainer_state.json"
"""Written by the training loop beside the state of a run that can go on from there."""
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
    file = path.parent / Path(str(state["file"])).name
    if not file.is_file():
        raise UserError(f"{path.parent} is incomplete: {file.name} is missing. Copy the whole folder again.")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != state["sha256"]:
            raise UserError(f"{file} is truncated or was changed: its checksum differs. Copy the whole folder again.")
    return _decode(state["content"], load_file(file))


def check_kind(folder: str | os.PathLike[str], kind: str) -> None:
    """Refuse, as :func:`load_state` does, what is no checkpoint or one of another kind, without reading its tensors."""
    _state(Path(folder) / STATE, kind)


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint's tensors, as its state tells it; nothing is loaded.

    Raises:
        UserError: no checkpoint.
    """
    return str(_state(Path(folder) / STATE, None)["sha256"])


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    complete = [path for path in found if (path / STATE).is_file() and (path / LOOP_STATE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.rpartition("-")[2]))


def resumable(folder: Path, *, kind: str) -> list[Path]:
    """Checkpoints to go on from: ``folder`` itself, or those of the run whose folder it is, newest first.

    Raises:
        UserError: there is none, it holds weights only, or all are broken or of another model. No tensors are read.
    """
    if (folder / STATE).is_file() and not (folder / LOOP_STATE).is_file():
        raise UserError(
            f"{folder} holds weights only, not the state of a training run; give the run's folder or a checkpoint-N."
        )
    found = [folder] if (folder / LOOP_STATE).is_file() else checkpoints(folder)[::-1]
    if not found:
        raise UserError(f"resume_from_checkpoint={folder}: no checkpoint-N in that folder; check the path.")
    good, first = [], None
    for path in found:
        try:
            check_kind(path, kind)
            good.append(path)
        except UserError as error:
            first = first or error
            logger.warning("%s Skipped.", error)
    if first and not good:
        raise first
    return good


def load_resumable(
    folder: Path, *, kind: str, check: Callable[[Path, Mapping[str, Any]], None] | None = None
) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of :func:`resumable` that can be read as a whole, and what it holds; bad ones are named.

    Args:
        folder: see :func:`resumable`.
        kind: likewise.
        check: raises UserError of a checkpoint whose content does not fit the run.

    Raises:
        UserError: none can; the message is about the newest one.
    """
    first = None
    for path in resumable(folder, kind=kind):
        try:
            state = load_state(path, kind=kind)
            json.loads((path / LOOP_STATE).read_text(encoding="utf-8"))
            if check is not None:
                check(path, state)
            return path, state
        except UserError as error:
            problem = error
        except ValueError:
            problem = UserError(f"{path / LOOP_STATE} is truncated. Copy the whole folder again.")
        first = first or problem
        logger.warning("%s An older checkpoint is tried.", problem)
    assert first is not None
    raise first


def clear_up(run_folder: Path) -> None:
    """Remove what a killed run left unfinished in its folder; call only when nothing else writes there."""
    for folder in run_folder.glob("checkpoint-*"):
        if not (folder / STATE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    for leftover in run_folder.glob("*/.*.tmp-*"):
        leftover.unlink(missing_ok=True)


def set_aside_later(checkpoint: Path) -> None:
    """Rename the run's checkpoints after ``checkpoint``: going on from an older one, they are no part of the run."""
    for later in checkpoints(checkpoint.parent):
        if int(later.name.rpartition("-")[2]) > int(checkpoint.name.rpartition("-")[2]):
            aside = later.with_name(f"superseded-{later.name}")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
            logger.warning("%s is set aside as %s", later, aside.name)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted is none."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy, torch and all GPUs, for :func:`save_state`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back as :func:`random_state` found them; GPUs that are not here are left out."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def generator_state() -> Tensor:
    """State of the generators that pretrained models draw dropout from, the CPU's and the GPU's: ``[n]`` uint8."""
    states = [torch.get_rng_state()]
    return torch.cat([*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states)


def set_generator_state(state: Tensor) -> None:
    """Put the generators back as :func:`generator_state` found them; a GPU's is left out where there is none."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if torch.cuda.is_available() and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone())


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
        raise UserError(f"{path.parent} is no checkpoint of this package: it has no {STATE}. Check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is truncated or no checkpoint of this package. Copy the whole folder again.") from None
    needed = ("format", "kind", "file", "sha256", "content")
    if not isinstance(state, dict) or any(key not in state for key in needed):
        raise UserError(f"{path} was not written by this package: it lacks one of {', '.join(needed)}.")
    if state["format"] != FORMAT:
        raise UserError(f"{path} has format {state['format']}, this version reads {FORMAT}: use the one it is from.")
    return state
