"""Where the true item of every user stood, as a small file beside a run: what paired comparisons of runs start from.

A safetensors file with ``user`` (int64, internal ids) and ``rank`` (float32: expected place of the true item, 1 = best,
``inf`` = not in the list), and the numbers of :class:`~recbole_ilrec.evaluation.topk.TargetPlaces` (int32, -1 = not
found), from which all metrics follow under every collision policy. Knows places and files; never metrics' names.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces

ABOUT = "about"


def ranks_file(folder: Path, split: str) -> Path:
    """``<folder>/ranks-<split>.safetensors``; a split is ``valid`` or ``test``."""
    return folder / f"ranks-{split}.safetensors"


def write_ranks(path: Path, user: Tensor, places: TargetPlaces, about: Mapping[str, object]) -> Path:
    """Write the file, atomically; its folder is made when missing.

    Args:
        path: see :func:`ranks_file`.
        user: ``[B]`` internal user ids.
        places: where their true items stood.
        about: what the ranks are of (dataset, split, collision policy, ...), kept as JSON.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = places.before < MISSING
    rank = places.before + (places.group + 1) / 2
    columns = {name: torch.where(value < MISSING, value, -1).int() for name, value in vars(places).items()}
    tensors = {"user": user.long(), "rank": torch.where(found, rank, torch.inf).float(), **columns}
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {ABOUT: json.dumps(dict(about))})
        os.replace(temporary, path)
    except SafetensorError as error:  # its way to report a full or read-only disk
        raise OSError(f"cannot write {path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_ranks(path: Path) -> tuple[Tensor, TargetPlaces, dict[str, object]]:
    """Users, places and what they are of.

    Raises:
        UserError: missing, truncated or foreign.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            user = file.get_tensor("user")
            columns = {name: file.get_tensor(name).long() for name in TargetPlaces.__dataclass_fields__}
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent}: check the path.") from None
        raise UserError(f"{path} does not exist: runs that were saved have it; run again with saved=true.") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no file of ranks, or is truncated ({error}): run again.") from None
    return user, TargetPlaces(**{name: torch.where(v < 0, MISSING, v) for name, v in columns.items()}), about
