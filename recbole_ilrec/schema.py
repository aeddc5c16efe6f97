"""The named tensors that travel between packages.

Legend used in every docstring of this package:
``B`` rows of a batch, ``T`` tokens of a padded row, ``N`` supervised tokens of a batch, ``V`` vocabulary, ``H`` hidden
size, ``K`` candidate layers, ``I`` real items, ``W`` beams, ``M`` entries of a ragged list, ``E`` targets (items to
predict) of a batch, ``A`` answers to a prompt, R of them rejected (``A = 1 + R``), ``P`` positions whose states are
needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from recbole_ilrec.errors import UserError


@dataclass(frozen=True)
class LegalTokens:
    """The children of the trie node that precedes each supervised token, as a flat ragged list.

    ``row[m]`` says to which of the ``N`` supervised tokens entry ``m`` belongs; entries of a row are adjacent and
    ``row`` does not decrease. A supervised token outside the trie (text, end of a text answer) has no entry.

    Attributes:
        row: ``[M]`` int64, index into the ``N`` supervised tokens.
        token: ``[M]`` int64, vocabulary id of a child.
        reward: ``[M]`` float, r_v of Eq. 10 (sums to 1 within a row), or ``None`` when no reward model is in use.
    """

    row: Tensor
    token: Tensor
    reward: Tensor | None = None

    def to(self, device: torch.device) -> "LegalTokens":
        """The same entries on ``device``."""
        reward = None if self.reward is None else self.reward.to(device)
        return LegalTokens(self.row.to(device), self.token.to(device), reward)


@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids for one training step, padded on the right.

    Attributes:
        input_ids: ``[B, T]`` int64. Padding stands after the row's last token, where a causal model cannot see it.
        select: ``[N]`` int64, flat index ``b * T + t`` of the position whose state predicts a supervised token.
        targets: ``[N]`` int64, the token to predict there.
        node: ``[N]`` int64, trie node reached by the identifier's tokens before the target; -1 outside the trie.
        target: ``[N]`` int64, number of the training target (item to predict) the token belongs to, in the order of
            the data set's targets; -1 where the answer follows no history (other tasks), so that it has no rewards.
        ilrec_rows: ``[N]`` bool, whether ILRec's terms apply (the ``seqrec`` task), or ``None`` for all.
        row_keys: ``[B]`` int64, which decide all that a training step leaves to chance in a row
            (:mod:`recbole_ilrec.chance`), or ``None``: then it is drawn anew.
    """

    input_ids: Tensor
    select: Tensor
    targets: Tensor
    node: Tensor
    target: Tensor
    ilrec_rows: Tensor | None = None
    row_keys: Tensor | None = None

    @property
    def count(self) -> int:
        """What a step's loss is the mean over: supervised tokens."""
        return len(self.targets)

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch with every tensor on ``device``."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return TokenBatch(**moved)


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts, each followed by all its answers, padded on the right: the prompt is encoded once for all of them.

    An answer sees the prompt and itself, and continues the prompt's positions, as if it stood there alone. Its last
    token predicts nothing and is left out.

    Attributes:
        input_ids: ``[B, T]`` int64.
        position_ids: ``[B, T]`` int64.
        segment: ``[B, T]`` int64; 0 in the prompt, ``1 + a`` in answer a, -1 in the padding.
        select: ``[P]`` int64, flat index ``b * T + t`` of the positions that predict answer tokens, each once.
        place: ``[N]`` int64, index into ``select`` for each answer token.
        targets: ``[N]`` int64, the answer tokens.
        answer: ``[N]`` int64, flat index ``b * A + a`` of the answer a token belongs to.
        present: ``[B, A]`` bool, False where a row has no such answer. The chosen answer comes first.
        reference: ``[B, A]`` float32 log-probabilities of the answers under the reference, or ``None``.
        smoothing: ``[B, R]`` float32 chance that a pair is the wrong way round, or ``None``.
        row_keys: ``[B]`` int64, as in :class:`TokenBatch`.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment: Tensor
    select: Tensor
    place: Tensor
    targets: Tensor
    answer: Tensor
    present: Tensor
    reference: Tensor | None = None
    smoothing: Tensor | None = None
    row_keys: Tensor | None = None

    @property
    def count(self) -> int:
        """What a step's loss is the mean over: rows."""
        return len(self.present)

    def to(self, device: torch.device) -> "AnswerBatch":
        """The same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in vars(self).items()}
        return AnswerBatch(**moved)


@dataclass(frozen=True)
class LayerStates:
    """What an objective sees of the backbone: states at the supervised positions, ready for the head.

    Attributes:
        final: ``[N, H]``, state of the last layer L after the final norm; ``head(final)`` are the model's own logits.
        candidates: K tensors ``[N, H]``, layers L-k .. L-1 after the same norm (phi of Eq. 2), lowest layer first.
        head: the output projection, ``[n, H] -> [n, V]``. It is linear, so the mean of logits is the logits of
            the mean state.
        head_rows: its weights ``[S, H]`` and bias ``[S]`` (or none) for the tokens ``[S]``, with their gradients;
            ``None`` where the head is more than a matrix.
    """

    final: Tensor
    candidates: tuple[Tensor, ...]
    head: Callable[[Tensor], Tensor]
    head_rows: Callable[[Tensor], tuple[Tensor, ...]] | None = None


@dataclass(frozen=True)
class Combined:
    """The weighted sum of some parts of a loss, whose gradient was computed as a whole: the parts carry none.

    Attributes:
        value: scalar tensor (sum over tokens), with the gradient.
        parts: name -> scalar tensor, those that are in it.
        weights: name -> their factors in it.
    """

    value: Tensor
    parts: Mapping[str, Tensor]
    weights: Mapping[str, float]


@dataclass(frozen=True)
class LossTerms:
    """Named parts of a loss, each a *sum* over the supervised tokens of this micro-batch.

    Sums, not means: the caller divides by the number of supervised tokens of the whole (accumulated, multi-process)
    step, so that the loss does not depend on how a step is cut.

    Attributes:
        parts: name -> scalar tensor (sum over tokens), unweighted.
        weights: name -> factor of the part in the total.
        monitors: name -> scalar tensor (sum over tokens), logged only.
        combined: some of the parts in their weights, where their gradient was computed as a whole.
    """

    parts: Mapping[str, Tensor]
    weights: Mapping[str, float]
    monitors: Mapping[str, Tensor] = field(default_factory=dict)
    combined: Combined | None = None

    def plus(self, name: str, value: Tensor, weight: float = 1.0) -> "LossTerms":
        """The same with one more part, for a loss that adds to another one.

        Raises:
            UserError: there is a part of that name.
        """
        if name in self.parts:
            raise UserError(f"loss part '{name}' is there already (of {', '.join(self.parts)}): choose another name.")
        return replace(self, parts={**self.parts, name: value}, weights={**self.weights, name: weight})

    @property
    def total(self) -> Tensor:
        """Weighted sum of the parts (a sum over tokens; divide by their number for the mean).

        Raises:
            UserError: a part of :attr:`combined` was changed after its gradient was computed, which would be lost.
        """
        if self.combined is None:
            return self._sum(self.parts)
        within = self.combined.parts
        for name, part in within.items():
            if self.parts.get(name) is not part or self.weights.get(name) != self.combined.weights[name]:
                raise UserError(
                    f"loss part '{name}' was changed, left out or given another weight after the gradient of "
                    f"{', '.join(within)} had been computed as a whole: set weights before (ilrec's by --lambda and "
                    "--mu), and add a part under a new name by terms.plus(name, value, weight)."
                )
        added = {name: part for name, part in self.parts.items() if name not in within}
        return self.combined.value.float() + self._sum(added) if added else self.combined.value.float()

    def _sum(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * part.float() for name, part in parts.items()]).sum()


@dataclass(frozen=True)
class Ranking:
    """The best identifiers of each user.

    Attributes:
        leaf: ``[B, W]`` int64, identifiers (numbers of distinct complete token sequences) best first; -1 = none.
        score: ``[B, W]`` float32, log-probability of the whole identifier; -inf where there is none.
        bound: ``[B]`` float32, which no identifier that the search dropped can score above; -inf where it dropped none.
            ``None`` where it is not known.
    """

    leaf: Tensor
    score: Tensor
    bound: Tensor | None = None

    def certified(self, places: int) -> Tensor:
        """``[B]`` bool: the first ``places`` are proven to be the most probable identifiers of all."""
        if self.bound is None:
            return torch.zeros(len(self.score), dtype=torch.bool, device=self.score.device)
        return self.score[:, min(places, self.score.shape[1]) - 1] >= self.bound
