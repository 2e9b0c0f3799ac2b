"""The process of a cell: its output, how it ends, and that it does not outlive the suite unnoticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from scripts.core.errors import Interrupted
from scripts.core.system import StopRequest, stop_request
from tests.conftest import PROJECT_ROOT
from tests.tools.conftest import default_signal
from tools.suite.running import PARENT_DEATH_SIGNAL, Ending, run_process

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent death signal")


def run(program: str, stop: StopRequest | None = None) -> tuple[Ending, list[str]]:
    lines: list[str] = []
    ending = run_process([sys.executable, "-c", program], stop or StopRequest(), lines.append)
    return ending, lines


def test_every_line_is_shown_and_the_last_one_remembered():
    ending, lines = run("import sys; print('one', flush=True); print('×\\n', file=sys.stderr); sys.stdout.write('end')")

    assert lines == ["one", "×", "", "end"]
    assert ending == Ending(0, "end")


def test_a_long_output_comes_whole():
    _, lines = run("print('\\n'.join(map(str, range(50_000))))")
    assert lines == [str(number) for number in range(50_000)]


def test_each_line_is_shown_before_the_process_ends(tmp_path: Path):
    shown, lines = tmp_path / "shown", list[str]()
    program = (
        "import pathlib, sys, time; print('a', flush=True)\n"
        "for _ in range(12_000):\n"
        f"    if pathlib.Path({str(shown)!r}).exists(): sys.exit(print('b'))\n"
        "    time.sleep(0.01)\n"
    )

    def show(line: str) -> None:
        lines.append(line)
        shown.touch()

    run_process([sys.executable, "-c", program], StopRequest(), show)
    assert lines == ["a", "b"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('why'); sys.exit(5)", "exit code 5: why"),
        ("import os; os.abort()", "killed by SIGABRT: no output"),
        (
            "import os; print('so far', flush=True); os.kill(os.getpid(), 9)",
            "killed by SIGKILL (the system may have run out of memory): so far",
        ),
    ],
)
def test_the_reason_of_an_end_is_named(program, reason):
    assert run(program)[0].reason == reason


def test_a_worker_that_outlives_the_process_is_not_waited_for():
    ending, lines = run(
        "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    worker = psutil.Process(int(lines[0]))
    is_running = worker.status() != psutil.STATUS_ZOMBIE
    worker.kill()
    assert is_running
    assert ending.code == -9


def test_a_process_that_closes_its_output_is_waited_for():
    ending, _ = run("import os, time; os.close(1); os.close(2); time.sleep(0.3); os._exit(3)")
    assert ending.code == 3


PATIENT = (
    "import signal, sys, time\n"
    "def end(number, _): print('got', number, flush=True); time.sleep(0.2); sys.exit(128 + number)\n"
    "for number in (1, 2, 15): signal.signal(number, end)\n"
    "print('ready', flush=True); time.sleep(600)\n"
)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_the_end_waited_for(number):
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        if line == "ready":
            os.kill(os.getpid(), number)

    with default_signal(number), stop_request() as stop:
        stop.advice = "Continue with: this"
        with pytest.raises(Interrupted) as caught:
            run_process([sys.executable, "-c", PATIENT], stop, show)

    assert lines == ["ready", f"got {number.value}"]
    assert caught.value.exit_code == 128 + number
    assert str(caught.value) == f"Stopped by {number.name}. Continue with: this"


def test_it_is_in_a_session_of_its_own_so_that_a_terminal_does_not_signal_it_too():
    _, lines = run("import os; print(os.getsid(0) == os.getpid())")
    assert lines == ["True"]


def test_a_failure_to_show_ends_the_process():
    pids: list[int] = []

    def fail(line: str) -> None:
        pids.append(int(line))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run_process(
            [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"],
            StopRequest(),
            fail,
        )
    assert not psutil.pid_exists(pids[0])


@ON_LINUX
def test_it_gets_sigterm_when_the_suite_is_killed(tmp_path: Path):
    note = tmp_path / "note"
    child = PATIENT.replace("print('got', number, flush=True)", f"open({str(note)!r}, 'w').write(str(number))")
    parent = (
        "import sys; from scripts.core.system import StopRequest; from tools.suite.running import run_process;"
        f"run_process([sys.executable, '-c', {child!r}], StopRequest(), lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as suite:
        assert suite.stdout is not None
        assert suite.stdout.readline() == "ready\n"
        suite.kill()
    while not (note.exists() and note.read_text()):  # a hang is ended by pytest's timeout
        time.sleep(0.05)
    assert note.read_text() == "15"


@ON_LINUX
def test_a_process_whose_parent_has_ended_already_does_not_start():
    someone_else = threading.get_native_id() + 1_000_000  # no pid that a parent could have
    done = subprocess.run(
        [sys.executable, PARENT_DEATH_SIGNAL, str(someone_else), sys.executable, "-c", "print(1)"], capture_output=True
    )
    assert (done.returncode, done.stdout) == (143, b"")
