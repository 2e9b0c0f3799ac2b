from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.core.system.guard import LAUNCHER_VARIABLES, launcher_variable, script_argument, terminate_ghosts
from tests.core.conftest import Processes, line_of, tell

# stands for the program: what it does follows from its first argument
MAIN = """
import os, signal, subprocess, sys, time
from pathlib import Path

role, *rest = sys.argv[1:] or ["sleep"]
if role == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif role == "run":
    sys.exit(subprocess.run(rest).returncode)
elif role == "with_worker":
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(600)
elif role == "other_user":
    os.setuid(65534)
elif role == "locked":
    sys.stdin.readline()
    from scripts.core.system.lock import ensure_single_instance
    with ensure_single_instance(Path(rest[0])):
        worker = os.fork()
        if worker:
            print(worker, flush=True)
        time.sleep(600)
print("running", flush=True)
time.sleep(600)
"""

GUARD = """
import subprocess, sys, time
from pathlib import Path
from scripts.core.log import screen_log
from scripts.core.system import guard

sleep = time.sleep
def pause(seconds):
    if seconds != guard.GRACE_S:
        return sleep(seconds)
    print("pausing", flush=True)
    sys.stdin.readline()

entry_point, terminate_wait_s, *command = sys.argv[1:]
guard.GRACE_S, guard.TERMINATE_WAIT_S, guard.KILL_WAIT_S = 1234, float(terminate_wait_s), 60
time.sleep = pause
print("ready", flush=True)
sys.stdin.readline()
if command:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
sys.stderr = sys.stdout
with screen_log():
    ended = guard.terminate_ghosts(Path(entry_point))
print("ended", ended, flush=True)
if command:
    print("child", child.poll(), flush=True)
    child.kill()
    child.communicate()
"""


@pytest.fixture
def entry_point(tmp_path: Path) -> Path:
    path = tmp_path / "project" / "main.py"
    path.parent.mkdir()
    path.write_text(MAIN)
    return path


