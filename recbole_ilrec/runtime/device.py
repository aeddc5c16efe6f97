"""Which device a process computes on."""

import os

import torch

from recbole_ilrec.errors import UserError


def choose_device(device: str, *, use_gpu: bool = True, gpu_id: object = None) -> torch.device:
    """The device of this process; CUDA_VISIBLE_DEVICES is read by CUDA and never written.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. ``auto`` takes a GPU when there is one and ``use_gpu`` holds;
            under ``torchrun`` the one of ``LOCAL_RANK``, else the first of ``gpu_id``.

    Raises:
        UserError: not one of these, or a GPU that is not there.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise UserError(f"device={device!r} is not allowed: choose auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not (count and use_gpu)):
        return torch.device("cpu")
    first = str(gpu_id).strip("()[]").split(",")[0].strip() if gpu_id is not None else ""
    if kind == "auto" and gpu_id is not None and not first:
        return torch.device("cpu")  # RecBole's way to ask for the CPU: an empty gpu_id
    if index and int(os.environ.get("WORLD_SIZE", "1")) > 1 and index != os.environ.get("LOCAL_RANK"):
        raise UserError(f"device={device} under torchrun: each process takes a GPU of its own. Choose --device=cuda.")
    wanted = index or os.environ.get("LOCAL_RANK") or first or "0"
    if not wanted.isdigit() or int(wanted) >= count:
        raise UserError(f"device={device}, GPU {wanted}: {count} GPU(s) can be used here. Choose --device=cpu or auto.")
    return torch.device("cuda", int(wanted))


def gpu_name(device: torch.device) -> str | None:
    """What kind of GPU ``device`` is; ``None`` for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
