"""One cell's process: started, listened to, and stopped when the suite is asked to stop."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.core.system import StopRequest

TIED = Path(__file__).with_name("tied.py")
POLL_S = 0.2  # how late a signal is forwarded, and an end noticed, at most
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended."""

    code: int  # its exit code; negative, the number of the signal that killed it
    last_line: str  # the last that it printed, "" if it printed nothing

    @property
    def reason(self) -> str:
        """The exit code or the signal, and the last line, in one sentence."""
        if self.code < 0:
            how = f"killed by {signal.Signals(-self.code).name}"
            how += " (the system's memory may have been used up)" if self.code == -signal.SIGKILL else ""
        else:
            how = f"exit code {self.code}"
        return f"{how}: {self.last_line or 'nothing was printed'}"


def run_process(command: Sequence[str], stop: StopRequest, show: Callable[[str], None]) -> Ending:
    """Run a command to its end; its standard output and error go to ``show``, line by line.

    A signal that asks the suite to stop is passed on, once, and the end is waited for.

    Args:
        command: The program's absolute path and its arguments.
        stop: What the signals have asked for.
        show: Takes each line that is printed.

    Raises:
        Interrupted: The suite was asked to stop; the process has ended.
    """
    last_line = ""
    with stop.deferred():
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(TIED), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8:backslashreplace"},
            # a terminal's Ctrl-C reaches its whole group, and main.py takes a second signal for "at once, unsaved":
            # in a session of its own, the process gets the one that is passed on
            start_new_session=True,
        )
        with process:  # closes the pipe and waits
            try:
                for line in _lines(process, stop):
                    last_line = line.strip() or last_line
                    show(line)
            except BaseException:
                process.kill()
                raise
    return Ending(process.returncode, last_line)


def _lines(process: subprocess.Popen[bytes], stop: StopRequest) -> Iterator[str]:
    """What the process prints until it ends; a signal that comes in the meantime is passed on to it."""
    sources, pending, is_told = [process.stdout] if process.stdout else [], b"", False
    while True:
        # asked first: what it printed is then all there. Its end counts, not that of the pipe, of which worker
        # processes have copies that may outlive it
        is_over = process.poll() is not None
        ready = select.select(sources, [], [], 0 if is_over else POLL_S)[0]
        if stop.signal_number is not None and not is_told:
            process.send_signal(stop.signal_number)
            is_told = True
        chunk = os.read(ready[0].fileno(), CHUNK_BYTES) if ready else b""
        *whole, pending = (pending + chunk).split(b"\n")
        yield from (_text(line) for line in whole)
        if ready and not chunk:
            sources = []  # closed; without sources, select only waits
        if is_over and not chunk:
            break
    if pending:
        yield _text(pending)


def _text(line: bytes) -> str:
    return line.decode(errors="backslashreplace").rstrip("\r")
