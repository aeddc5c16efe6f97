"""What a run would take here, its parts measured on a few real steps and users before anything is trained.

Whatever a run finds kept is read (identifiers, a trained reward model, a supervised stage). What the model cannot be
built without, and a run would keep for the next one too, is made and kept: identifiers, with the collaborative model
where they are learned from its vectors, and the vectors of titles. Nothing else is left.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.estimate import ONCE, Estimate, Part
from recbole_ilrec.report.record import machine
from recbole_ilrec.runs.classical_estimation import classical_parts
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.device import gpu_name
from recbole_ilrec.runtime.imports import quick_imports


def estimate_run(config: Any, seconds: float = 10.0) -> Estimate:
    """What the run that ``config`` describes would take on this machine, in this process.

    Args:
        config: its settings.
        seconds: how long each kind of work is measured.

    Raises:
        UserError: as the run would; several processes; ``resume_from_checkpoint``.
    """
    if processes.world() > 1 or config["resume_from_checkpoint"]:
        raise UserError(
            "estimate measures a whole run in one process: start it without torchrun and --resume_from_checkpoint."
        )
    start = time.perf_counter()
    data = build_data(config)
    reading = Part("reading the data", time.perf_counter() - start, 1, ONCE)
    disk: int | None = None
    with TemporaryDirectory(prefix="estimate-") as scratch:
        if config.is_llm:
            with quick_imports(compiler=config.settings.backbone.quantization is not None):
                from recbole_ilrec.runs.language_estimation import language_parts
            parts, sizes, disk = language_parts(config, data, Path(scratch), seconds)
        else:
            parts, sizes = classical_parts(config, data, Path(scratch))
    about, gpu = machine(), config["use_gpu"]
    threads = torch.get_num_threads()
    where = gpu_name(config["device"]) or f"{threads} thread{'s' * (threads > 1)}"
    backbone = f", backbone {config.settings.backbone_name}" if config.is_llm else ""
    return Estimate(
        title=f"{config.model} on {config.dataset}{backbone}: one process on {about['processor']}, {where}",
        facts=(data.statistics, sizes),
        parts=(reading, *parts),
        memory_mb=about["peak_memory_mb"],
        gpu_memory_mb=round(torch.cuda.max_memory_allocated(config["device"]) / 2**20) if gpu else None,
        disk_mb=disk if config["saved"] else None,
    )
