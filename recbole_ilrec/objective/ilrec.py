"""ILRec: penalised cross-entropy, layer distillation and collaborative rewards in one loss (Eq. 9 and 12).

Knows states, logits, targets and trie children; never items, prompts, models or RecBole.
"""

from functools import partial

import torch
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.objective.base import Needs
from recbole_ilrec.objective.blocks import HeadLoss, Tables
from recbole_ilrec.objective.cpd import layer_distillation, sampled
from recbole_ilrec.objective.cpo import frac_negative_logit, penalised_cross_entropy
from recbole_ilrec.objective.crr import collaborative_regularisation, soft_labels
from recbole_ilrec.objective.ragged import RowLists, in_order, pair_mask
from recbole_ilrec.objective.self_hard import ensemble_logits, ensemble_of_logits, negatives_under, penalty_weights
from recbole_ilrec.objective.step_rows import BlockRows, StepRows
from recbole_ilrec.schema import Combined, LayerStates, LegalTokens, LossTerms, TokenBatch
from recbole_ilrec.settings import ILRecSettings

PARTS = ("cpo", "cpd", "crr")
MONITORS = ("ce", "negatives", "penalised", "frac_negative_logit", "outside_trie")


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

    Choice: the paper trains once, with the whole loss from the first step; the abstract of its preprint calls the
    framework two-stage. ``start_epoch`` begins with plain cross-entropy, ``--train.init_from=sft`` with what plain
    fine-tuning ends with, ``--train.init_from=RUN`` with the best weights of a finished run.

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
        self._ids: dict[torch.device, Tensor] = {}
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
        active = self.active(batch, epoch)
        order, distilled, scale = self._distilled(batch, active, generator)
        settings = self.settings
        whole = HeadLoss(
            LayerStates(in_order(states.final, order), tuple(in_order(x, order) for x in candidates), states.head),
            distilled,
            partial(ensemble_logits, head=states.head, ensemble=settings.ensemble) if self._ensembles else None,
            partial(ensemble_of_logits, ensemble=settings.ensemble),
            ensemble_learns=not settings.detach_weights,
            spare_head=settings.cpd_detach_head,
            narrow=self._narrow_head(states) if distilled else (),
        )
        rewarded = self._rewarded(batch, active)
        step = StepRows(
            in_order(batch.targets, order),
            None if active is None else in_order(active, order),
            None if rewarded is None else in_order(rewarded, order),
            None if legal is None else RowLists(legal, batch.count, order),
            scale,
        )
        sums = self._sums(step, whole.values(partial(self._block, step)))
        weights = {"cpo": 1.0, "cpd": self.cpd_weight, "crr": self.crr_weight}  # Eq. 9, 12
        parts = {name: sums[name] for name in PARTS}
        total = whole.with_gradient(torch.stack([weights[name] * parts[name] for name in PARTS]).sum())
        return LossTerms(
            parts=dict(parts),
            weights=dict(weights),
            monitors={name: sums[name] for name in MONITORS},
            combined=Combined(total, parts, weights),
        )

    def _narrow_head(self, states: LayerStates) -> tuple[Tensor, ...]:
        """The head for the tokens of the items, where Eq. 8 looks at no others and they are few; nothing elsewhere.

        The ensemble then has a product of its own at every row, which the students' logits would have saved.
        """
        if self.settings.cpd_support != "item_tokens" or states.head_rows is None or self.item_tokens is None:
            return ()
        ids = self._item_ids(states.final.device)
        return () if ids is None or 2 * len(ids) > len(self.item_tokens) else states.head_rows(ids)

    def active(self, batch: TokenBatch, epoch: float) -> Tensor | None:
        """``[N]`` bool, tokens to which ILRec's terms apply; ``None`` for all of them."""
        if epoch < self.settings.start_epoch:
            return torch.zeros_like(batch.targets, dtype=torch.bool)
        active = batch.ilrec_rows
        if not self.settings.apply_to_eos and self.eos_id is not None:
            content = batch.targets.ne(self.eos_id)
            active = content if active is None else active & content
        return active

    def _rewarded(self, batch: TokenBatch, active: Tensor | None) -> Tensor | None:
        """``[N]`` bool, tokens to which Eq. 11 applies: those of :meth:`active` that answer a history (A30)."""
        answers = batch.target >= 0
        if not self.crr_weight or bool(answers.all()):
            return active
        return answers if active is None else active & answers

    def _distilled(
        self, batch: TokenBatch, active: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor | None, int, float]:
        """An order that begins with the rows of Eq. 8 (``None``: as they are), their number, the factor of their sum.

        ``cpd_share`` below 1 takes a random share of the tokens; the factor makes up for those left out, which is
        unbiased.
        """
        targets, share = batch.targets, self.settings.cpd_share
        if not self.cpd_weight:
            return None, 0, 1.0
        scale = 1 / self.needs.layers if self.settings.cpd_layer_reduction == "mean" else 1.0
        masks = [mask for mask in (active, sampled(batch, share, generator)) if mask is not None]
        if not masks:
            return None, len(targets), scale
        chosen = torch.stack(masks).all(0)
        return chosen.byte().argsort(descending=True, stable=True), int(chosen.sum()), scale / share

    def _sums(self, step: StepRows, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of all parts and monitors."""
        sums = {name: value.sum() for name, value in values.items()}
        sums["cpd"] *= step.scale
        sums["penalised"] = (values["negatives"] > 0).sum().to(sums["ce"].dtype)
        if self.crr_weight and step.legal is not None:
            outside = step.legal.empty if step.rewarded is None else step.legal.empty & step.rewarded
            sums["outside_trie"] = outside.sum().to(sums["ce"].dtype)
        return sums

    def _block(self, step: StepRows, tables: Tables) -> dict[str, Tensor]:
        """Parts and monitors of each row of a block, and into ``tables`` the gradient of the weighted total."""
        rows = step.block(tables.low, tables.high, tables.final)
        ce = rows.final.cross_entropy(rows.targets)
        values = dict.fromkeys(PARTS + MONITORS, ce.new_zeros(0))
        values["ce"] = ce
        by_teacher: Tensor | None = None
        if self.cpd_weight and tables.students.numel():  # first: it needs most memory
            by_teacher = self._distil(tables, rows, step, values)
        negatives = self._negatives(tables, rows)
        by_final = self._penalised(tables, rows, negatives, values)
        if by_teacher is not None:
            by_final[: len(by_teacher)].add_(by_teacher, alpha=step.scale * self.cpd_weight)
        if self.crr_weight and rows.legal is not None:
            difference = self._regularised(rows, rows.legal, negatives, values)
            torch.add(by_final, difference, alpha=self.crr_weight, out=tables.final)
        else:
            tables.final.copy_(by_final)
        return values

    def _negatives(self, tables: Tables, rows: BlockRows) -> Tensor | None:
        """``[n, V]`` of 0 and 1, Eq. 4-5; ``None`` where no part uses them."""
        if not self._uses_negatives:
            return None
        negatives = negatives_under(
            self.settings, rows.final.logits, tables.ensemble, rows.targets, rows.legal, self.item_tokens
        )
        return negatives if rows.active is None else negatives.mul_(rows.active[:, None])

    def _penalised(
        self, tables: Tables, rows: BlockRows, negatives: Tensor | None, values: dict[str, Tensor]
    ) -> Tensor:
        """Eq. 6-7: adds to ``values``; the derivative by the final logits.

        Choice: weights are coefficients, so no gradient flows through them; ``detach_weights: false`` lets it.
        """
        final, truth = rows.final, rows.targets[:, None]
        if negatives is None:
            values["cpo"] = values["ce"]
            return final.p.scatter_add(1, truth, torch.full_like(final.p[:, :1], -1.0))
        learns = not self.settings.detach_weights
        source = final.logits if tables.ensemble is None else tables.ensemble
        with torch.set_grad_enabled(learns):
            source = source.detach().requires_grad_(learns)
            weights = penalty_weights(source, negatives, weight_from=self.settings.weight_from)
        values["cpo"], by_final, by_weights = penalised_cross_entropy(
            final.logits, rows.targets, weights.detach(), self.beta, self.settings.penalty, by_weights=learns
        )
        values["negatives"] = negatives.sum(1)
        values["frac_negative_logit"] = frac_negative_logit(final.logits, weights.detach())
        if by_weights is None:
            return by_final
        known = weights.requires_grad
        by_source = torch.autograd.grad(weights, source, by_weights)[0] if known else torch.zeros_like(source)
        if tables.ensemble is None:
            return by_final.add_(by_source)
        tables.ensemble.copy_(by_source)
        return by_final

    def _regularised(
        self, rows: BlockRows, legal: LegalTokens, negatives: Tensor | None, values: dict[str, Tensor]
    ) -> Tensor:
        """Eq. 11: adds to ``values``; the derivative by the final logits."""
        settings, rewarded = self.settings, rows.rewarded
        scope = negatives
        if settings.crr_scope == "legal" or scope is None:
            scope = pair_mask(legal, rows.final.p)
        labels = soft_labels(
            rows.targets,
            scope,
            legal,
            rows.outside,
            label=settings.crr_label,
            temperature=settings.crr_temperature,
            truth_floor=settings.r_truth_floor,
        )
        value = collaborative_regularisation(rows.final, labels)
        difference = torch.sub(rows.final.p, labels, out=labels)
        if rewarded is not None:
            value, difference = value * rewarded, difference.mul_(rewarded[:, None])
        values["crr"] = value
        return difference

    def _distil(self, tables: Tables, rows: BlockRows, step: StepRows, values: dict[str, Tensor]) -> Tensor | None:
        """Eq. 8: adds to ``values``; leaves the students' derivatives in their table.

        Returns:
            those by the teacher's logits at the distilled rows, unscaled, if it learns.

        Choice: the last layer only teaches, no gradient flows into it; ``detach_teacher: false`` lets it.
        """
        settings, count = self.settings, len(tables.students)
        narrow = step.legal if settings.cpd_support == "legal" else None
        values["cpd"], by_students, by_teacher = layer_distillation(
            tables.students,
            rows.final.first(count),
            direction=settings.cpd_direction,
            token_ids=self._item_ids(rows.targets.device) if settings.cpd_support == "item_tokens" else None,
            legal=None if narrow is None else narrow.rows(tables.low, tables.low + count),
            by_teacher=not settings.detach_teacher,
            narrow=tables.students.shape[-1] < rows.final.logits.shape[-1],
        )
        torch.mul(by_students, step.scale * self.cpd_weight, out=tables.students)
        return by_teacher

    def _item_ids(self, device: torch.device) -> Tensor | None:
        if self.item_tokens is not None and device not in self._ids:  # a GPU would be waited for at every block
            self._ids[device] = self.item_tokens.to(device).nonzero().squeeze(1)
        return self._ids.get(device)
