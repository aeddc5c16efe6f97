"""Preference losses over whole answers: DPO, softmax-DPO (S-DPO) and RosePO's smoothed DPO.

Each compares how much more probable the policy finds an answer than the reference it started from. Knows
log-probabilities of answers; never items, where rejected answers come from, prompts or models.

Sources: DPO, Eq. 7 of https://arxiv.org/abs/2305.18290; S-DPO, https://arxiv.org/abs/2406.09215; label smoothing in
DPO, https://ericmitchell.ai/cdpo.pdf (conservative) and https://arxiv.org/abs/2403.00409 (robust).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_ilrec.objective.sft import at_least_float32
from recbole_ilrec.schema import LossTerms
from recbole_ilrec.settings import PreferenceSettings


def token_log_probs(logits: Tensor, place: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of answer tokens, where several may be predicted at one position.

    Args:
        logits: ``[P, V]`` at the distinct positions; those of the first tokens of all answers to a prompt coincide.
        place: ``[N]`` int64, row of ``logits`` that predicts each token.
        targets: ``[N]`` int64.

    Returns:
        ``[N]``, nats.
    """
    logits = at_least_float32(logits)
    return logits[place, targets] - logits.logsumexp(1)[place]


def answer_log_probs(token_log_probs: Tensor, answer: Tensor, present: Tensor) -> Tensor:
    """Log-probability of each answer: the sum over its tokens, the end token included where there is one.

    Choice: the ILRec paper does not say sum or mean for its baselines; the published S-DPO, SPRec and DPO take the sum.

    Args:
        token_log_probs: ``[N]``.
        answer: ``[N]`` int64, flat index ``b * A + a`` of the answer each token belongs to.
        present: ``[B, A]`` bool, False where a row has fewer answers than the widest.

    Returns:
        ``[B, A]``, -inf where there is no answer.
    """
    sums = token_log_probs.new_zeros(present.numel()).index_add(0, answer, token_log_probs).view(present.shape)
    return sums.masked_fill(~present, -torch.inf)


def log_ratios(policy: Tensor, reference: Tensor) -> Tensor:
    """log(policy / reference) of each answer, ``[B, A]``; -inf where there is no answer."""
    absent = policy == -torch.inf
    return (policy - reference.masked_fill(absent, 0.0)).masked_fill(absent, -torch.inf)


