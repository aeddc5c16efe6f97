"""The record of a run: one JSON line with what was asked, what came out, what it cost and on what machine.

Numbers in the documentation are generated from such lines. Knows plain values only.
"""

import errno
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from recbole_ilrec import __version__

PACKAGES = (
    *("recbole", "torch", "transformers", "tokenizers", "accelerate", "peft", "bitsandbytes", "safetensors"),
    *("numpy", "pandas", "scipy", "scikit-learn"),
)
"""Packages whose version may decide a number; those that are not there are not named."""


class Stopwatch:
    """Wall-clock and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, earlier: Mapping[str, float] | None = None) -> dict[str, float]:
        """``wall_seconds`` and ``cpu_seconds`` (all threads of this process), added to those of ``earlier``."""
        earlier = earlier or {}
        wall = time.perf_counter() - self._wall + earlier.get("wall_seconds", 0.0)
        cpu = time.process_time() - self._cpu + earlier.get("cpu_seconds", 0.0)
        return {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}


def machine() -> dict[str, Any]:
    """Software versions, processor and memory of this process."""
    return {
        "versions": {"recbole_ilrec": __version__, **{name: found for name in PACKAGES if (found := _version(name))}},
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "peak_memory_mb": peak_memory_mb(),
        "commit": commit(),
        "command": f"{_program()} {shlex.join(sys.argv[1:])}".rstrip(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, in MiB."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return round(psutil.Process().memory_info().peak_wset / 2**20)
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss: bytes on macOS, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def append_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Add one line to a file of records; a line is written whole or, if the disk is full, not at all.

    A last line without an end, cut off by a crash, gets one first: it must not take this record with it.
    Who adds a line meanwhile waits, where locks exist: to take back a line must not take one of another run with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record, sort_keys=True) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _lock(descriptor)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        os.lseek(descriptor, max(end - 1, 0), os.SEEK_SET)
        if os.read(descriptor, 1) not in (b"", b"\n"):
            line = b"\n" + line
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)
    return path


def _lock(descriptor: int) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):  # not a POSIX system, or a file system without locks
        return


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _program() -> str:
    """What was called, as one would type it: ``python -m recbole_ilrec`` is the installed command."""
    path = Path(sys.argv[0])
    if path.name != "__main__.py":
        return path.name
    return "recbole-ilrec" if path.parent.name == "recbole_ilrec" else f"python -m {path.parent.name}"


@cache
def commit() -> str | None:
    """Commit of the checkout this package is imported from, with ``+`` when it has local changes; when first asked."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", here, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")
