"""Dropout whose masks are a function of the row and of the place in it, and cheap on a CPU. Knows tensors only."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_ilrec.chance import fresh_numbers, numbers


def dropout(states: Tensor, rate: float, *, site: int, row_keys: Tensor | None) -> Tensor:
    """Some of the entries, scaled up; ``rate`` is met to 1/65536.

    Args:
        states: ``[B, ...]``.
        rate: chance of an entry to be dropped.
        site: where in the network this is; masks of different sites are independent.
        row_keys: ``[B]``, see :func:`recbole_ilrec.chance.keys_of_rows`. A row's mask depends on its key, the site and
            the place of each entry in the row; padding behind a row does not change it. ``None`` draws one anew.
    """
    return states * _kept(states, rate, site, row_keys).mul_(1 / (1 - rate))


def add_dropped(states: Tensor, update: Tensor, rate: float, *, site: int, row_keys: Tensor | None) -> Tensor:
    """``states + dropout(update, rate)``, in one pass where both are of one precision."""
    if states.dtype != update.dtype:
        return states + dropout(update, rate, site=site, row_keys=row_keys)
    return _AddDropped.apply(states, update, _kept(update, rate, site, row_keys), 1 / (1 - rate))


def _kept(states: Tensor, rate: float, site: int, row_keys: Tensor | None) -> Tensor:
    """1 where an entry is kept, else 0; four 16-bit draws come from each 64-bit number."""
    keys = fresh_numbers(len(states)) if row_keys is None else row_keys
    count = states[0].numel()
    places = torch.arange((count + 3) // 4, device=states.device)
    drawn = numbers(keys.to(states.device)[:, None], site, places).view(torch.int16)[:, :count].view(states.shape)
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
