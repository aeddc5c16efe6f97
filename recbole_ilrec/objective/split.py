"""The final logits of a step, split into a short list of tokens and the rest.

The penalty of Eq. 7 and the soft labels of Eq. 11 touch only the hard negatives and the truth. So one pass over the
vocabulary is enough: the cross-entropy among the tokens that are *not* listed. The listed ones are added afterwards,
penalised or not, which is exact even when they hold nearly all the probability (nothing is ever subtracted), and
keeps a single ``[N, V]`` tensor for the backward pass, as plain cross-entropy does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_ilrec.objective.ragged import row_logsumexp
from recbole_ilrec.objective.sft import at_least_float32


@dataclass(frozen=True)
class SplitLogits:
    """Final logits in three parts; float32 or float64, with gradient.

    Attributes:
        row: ``[M]`` int64, row of a listed token.
        token: ``[M]`` int64, the listed token; the row's target is never listed.
        listed: ``[M]``, its logit z_v.
        truth: ``[N]``, the target's logit z_y.
        rest: ``[N]``, cross-entropy of the target among the tokens that are not listed:
            log of the sum of exp(z_v - z_y) over them (the target is one of them).
    """

    row: Tensor
    token: Tensor
    listed: Tensor
    truth: Tensor
    rest: Tensor

    def cross_entropy(self, listed: Tensor | None = None) -> Tensor:
        """``[N]``: cross-entropy over the vocabulary, with other logits ``[M]`` for the listed tokens if given."""
        values = self.listed if listed is None else listed
        return row_logsumexp(self.rest, values - self.truth[self.row], self.row)


def split_logits(logits: Tensor, targets: Tensor, row: Tensor, token: Tensor) -> SplitLogits:
    """Split ``logits`` by a list of distinct (row, token) pairs that does not contain (n, targets[n]).

    Args:
        logits: ``[N, V]``.
        targets: ``[N]`` int64.
        row: ``[M]`` int64.
        token: ``[M]`` int64.
    """
    listed, truth, rest = _Split.apply(logits, targets, row, token)
    return SplitLogits(row, token, listed, truth, rest)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        original = logits[row, token]
        truth = at_least_float32(logits.gather(1, targets[:, None])).squeeze(1)
        # Masked in place and put back at once: a masked copy would be a third [N, V] tensor.
        masked = logits.detach()
        masked[row, token] = -torch.inf
        log_probs = at_least_float32(masked).log_softmax(-1)
        masked[row, token] = original
        rest = -log_probs.gather(1, targets[:, None]).squeeze(1)
        ctx.save_for_backward(log_probs, targets, row, token)
        ctx.logits_dtype = logits.dtype
        return at_least_float32(original), truth, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_listed: Tensor, grad_truth: Tensor, grad_rest: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, targets, row, token = ctx.saved_tensors
        grad = log_probs.exp().mul_(grad_rest[:, None])
        grad.scatter_add_(1, targets[:, None], (grad_truth - grad_rest)[:, None])
        grad[row, token] = grad_listed
        return grad.to(ctx.logits_dtype), None, None, None
