"""One run from settings to metrics, as ``recbole.quick_start`` does it (never imported: it imports ``ray``)."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from recbole.utils import get_gpu_usage, init_logger, init_seed, set_color
from texttable import Texttable

from recbole_ilrec.config import Config
from recbole_ilrec.dataset import Data, build_data

_handlers: list[logging.Handler] = []


def run_recbole_ilrec(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train a model on a dataset and evaluate it.

    Args:
        model: ``ILRec``, ``LCRec``, or a sequential model of RecBole.
        dataset: a folder in ``data_path``, or ``ml-100k``.
        config_file_list: YAML files, later ones win.
        config_dict: settings that win over the files.
        saved: keep checkpoints and test the best epoch.

    Returns:
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result``, and
        ``record``, the path of the run's record or ``None``.

    Raises:
        UserError: anything in the settings or data that has to be changed.
    """
    return run(Config(model, dataset, config_file_list, config_dict), saved)


def run(config: Config, saved: bool = True) -> dict[str, Any]:
    """The run that ``config`` describes; see :func:`run_recbole_ilrec`."""
    saved = bool(saved and config["saved"])
    psutil.cpu_percent()  # starts the measurement that the table at the end shows
    if config["num_threads"]:
        torch.set_num_threads(int(config["num_threads"]))
    init_seed(config["seed"], config["reproducibility"])
    start_logging(config)
    logger = logging.getLogger(__name__)
    logger.info(sys.argv)
    logger.info(config)
    data = build_data(config)
    logger.info(data.statistics)
    result: dict[str, Any] = {"record": None, **_train_and_evaluate(config, data, saved)}
    logger.info("The running environment of this training is as follows:\n" + environment_table(config))
    logger.info(set_color("best valid ", "yellow") + f": {result['best_valid_result']}")
    logger.info(set_color("test result", "yellow") + f": {result['test_result']}")
    return result


def _train_and_evaluate(config: Config, data: Data, saved: bool) -> dict[str, Any]:
    if config.is_llm:
        from recbole_ilrec.trainer import run_llm

        return run_llm(config, data, saved)
    from recbole_ilrec.classical import run_classical

    return run_classical(config, data, saved)


def environment_table(config: Config) -> str:
    """RecBole's table of CPU, GPU and memory use; the CPU's is the mean of the whole run (RecBole's, of one second)."""
    gigabyte = 1024**3
    used, total = psutil.Process().memory_info().rss / gigabyte, psutil.virtual_memory().total / gigabyte
    table = Texttable()
    table.set_cols_align(["l", "c"])
    table.set_cols_valign(["m", "m"])
    table.add_rows(
        [
            ["Environment", "Usage"],
            ["CPU", f"{psutil.cpu_percent():.2f} %"],
            ["GPU", get_gpu_usage(config["device"]) if config["use_gpu"] else "0.0 / 0.0"],
            ["Memory", f"{used:.2f} G/{total:.2f} G"],
        ]
    )
    return str(table.draw())


def start_logging(config: Config) -> None:
    """RecBole's console and file log (``./log/<Model>/...``) for this run, in place of those of a run before it.

    RecBole's ``init_logger`` does nothing where the root logger has handlers, so others are set aside meanwhile.
    """
    root = logging.getLogger()
    for handler in _handlers:
        root.removeHandler(handler)
        handler.close()
    others = root.handlers[:]
    root.handlers.clear()
    try:
        if int(os.environ.get("RANK", "0")) == 0:
            init_logger(config)
        _handlers[:] = root.handlers
    finally:
        root.handlers[:] = [*others, *root.handlers]
