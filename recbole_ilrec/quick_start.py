"""One run from settings to metrics, as ``recbole.quick_start`` does it (never imported: it imports ``ray``)."""

import logging
import shlex
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from recbole.utils import get_gpu_usage, init_logger, init_seed, set_color
from texttable import Texttable

from recbole_ilrec.checks.finding import as_plain
from recbole_ilrec.configuration.config import Config, MissingDataset
from recbole_ilrec.configuration.contradictions import check_trackers
from recbole_ilrec.configuration.outcome import keys_of, settings_of_record
from recbole_ilrec.configuration.run_keys import UNKNOWN
from recbole_ilrec.configuration.unread import unread
from recbole_ilrec.data.dataset import Data, build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import require_writable
from recbole_ilrec.report.costs import noting_costs, spent_on
from recbole_ilrec.report.record import Stopwatch, append_record, commit, machine
from recbole_ilrec.report.runs import certified
from recbole_ilrec.runs.certificate import evaluation_certificate
from recbole_ilrec.runs.diagnosis import diagnose, log_findings
from recbole_ilrec.runs.result_file import keep_result
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.allocator import keep_freed_memory
from recbole_ilrec.runtime.device import gpu_name
from recbole_ilrec.runtime.imports import quick_imports
from recbole_ilrec.runtime.resumption import resumable
from recbole_ilrec.runtime.run_folder import AUTO, begun_as, newest_run, refuse_other_data

logger = logging.getLogger(__name__)

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
        model: a language model of this package (``ILRec``, ``LCRec``, ``BIGRec``, ``DPO``, ``SDPO``, ``RosePO``,
            ``SPRec``) or a sequential model of RecBole; ``module:Class`` or a class of your own.
        dataset: a folder in ``data_path``, or ``ml-100k``.
        config_file_list: YAML files, later ones win.
        config_dict: settings that win over the files.
        saved: keep checkpoints and test the best epoch.

    Returns:
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result``, and
        ``evaluation``, the certificate of these numbers, and ``record``, the file to which the run's record was added
        (both ``None`` when nothing is saved).

    Raises:
        UserError: anything in the settings or data that has to be changed.
        KeyboardInterrupt: SIGINT or SIGTERM came; its text says what was saved and how to go on.
    """
    return run(configure(model, dataset, config_file_list, config_dict), saved)


def configure(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Config:
    """The settings of a run; a dataset of the paper that is not there yet is downloaded and prepared first.

    Raises:
        UserError: bad settings, or the raw files cannot be had from here: which to fetch, and what to run then.
    """
    try:
        return Config(model, dataset, config_file_list, config_dict)
    except MissingDataset as missing:
        if processes.world() > 1:  # several processes would download over each other
            raise
        from recbole_ilrec.preparation.pipeline import prepare

        # A warning, since it is seen before logging is set up.
        logger.warning("No %s: its raw files are downloaded and prepared, once.", missing.root / missing.name)
        try:
            logger.warning(prepare(missing.name, "amazon18", None, missing.root).summary)
        except UserError as error:
            raise UserError(f"{error}{missing.place(missing.root)}") from None
    return Config(model, dataset, config_file_list, config_dict)


def run(config: Config, saved: bool = True) -> dict[str, Any]:
    """The run that ``config`` describes, in this process or as one of those of ``torchrun``.

    See :func:`run_recbole_ilrec`.
    """
    if not config.is_llm and processes.world() > 1:
        raise UserError(f"{config.model} is trained in one process: start it without torchrun.")
    with processes.together(config["device"]):
        return _run(config, saved)


def _run(config: Config, saved: bool) -> dict[str, Any]:
    saved = bool(saved and config["saved"])
    watch = Stopwatch()
    psutil.cpu_percent()  # starts the measurement that the table at the end shows
    set_up(config)
    init_seed(config["seed"], config["reproducibility"])
    start_logging(config)
    config["show_progress"] = config["show_progress"] and processes.is_first()
    logger.info(sys.argv)
    logger.info(config)
    if names := unread(config):
        logger.warning("%s does not read %s: given, and without effect.", config.model, ", ".join(names))
    _check_places(config, saved)
    with noting_costs() as costs:
        _place(config)
        with spent_on("data"):
            data = build_data(config)
        logger.info(data.statistics)
        result = _train_and_evaluate(config, data, saved)
    if result["best_valid_result"] is not None:  # one that was read back from a checkpoint is a plain dictionary
        result["best_valid_result"] = OrderedDict(result["best_valid_result"])
    made = {key: result.pop(key, None) for key in ("folder", "parameters", "lists", "findings")}
    certificate = record = None
    if saved and processes.is_first():
        certificate = evaluation_certificate(config, data, result, made)
        keep_result(Path(made["folder"]), result, certificate)
        about = {key: made[key] for key in ("folder", "parameters", "findings")}
        about |= {"evaluation": certificate, "data": data.counts}
        record = _record(config, result, {**about, **watch.read(), "stages": costs.stages})
        if config.settings.task == "full":
            logger.info("Lists of this model: recbole-ilrec recommend %s --users=ID", shlex.quote(str(made["folder"])))
    result |= {"evaluation": processes.agreed(certificate), "record": record}
    logger.info("The running environment of this training is as follows:\n" + environment_table(config))
    if certificate is not None and result["test_result"] is not None:
        logger.info("What the test result is of: %s", certified(certificate))
    logger.info(set_color("best valid ", "yellow") + f": {result['best_valid_result']}")
    if result["test_result"] is not None:
        logger.info(set_color("test result", "yellow") + f": {result['test_result']}")
    return result


def set_up(config: Config) -> None:
    """What a run tells this process before it computes anything."""
    if config["num_threads"]:
        torch.set_num_threads(int(config["num_threads"]))
    keep_freed_memory()


def _record(config: Config, result: Mapping[str, Any], about: Mapping[str, Any]) -> str | None:
    """File to which the run's line was added; a disk that is full now must not cost the result."""
    line = {
        "model": config.model,
        "dataset": config.dataset,
        "seed": config["seed"],
        "device": str(config["device"]),
        "gpu": gpu_name(config["device"]),
        "processes": processes.world(),
        "threads": torch.get_num_threads(),
        "result": dict(result),
        "settings": settings_of_record(config),
        "config": config.as_dict(),
        **about,
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if config["use_gpu"] else None,
        **machine(),
    }
    path = Path(config["checkpoint_dir"]) / "records.jsonl"
    try:
        return str(append_record(path, line))
    except OSError as error:
        logging.getLogger(__name__).warning("The record could not be added to %s: %s", path, error)
        return None