def start_guard(
    processes: Processes,
    entry_point: Path,
    *child: object,
    terminate_wait_s: float = 60,
    variables: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A guard that is older than what is started from now on, and waits for a line before it begins."""
    time.sleep(0.02)  # the system measures age in hundredths of a second
    guard = processes.python("-c", GUARD, entry_point, terminate_wait_s, *child, variables=variables)
    assert line_of(guard) == "ready"
    return guard


def result_of(guard: subprocess.Popen[str]) -> list[str]:
    """Everything that a guard prints, apart from the pause for suspects, which is ended at once."""
    output, _ = guard.communicate("go\ngo\n", timeout=60)
    lines = output.splitlines()
    assert lines.count("pausing") == (lines[-1] != "ended 0")
    return [line for line in lines if line != "pausing"]


def start_main(
    processes: Processes, *arguments: object, cwd: Path | None = None, variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    process = processes.python(*arguments, cwd=cwd, variables=variables)
    assert line_of(process) == "running"
    return process


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_ghosts_are_ended_however_their_command_line_was_written(processes, entry_point):
    project = entry_point.parent
    (project.parent / "link.py").symlink_to(entry_point)
    ghosts = [
        start_main(processes, entry_point),
        start_main(processes, "main.py", cwd=project),
        start_main(processes, "../project/main.py", "sleep", "--epochs", "3", cwd=project),
        start_main(processes, "-u", "-W", "ignore", "-Xutf8", "main.py", cwd=project),
        start_main(processes, project.parent / "link.py"),
    ]
    lines = result_of(start_guard(processes, project.parent / "link.py"))
    assert lines[-1] == "ended 5"
    assert [ghost.wait(timeout=60) for ghost in ghosts] == [-signal.SIGTERM] * 5


def test_each_action_is_logged_with_pid_age_and_command(processes, entry_point):
    ghost = start_main(processes, entry_point, "sleep", "a b")
    lines = result_of(start_guard(processes, entry_point))
    name = (
        rf"pid {ghost.pid} \(age \d:\d\d:\d\d, {re.escape(sys.executable)} {re.escape(str(entry_point))} sleep 'a b'\)"
    )
    assert len(lines) == 3
    assert re.fullmatch(
        rf"warning: Process guard: terminating {name}: it runs this program without holding a lock\.", lines[0]
    )
    assert re.fullmatch(rf"Process guard: {name} has ended\.", lines[1])
    assert lines[2] == "ended 1"


def test_an_orphaned_ghost_that_ignores_sigterm_is_killed(processes, entry_point):
    program = (
        "import subprocess, sys\n"
        "ghost = subprocess.Popen([sys.executable, sys.argv[1], 'stubborn'], stdout=subprocess.PIPE, text=True)\n"
        "print(ghost.pid, ghost.stdout.readline(), flush=True)\n"
    )
    starter = processes.python("-W", "ignore", "-c", program, entry_point)
    pid = processes.adopt(int(line_of(starter).split()[0]))
    starter.wait()
    lines = result_of(start_guard(processes, entry_point, terminate_wait_s=0.1))
    assert not is_alive(pid)
    assert len(lines) == 4
    assert lines[0].startswith(f"warning: Process guard: terminating pid {pid} (age ")
    assert lines[1].startswith(f"warning: Process guard: killed pid {pid} (age ")
    assert lines[1].endswith("main.py stubborn): it did not end within 0.1 s.")
    assert lines[3] == "ended 1"


def test_the_worker_that_a_killed_run_left_behind_is_a_ghost(processes, entry_point):
    run = processes.python(entry_point, "with_worker")
    worker = processes.adopt(int(line_of(run)))
    run.kill()
    run.wait()
    assert is_alive(worker)
    assert result_of(start_guard(processes, entry_point))[-1] == "ended 1"
    assert not is_alive(worker)


def test_without_ghosts_there_is_no_pause_and_no_message(processes, entry_point):
    output, _ = start_guard(processes, entry_point).communicate("go\n", timeout=60)
    assert output == "ended 0\n"


@pytest.fixture
def ghost(processes, entry_point):
    """A ghost beside each process that must survive, so that a guard that does nothing fails the test."""
    return start_main(processes, entry_point)


def assert_spared(survivors: list[int], guard: subprocess.Popen[str], ghost: subprocess.Popen[str]) -> None:
    lines = result_of(guard)
    assert lines[-1] == "ended 1"
    assert ghost.wait(timeout=60) == -signal.SIGTERM
    assert [pid for pid in survivors if not is_alive(pid)] == []
    assert [pid for pid in survivors if f"pid {pid} " in "\n".join(lines)] == []


def test_other_programs_survive_however_much_they_look_like_this_one(processes, entry_point, ghost, tmp_path):
    project, elsewhere = entry_point.parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (elsewhere / "main.py", project / "other.py", project / "pytest.py", project / "package" / "main.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(MAIN)
    others = [
        start_main(processes, elsewhere / "main.py"),
        start_main(processes, "main.py", cwd=elsewhere),
        start_main(processes, "package/main.py", cwd=project),
        start_main(processes, "-c", MAIN, "sleep", entry_point),
        start_main(processes, "-m", "pytest", "sleep", "main.py", cwd=project),
        start_main(processes, "-m", "main", cwd=project),
        start_main(processes, "other.py", "sleep", "main.py", cwd=project),
    ]
    editor = processes.start("tail", "-f", entry_point)
    assert line_of(editor) in MAIN.splitlines()
    assert_spared([other.pid for other in [*others, editor]], start_guard(processes, entry_point), ghost)


def test_a_program_read_from_standard_input_survives(processes, entry_point, ghost):
    reader = processes.python("-", "main.py", cwd=entry_point.parent)
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write("import time; print('running', flush=True); time.sleep(600)\n")
    reader.stdin.close()
    assert line_of(reader) == "running"
    reader.stdin = None
    assert_spared([reader.pid], start_guard(processes, entry_point), ghost)


def test_a_younger_twin_survives(processes, entry_point, ghost):
    guard = start_guard(processes, entry_point)
    twin = start_main(processes, entry_point)
    assert_spared([twin.pid], guard, ghost)


def test_parent_and_grandparent_survive(processes, entry_point, ghost):
    me = [sys.executable, entry_point, "run"]
    family = processes.start(*me, *me, sys.executable, "-c", GUARD, entry_point, 60)
    assert line_of(family) == "ready"
    (parent,) = psutil.Process(family.pid).children()
    assert parent.cmdline()[:3] == [str(word) for word in me]
    lines = result_of(family)  # they end with the guard that they started, and so with its code
    assert lines[-1] == "ended 1"
    assert family.returncode == 0
    assert ghost.wait(timeout=60) == -signal.SIGTERM


def test_a_child_survives(processes, entry_point, ghost):
    lines = result_of(start_guard(processes, entry_point, sys.executable, entry_point))
    assert lines[-2:] == ["ended 1", "child None"]  # the child still runs
    assert ghost.wait(timeout=60) == -signal.SIGTERM


def start_locked(processes: Processes, entry_point: Path, lock_file: Path) -> list[int]:
    """A run that holds a lock of its own, and its worker."""
    twin = processes.python(entry_point, "locked", lock_file)
    tell(twin)
    return [twin.pid, processes.adopt(int(line_of(twin)))]


def test_a_twin_with_a_lock_of_its_own_survives_with_its_worker(processes, entry_point, ghost, tmp_path):
    survivors = start_locked(processes, entry_point, tmp_path / "lock")
    assert_spared(survivors, start_guard(processes, entry_point), ghost)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a removed file's lock cannot be seen from outside")
def test_a_twin_survives_although_its_lock_file_was_cleaned_away(processes, entry_point, ghost, tmp_path):
    survivors = start_locked(processes, entry_point, tmp_path / "lock")
    (tmp_path / "lock").unlink()
    assert_spared(survivors, start_guard(processes, entry_point), ghost)


def test_a_twin_that_takes_its_lock_during_the_pause_survives(processes, entry_point, ghost, tmp_path):
    twin = processes.python(entry_point, "locked", tmp_path / "lock")
    guard = start_guard(processes, entry_point)
    tell(guard)
    assert line_of(guard) == "pausing"
    tell(twin)
    worker = processes.adopt(int(line_of(twin)))
    tell(guard)
    output, _ = guard.communicate(timeout=60)
    assert output.endswith("ended 1\n")
    assert ghost.wait(timeout=60) == -signal.SIGTERM
    assert is_alive(twin.pid)
    assert is_alive(worker)


def test_members_of_a_launchers_group_survive(processes, entry_point, ghost):
    groups = [*({name: "1"} for name in LAUNCHER_VARIABLES), {"RANK": "0", "WORLD_SIZE": "2"}]
    members = [start_main(processes, entry_point, variables=group) for group in groups]
    assert_spared([member.pid for member in members], start_guard(processes, entry_point), ghost)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_survives(processes, entry_point, ghost):
    other = start_main(processes, entry_point, "other_user")
    assert_spared([other.pid], start_guard(processes, entry_point), ghost)


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="only root can make what containers are made of")
def test_a_process_in_a_container_survives_although_its_path_reads_the_same(processes, entry_point, ghost):
    container = processes.start("unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, entry_point)
    assert line_of(container) == "running"
    (inside,) = psutil.Process(container.pid).children()
    assert_spared([processes.adopt(inside.pid)], start_guard(processes, entry_point), ghost)


def test_a_zombie_is_left_to_its_parent(processes, entry_point):
    zombie = start_main(processes, entry_point)
    zombie.send_signal(signal.SIGKILL)
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert result_of(start_guard(processes, entry_point)) == ["ended 0"]


@pytest.mark.parametrize("name", LAUNCHER_VARIABLES)
def test_the_guard_is_off_under_a_launcher_and_logs_it(processes, entry_point, ghost, name, monkeypatch, caplog):
    monkeypatch.setenv(name, "1")
    with caplog.at_level(logging.INFO, logger="medmnist"):
        assert terminate_ghosts(entry_point) == 0
    assert caplog.messages == [f"Process guard: off, because a job launcher started this run ({name} is set)."]
    assert is_alive(ghost.pid)


def test_the_guard_is_off_in_a_run_that_a_launcher_started(processes, entry_point, ghost):
    lines = result_of(start_guard(processes, entry_point, variables={"SLURM_JOB_ID": "4711"}))
    assert lines == [
        "Process guard: off, because a job launcher started this run (SLURM_JOB_ID is set).",
        "ended 0",
    ]
    assert is_alive(ghost.pid)


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, None),
        ({"RANK": "0"}, None),
        ({"WORLD_SIZE": "2"}, None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK"),
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID"),
        ({"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}, None),
    ],
)
def test_a_launcher_is_recognised_by_its_variable(environment, variable):
    assert launcher_variable(environment) == variable


@pytest.mark.parametrize(
    ("words", "script"),
    [
        ("", None),
        ("main.py", "main.py"),
        ("main.py --epochs 3 -c x", "main.py"),
        ("/a/main.py -m", "/a/main.py"),
        ("-c main.py", None),
        ("-cpass main.py", None),
        ("-m main", None),
        ("-mpdb main.py", None),
        ("-um pdb main.py", None),
        ("-u main.py", "main.py"),
        ("-uBOO main.py", "main.py"),
        ("-I -s -E main.py", "main.py"),
        ("-W ignore main.py", "main.py"),
        ("-Wignore main.py", "main.py"),
        ("-Wc main.py", "main.py"),
        ("-uW error main.py", "main.py"),
        ("-X dev main.py", "main.py"),
        ("-Ximporttime main.py", "main.py"),
        ("-W main.py", None),
        ("-X main.py other.py", "other.py"),
        ("-- main.py", "main.py"),
        ("-u -- -c", "-c"),
        ("--", None),
        ("- main.py", None),
        ("--check-hash-based-pycs always main.py", "main.py"),
        ("--check-hash-based-pycs main.py", None),
        ("--version main.py", None),
    ],
)
def test_the_script_is_found_as_python_itself_finds_it(words, script):
    assert script_argument(["python3", *words.split()]) == script


@pytest.mark.parametrize(
    "options", ["", "-u", "-uBOO", "-W ignore", "-Wignore", "-uW ignore", "-X dev", "-Xdev", "--", "-I -s --"]
)
def test_python_agrees_on_where_its_script_is(entry_point, options):
    entry_point.write_text("import sys; print(sys.argv[0], sys.orig_argv)")
    command = [sys.executable, *options.split(), str(entry_point), "-c", "x"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.startswith(f"{entry_point} ")
    assert script_argument(command) == str(entry_point)


def test_no_command_line_has_no_script():
    assert script_argument([]) is None
