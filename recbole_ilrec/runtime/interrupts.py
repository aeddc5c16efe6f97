"""SIGINT and SIGTERM while a run goes on: raised at once, or noted until the step at hand is done and saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 1.0
"""Seconds in which another SIGTERM is the same wish: a scheduler tells all processes, and a plan tells its runs."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop.

    Args:
        number: the signal.
        how: what was saved and how to go on; one line, or empty.
    """

    def __init__(self, number: int, how: str = ""):
        super().__init__(how)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status as a shell gives it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class StopSignals:
    """A context in which the two signals are noted in :attr:`received`; a second one is raised at once.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: number of the signal that came, or ``None``.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._when = -TOGETHER
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM and time.monotonic() - self._when < TOGETHER:
            return
        again = self.received is not None
        self.received, self._when = number, time.monotonic()
        if again or self._at_once:
            raise Interrupted(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal is raised at once, one that is already noted included."""
        self._at_once = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._at_once = False


@contextmanager
def raised(number: int = signal.SIGTERM) -> Iterator[None]:
    """A context in which a signal that ends a process is raised instead, so that what is half done is cleaned up."""

    when = -TOGETHER

    def stop(received: int, _frame: FrameType | None) -> None:
        nonlocal when
        if time.monotonic() - when < TOGETHER:
            return
        when = time.monotonic()
        raise Interrupted(received)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)
