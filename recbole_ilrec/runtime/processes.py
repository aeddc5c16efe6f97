"""The processes of one run, as ``torchrun`` starts them: which one writes, how they wait for it, how they join numbers.

In a run of one process every function is a matter of course. Messages are tensors and JSON, on the CPU.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from recbole_ilrec.errors import UserError

PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which may train a reward model. One that fell is noticed at once."""

_alone = False


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files, logs and results."""
    return rank() == 0


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """The processes know each other within this context; each computes on its own ``device``."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world() == 1 or distributed.is_initialized():
        yield
        return
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"WORLD_SIZE={world()} says that this is one of several processes, and they do not find each other "
            f"({reason}). Start them with torchrun, or run 'unset WORLD_SIZE RANK' for one process."
        ) from None
    try:
        yield
    finally:
        distributed.destroy_process_group()


def agreed(value: Any) -> Any:
    """What the first process says, in all of them; a value that JSON can hold."""
    if world() == 1:
        return value
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    length = torch.tensor(len(text))
    distributed.broadcast(length, src=0)
    text = text if is_first() else torch.empty(int(length), dtype=torch.uint8)
    distributed.broadcast(text, src=0)
    return json.loads(bytes(text.tolist()))


def wait() -> None:
    """Go on when all processes are here."""
    total(torch.zeros(1))


def maximum(values: Tensor) -> Tensor:
    """The greatest of each value over all processes."""
    return _joined(values, distributed.ReduceOp.MAX)


def total(values: Tensor) -> Tensor:
    """The sum of each value over all processes."""
    return _joined(values, distributed.ReduceOp.SUM)


def _joined(values: Tensor, operation: Any) -> Tensor:
    if world() > 1:
        values = values.clone()
        distributed.all_reduce(values, op=operation)
    return values


def gathered(values: Tensor) -> Tensor:
    """``[processes, ...]`` the values of each process; all of one shape."""
    if world() == 1:
        return values[None]
    every = [torch.empty_like(values) for _ in range(world())]
    distributed.all_gather(every, values)
    return torch.stack(every)


@contextmanager
def first_alone() -> Iterator[None]:
    """What is within is done by the first process, then by all others: it builds what they read.

    Within another such context it does nothing.

    Raises:
        UserError: in the others, when it failed in the first.
    """
    global _alone
    if world() == 1 or _alone:
        yield
        return
    problem = None if is_first() else agreed(None)
    if problem is not None:
        raise UserError(f"the first of {world()} processes failed: {problem}")
    _alone = True
    try:
        yield
    except BaseException as error:
        problem = str(error) or type(error).__name__
        raise
    finally:
        _alone = False
        if is_first():
            agreed(problem)
