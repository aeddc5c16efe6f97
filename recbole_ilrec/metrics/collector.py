"""What RecBole's evaluator is fed: hits and recommended items of each user.

RecBole's own collector takes the K best columns of a score row. Where fewer than K scores are finite it fills up with
low item ids and counts those as hits if they are the target; here such a place is no recommendation.
"""

import copy
from collections import Counter

import torch
from recbole.config import Config as RecBoleConfig
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector as RecBoleCollector
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import Register
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces

_OF_ONE_EVALUATION = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")


class Collector(RecBoleCollector):
    """RecBole's collector; :meth:`collect_hits` takes the place of a dense score matrix for generative models.

    Attributes:
        places: users and the places of their true items, batch by batch, since :meth:`take_places` was called.
    """

    register: Register

    def __init__(self, config: RecBoleConfig):
        super().__init__(config)
        self.places: list[tuple[Tensor, TargetPlaces]] = []
        self._other_needs = copy.copy(self.register)
        for need in ("rec.items", "rec.topk"):
            setattr(self._other_needs, need, False)

    def collect_hits(self, rank: Tensor, items: Tensor | None = None) -> None:
        """Add one batch of users with one target each.

        Args:
            rank: ``[B]`` int64, place of the target in the user's list, 0 = first; negative or large = not found.
            items: ``[B, K]`` int64 internal ids of the recommended items, best first, 0 = none; K at least the largest
                ``topk``. Only needed for metrics of coverage and popularity.
        """
        width = max(self.topk)
        hits = (rank[:, None] == torch.arange(width, device=rank.device)).int()
        if self.register.need("rec.topk"):
            self.data_struct.update_tensor("rec.topk", torch.cat([hits, torch.ones_like(hits[:, :1])], dim=1).cpu())
        if self.register.need("rec.items"):
            if items is None or items.shape[1] < width:
                raise ValueError(f"metrics {self.config['metrics']} need the {width} recommended items of each user")
            self.data_struct.update_tensor("rec.items", items[:, :width].cpu())

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Add one batch of scores.

        Choice: a place of the list whose score is -inf or NaN holds item 0, ``[PAD]``, and is never a hit. RecBole
        counts it when the target's id happens to stand there.

        Args:
            scores_tensor: ``[B, I + 1]`` scores by internal item id.
            interaction: the rows.
            positive_u: ``[P]`` row of each target.
            positive_i: ``[P]`` internal id of each target.
        """
        user = self.config["USER_ID_FIELD"]
        users = interaction[user].cpu() if user in interaction.columns else torch.empty(0)
        if len(users) == len(scores_tensor) == len(positive_i):  # every item is ranked, one of them is the target
            self.places.append((users, _places(scores_tensor, positive_i.to(scores_tensor.device))))
        if self.register.need("rec.items") or self.register.need("rec.topk"):
            self._collect_lists(scores_tensor, positive_u, positive_i)
        full, self.register = self.register, self._other_needs
        try:
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        finally:
            self.register = full

    def _collect_lists(self, scores: Tensor, positive_u: Tensor, positive_i: Tensor) -> None:
        best, items = torch.topk(scores, max(self.topk), dim=-1)
        recommended = best > -torch.inf
        if self.register.need("rec.items"):
            self.data_struct.update_tensor("rec.items", items.masked_fill(~recommended, 0))
        if self.register.need("rec.topk"):
            hits, positives = _hits(items, positive_u.to(items.device), positive_i.to(items.device))
            result = torch.cat([hits * recommended, positives[:, None]], dim=1).int()
            self.data_struct.update_tensor("rec.topk", result)

    def take_places(self) -> tuple[Tensor, TargetPlaces] | None:
        """All users and places so far, which are then forgotten; ``None`` where only some items were ranked."""
        taken, self.places = self.places, []
        if not taken:
            return None
        return torch.cat([users for users, _ in taken]), TargetPlaces.cat([places for _, places in taken])

    def get_data_struct(self) -> DataStruct:
        """What was collected, on the CPU; forgets what belongs to this evaluation, keeps what came from training."""
        collected = DataStruct()
        for key, value in self.data_struct._data_dict.items():
            if isinstance(value, Tensor):
                value = value.cpu()
            elif isinstance(value, Counter):
                value = Counter(value)
            collected.set(key, value)
        for key in _OF_ONE_EVALUATION:
            if key in self.data_struct:
                del self.data_struct[key]
        return collected


def refuse_nan(scores: Tensor, model: str) -> None:
    """Raise :class:`UserError` where a score is no number: its item would only seem to be ranked last."""
    if bool(scores.isnan().any()):
        raise UserError(
            f"{model} gave scores that are not a number (NaN) in evaluation: look at its full_sort_predict and "
            "predict, or lower --learning_rate."
        )


def _places(scores: Tensor, target: Tensor) -> TargetPlaces:
    """Where the target of each row stands among the scores; items of an equal score are a group, in item order."""
    own = scores.gather(1, target[:, None])
    found = (own > -torch.inf)[:, 0]
    before = (scores > own).sum(1)
    tied = scores == own
    within = (tied & (torch.arange(scores.shape[1], device=scores.device) < target[:, None])).sum(1)
    return TargetPlaces(
        before=torch.where(found, before, MISSING).cpu(),
        group=torch.where(found, tied.sum(1), 1).cpu(),
        within=torch.where(found, within, 0).cpu(),
        beam=torch.where(found, before, MISSING).cpu(),
    )


def _hits(items: Tensor, row: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, K]`` whether a recommended item is a target of its row, and ``[B]`` how many targets a row has."""
    users = len(items)
    positives = torch.bincount(row, minlength=users)
    if len(row) == users and torch.equal(row, torch.arange(users, device=row.device)):
        return items == target[:, None], positives
    width = int(torch.maximum(items.max(), target.max())) + 1
    wanted = torch.zeros(users * width, dtype=torch.bool, device=items.device)
    wanted[row * width + target] = True
    return wanted[torch.arange(users, device=items.device)[:, None] * width + items], positives
