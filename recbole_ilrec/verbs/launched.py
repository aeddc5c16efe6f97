"""Processes of ``recbole-ilrec run`` that a plan makes: begun, told to stop, and why one failed."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_UNDER_WAY: set[subprocess.Popen] = set()


def launch(arguments: Sequence[str], log: Path, descriptor: int | None) -> int:
    """Make a run and wait for it.

    Args:
        arguments: of the command line.
        log: where what it says is appended.
        descriptor: an open file to hand on, e.g. a lock that it holds while it lives.

    Returns:
        its exit status; negative: the signal that ended it.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    with (
        log.open("a", encoding="utf-8") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "recbole_ilrec", *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=() if descriptor is None else (descriptor,),
        ) as process,
    ):
        _UNDER_WAY.add(process)
        try:
            return process.wait()
        finally:
            _UNDER_WAY.discard(process)


def stop_launched() -> None:
    """Tell the runs under way to stop, each once, which they do when the step at hand is done and saved."""
    for process in list(_UNDER_WAY):
        _UNDER_WAY.discard(process)  # a second signal would not let it save
        process.terminate()


def why_failed(log: Path, begin: int, status: int) -> str:
    """The error line of a run, else how it ended and the last line that it wrote.

    Args:
        log: what it and runs before it said.
        begin: bytes of the log that are of runs before it.
        status: as :func:`launch` gives it.
    """
    said = log.read_bytes()[begin:].decode(errors="replace") if log.is_file() else ""
    written = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.partition(": ")[2] for line in written if line.startswith(("error: ", "fault: "))]
    if errors:
        return errors[-1]
    ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    ended += " (too little memory is a common reason)" if ended.endswith("SIGKILL") else ""
    return f"{ended}; its last line: {written[-1]}" if written else ended
