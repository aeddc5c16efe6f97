"""Fair timing on a busy machine: CPU time, alternating, medians of paired ratios."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ROUNDS = 7


def paired(work: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """CPU seconds of each call and its ratio to the first one's, medians over alternating rounds, one to warm up."""
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names if turn % 2 else names[::-1]:
            start = time.process_time()
            work[name]()
            if turn:
                seconds[name].append(time.process_time() - start)
    first = np.array(seconds[names[0]])
    return {
        name: {"seconds": float(np.median(spent)), "ratio": float(np.median(np.array(spent) / first))}
        for name, spent in seconds.items()
    }


def once(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_bytes() -> int:
    """Greatest resident memory of this program so far (``getrusage`` counts its parent's too)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024


def in_child(*arguments: str) -> str:
    """What ``python -m benchmarks`` prints in a process of its own, whose peak memory is its own too."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def child_seconds(*command: str) -> float:
    """CPU seconds, user and system, of another program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
