"""What Eq. 2 to 11 make of a few supervised tokens, as whole tables to look at.

The loss itself never makes such tables (:mod:`recbole_ilrec.objective.blocks`); here every number of it is laid open.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_ilrec.objective.cpd import layer_distillation
from recbole_ilrec.objective.cpo import penalised_cross_entropy
from recbole_ilrec.objective.crr import collaborative_regularisation, soft_labels
from recbole_ilrec.objective.distribution import distribution
from recbole_ilrec.objective.ilrec import ILRec
from recbole_ilrec.objective.ragged import flat_index, pair_mask, row_sum
from recbole_ilrec.objective.self_hard import ensemble_logits, negatives_under, penalty_weights
from recbole_ilrec.schema import LayerStates, LegalTokens


@dataclass(frozen=True)
class Explanation:
    """Tables of N supervised tokens.

    Attributes:
        final: ``[N, V]``, probabilities of the last layer.
        layers: ``[N, K, V]``, those of the candidate layers, lowest first (Eq. 2).
        ensemble: ``[N, V]``, those of the ensemble (Eq. 3); the last layer's where it gives the negatives.
        threshold: ``[N]``, Eq. 4: a probability, or a logit under ``threshold_on: logit``.
        negatives: ``[N, V]`` bool, V_N (Eq. 4-5).
        weights: ``[N, V]``, w of the negatives (Eq. 6), 0 elsewhere.
        rewards: ``[N, V]``, r of the legal tokens (Eq. 10), 0 elsewhere; ``None`` without a reward model.
        labels: ``[N, V]``, the soft labels of Eq. 11; ``None`` likewise.
        losses: ``[N]`` each, nats: ``ce`` (Eq. 1), ``cpo`` (Eq. 7), ``cpd`` (Eq. 8, summed over the layers as in the
            loss) and, with rewards, ``crr`` (Eq. 11).
    """

    final: Tensor
    layers: Tensor
    ensemble: Tensor
    threshold: Tensor
    negatives: Tensor
    weights: Tensor
    rewards: Tensor | None
    labels: Tensor | None
    losses: Mapping[str, Tensor]


@torch.no_grad()
def explain(
    objective: ILRec, states: LayerStates, targets: Tensor, legal: LegalTokens, active: Tensor | None = None
) -> Explanation:
    """Lay open what a loss of ILRec sees, whichever of its parts are switched on.

    Args:
        objective: its settings and item tokens are read.
        states: at the N tokens, with as many candidate layers as the settings name.
        targets: ``[N]`` int64.
        legal: trie children of the N tokens, with rewards where there is a reward model.
        active: ``[N]`` bool, tokens to which ILRec's terms apply (:meth:`ILRec.active`); ``None`` for all. At the
            others there are no negatives, and the terms are those of plain cross-entropy or 0.
    """
    settings = objective.settings
    final = distribution(states.head(states.final).double())
    ensemble = None
    if settings.negatives_from == "ensemble" and states.candidates:
        ensemble = ensemble_logits(states.candidates, states.head, ensemble=settings.ensemble).double()
    negatives = negatives_under(settings, final.logits, ensemble, targets, legal, objective.item_tokens)
    source = final.logits if ensemble is None else ensemble
    on = torch.ones_like(targets, dtype=negatives.dtype) if active is None else active.to(negatives.dtype)
    negatives.mul_(on[:, None])
    weights = penalty_weights(source, negatives, weight_from=settings.weight_from)
    cpo, _, _ = penalised_cross_entropy(final.logits, targets, weights, settings.beta, settings.penalty)
    losses = {"ce": final.cross_entropy(targets), "cpo": cpo, "cpd": torch.zeros_like(cpo)}
    students = final.logits.new_empty(len(targets), 0, final.logits.shape[1])
    if states.candidates:
        students = torch.stack([states.head(state).double() for state in states.candidates], dim=1)
        losses["cpd"] = on * _distillation(objective, students.clone(), final.logits, legal)
    rewards = labels = None
    if legal.reward is not None:
        rewards = torch.zeros_like(final.p)
        rewards.view(-1)[flat_index(legal, rewards)] = legal.reward.to(rewards.dtype)
        labels = _labels(objective, targets, negatives, legal)
        losses["crr"] = on * collaborative_regularisation(final, labels)
    read = final.logits if settings.tau_from == "final" else source
    read = read if settings.threshold_on == "logit" else read.softmax(-1)
    threshold = settings.alpha * read.gather(1, targets[:, None]).squeeze(1)  # Eq. 4
    layers, mixed = students.softmax(-1), source.softmax(-1)
    return Explanation(final.p, layers, mixed, threshold, negatives.bool(), weights, rewards, labels, losses)


def _distillation(objective: ILRec, students: Tensor, teacher: Tensor, legal: LegalTokens) -> Tensor:
    settings, tokens = objective.settings, objective.item_tokens
    narrow = settings.cpd_support == "item_tokens" and tokens is not None
    values, _, _ = layer_distillation(
        students,
        distribution(teacher),
        direction=settings.cpd_direction,
        token_ids=tokens.to(teacher.device).nonzero().squeeze(1) if narrow and tokens is not None else None,
        legal=legal if settings.cpd_support == "legal" else None,
    )
    return values / students.shape[1] if settings.cpd_layer_reduction == "mean" else values


def _labels(objective: ILRec, targets: Tensor, negatives: Tensor, legal: LegalTokens) -> Tensor:
    settings = objective.settings
    children = row_sum(torch.ones_like(legal.token, dtype=negatives.dtype), legal.row, len(targets))
    return soft_labels(
        targets,
        pair_mask(legal, negatives) if settings.crr_scope == "legal" else negatives,
        legal,
        children == 0,
        label=settings.crr_label,
        temperature=settings.crr_temperature,
        truth_floor=settings.r_truth_floor,
    )