def _margins(ratios: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """beta (chosen - rejected) ``[B, R]`` and which rejected answers there are; 0 where there is none."""
    chosen, rejected = ratios[:, :1], ratios[:, 1:]
    present = rejected > -torch.inf
    return beta * (chosen - torch.where(present, rejected, chosen)), present


def _mean_present(loss: Tensor, present: Tensor) -> Tensor:
    return (loss * present).sum(1) / present.sum(1).clamp_min(1)


def dpo_loss(ratios: Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta (chosen - rejected)), the mean over the rejected answers of a row.

    Args:
        ratios: ``[B, 1 + R]`` from :func:`log_ratios`, the chosen answer first.
        beta: strength of the tie to the reference.

    Returns:
        ``[B]``; 0 for a row without rejected answers.
    """
    margins, present = _margins(ratios, beta)
    return _mean_present(F.softplus(-margins), present)  # DPO, Eq. 7


def softmax_dpo_loss(ratios: Tensor, *, beta: float) -> Tensor:
    """log(1 + sum_j exp(beta (rejected_j - chosen))): all rejected answers of a row against the chosen one at once.

    The published program exponentiates, sums and takes the logarithm, which overflows; here it is one logsumexp with a
    zero term. With one rejected answer it is :func:`dpo_loss`.

    Args:
        ratios: ``[B, 1 + R]`` from :func:`log_ratios`, the chosen answer first.
        beta: strength of the tie to the reference.

    Returns:
        ``[B]``; 0 for a row without rejected answers.
    """
    margins, present = _margins(ratios, beta)
    return F.pad((-margins).masked_fill(~present, -torch.inf), (1, 0)).logsumexp(1)


def smoothed_dpo_loss(ratios: Tensor, smoothing: Tensor, *, beta: float, form: str = "cdpo") -> Tensor:
    """DPO when a label is wrong with probability eps: each pair counts as turned round to that extent.

    With l = -log sigma and x = beta (chosen - rejected), ``cdpo`` is (1 - eps) l(x) + eps l(-x); ``rdpo``, unbiased
    under such noise, is ((1 - eps) l(x) - eps l(-x)) / (1 - 2 eps). The mean over a row's rejected answers is taken.

    Args:
        ratios: ``[B, 1 + R]`` from :func:`log_ratios`, the chosen answer first.
        smoothing: ``[B, R]`` eps in [0, 0.5).
        beta: strength of the tie to the reference.
        form: ``cdpo`` or ``rdpo``.

    Returns:
        ``[B]``; 0 for a row without rejected answers.
    """
    margins, present = _margins(ratios, beta)
    right, turned = F.softplus(-margins), F.softplus(margins)
    if form == "rdpo":
        loss = ((1 - smoothing) * right - smoothing * turned) / (1 - 2 * smoothing)
    else:
        loss = (1 - smoothing) * right + smoothing * turned
    return _mean_present(loss, present)


def personalised_smoothing(chosen: Tensor, rejected: Tensor, *, temperature: float, limit: float) -> Tensor:
    """RosePO's eps: how probable an oracle finds it that the rejected item is the preferred one.

    Choice: RosePO's abstract says that a preference oracle predicts the smoothing of each pair, not how: eps is
    sigma((score of the rejected - score of the chosen) / temperature) with the reward model as oracle, cut at
    ``preference.max_smoothing``; ``preference.smoothing: constant`` or ``none`` does without an oracle.

    Args:
        chosen: ``[B, 1]`` oracle's scores.
        rejected: ``[B, R]`` oracle's scores.
        temperature: of the sigmoid.
        limit: greatest eps, below 0.5.

    Returns:
        ``[B, R]``.
    """
    return torch.sigmoid((rejected - chosen) / temperature).clamp_max(limit)


class PreferenceObjective(Protocol):
    """A loss over the answers of each row of a micro-batch; ``smooths`` says whether it looks at ``smoothing``."""

    smooths: bool

    def __call__(self, policy: Tensor, reference: Tensor, smoothing: Tensor | None) -> LossTerms:
        """Sums over the rows of the loss and of what is logged beside it.

        Args:
            policy: ``[B, 1 + R]`` log-probabilities of the answers, chosen first, -inf where there is none.
            reference: ``[B, 1 + R]`` the same under the model that training started from.
            smoothing: ``[B, R]`` eps of each pair, or ``None`` for no smoothing.
        """
        ...


class DPO:
    """Direct preference optimisation, https://arxiv.org/abs/2305.18290."""

    name = "dpo"
    smooths = False
    """Whether the smoothing of a pair is looked at."""

    def __init__(self, settings: PreferenceSettings):
        self.settings = settings

    def loss(self, ratios: Tensor, smoothing: Tensor | None) -> Tensor:
        """``[B]`` of ``[B, 1 + R]`` log-ratios."""
        del smoothing
        return dpo_loss(ratios, beta=self.settings.beta)

    def __call__(self, policy: Tensor, reference: Tensor, smoothing: Tensor | None) -> LossTerms:
        """See :class:`PreferenceObjective`; the only part carries the name of the loss."""
        ratios = log_ratios(at_least_float32(policy), at_least_float32(reference))
        loss = self.loss(ratios, smoothing).sum()
        with torch.no_grad():
            margins, present = _margins(ratios, self.settings.beta)
            won = (margins > 0) | ~present
            monitors = {
                "margin": _mean_present(margins, present).sum(),
                "won": won.all(1).sum().to(loss.dtype),
                "chosen": self.settings.beta * ratios[:, 0].sum(),
            }
        return LossTerms(parts={self.name: loss}, weights={self.name: 1.0}, monitors=monitors)


class SoftmaxDPO(DPO):
    """S-DPO: one chosen against several rejected answers, https://arxiv.org/abs/2406.09215."""

    name = "sdpo"

    def loss(self, ratios: Tensor, smoothing: Tensor | None) -> Tensor:
        """``[B]`` of ``[B, 1 + R]`` log-ratios."""
        del smoothing
        return softmax_dpo_loss(ratios, beta=self.settings.beta)


class RosePO(DPO):
    """DPO with a smoothing of its own for each pair, after the abstract of https://arxiv.org/abs/2410.12519.

    Choice: whether RosePO's loss is conservative or robust DPO is not established here; ``preference.loss`` is ``cdpo``
    or ``rdpo``.
    """

    name = "rosepo"
    smooths = True

    def loss(self, ratios: Tensor, smoothing: Tensor | None) -> Tensor:
        """``[B]`` of ``[B, 1 + R]`` log-ratios."""
        eps = torch.zeros_like(ratios[:, 1:]) if smoothing is None else smoothing
        return smoothed_dpo_loss(ratios, eps, beta=self.settings.beta, form=self.settings.loss)
