"""Cross-layer preference distillation: the last layer teaches the candidate layers (Eq. 8)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_ilrec.objective.ragged import row_softmax, row_sum
from recbole_ilrec.objective.sft import at_least_float32
from recbole_ilrec.schema import LegalTokens

BLOCK = 2**21
"""Numbers of a table that a divergence works on at a time: small beside the logits, large beside a kernel launch."""


def divergence(student: Tensor, teacher: Tensor, direction: str = "student_teacher") -> Tensor:
    """Divergence between softmax(student) and softmax(teacher) of each row: one term of Eq. 8.

    Its gradient is known in closed form and computed at once, so that only one ``[N, V]`` tensor per differentiable
    argument is kept for the backward pass.

    Choice: Eq. 8 prints KL(student || teacher), unusual for distillation; we follow it. ``cpd_direction:
    teacher_student`` swaps them, ``js`` is the Jensen-Shannon divergence.

    Args:
        student: ``[N, V]`` logits, or ``[K, N, V]`` for several students of one teacher.
        teacher: ``[N, V]`` logits; detach it to stop its gradient.
        direction: ``student_teacher``, ``teacher_student`` or ``js``.

    Returns:
        ``[N]`` or ``[K, N]``, nats, >= 0.
    """
    values = _Divergence.apply(student if student.dim() == 3 else student[None], teacher, direction)
    return values if student.dim() == 3 else values[0]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, students: Tensor, teacher: Tensor, direction: str) -> Tensor:
        wanted = ctx.needs_input_grad
        layers, rows, vocab = students.shape
        values = students.new_empty((layers, rows), dtype=torch.promote_types(students.dtype, torch.float32))
        by_students = torch.empty_like(students) if wanted[0] else None
        by_teacher = teacher.new_empty(students.shape) if wanted[1] else None
        step = max(1, BLOCK // max(1, vocab))
        for low in range(0, rows, step):
            part = slice(low, low + step)
            log_q = at_least_float32(teacher[part]).log_softmax(-1)
            for k in range(layers):
                log_p = at_least_float32(students[k, part]).log_softmax(-1)
                value, grad_p, grad_q = _divergence_with_gradients(log_p, log_q, direction, wanted[0], wanted[1])
                values[k, part] = value
                if by_students is not None:
                    by_students[k, part] = grad_p
                if by_teacher is not None:
                    by_teacher[k, part] = grad_q
        ctx.save_for_backward(by_students, by_teacher)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_students, by_teacher = (None if g is None else g * grad[..., None].to(g.dtype) for g in ctx.saved_tensors)
        return by_students, None if by_teacher is None else by_teacher.sum(0), None


def _divergence_with_gradients(log_p: Tensor, log_q: Tensor, direction: str, want_p: bool, want_q: bool):
    """Divergence ``[N]`` of one student p and, where wanted, its gradients by the logits of p and of q."""
    if direction == "student_teacher":
        return _kl_with_gradients(log_p, log_q, want_p, want_q)  # Eq. 8
    if direction == "teacher_student":
        value, grad_q, grad_p = _kl_with_gradients(log_q, log_p, want_q, want_p)
        return value, grad_p, grad_q
    log_mean = torch.logaddexp(log_p, log_q).sub_(math.log(2))
    value_p, grad_p, _ = _kl_with_gradients(log_p, log_mean, want_p, False)
    value_q, grad_q, _ = _kl_with_gradients(log_q, log_mean, want_q, False)
    # The mixture moves with p and q, but its share of the gradient sums to zero.
    return tuple(None if x is None else x / 2 for x in (value_p + value_q, grad_p, grad_q))


def _kl_with_gradients(log_p: Tensor, log_q: Tensor, want_p: bool, want_q: bool):
    """KL(p || q) ``[N]`` and, where wanted, its gradients by the logits of p, p (log p - log q - KL), and q, q - p."""
    p = log_p.exp()
    log_ratio = log_p - log_q
    value = torch.linalg.vecdot(p, log_ratio)
    grad_q = log_q.exp().sub_(p) if want_q else None
    grad_p = log_ratio.sub_(value[:, None]).mul_(p) if want_p else None
    return value, grad_p, grad_q


def legal_divergence(
    student: Tensor, teacher: Tensor, legal: LegalTokens, direction: str = "student_teacher"
) -> Tensor:
    """:func:`divergence` between the two distributions over the legal tokens of each row; 0 where there are none.

    Args:
        student: ``[N, V]`` logits.
        teacher: ``[N, V]`` logits.
        legal: legal tokens of the N rows.
        direction: as for :func:`divergence`.

    Returns:
        ``[N]``.
    """
    rows = len(student)
    p = row_softmax(at_least_float32(student[legal.row, legal.token]), legal.row, rows)
    q = row_softmax(at_least_float32(teacher[legal.row, legal.token]), legal.row, rows)
    if direction == "teacher_student":
        p, q = q, p
    if direction == "js":
        mean = (p + q) / 2
        return row_sum(_relative_entropy(p, mean) + _relative_entropy(q, mean), legal.row, rows) / 2
    return row_sum(_relative_entropy(p, q), legal.row, rows)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    smallest = torch.finfo(p.dtype).tiny
    return p * (p.clamp_min(smallest).log() - q.clamp_min(smallest).log())


def layer_distillation(
    candidates: Sequence[Tensor],
    teacher: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    direction: str = "student_teacher",
    token_ids: Tensor | None = None,
    legal: LegalTokens | None = None,
    layer_reduction: str = "sum",
    detach_head: bool = False,
    max_rows: int | None = None,
) -> Tensor:
    """Eq. 8 of each row: how far the candidate layers are from the last one.

    Choice: Eq. 8 compares distributions over the whole vocabulary; ``cpd_support`` narrows them to the item tokens
    (``token_ids`` given) or to the legal tokens (``legal`` given), renormalised there.

    Choice: with a shared head, Eq. 8 also trains the head; so do we. ``cpd_detach_head`` computes the gradient by the
    layers' states alone (the final norm stands before them and is still trained), at once and without keeping logits.

    Args:
        candidates: K tensors ``[N, H]``.
        teacher: ``[N, V]`` logits of the last layer; detach them to stop their gradient.
        head: the output projection.
        direction: as for :func:`divergence`.
        token_ids: ``[S]`` int64, or ``None`` for all tokens.
        legal: legal tokens of the N rows, or ``None``.
        layer_reduction: ``sum`` or ``mean`` over the layers.
        detach_head: keep the gradient from the head.
        max_rows: several layers share a head product as long as it has no more rows than that (``None``: no more
            than N, so each has its own). One product costs one gradient of the head, which is what counts when rows
            are few and the vocabulary is large; more rows cost memory.

    Returns:
        ``[N]``.
    """
    teacher = teacher if token_ids is None else teacher[:, token_ids]

    def term(states: Tensor, teacher: Tensor) -> Tensor:
        logits = head(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        if legal is not None:
            terms = torch.stack([legal_divergence(student, teacher, legal, direction) for student in logits])
        else:
            terms = divergence(logits if token_ids is None else logits[..., token_ids], teacher, direction)
        return terms.sum(0)

    group = max(1, (max_rows or 1) // max(1, len(teacher)))
    total = torch.zeros((), device=teacher.device)
    for first in range(0, len(candidates), group):
        states = torch.stack(tuple(candidates[first : first + group]))
        total = total + (_without_head(term, states, teacher) if detach_head else term(states, teacher))
    total = total.expand(len(teacher))
    return total / len(candidates) if layer_reduction == "mean" and candidates else total  # Eq. 8


def _without_head(term: Callable[[Tensor, Tensor], Tensor], states: Tensor, teacher: Tensor) -> Tensor:
    """``term(states, teacher)`` whose gradient reaches its two arguments but nothing else that ``term`` uses.

    A row of the result depends on the same row of ``states [K, N, H]`` and of ``teacher [N, V]`` only.
    """
    inputs = [x for x in (states, teacher) if x.requires_grad]
    if not inputs or not torch.is_grad_enabled():
        return term(states, teacher).detach()
    free = [x.detach().requires_grad_(x.requires_grad) for x in (states, teacher)]
    value = term(*free)
    gradients = torch.autograd.grad(value.sum(), [x for x in free if x.requires_grad])
    result = value.detach()
    for x, gradient in zip(inputs, gradients, strict=True):
        change = ((x - x.detach()) * gradient).sum(-1)  # adds 0 and carries the gradient
        result = result + (change.sum(0) if x is states else change)
    return result


def sample_rows(rows: int, share: float, generator: torch.Generator | None, device: torch.device) -> Tensor | None:
    """A random subset of the rows for Eq. 8, each subset of its size equally likely, so its mean is unbiased.

    Args:
        rows: N.
        share: share of the rows to take, rounded up; 1 takes all.
        generator: source of the choice; it may live on another device than the rows.
        device: where the rows are.

    Returns:
        ``[ceil(share * N)]`` int64 ascending, or ``None`` for all rows.
    """
    count = math.ceil(share * rows)
    if count >= rows:
        return None
    source = generator.device if generator is not None else "cpu"
    chosen = torch.randperm(rows, generator=generator, device=source)[:count]
    return chosen.sort().values.to(device)
