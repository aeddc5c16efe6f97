"""ILRec: penalised cross-entropy, layer distillation and collaborative rewards in one loss (Eq. 9 and 12).

Knows states, logits, targets and trie children; never items, prompts, models or RecBole.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.objective.base import Needs
from recbole_ilrec.objective.cpd import layer_distillation, sample_rows
from recbole_ilrec.objective.cpo import frac_negative_logit, split_penalised_cross_entropy
from recbole_ilrec.objective.crr import outside_trie, split_collaborative_regularisation
from recbole_ilrec.objective.ragged import pair_list, pair_mask, row_sum, select_rows
from recbole_ilrec.objective.self_hard import ensemble_logits, hard_negatives, pair_weights
from recbole_ilrec.objective.sft import cross_entropy
from recbole_ilrec.objective.split import SplitLogits, split_logits
from recbole_ilrec.schema import LayerStates, LegalTokens, LossTerms, TokenBatch
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
        self._from_layers = settings.negatives_from == "ensemble" and settings.layers > 0
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
        use_layers = bool(self.cpd_weight) or (self._uses_negatives and self._from_layers)
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
        active = self._active(batch, epoch)
        if active is None:
            sums = self._penalised(states, batch.targets, legal, generator)
        else:
            chosen, others = active.nonzero().squeeze(1), (~active).nonzero().squeeze(1)
            sums = self._plain(_rows_of(states, others), batch.targets[others])
            if len(chosen):
                part = None if legal is None else select_rows(legal, chosen, len(active))
                more = self._penalised(_rows_of(states, chosen), batch.targets[chosen], part, generator)
                sums = {name: sums[name] + more[name] for name in sums}
        return LossTerms(
            parts={name: sums[name] for name in PARTS},
            weights={"cpo": 1.0, "cpd": self.cpd_weight, "crr": self.crr_weight},  # Eq. 9, 12
            monitors={name: sums[name].detach() for name in MONITORS},
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

    def _plain(self, states: LayerStates, targets: Tensor) -> dict[str, Tensor]:
        ce = cross_entropy(states.head(states.final), targets).sum()
        return {**dict.fromkeys(PARTS + MONITORS, ce.new_zeros(())), "cpo": ce, "ce": ce}

    def _penalised(
        self, states: LayerStates, targets: Tensor, legal: LegalTokens | None, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        logits = states.head(states.final)
        zero = torch.zeros((), device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
        sums = dict.fromkeys(PARTS + MONITORS, zero)
        if self.cpd_weight:  # first: the table that the other terms keep does not exist yet
            sums["cpd"] = self._distillation(states, logits, legal, generator)
        if self._uses_negatives or self.crr_weight:
            sums.update(self._preference(states, logits, targets, legal))
        else:
            sums["cpo"] = sums["ce"] = cross_entropy(logits, targets).sum()
        return sums

    def _preference(
        self, states: LayerStates, logits: Tensor, targets: Tensor, legal: LegalTokens | None
    ) -> dict[str, Tensor]:
        """Eq. 3-7 and 11, all over one split of the final logits by the negatives and, where H is wider, by H."""
        in_negatives = in_scope = None  # None: every listed token
        if self._uses_negatives:
            ensemble = self._ensemble(states, logits)
            listed = negatives = self._negatives(ensemble, logits, targets, legal)
        else:
            ensemble, listed = logits, logits.new_zeros(logits.shape, dtype=torch.bool)
            negatives = listed
        if self.crr_weight and legal is not None and self.settings.crr_scope == "legal":
            scope = pair_mask(legal.row, legal.token, (len(targets), logits.shape[1]))
            listed = (negatives | scope).scatter_(1, targets[:, None], False)
            row, token = pair_list(listed)
            in_negatives, in_scope = negatives[row, token], scope[row, token]
        else:
            row, token = pair_list(listed)
        weights = self._weights(ensemble, row, token, in_negatives)
        del ensemble, listed, negatives  # full tables; the split keeps one of its own
        split = split_logits(logits, targets, row, token)
        sums = self._monitors(split, weights, legal)
        sums["cpo"] = split_penalised_cross_entropy(split, weights, self.beta, self.settings.penalty).sum()
        if self.crr_weight and legal is not None:
            sums["crr"] = self._regularisation(split, targets, legal, logits.shape[1], in_scope)
        return sums

    def _ensemble(self, states: LayerStates, logits: Tensor) -> Tensor:
        """Choice: weights are coefficients, so no gradient flows through them; ``detach_weights: false`` lets it."""
        if not self._from_layers:
            return logits.detach() if self.settings.detach_weights else logits
        candidates = states.candidates[-self.settings.layers :]
        with torch.no_grad() if self.settings.detach_weights else nullcontext():
            return ensemble_logits(candidates, states.head, ensemble=self.settings.ensemble)

    def _negatives(self, ensemble: Tensor, logits: Tensor, targets: Tensor, legal: LegalTokens | None) -> Tensor:
        settings = self.settings
        allowed = None
        if settings.neg_scope == "item_tokens" and self.item_tokens is not None:
            allowed = self.item_tokens.to(logits.device)
        elif settings.neg_scope == "legal" and legal is not None:
            allowed = pair_mask(legal.row, legal.token, (len(targets), logits.shape[1]))
        return hard_negatives(
            ensemble,
            targets,
            settings.alpha,
            threshold_on=settings.threshold_on,
            final=logits if settings.tau_from == "final" else None,
            allowed=allowed,
            max_negatives=settings.max_negatives,
        )

    def _weights(self, ensemble: Tensor, row: Tensor, token: Tensor, chosen: Tensor | None) -> Tensor:
        """``[M]`` weights of Eq. 6; 0 for a listed token that is no negative."""
        weight_from = self.settings.weight_from
        if chosen is None:
            return pair_weights(ensemble, row, token, weight_from=weight_from)
        place = chosen.nonzero().squeeze(1)
        weights = pair_weights(ensemble, row[place], token[place], weight_from=weight_from)
        return weights.new_zeros(len(row)).index_put((place,), weights)

    def _monitors(self, split: SplitLogits, weights: Tensor, legal: LegalTokens | None) -> dict[str, Tensor]:
        with torch.no_grad():
            rows = len(split.truth)
            count = row_sum((weights > 0).to(split.truth.dtype), split.row, rows)
            sums = {
                "ce": split.cross_entropy().sum(),
                "negatives": count.sum(),
                "penalised": (count > 0).sum().to(count.dtype),
                "frac_negative_logit": frac_negative_logit(split, weights).sum(),
            }
            if self.crr_weight and legal is not None:
                sums["outside_trie"] = outside_trie(legal, rows).sum().to(count.dtype)
        return sums

    def _regularisation(
        self, split: SplitLogits, targets: Tensor, legal: LegalTokens, vocab_size: int, in_scope: Tensor | None
    ) -> Tensor:
        settings = self.settings
        return split_collaborative_regularisation(
            split,
            targets,
            legal,
            vocab_size,
            in_scope=in_scope,
            label=settings.crr_label,
            temperature=settings.crr_temperature,
            truth_floor=settings.r_truth_floor,
        ).sum()

    def _distillation(
        self,
        states: LayerStates,
        logits: Tensor,
        legal: LegalTokens | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Choice: the last layer only teaches, no gradient flows into it; ``detach_teacher: false`` lets it.

        ``cpd_share`` below 1 takes a random share of the tokens and scales their sum up, which is unbiased.
        """
        settings = self.settings
        rows = len(logits)
        teacher = logits.detach() if settings.detach_teacher else logits
        candidates = states.candidates[-settings.layers :]
        chosen = sample_rows(rows, settings.cpd_share, generator, logits.device)
        legal = legal if settings.cpd_support == "legal" else None
        if chosen is not None:
            teacher, candidates = teacher[chosen], tuple(state[chosen] for state in candidates)
            legal = None if legal is None else select_rows(legal, chosen, rows)
        terms = layer_distillation(
            candidates,
            teacher,
            states.head,
            direction=settings.cpd_direction,
            token_ids=self._item_ids(logits.device) if settings.cpd_support == "item_tokens" else None,
            legal=legal,
            layer_reduction=settings.cpd_layer_reduction,
            detach_head=settings.cpd_detach_head,
            max_rows=rows,
        )
        return terms.sum() * (rows / len(terms) if len(terms) else 1.0)

    def _item_ids(self, device: torch.device) -> Tensor | None:
        return None if self.item_tokens is None else self.item_tokens.to(device).nonzero().squeeze(1)


def _rows_of(states: LayerStates, rows: Tensor) -> LayerStates:
    """The states of some supervised tokens; the split keeps their logits apart without copying a ``[N, V]`` tensor."""
    return LayerStates(states.final[rows], tuple(state[rows] for state in states.candidates), states.head)
