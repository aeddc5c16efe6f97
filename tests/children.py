"""Runs in processes of their own, which may be killed: forked from a server that has the imports behind it."""

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["recbole_ilrec.runs.stages", "recbole_ilrec.quick_start"])
_WRITING = frozenset(("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"))


def start(target: Any, *arguments: Any) -> Any:
    """``target(*arguments)`` in a child process."""
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def run_here(
    folder: str,
    model: str,
    dataset: str,
    settings: Mapping[str, Any],
    *,
    die_at: int = 0,
    environment: Mapping[str, str] | None = None,
) -> None:
    """A run in ``folder``, whose result, or error, is written to ``result-RANK.json`` there.

    Args:
        folder: the working folder.
        model: see :func:`recbole_ilrec.quick_start.run_recbole_ilrec`.
        dataset: likewise.
        settings: likewise.
        die_at: be killed before so many-th operation on a file in ``saved``; 0 = live.
        environment: further variables, e.g. those that ``torchrun`` sets.
    """
    os.chdir(folder)
    os.environ.update(environment or {})
    if die_at:
        _die_before(die_at)
    from recbole_ilrec.errors import UserError
    from recbole_ilrec.quick_start import run_recbole_ilrec

    try:
        outcome = run_recbole_ilrec(model, dataset, config_dict=settings)
    except UserError as error:
        outcome = {"error": str(error)}
    except KeyboardInterrupt as stop:
        outcome = {"stopped": str(stop)}
    Path(f"result-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(outcome, default=str))


def _die_before(operation: int) -> None:
    left = operation

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _WRITING and "saved" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environments(world: int) -> list[dict[str, str]]:
    """The variables that ``torchrun`` sets for each of ``world`` processes."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def begin(folder: Path, world: int, model: str, dataset: str, settings: Mapping[str, Any]) -> list[Any]:
    """The same run in ``world`` processes, as ``torchrun`` starts them."""
    own = environments(world)
    return [start(_one_of_several, str(folder), model, dataset, settings, variables) for variables in own]


def outcomes(folder: Path, children: list[Any], timeout: float = 300) -> list[dict[str, Any]]:
    """What each process ended with."""
    for child in children:
        child.join(timeout)
        assert child.exitcode == 0, "a process hangs or fell"
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(len(children))]


def several(folder: Path, world: int, model: str, dataset: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each of several processes of a run ends with."""
    return outcomes(folder, begin(folder, world, model, dataset, settings))


def _one_of_several(
    folder: str, model: str, dataset: str, settings: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    run_here(folder, model, dataset, settings, environment=environment)
