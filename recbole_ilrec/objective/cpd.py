"""Cross-layer preference distillation: the last layer teaches the candidate layers (Eq. 8)."""

import math

import torch
from torch import Tensor

from recbole_ilrec.chance import below, fresh_numbers, numbers
from recbole_ilrec.objective.distribution import Distribution, distribution
from recbole_ilrec.objective.ragged import row_log_softmax, row_sum
from recbole_ilrec.objective.sft import at_least_float32
from recbole_ilrec.schema import LegalTokens, TokenBatch

_SITE = -1
"""Of the chance by which :func:`sampled` chooses; those of dropout are 0 and more."""


def divergence(
    student: Distribution,
    teacher: Distribution,
    direction: str = "student_teacher",
    *,
    by_teacher: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Divergence between students p and the teacher q of each row, the terms of Eq. 8, with their known gradients.

    Choice: Eq. 8 prints KL(student || teacher), unusual for distillation; we follow it. ``cpd_direction:
    teacher_student`` swaps them, ``js`` is the Jensen-Shannon divergence.

    Args:
        student: of any number of rows, ``[..., V]``.
        teacher: of the same rows, or of rows that are broadcast to them.
        direction: ``student_teacher``, ``teacher_student`` or ``js``.
        by_teacher: whether the derivative by the teacher's logits is wanted too.
        out: where the derivative by the student's may be written; its logits' own place will do.

    Returns:
        values in nats, >= 0; derivatives by the logits of the student and, if wanted, of the teacher, as if each
        student had a teacher of its own.
    """
    if direction == "student_teacher":
        value, by_p = _relative_entropy(student, teacher, out)  # Eq. 8
        return value, by_p, teacher.p - student.p if by_teacher else None
    if direction == "teacher_student":
        value, by_q = _relative_entropy(teacher, student)
        return value, student.p - teacher.p, by_q if by_teacher else None
    logs = [x.logits - x.mass[..., None] for x in (student, teacher)]
    mean = Distribution(torch.logaddexp(*logs).sub_(math.log(2)), student.p, torch.zeros_like(student.mass))
    (value_p, by_p), (value_q, by_q) = (_relative_entropy(x, mean) for x in (student, teacher))
    # The mixture moves with p and q, but its share of the gradient sums to zero.
    return (value_p + value_q) / 2, by_p.div_(2), by_q.div_(2) if by_teacher else None


def _relative_entropy(p: Distribution, q: Distribution, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """KL(p || q) and its derivative by the logits of p, p (log p - log q - KL); the masses cancel in it."""
    weighted = torch.sub(p.logits, q.logits, out=out).mul_(p.p)
    mean = weighted.sum(-1)
    return (mean - p.mass + q.mass).clamp_min_(0.0), weighted.addcmul_(p.p, mean[..., None], value=-1)


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
    p = row_log_softmax(at_least_float32(student[legal.row, legal.token]), legal.row, rows)
    q = row_log_softmax(at_least_float32(teacher[legal.row, legal.token]), legal.row, rows)
    if direction == "teacher_student":
        p, q = q, p
    if direction == "js":
        mean = torch.logaddexp(p, q) - math.log(2)
        return row_sum(_entropy_terms(p, mean) + _entropy_terms(q, mean), legal.row, rows) / 2
    return row_sum(_entropy_terms(p, q), legal.row, rows)


def _entropy_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms of KL(p || q). Logarithms come in: those of probabilities that underflow would be lost."""
    return log_p.exp() * (log_p - log_q)


def layer_distillation(
    students: Tensor,
    teacher: Distribution,
    *,
    direction: str = "student_teacher",
    token_ids: Tensor | None = None,
    legal: LegalTokens | None = None,
    by_teacher: bool = False,
    narrow: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Eq. 8 of each row: how far the candidate layers are from the last one, summed over them, and its gradient.

    Choice: Eq. 8 compares distributions over the whole vocabulary; ``cpd_support`` narrows them to the item tokens
    (``token_ids`` given) or to the legal tokens (``legal`` given), renormalised there.

    Args:
        students: ``[N, K, V]``, logits of the candidate layers; may be overwritten.
        teacher: of the last layer.
        direction: as for :func:`divergence`.
        token_ids: ``[S]`` int64, or ``None`` for all tokens.
        legal: legal tokens of the N rows, or ``None``.
        by_teacher: whether the derivative by the teacher's logits is wanted too.
        narrow: the students' logits are those of ``token_ids`` alone, ``[N, K, S]``, and so is their derivative.

    Returns:
        values ``[N]``; derivatives ``[N, K, V]`` by the students and, if wanted, ``[N, V]`` by the teacher.
    """
    students = at_least_float32(students)
    if legal is not None:
        values, by_p, by_legal = _legal_with_gradients(students, teacher.logits, legal, direction)
        return values, by_p, by_legal if by_teacher else None
    vocab_size = teacher.logits.shape[-1]
    if token_ids is not None:
        students = students if narrow else students[..., token_ids]
        teacher = distribution(teacher.logits[:, token_ids])
    beside = Distribution(*(x.unsqueeze(1) for x in teacher))  # of all K
    values, by_p, by_q = divergence(distribution(students), beside, direction, by_teacher=by_teacher, out=students)
    by_teacher_logits = None if by_q is None else _spread(by_q.sum(1), token_ids, vocab_size)
    return values.sum(1), _spread(by_p, None if narrow else token_ids, vocab_size), by_teacher_logits  # Eq. 8


def _spread(gradient: Tensor, token_ids: Tensor | None, vocab_size: int) -> Tensor:
    """A gradient by some tokens as one by all."""
    if token_ids is None:
        return gradient
    return gradient.new_zeros(*gradient.shape[:-1], vocab_size).index_copy_(-1, token_ids, gradient)


def _legal_with_gradients(
    students: Tensor, teacher: Tensor, legal: LegalTokens, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of :func:`legal_divergence` over the students, and its derivatives by both tables."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (students, teacher)]
        each = [legal_divergence(student, leaves[1], legal, direction) for student in leaves[0].unbind(1)]
        values = torch.stack(each).sum(0)
        by_students, by_teacher = torch.autograd.grad(values.sum(), leaves)
        return values.detach(), by_students, by_teacher


def sampled(batch: TokenBatch, share: float, generator: torch.Generator | None) -> Tensor | None:
    """The supervised tokens that Eq. 8 is evaluated on, each with the same chance: a sum over them, divided by
    ``share``, is unbiased.

    Choice: each token is drawn on its own, by the key of its row and its place there, so a step has the same tokens
    however it is cut into micro-batches and processes. How many they are varies a little from step to step.

    Args:
        batch: of N supervised tokens.
        share: chance of each token, above 0; 1 takes all.
        generator: source of the choice where the batch has no ``row_keys``.

    Returns:
        ``[N]`` bool, or ``None`` for all tokens.
    """
    if share >= 1:
        return None
    if batch.row_keys is None:
        drawn = fresh_numbers(len(batch.targets), generator).to(batch.targets.device)
    else:
        width = batch.input_ids.shape[1]
        drawn = numbers(batch.row_keys[batch.select // width], _SITE, batch.select % width)
    return drawn < below(share)
