"""Rewards (Eq. 10) of the rows that a model is trained on, from its frozen collaborative model."""

from typing import Any

from recbole.utils import set_color
from tqdm import tqdm

from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.reward.table import RewardTable


def reward_table(model: GenerativeRecommender, dataset: Any, pairs: Pairs, show_progress: bool) -> RewardTable:
    """Eq. 10 for every training target, once: the reward model is frozen.

    Args:
        model: its reward model is trained or read now, if it has not been yet.
        dataset: the training part of RecBole's data set.
        pairs: its rows.
        show_progress: show a bar.
    """
    reward_model, label = model.reward_model, set_color("Rewards    ", "pink")
    return RewardTable(
        model.catalog,
        pairs.target,
        lambda some: reward_model.probabilities(
            dataset.inter_feat[some], None if pairs.candidates is None else pairs.candidates[some]
        ),
        progress=lambda chunks: tqdm(chunks, desc=label, ncols=100, disable=not show_progress),
    )
