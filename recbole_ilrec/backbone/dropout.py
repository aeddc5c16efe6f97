"""Dropout that is cheap on a CPU, where drawing random numbers is most of its cost. Knows tensors only."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def dropout(states: Tensor, rate: float) -> Tensor:
    """Some of the entries, scaled up; on a CPU ``rate`` is met to 1/65536."""
    if states.device.type != "cpu":
        return functional.dropout(states, rate)
    return states * _kept(states, rate).mul_(1 / (1 - rate))


def add_dropped(states: Tensor, update: Tensor, rate: float) -> Tensor:
    """``states + dropout(update, rate)``, on a CPU in one pass."""
    if states.device.type != "cpu" or states.dtype != update.dtype:
        return states + dropout(update, rate)
    return _AddDropped.apply(states, update, _kept(update, rate), 1 / (1 - rate))


def _kept(states: Tensor, rate: float) -> Tensor:
    """1 where an entry is kept, else 0; four 16-bit draws come from each 64-bit number of torch's generator."""
    count = states.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.int16)[:count].view(states.shape)
    return torch.ge(drawn, round(rate * 65536) - 32768, out=torch.empty_like(states, requires_grad=False))


class _AddDropped(torch.autograd.Function):
    """states + update * kept * scale."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, update: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return torch.addcmul(states, update, kept, value=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return grad, (grad * kept).mul_(ctx.scale), None, None
