"""Runs of a plan: found among the records, estimated from like ones, or made by the ordinary command line.

A planned run has its own folder ``<checkpoint_dir>/planned/<key>``, named by all that decides its outcome. Whoever
plans the same run again finds its record there, or its checkpoints to go on from. A folder is locked while a run lives
(its own, or that of all runs with the same supervised stage), so two plans never make one run twice.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

import psutil

from recbole_ilrec.collaborative.classical import LAST
from recbole_ilrec.configuration.config import Config, MissingDataset
from recbole_ilrec.configuration.lookup import is_language_model
from recbole_ilrec.configuration.outcome import run_key, supervised_key
from recbole_ilrec.configuration.presets import preset, read_yaml
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import in_turn
from recbole_ilrec.report.plan import PlannedRun
from recbole_ilrec.report.results import read_records
from recbole_ilrec.runtime.checkpoint import STATE
from recbole_ilrec.runtime.interrupts import Interrupted
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.runtime.run_folder import begun_as
from recbole_ilrec.verbs.launched import launch as _process
from recbole_ilrec.verbs.launched import stop_launched, why_failed
from recbole_ilrec.verbs.like_runs import Expected, expected_from

logger = logging.getLogger(__name__)

RECORDS, PLANNED, LOG, ASKED = "records.jsonl", "planned", "run.log", "asked.jsonl"
_MEMORY_OF_A_RUN = 4 << 30
"""Bytes; small models take a quarter of it, SmolLM2 all."""
Launcher = Callable[[Sequence[str], Path, int | None], int]
"""``(arguments of the command line, file for what it says, descriptor to hand on) -> exit status``."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its record, or the line that says why there is none; neither when it was not made."""

    record: Mapping[str, Any] | None = None
    error: str = ""


def quick_settings(model: str) -> dict[str, Any]:
    """Settings of a run that is only to show that all works."""
    return read_yaml(preset("quick", "language" if is_language_model(model) else "classical"))


