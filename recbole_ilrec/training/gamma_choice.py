"""``bigrec.gamma: auto``: the strength of BIGRec's popularity or CF weight, chosen on validation after training.

Knows a trained model and its validation users; never test users.
"""

import logging
from dataclasses import dataclass

import torch
from recbole.utils import calculate_valid_score, set_color

from recbole_ilrec.metrics.rank_metrics import keep_ranks
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.resumption import BEST
from recbole_ilrec.runtime.shards import whole
from recbole_ilrec.training.trainer import GenerativeTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenGamma:
    """What was chosen and from what.

    Attributes:
        value: the chosen ``bigrec.gamma``.
        valid_score: its validation score.
        valid_result: its validation metrics.
        tried: value -> validation score, ascending.
    """

    value: float
    valid_score: float
    valid_result: dict[str, float]
    tried: dict[str, float]


def choose_gamma(trainer: GenerativeTrainer) -> ChosenGamma | None:
    """Give the model's title ranker the best of the values of ``bigrec.gamma``; of equals the smallest.

    The users are those of the validations during training, the weights the best of them, the measure ``valid_metric``.

    Returns:
        the choice; ``None`` where there is nothing to choose.
    """
    ranker, pairs, config = trainer.model.title_ranker, trainer.valid_pairs, trainer.config
    if ranker is None or pairs is None or len(ranker.settings.gamma) == 1:
        return None
    if trainer.saved and (trainer.run_folder / BEST).is_dir():
        trainer.load_best()
    trainer.model.eval()
    gammas, results, places = sorted(set(ranker.settings.gamma)), {}, {}
    count, size = trainer.model.list_length, config["eval_batch_size"]
    label = set_color("Gamma      ", "pink") if trainer.show_progress else None
    with whole(trainer.model):
        rankings = ranker.rankings(pairs, count, gammas, batch_size=size, progress=label)
        for gamma, ranking in zip(gammas, rankings, strict=True):
            places[gamma], policies = trainer.metrics(ranking, pairs)
            results[gamma] = policies[config.settings.decode.collisions]
    scores = {gamma: calculate_valid_score(result, config["valid_metric"].lower()) for gamma, result in results.items()}
    best = (max if config["valid_metric_bigger"] else min)(scores, key=lambda gamma: scores[gamma])
    ranker.gamma = best
    if trainer.saved and processes.is_first():
        keep_ranks(config, trainer.run_folder, "valid", torch.from_numpy(pairs.user), places[best], count)
    logger.info("%s: %g, from %s", set_color("bigrec.gamma by validation", "blue"), best, scores)
    tried = {f"{gamma:g}": score for gamma, score in scores.items()}
    return ChosenGamma(best, scores[best], dict(results[best]), tried)
