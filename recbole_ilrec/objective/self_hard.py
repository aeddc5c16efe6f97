"""Self-hard negatives from intermediate layers (Eq. 3-6).

The ensemble of the candidate layers is a weaker recommender; the tokens it likes at least about as much as the true
one are the negatives, and the more it likes them the heavier they weigh.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from recbole_ilrec.objective.distribution import restricted_softmax
from recbole_ilrec.objective.ragged import pair_mask
from recbole_ilrec.objective.sft import at_least_float32
from recbole_ilrec.schema import LegalTokens
from recbole_ilrec.settings import ILRecSettings


def ensemble_logits(
    candidates: Sequence[Tensor], head: Callable[[Tensor], Tensor], *, ensemble: str = "mean"
) -> Tensor:
    """Ensemble logits P-hat of the candidate layers (Eq. 2-3).

    The head is linear, so ``mean`` and ``sum`` take one head product whatever the number of layers.

    Choice: Eq. 3 prints k + 1 terms divided by k; the text calls it the average of the k layers before the last. We
    average the layers handed in (``layer_range`` decides which). ``ensemble: sum`` adds them, ``mean_prob`` and
    ``mean_logprob`` average probabilities or log-probabilities and return logarithms; the last one
    differs from ``mean`` by a constant per position, which only ``threshold_on: logit`` can see.

    Choice: on a bfloat16 model the states and their products with the head are bfloat16, as its own logits are; what is
    made of logits (softmax, thresholds, weights, losses) is float32. Near its threshold Eq. 5 then decides otherwise
    than in float32 for a few tokens.

    Args:
        candidates: K tensors ``[N, H]``, normed states of the candidate layers.
        head: the output projection, ``[N, H] -> [N, V]``.
        ensemble: ``mean``, ``sum``, ``mean_prob`` or ``mean_logprob``.

    Returns:
        ``[N, V]`` in the dtype of the head's output (``mean`` and ``sum``) or at least float32.
    """
    layers = len(candidates)
    if ensemble not in ("mean", "sum"):
        return _mixture(map(head, candidates), layers, ensemble)
    mean = at_least_float32(candidates[0]) / layers
    for state in candidates[1:]:
        mean = mean.add_(state, alpha=1 / layers)
    logits = head(mean.to(candidates[0].dtype))  # Eq. 2-3
    return logits if ensemble == "mean" else logits * layers


def ensemble_of_logits(logits: Tensor, *, ensemble: str = "mean") -> Tensor:
    """:func:`ensemble_logits` where the candidates' own logits ``[N, K, V]`` are there: no head product."""
    if ensemble not in ("mean", "sum"):
        return _mixture(logits.unbind(1), logits.shape[1], ensemble)
    return logits.mean(1) if ensemble == "mean" else logits.sum(1)  # Eq. 3


def _mixture(logits: Iterable[Tensor], layers: int, ensemble: str) -> Tensor:
    joined: Tensor | None = None
    for own in logits:
        log_probs = at_least_float32(own).log_softmax(-1)
        if joined is None:
            joined = log_probs
        else:
            joined = torch.logaddexp(joined, log_probs) if ensemble == "mean_prob" else joined + log_probs
    assert joined is not None
    return joined - math.log(layers) if ensemble == "mean_prob" else joined / layers


