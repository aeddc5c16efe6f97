"""Recommenders that count and learn nothing: what a trained model has to beat before its numbers mean anything.

They count the rows that the training loader hands them, one pass, and never look at a dataset: nothing of validation
or test can enter. To everything else (evaluator, tables, comparisons) they are sequential models of RecBole like any
other.
"""

from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.general_recommender.pop import Pop as RecBolePop
from recbole.utils import InputType, ModelType
from scipy import sparse
from torch import Tensor

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.identifiers.item_vectors import tfidf_weights
from recbole_ilrec.identifiers.title import joined_texts


def _nothing_to_learn() -> torch.nn.Parameter:
    """A parameter without entries: an optimiser has to be given one."""
    return torch.nn.Parameter(torch.zeros(0))


class Pop(RecBolePop):
    """RecBole's most-popular recommender, under the rows and the split of sequential models.

    An item's score is how often it is the target of a training row, so the first item of each user is not counted.

    Choice: RecBole's Pop adds 1 for each batch that an item is in, however often it is there, so its ranking changes
    with ``train_batch_size``. Here every row counts.
    """

    type = ModelType.SEQUENTIAL

    def __init__(self, config: Config, dataset: SequentialDataset):
        super().__init__(config, dataset)
        self.fake_loss = _nothing_to_learn()

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Count a batch of training rows; the loss is 0."""
        item = interaction[self.ITEM_ID]
        self.item_cnt.index_add_(0, item, torch.ones_like(item)[:, None])
        self.max_cnt = self.item_cnt.max(0).values
        return self.fake_loss.sum()


class Transitions(SequentialRecommender):
    """What followed the last item in training, shrunk towards popularity, plus what reads like it.

    With counts c(i, j) of training rows whose history ends with i and whose target is j, and p(j) the share of targets
    that are j (each item counted once more, so that none is impossible)::

        P(j | i)  = (c(i, j) + s p(j)) / (sum over j' of c(i, j') + s)        s = transitions.shrinkage
        score(j)  = log(sum over a of v(a) [P(j | i_a) + w cos(t_j, t_a)])    w = transitions.text_weight

    where i_a is the item a steps before the history's end, v(a) proportional to ``transitions.decay`` ** a (0 leaves
    the last item alone) and t are tf-idf vectors (1 + log tf) of all texts of an item, e.g. title and year. The
    shrinkage is the posterior mean under a Dirichlet prior with mean p. The softmax of the scores is the sum in
    brackets, normalised.

    Raises:
        ValueError: ``epochs`` is not 1; rows counted twice would halve the shrinkage.
    """

    input_type = InputType.POINTWISE
    sections = ("transitions",)
    """Typed settings that decide its outcome."""

    def __init__(self, config: Config, dataset: Any):
        super().__init__(config, dataset)
        if config["epochs"] != 1:
            raise ValueError(f"epochs={config['epochs']}: it counts the training rows once, set epochs=1.")
        self.settings = config.settings.transitions
        self.nothing = _nothing_to_learn()
        self.other_parameter_name = ["pairs"]
        self._rows: list[Tensor] = []
        self._counts: sparse.csr_matrix | None = None
        self._texts = self._weights(dataset) if self.settings.text_weight else None

    def _weights(self, dataset: Any) -> sparse.csr_matrix | None:
        """``[I + 1, words]`` tf-idf of the items' texts, ``None`` where no item has words."""
        try:
            return tfidf_weights(joined_texts(dataset.item_texts))
        except ValueError:
            return None

    # ---- counting

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Count a batch of training rows; the loss is 0."""
        last = interaction[self.ITEM_SEQ].gather(1, interaction[self.ITEM_SEQ_LEN][:, None] - 1)[:, 0]
        self._rows.append(torch.stack((last, interaction[self.ITEM_ID])).cpu())
        self._counts = None
        return self.nothing.sum()

    @property
    def pairs(self) -> Tensor:
        """``[3, P]`` int64: last item, next item, in how many training rows; what a checkpoint holds."""
        counts = self.counts.tocoo()
        return torch.from_numpy(np.stack((counts.row, counts.col, counts.data)).astype(np.int64))

    @pairs.setter
    def pairs(self, pairs: Tensor) -> None:
        last, following, times = pairs.cpu().numpy()
        self._counts = sparse.csr_matrix((times.astype(np.float64), (last, following)), (self.n_items, self.n_items))

    @property
    def counts(self) -> sparse.csr_matrix:
        """``[I + 1, I + 1]`` float64, c(i, j)."""
        if self._counts is None:
            last, following = torch.cat([torch.zeros(2, 0, dtype=torch.long), *self._rows], dim=1).numpy()
            ones = np.ones(len(last))
            self._counts = sparse.csr_matrix((ones, (last, following)), (self.n_items, self.n_items))
        return self._counts

    # ---- scores

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items after each row's history, ``[B * (I + 1)]`` float32."""
        past = self._past(interaction)
        seen = np.asarray(self.counts.sum(1))[:, 0]
        targets = np.asarray(self.counts.sum(0))[0]
        popularity = (targets + 1.0) / (targets.sum() + self.n_items)
        total = seen + self.settings.shrinkage
        scores = (past @ sparse.diags(1.0 / total) @ self.counts).toarray()
        scores += (past @ (self.settings.shrinkage / total))[:, None] * popularity
        if self._texts is not None:
            scores += self.settings.text_weight * ((past @ self._texts) @ self._texts.T).toarray()
        return torch.from_numpy(np.log(scores)).float().to(self.device).view(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's own item, ``[B]``."""
        scores = self.full_sort_predict(interaction).view(-1, self.n_items)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def _past(self, interaction: Interaction) -> sparse.csr_matrix:
        """``[B, I + 1]``: v of each item of the history, summing to 1."""
        items = interaction[self.ITEM_SEQ].cpu().numpy()
        age = interaction[self.ITEM_SEQ_LEN].cpu().numpy()[:, None] - 1 - np.arange(items.shape[1])
        share = np.where(age >= 0, float(self.settings.decay) ** np.maximum(age, 0), 0.0)
        share /= share.sum(1, keepdims=True)
        row, at = np.nonzero(share)
        return sparse.csr_matrix((share[row, at], (row, items[row, at])), (len(items), self.n_items))
