"""Turn SIGHUP, SIGINT and SIGTERM into a request to stop, which the training follows after the current step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from scripts.core.errors import Interrupted

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The signals received so far.

    Outside ``deferred`` a signal raises ``Interrupted`` at once. Inside, the first one only sets ``signal_number``, and
    the code there calls ``raise_if_received`` when it is ready to stop; a second one ends the process immediately.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.advice: str | Callable[[], str] = ""  # what to do next; ends every message
        self._deferring = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal waits for ``raise_if_received``, or for the end of the block."""
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
            advice = self.advice() if callable(self.advice) else self.advice
            raise Interrupted(self.signal_number, " ".join(filter(None, (f"Stopped by {name}.", message, advice))))

    def handle(self, signal_number: int, _frame: FrameType | None) -> None:
        """Take one signal; the handler of ``stop_request``."""
        if self.signal_number is not None:
            os._exit(128 + signal_number)  # breaks no file: each is written under a temporary name first
        self.signal_number = signal_number
        if not self._deferring:
            self.raise_if_received()


def leave_signals_to_parent() -> None:
    """Ignore, in a worker process, the signals that a terminal or a scheduler sends to the whole process group.

    The parent needs its workers until it has stopped, and then ends them. They notice by themselves if it was killed.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catch ``STOP_SIGNALS`` while inside; SIGHUP stays ignored under ``nohup``. Enter it in the main thread."""
    request, earlier_hook = StopRequest(), sys.unraisablehook

    def report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        # in a destructor Python drops what the handler raises; the signal is noted, and the run stops later
        if not isinstance(unraisable.exc_value, Interrupted):
            earlier_hook(unraisable)

    sys.unraisablehook = report_unraisable
    caught = [one for one in STOP_SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, request.handle) for number in caught}
    try:
        yield request
    finally:
        sys.unraisablehook = earlier_hook
        for number, handler in earlier.items():
            signal.signal(number, handler)
