"""SIGINT and SIGTERM as a request to stop, honoured where nothing is lost by it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from scripts.core.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """What the signals have asked for so far.

    Outside ``deferred`` a signal raises ``Interrupted`` at once. Inside, the first one only sets ``signal_number`` and
    the code there asks for it when it is ready to stop; a second one ends the process immediately.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.advice = ""  # how to go on; ends every message
        self._deferring = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal waits until the code asks for it, or until this block is left."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.raise_if_received()

    def raise_if_received(self, message: str = "") -> None:
        """Raise ``Interrupted`` if a signal has come; ``message`` follows "Stopped by SIGTERM."."""
        if self.signal_number is not None:
            name = signal.Signals(self.signal_number).name
            raise Interrupted(self.signal_number, " ".join(filter(None, (f"Stopped by {name}.", message, self.advice))))

    def handle(self, signal_number: int, _frame: FrameType | None) -> None:
        """Take one signal; the handler of ``stop_request``."""
        if self.signal_number is not None:
            # every file is written under a temporary name first, so leaving here breaks none
            os._exit(128 + signal_number)
        self.signal_number = signal_number
        if not self._deferring:
            self.raise_if_received()


def leave_signals_to_parent() -> None:
    """Let a worker process outlive the signals that a terminal or a scheduler sends to the whole group of processes.

    The process that started it stops at a place of its own choice, until which it needs its workers, and then ends
    them. They notice by themselves when it was killed.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while inside; must be entered in the main thread."""
    request = StopRequest()
    earlier = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
