"""Run one cell in a process of its own, read its output, and stop it when the suite is stopped."""

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

PARENT_DEATH_SIGNAL = Path(__file__).with_name("parent_death_signal.py")
POLL_S = 0.2  # the longest delay before a signal is forwarded or an end noticed
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended."""

    code: int  # its exit code; negative: the number of the signal that killed it
    last_line: str  # of its output; "" if there was none

    @property
    def reason(self) -> str:
        """The exit code or the signal, and the last line, in one sentence."""
        if self.code < 0:
            how = f"killed by {signal.Signals(-self.code).name}"
            how += " (the system may have run out of memory)" if self.code == -signal.SIGKILL else ""
        else:
            how = f"exit code {self.code}"
        return f"{how}: {self.last_line or 'no output'}"


def run_process(command: Sequence[str], stop: StopRequest, show: Callable[[str], None]) -> Ending:
    """Run a command to its end; each line of its standard output and error is passed to ``show``.

    A signal that stops the suite is forwarded once; then the process is waited for. The command begins with the
    program's absolute path.

    Raises:
        Interrupted: The suite was stopped; the process has ended.
    """
    last_line = ""
    with stop.deferred():
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PARENT_DEATH_SIGNAL), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8:backslashreplace"},
            # a terminal sends Ctrl-C to its whole process group, and main.py stops at once, unsaved, at a second
            # signal: in a session of its own, the process gets only the forwarded one
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
    """Yield the output of the process until it ends; forward a signal that arrives in the meantime."""
    sources, pending, is_forwarded = [process.stdout] if process.stdout else [], b"", False
    while True:
        # polled before reading: the output of an ended process is complete. The end of the pipe is not waited for:
        # worker processes have copies of it and may live longer
        is_over = process.poll() is not None
        ready = select.select(sources, [], [], 0 if is_over else POLL_S)[0]
        if stop.signal_number is not None and not is_forwarded:
            process.send_signal(stop.signal_number)
            is_forwarded = True
        chunk = os.read(ready[0].fileno(), CHUNK_BYTES) if ready else b""
        *lines, pending = (pending + chunk).split(b"\n")
        yield from map(_text, lines)
        if ready and not chunk:
            sources = []  # closed; without sources, select only waits
        if is_over and not chunk:
            break
    if pending:
        yield _text(pending)


def _text(line: bytes) -> str:
    return line.decode(errors="backslashreplace").rstrip("\r")
