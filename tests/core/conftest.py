from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.core.environment import PROJECT_ROOT
from scripts.core.system.guard import LAUNCHER_VARIABLES


class Processes:
    """Starts real processes, and ends them all when the test is over."""

    def __init__(self) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        self.environment["PYTHONPATH"] = str(PROJECT_ROOT)
        self._started: list[subprocess.Popen[str]] = []
        self._orphans: list[int] = []

    def start(
        self, *command: object, cwd: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start ``command`` with pipes for its input and output, and ``variables`` added to its environment."""
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**self.environment, **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._started.append(process)
        return process

    def python(
        self, *arguments: object, cwd: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the Python that runs the tests."""
        return self.start(sys.executable, *arguments, cwd=cwd, variables=variables)

    def adopt(self, pid: int) -> int:
        """Answer for a process that was started by one of ours."""
        self._orphans.append(pid)
        return pid

    def end(self) -> None:
        """Kill what still runs."""
        for pid in self._orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.kill()
            with suppress(BrokenPipeError):  # what was still to be written to a process that has gone
                process.communicate(timeout=30)


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def unwritable_folder() -> Iterator[Path]:
    """A folder that this process cannot write to, even where the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="unwritable_"))  # tmp_path is closed to other users
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(12345)
    try:
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that ``process`` prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str]) -> None:
    """Let ``process``, which waits for a line, go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
