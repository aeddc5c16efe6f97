"""ILRec: penalised cross-entropy, layer distillation and collaborative rewards in one loss (Eq. 9 and 12).

Knows states, logits, targets and trie children; never items, prompts, models or RecBole.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.objective.base import Needs
from recbole_ilrec.objective.blocks import Gradients, HeadLoss, Tables
from recbole_ilrec.objective.cpd import layer_distillation, sample_rows
from recbole_ilrec.objective.cpo import frac_negative_logit, penalised_cross_entropy
from recbole_ilrec.objective.crr import collaborative_regularisation, outside_trie, soft_labels
from recbole_ilrec.objective.distribution import Distribution, distribution
from recbole_ilrec.objective.ragged import pair_mask, row_slice, select_rows
from recbole_ilrec.objective.self_hard import ensemble_logits, hard_negatives, penalty_weights
from recbole_ilrec.objective.sft import at_least_float32
from recbole_ilrec.schema import LayerStates, LegalTokens, LossTerms, TokenBatch
from recbole_ilrec.settings import ILRecSettings

PARTS = ("cpo", "cpd", "crr")
MONITORS = ("ce", "negatives", "penalised", "frac_negative_logit", "outside_trie")


class _Step(NamedTuple):
    """What a block of rows needs to know of its step: see :meth:`ILRec.__call__`."""

    targets: Tensor
    active: Tensor | None
    legal: LegalTokens | None
    scale: float


class ILRec:
    """The loss of Eq. 12: L_CPO + lambda L_CPD + mu L_CRR, each summed over the supervised tokens.

    Parts are ``cpo``, ``cpd`` and ``crr``. Monitors, also sums over tokens: ``ce`` (unpenalised cross-entropy),
    ``negatives`` (hard negatives), ``penalised`` (tokens with at least one), ``frac_negative_logit`` (share of the
    penalty weight on negative logits; divide by ``penalised``, not by the tokens) and ``outside_trie`` (tokens whose
    prefix has no children although rewards are in use).

    Choice: the paper sums Eq. 1 over tokens and writes Eq. 7 and 11 for one. We treat all terms alike: sums here, and
    the trainer divides by the supervised tokens of the whole step.

    Choice: Eq. 7 replaces cross-entropy; where it does not apply (``use_cpo: false``, other tasks, end tokens under
    ``apply_to_eos: false``, before ``start_epoch``) plain cross-entropy stands in its place.

    Choice: 'w/o CNS' (``negatives_from: final``) keeps the distillation; without candidate layers (``k: 0``) the
    negatives also come from the final logits, and Eq. 8 is empty.

    Args:
        settings: hyper-parameters and readings of the paper.
        item_tokens: ``[V]`` bool, tokens that occur in some identifier; for the scopes ``item_tokens``.
        eos_id: end token; for ``apply_to_eos: false``.

    Raises:
        UserError: a setting needs ``item_tokens`` or ``eos_id``, and it is not there.
    """

    def __init__(self, settings: ILRecSettings, item_tokens: Tensor | None = None, *, eos_id: int | None = None):
        self.settings = settings
        self.item_tokens = item_tokens
        self.eos_id = eos_id
        self.beta = settings.beta if settings.use_cpo else 0.0
        self.cpd_weight = settings.lambda_ if settings.use_cpd and settings.layers else 0.0
        self.crr_weight = settings.mu if settings.use_crr else 0.0
        self._uses_negatives = bool(self.beta) or (bool(self.crr_weight) and settings.crr_scope == "negatives")
        self._ensembles = self._uses_negatives and settings.negatives_from == "ensemble" and settings.layers > 0
        self._check()
        self.needs = self._needs()

    def _check(self) -> None:
        for name in ("neg_scope", "cpd_support"):
            if getattr(self.settings, name) == "item_tokens" and self.item_tokens is None:
                raise UserError(
                    f"ilrec.{name}=item_tokens needs the tokens of the items, and this paradigm gives none; "
                    f"choose --ilrec.{name}=vocab."
                )
        if not self.settings.apply_to_eos and self.eos_id is None:
            raise UserError(
                "ilrec.apply_to_eos=false needs an end token, and the tokenizer has none; "
                "choose --ilrec.apply_to_eos=true."
            )

    def _needs(self) -> Needs:
        settings = self.settings
        use_layers = bool(self.cpd_weight) or self._ensembles
        rewards = bool(self.crr_weight)
        legal = (
            rewards
            or (self._uses_negatives and settings.neg_scope == "legal")
            or (bool(self.cpd_weight) and settings.cpd_support == "legal")
        )
        return Needs(layers=settings.layers if use_layers else 0, legal=legal, rewards=rewards)

    def __call__(
        self,
        states: LayerStates,
        batch: TokenBatch,
        legal: LegalTokens | None,
        *,
        epoch: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """See :class:`~recbole_ilrec.objective.base.Objective`.

        Raises:
            ValueError: fewer candidate layers than ``needs.layers``, or no legal tokens or rewards where needed.
        """
        if len(states.candidates) < self.needs.layers:
            raise ValueError(f"ILRec needs {self.needs.layers} candidate layers, got {len(states.candidates)}")
        if self.needs.legal and legal is None:
            raise ValueError("these settings of ILRec need the legal tokens of each position")
        candidates = states.candidates[len(states.candidates) - self.needs.layers :]
        active = self._active(batch, epoch)
        distilled, scale = self._distilled(batch.targets, active, generator)
        settings = self.settings
        whole = HeadLoss(
            LayerStates(states.final, candidates, states.head),
            distilled,
            partial(ensemble_logits, head=states.head, ensemble=settings.ensemble) if self._ensembles else None,
            ensemble_learns=not settings.detach_weights,
            spare_head=settings.cpd_detach_head,
        )
        sums = whole.sums(partial(self._block, _Step(batch.targets, active, legal, scale)))
        weights = {"cpo": 1.0, "cpd": self.cpd_weight, "crr": self.crr_weight}  # Eq. 9, 12
        return LossTerms(
            parts={name: sums[name] for name in PARTS},
            weights=weights,
            monitors={name: sums[name] for name in MONITORS},
            combined=whole.with_gradient(torch.stack([weights[name] * sums[name] for name in PARTS]).sum()),
        )

    def _active(self, batch: TokenBatch, epoch: float) -> Tensor | None:
        """``[N]`` bool, tokens to which ILRec's terms apply; ``None`` for all of them."""
        if epoch < self.settings.start_epoch:
            return torch.zeros_like(batch.targets, dtype=torch.bool)
        active = batch.ilrec_rows
        if not self.settings.apply_to_eos and self.eos_id is not None:
            content = batch.targets.ne(self.eos_id)
            active = content if active is None else active & content
        return active

    def _distilled(
        self, targets: Tensor, active: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, float]:
        """Rows of Eq. 8, ascending, and the factor that makes up for those left out.

        ``cpd_share`` below 1 takes a random share of the tokens and scales their sum up, which is unbiased.
        """
        if not self.cpd_weight:
            return targets.new_zeros(0), 1.0
        rows = torch.arange(len(targets), device=targets.device) if active is None else active.nonzero().squeeze(1)
        chosen = sample_rows(len(rows), self.settings.cpd_share, generator, targets.device)
        return (rows, 1.0) if chosen is None else (rows[chosen], len(rows) / len(chosen))

    def _block(self, step: _Step, tables: Tables) -> tuple[dict[str, Tensor], Gradients]:
        """The sums of all parts and monitors over a block of rows, and the gradient of the weighted total."""
        rows = slice(tables.low, tables.high)
        targets = step.targets[rows]
        active = None if step.active is None else step.active[rows]
        legal = None if step.legal is None else row_slice(step.legal, tables.low, tables.high)
        final = distribution(at_least_float32(tables.final))
        ce = final.cross_entropy(targets)
        sums = dict.fromkeys(PARTS + MONITORS, ce.new_zeros(()))
        sums["ce"] = ce.sum()
        negatives = self._negatives(tables, final.logits, targets, legal, active)
        by_final, by_ensemble = self._penalised(tables, final, targets, negatives, sums)
        if self.crr_weight and legal is not None:
            self._regularised(final, targets, negatives, legal, active, by_final, sums)
        by_students: list[Tensor] = []
        if self.cpd_weight and tables.students.numel():
            by_students = self._distil(tables, final, legal, step.scale, by_final, sums)
        return sums, Gradients(by_final, by_ensemble, by_students)

    def _negatives(
        self, tables: Tables, logits: Tensor, targets: Tensor, legal: LegalTokens | None, active: Tensor | None
    ) -> Tensor | None:
        """``[n, V]`` of 0 and 1, Eq. 4-5; ``None`` where no part uses them."""
        settings = self.settings
        if not self._uses_negatives:
            return None
        allowed = None
        if settings.neg_scope == "item_tokens" and self.item_tokens is not None:
            allowed = self.item_tokens.to(logits.device)
        elif settings.neg_scope == "legal" and legal is not None:
            allowed = pair_mask(legal, logits)
        negatives = hard_negatives(
            logits if tables.ensemble is None else tables.ensemble,
            targets,
            settings.alpha,
            threshold_on=settings.threshold_on,
            final=logits if settings.tau_from == "final" else None,
            allowed=allowed,
            max_negatives=settings.max_negatives,
        )
        return negatives if active is None else negatives.mul_(active[:, None])

    def _penalised(
        self,
        tables: Tables,
        final: Distribution,
        targets: Tensor,
        negatives: Tensor | None,
        sums: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Eq. 6-7: adds to ``sums``; the derivative by the final logits and, if it is wanted, by the ensemble's.

        Choice: weights are coefficients, so no gradient flows through them; ``detach_weights: false`` lets it.
        """
        if negatives is None:
            sums["cpo"] = sums["ce"]
            truth = torch.full_like(final.p[:, :1], -1.0)
            return final.p.scatter_add(1, targets[:, None], truth), None
        learns = not self.settings.detach_weights
        logits = final.logits
        source = logits if tables.ensemble is None else tables.ensemble
        with torch.set_grad_enabled(learns):
            source = source.detach().requires_grad_(learns)
            weights = penalty_weights(source, negatives, weight_from=self.settings.weight_from)
        values, by_final, by_weights = penalised_cross_entropy(
            logits, targets, weights.detach(), self.beta, self.settings.penalty, by_weights=learns
        )
        count = negatives.sum(1)
        sums["cpo"] = values.sum()
        sums["negatives"] = count.sum()
        sums["penalised"] = (count > 0).sum().to(values.dtype)
        sums["frac_negative_logit"] = frac_negative_logit(logits, weights.detach()).sum()
        if by_weights is None or not weights.requires_grad:
            return by_final, None
        (by_source,) = torch.autograd.grad(weights, source, by_weights)
        if tables.ensemble is None:
            return by_final.add_(by_source), None
        return by_final, by_source

    def _regularised(
        self,
        final: Distribution,
        targets: Tensor,
        negatives: Tensor | None,
        legal: LegalTokens,
        active: Tensor | None,
        by_final: Tensor,
        sums: dict[str, Tensor],
    ) -> None:
        """Eq. 11: adds to ``sums`` and to the derivative by the final logits."""
        settings = self.settings
        scope = negatives
        if settings.crr_scope == "legal" or scope is None:
            scope = pair_mask(legal, final.p)
        labels = soft_labels(
            targets,
            scope,
            legal,
            label=settings.crr_label,
            temperature=settings.crr_temperature,
            truth_floor=settings.r_truth_floor,
        )
        values = collaborative_regularisation(final, labels)
        difference = torch.sub(final.p, labels, out=labels)
        outside = outside_trie(legal, len(targets))
        if active is not None:
            values, difference, outside = values * active, difference.mul_(active[:, None]), outside & active
        sums["crr"] = values.sum()
        sums["outside_trie"] = outside.sum().to(values.dtype)
        by_final.add_(difference, alpha=self.crr_weight)

    def _distil(
        self,
        tables: Tables,
        final: Distribution,
        legal: LegalTokens | None,
        scale: float,
        by_final: Tensor,
        sums: dict[str, Tensor],
    ) -> list[Tensor]:
        """Eq. 8: adds to ``sums``; the derivatives by the students' logits.

        Choice: the last layer only teaches, no gradient flows into it; ``detach_teacher: false`` lets it.
        """
        settings, chosen, rows = self.settings, tables.distilled, len(final.p)
        narrow = legal if settings.cpd_support == "legal" else None
        values, by_students, by_teacher = layer_distillation(
            tables.students,
            final if len(chosen) == rows else final.rows(chosen),
            direction=settings.cpd_direction,
            token_ids=self._item_ids(final.p.device) if settings.cpd_support == "item_tokens" else None,
            legal=None if narrow is None else select_rows(narrow, chosen, rows),
            by_teacher=not settings.detach_teacher,
        )
        if settings.cpd_layer_reduction == "mean":
            scale /= len(tables.students)
        sums["cpd"] = scale * values.sum()
        if by_teacher is not None:
            by_final.index_add_(0, chosen, by_teacher, alpha=scale * self.cpd_weight)
        return [gradient.mul_(scale * self.cpd_weight) for gradient in by_students]

    def _item_ids(self, device: torch.device) -> Tensor | None:
        return None if self.item_tokens is None else self.item_tokens.to(device).nonzero().squeeze(1)