def hard_negatives(
    ensemble: Tensor,
    targets: Tensor,
    alpha: float,
    *,
    threshold_on: str = "prob",
    final: Tensor | None = None,
    allowed: Tensor | None = None,
    max_negatives: int | None = None,
) -> Tensor:
    """The set V_N of self-hard negatives of each position (Eq. 4-5), without gradient.

    Probabilities are compared as logarithms, where the softmax's normaliser cancels: v is a negative when
    P(v) >= P(y) + log(alpha). ``alpha = 0`` takes every token (on logits: those of at least 0), ``alpha = inf`` none.

    Choice: p-hat is called a probability but is "in the ensemble logits". We compare probabilities, because a factor
    alpha is meaningless on logits of either sign; ``threshold_on: logit`` compares raw logits.

    Choice: Eq. 4 takes the true token's value from the ensemble; ``tau_from: final`` takes the last layer's
    (``final`` given).

    Choice: Eq. 5 lets every token of the vocabulary be a negative; ``neg_scope`` narrows that (``allowed`` given).

    Args:
        ensemble: ``[N, V]`` ensemble logits.
        targets: ``[N]`` int64.
        alpha: threshold factor, >= 0.
        threshold_on: ``prob`` or ``logit``.
        final: ``[N, V]`` logits of the last layer, whose value of the true token sets the threshold, or ``None``.
        allowed: ``[V]`` or ``[N, V]``, nonzero for tokens that may be negatives, or ``None`` for all.
        max_negatives: keep only so many of a row, the most probable ones; ``None`` keeps all.

    Returns:
        ``[N, V]``, 1 for a negative and 0 elsewhere, at least float32; the target is never a negative.
    """
    ensemble = ensemble.detach()
    truth = targets[:, None]
    negatives = torch.empty_like(ensemble, dtype=at_least_float32(ensemble[:0]).dtype)
    if math.isinf(alpha):
        return negatives.zero_()
    source = ensemble if final is None else final.detach()
    threshold = at_least_float32(source.gather(1, truth))
    if threshold_on == "logit":
        threshold = alpha * threshold  # Eq. 4
    else:
        if final is not None:
            threshold = threshold - _log_normaliser(final.detach()) + _log_normaliser(ensemble)
        threshold = threshold + (math.log(alpha) if alpha else -torch.inf)  # Eq. 4
    torch.ge(at_least_float32(ensemble), threshold, out=negatives)  # Eq. 5
    if allowed is not None:
        negatives.mul_(allowed)
    negatives.scatter_(1, truth, 0.0)  # Eq. 5, v != y_t
    if max_negatives is not None and max_negatives < ensemble.shape[1]:
        negatives = _most_probable(ensemble, negatives, max_negatives)
    return negatives


def negatives_under(
    settings: ILRecSettings,
    final: Tensor,
    ensemble: Tensor | None,
    targets: Tensor,
    legal: LegalTokens | None,
    item_tokens: Tensor | None,
) -> Tensor:
    """:func:`hard_negatives` as the settings read Eq. 4-5.

    Args:
        settings: of ILRec.
        final: ``[N, V]`` logits of the last layer.
        ensemble: ``[N, V]`` ensemble logits, or ``None`` where the last layer's own take their place.
        targets: ``[N]`` int64.
        legal: legal tokens of the N rows, for ``neg_scope: legal``.
        item_tokens: ``[V]`` bool, for ``neg_scope: item_tokens``.
    """
    allowed = None
    if settings.neg_scope == "item_tokens" and item_tokens is not None:
        allowed = item_tokens.to(final.device)
    elif settings.neg_scope == "legal" and legal is not None:
        allowed = pair_mask(legal, final)
    return hard_negatives(
        final if ensemble is None else ensemble,
        targets,
        settings.alpha,
        threshold_on=settings.threshold_on,
        final=final if settings.tau_from == "final" else None,
        allowed=allowed,
        max_negatives=settings.max_negatives,
    )


def penalty_weights(ensemble: Tensor, negatives: Tensor, *, weight_from: str = "logit") -> Tensor:
    """Penalty weights w_v of the negatives (Eq. 6).

    Choice: Eq. 6 prints exp of a probability, which makes the weights nearly equal (their ratio is at most e) although
    the text wants harder negatives to weigh more. We take exp of the ensemble logits, i.e. the probability
    renormalised over V_N; ``weight_from: prob`` is as printed, ``uniform`` gives equal weights.

    Args:
        ensemble: ``[N, V]`` ensemble logits; weights carry its gradient.
        negatives: ``[N, V]`` of 0 and 1.
        weight_from: ``logit``, ``prob`` or ``uniform``.

    Returns:
        ``[N, V]`` float32 (float64 for float64 logits); 0 outside the negatives, and a row sums to 1 or, when it has
        none, to 0.
    """
    exponent = at_least_float32(ensemble)
    if weight_from == "prob":
        exponent = exponent.softmax(-1)
    elif weight_from == "uniform":
        exponent = torch.zeros_like(exponent)
    return restricted_softmax(exponent, negatives)  # Eq. 6


def _log_normaliser(logits: Tensor) -> Tensor:
    return at_least_float32(logits).logsumexp(-1, keepdim=True)


def _most_probable(ensemble: Tensor, negatives: Tensor, count: int) -> Tensor:
    best = ensemble.masked_fill(negatives == 0, -torch.inf).topk(count, dim=1)
    return torch.zeros_like(negatives).scatter_(1, best.indices, (best.values > -torch.inf).to(negatives.dtype))