def default_jobs() -> int:
    """Runs to make side by side: one for each GPU, where there are none one for each core and 4 GB of free memory.

    Small models leave a second thread half idle, so two processes of one thread are faster than one of two.
    """
    return len(_gpus()) or max(1, min(_cores(), psutil.virtual_memory().available // _MEMORY_OF_A_RUN))


def _gpus() -> list[str]:
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]


def _cores() -> int:
    """Cores that this process may use, no more than ``OMP_NUM_THREADS`` says where that is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


class Experiments:
    """Runs by key, below one ``checkpoint_dir``.

    Args:
        places: ``checkpoint_dir``, ``cache_dir``, ``data_path`` and other settings that do not change an outcome; they
            are handed to every run.
        quick: lay each run over :func:`quick_settings`.
        launch: makes a run; default: a process of ``python -m recbole_ilrec run``.
    """

    def __init__(self, places: Mapping[str, Any], *, quick: bool = False, launch: Launcher | None = None):
        self.places = dict(places)
        self.root = Path(self.places.pop("checkpoint_dir", "saved"))
        self.places.setdefault("cache_dir", str(self.root / "cache"))
        self.quick = quick
        self.launch = launch or _process
        self._configs: dict[PlannedRun, Config] = {}
        self._stopped = Event()
        self._one_at_a_time = Lock()  # settings are found in sources, and Python 3.11 fails to parse in two threads

    def config(self, run: PlannedRun) -> Config:
        """The settings of a run.

        Raises:
            UserError: bad settings or no such dataset.
        """
        with self._one_at_a_time:
            if run not in self._configs:
                self._configs[run] = Config(run.model, run.dataset, None, self._settings(run))
            return self._configs[run]

    def _settings(self, run: PlannedRun) -> dict[str, Any]:
        return {**(quick_settings(run.model) if self.quick else {}), **self.places, **run.settings}

    def folder(self, run: PlannedRun) -> Path:
        """Where a run is made."""
        return self.root / PLANNED / run_key(self.config(run))

    def finished(self) -> dict[str, dict[str, Any]]:
        """Key -> record of every run below ``checkpoint_dir``, planned or not; the newest of a key."""
        records = sorted(self._records(), key=lambda record: str(record.get("finished", "")))
        return {key: record for record in records if (key := record.get("evaluation", {}).get("run"))}

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in record_files(self.root):
            yield from records_of(path)

    def outcome(self, run: PlannedRun, finished: Mapping[str, Mapping[str, Any]]) -> Outcome:
        """What is known of a run without making it."""
        try:
            return Outcome(record=finished.get(run_key(self.config(run))))
        except MissingDataset:
            return Outcome()  # :meth:`prepare` downloads it before the runs are made
        except UserError as error:
            return Outcome(error=str(error))

    def needs_download(self, run: PlannedRun) -> bool:
        """Whether the dataset of a run, one of the paper's, is not there yet."""
        try:
            self.config(run)
        except MissingDataset:
            return True
        except UserError:
            return False
        return False

    def expected(self, runs: Iterable[PlannedRun]) -> dict[PlannedRun, Expected]:
        """What each will take, by runs with the same model, data, backbone and length."""
        records = list(self._records())
        found = {}
        for run in runs:
            try:
                found[run] = expected_from(records, self.config(run))
            except UserError:
                found[run] = Expected()
        return found

    def prepare(self, runs: Iterable[PlannedRun]) -> dict[PlannedRun, Outcome]:
        """Download and prepare the datasets of the paper that are not there yet, each once.

        Returns:
            The runs that cannot be made for want of their data, with why.
        """
        from recbole_ilrec.quick_start import configure

        refused: dict[tuple[str, Path], str] = {}
        without = {}
        for run in runs:
            try:
                self.config(run)
            except MissingDataset as missing:
                place = missing.name, missing.root
                try:
                    if place not in refused:
                        self._configs[run] = configure(run.model, run.dataset, None, self._settings(run))
                except UserError as error:
                    refused[place] = str(error)
                if place in refused:
                    without[run] = Outcome(error=refused[place])
        return without

    def make(self, runs: Iterable[PlannedRun], jobs: int, done: Callable[[PlannedRun, Outcome], None]) -> None:
        """Make runs, ``jobs`` at a time, and hand each outcome over as it comes.

        Preference models and the supervised run that they begin from go one after another, in the order given; others
        go side by side. All that run at a time share the cores, unless ``num_threads`` is given, and each has a GPU to
        itself as far as there are as many, unless the device is given.
        """
        gpus, devices = _gpus(), SimpleQueue[str | None]()
        for job in range(jobs):
            devices.put(gpus[job % len(gpus)] if len(gpus) > 1 else None)
        lanes: dict[object, list[PlannedRun]] = {}
        for run in dict.fromkeys(runs):
            lanes.setdefault(self._turn(run) or run, []).append(run)
        with ThreadPoolExecutor(jobs) as pool:
            waiting: dict[Future[tuple[PlannedRun, Outcome]], list[PlannedRun]] = {}

            def start(queue: list[PlannedRun], lanes_left: int) -> None:
                threads = max(1, _cores() // min(jobs, lanes_left)) if jobs > 1 else None
                waiting[pool.submit(self._make_one, queue.pop(0), threads, devices)] = queue

            for queue in lanes.values():
                start(queue, len(lanes))
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        run, outcome = future.result()
                        queue = waiting.pop(future)
                        done(run, outcome)
                        if queue:
                            start(queue, len(waiting) + 1)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stopped.set()
                if isinstance(error, Interrupted) and error.number == signal.SIGTERM:
                    logger.warning("Stopping; runs under way save their state first.")
                    while not all(future.done() for future in waiting):
                        stop_launched()  # again and again: one may begin this moment
                        time.sleep(0.1)
                else:  # a terminal's Ctrl-C reaches them without us
                    logger.warning("Stopping; runs under way come to their end first.")
                raise

    def _turn(self, run: PlannedRun) -> Path | None:
        """The folder that says whose turn it is among the runs with one supervised stage; none for other runs."""
        try:
            key = supervised_key(self.config(run))
        except UserError:  # it fails with that in its turn
            key = None
        return self.root / PLANNED / f"turn-{key}" if key else None

    def _make_one(
        self, run: PlannedRun, threads: int | None, devices: "SimpleQueue[str | None]"
    ) -> tuple[PlannedRun, Outcome]:
        try:
            folder = self.folder(run)
        except UserError as error:
            return run, Outcome(error=str(error))
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(self._turn(run) or folder, "Waiting for a run that another plan makes") as descriptor:
            key = folder.name
            record = self.finished().get(key)  # made by another plan while this one waited
            if record is not None:
                return run, Outcome(record)
            if self._stopped.is_set():
                return run, Outcome(error="stopped before it began")
            log = folder / LOG
            logger.info("%s: begun, its log is %s", run, log)
            before = log.stat().st_size if log.is_file() else 0
            device = devices.get()  # there are as many as jobs, so nobody waits
            try:
                status = self.launch(self._arguments(run, folder, threads, device), log, descriptor)
            finally:
                devices.put(device)
            record = self.finished().get(key)
        if record is not None and not status:
            return run, Outcome(record)
        if not status:
            return run, Outcome(error=f"it ended well, but without a record of its settings; {log} says what it did")
        return run, Outcome(error=why_failed(log, before, status))

    def _arguments(self, run: PlannedRun, folder: Path, threads: int | None, device: str | None) -> list[str]:
        settings = {**self._settings(run), "checkpoint_dir": str(folder), "show_progress": False}
        if threads is not None:
            settings.setdefault("num_threads", threads)
        if device is not None and not {"device", "gpu_id", "use_gpu"} & settings.keys():
            settings["device"] = device
        resume = newest_resumable(folder)
        if resume is not None:
            settings["resume_from_checkpoint"] = str(resume)
            logger.info("%s goes on from %s", run, resume)
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        return ["run", f"--model={run.model}", f"--dataset={run.dataset}", *(f"--{k}={v}" for k, v in text.items())]


def record_files(root: Path) -> list[Path]:
    """The files of records below a ``checkpoint_dir``, those of planned runs first."""
    return [path for path in (*sorted(root.glob(f"{PLANNED}/*/{RECORDS}")), root / RECORDS) if path.is_file()]


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file, oldest first.

    Raises:
        UserError: a line of it is none.
    """
    try:
        records = read_records(path)
    except ValueError as error:  # no JSON, no UTF-8
        raise UserError(f"{path}: a line is no record ({error}): remove that line.") from None
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not {"model", "dataset", "seed", "result"} <= record.keys():
            raise UserError(f"{path}: record {number} has no model, dataset, seed or result: remove that line.")
    return records


def newest_resumable(folder: Path) -> Path | None:
    """The newest run below ``folder`` that can be gone on with: one that does not say it has its key is none."""
    folders = (path for path in folder.iterdir() if path.is_dir() and begun_as(path) == folder.name)
    runs = [path for path in folders if checkpoints(path) or (path / LAST / STATE).is_file()]
    return max(runs, key=lambda path: path.stat().st_mtime, default=None)