def _check_places(config: Config, saved: bool) -> None:
    """Refuse now what would come to light after hours: no checkpoint to resume, no room for a new one."""
    if saved:
        require_writable(Path(config["checkpoint_dir"]), f"checkpoint_dir={config['checkpoint_dir']}")
    if config.is_llm:
        require_writable(Path(config["cache_dir"]), f"cache_dir={config['cache_dir']}")
        check_trackers(config.settings)
    given = config["resume_from_checkpoint"]
    if given and given != AUTO:
        refuse_other_data(Path(given), config.dataset)
        if config.is_llm:
            resumable(Path(given), kind=config["model"])


def _place(config: Config) -> None:
    """Give the run its keys, and with ``resume_from_checkpoint=auto`` the folder of an earlier run with the same.

    Before the data are read: RecBole's transforms, such as BERT4Rec's, add names of columns to the settings.
    """
    config.keys = keys_of(config)
    commit()  # asked now and kept for the record: the code may change on the disk while the run works
    if config["resume_from_checkpoint"] == AUTO:
        found = processes.agreed(str(newest_run(config) or ""))
        config["resume_from_checkpoint"] = found or None
        logger.info("resume_from_checkpoint=auto: %s", f"going on with {found}" if found else "a new run")
    elif given := config["resume_from_checkpoint"]:
        config.keys = config.keys.going_on(begun_as(Path(given)))
        if config.keys.begun:
            logger.warning(
                "%s %s: what comes out is neither that run nor one with the settings given now (the optimizer keeps "
                "its own), and is not taken for a finished run of either.",
                given,
                "lies in no run's folder, so how it was begun is not known"
                if config.keys.begun == UNKNOWN
                else "was begun with other settings or data",
            )


def _train_and_evaluate(config: Config, data: Data, saved: bool) -> dict[str, Any]:
    if config.is_llm:
        with quick_imports(compiler=config.settings.backbone.quantization is not None):
            from recbole_ilrec.runs.stages import run_llm

        return run_llm(config, data, saved)
    from recbole_ilrec.collaborative.classical_run import run_classical

    findings = None
    if config["eval_test"]:
        findings = diagnose(config, data)
        log_findings(findings)
    return {**run_classical(config, data, saved), "findings": findings and as_plain(findings)}


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
        if processes.is_first():
            require_writable(Path("log") / config.model, "the log of a run goes to log/ of the current folder")
            (Path("log") / config.model).mkdir(parents=True, exist_ok=True)  # RecBole fails if another run is as fast
            init_logger(config)
        else:
            root.addHandler(logging.NullHandler())  # else Python would print every warning once more
        _handlers[:] = root.handlers
    finally:
        root.handlers[:] = [*others, *root.handlers]
