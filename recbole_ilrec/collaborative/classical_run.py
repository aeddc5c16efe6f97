"""One run of one of RecBole's own models, in one process."""

import logging
from contextlib import nullcontext
from typing import Any

from recbole.utils import init_seed

from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.model import build_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import Data
from recbole_ilrec.report.costs import spent_on
from recbole_ilrec.runtime.run_folder import at_work, claimed

logger = logging.getLogger(__name__)


def run_classical(config: Config, data: Data, saved: bool = True) -> dict[str, Any]:
    """Train and evaluate one of RecBole's models.

    Args:
        config: all settings.
        data: what :func:`recbole_ilrec.data.dataset.build_data` made of them.
        saved: keep checkpoints and test the best epoch; otherwise test the last one.

    Returns:
        RecBole's result: ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result`` (``None``
        with ``eval_test: false``, and then nothing of the test part is scored); and
        ``parameters`` that were trained, and ``folder``, where the run was saved.
    """
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, data.train._dataset)
    logger.info(model)
    trainer = ClassicalTrainer(config, model)
    if config["resume_from_checkpoint"]:
        trainer.resume_checkpoint(config["resume_from_checkpoint"])
    elif saved:
        trainer.folder = claimed(trainer.folder)
    show, test = config["show_progress"], None
    with at_work(trainer.folder) if saved else nullcontext():
        with spent_on("supervised"):
            score, valid = trainer.fit(data.train, data.valid, saved=saved, show_progress=show)
        if config["eval_test"]:
            with spent_on("evaluation"):
                test = trainer.evaluate(data.test, load_best_model=saved, show_progress=show)
            if saved:
                trainer.save_ranks("test")
    return {
        "best_valid_score": float(score),
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": valid,
        "test_result": test,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "folder": str(trainer.folder) if saved else None,
    }
