"""End what is left of earlier runs of this program, and nothing else."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.core.log import log
from scripts.core.system.lock import holds_lock

if TYPE_CHECKING:
    import psutil

GRACE_S, TERMINATE_WAIT_S, KILL_WAIT_S, POLL_S = 2.0, 10.0, 5.0, 0.02
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "LOCAL_RANK")
LONG_OPTION_WITH_VALUE = "--check-hash-based-pycs"


def terminate_ghosts(
    entry_point: Path,
    *,
    grace_s: float = GRACE_S,
    terminate_wait_s: float = TERMINATE_WAIT_S,
    kill_wait_s: float = KILL_WAIT_S,
) -> int:
    """End the ghosts: older processes of this user that run ``entry_point`` without a lock. Hold the lock when calling.

    Args:
        entry_point: The script that runs are started with.
        grace_s: Seconds before a suspect is checked again, since a run that has just started may not have its lock yet.
            Without suspects there is no pause.
        terminate_wait_s: Seconds that a ghost has to end after SIGTERM before it is killed.
        kill_wait_s: Seconds to wait for the killed ones.

    Returns:
        The number of processes that were ended.
    """
    if (variable := launcher_variable(os.environ)) is not None:
        log.info("Process guard: off, because a job launcher started this run (%s is set).", variable)
        return 0
    suspects = find_ghosts(entry_point)
    if not suspects:
        return 0
    time.sleep(grace_s)
    ghosts = [process for process in find_ghosts(entry_point) if process in suspects]
    return _end(ghosts, terminate_wait_s, kill_wait_s)


def script_argument(command: Sequence[str]) -> str | None:
    """The script in the command line of a Python interpreter.

    Args:
        command: A command line, the interpreter first.

    Returns:
        The script as it was typed; None for ``-c``, ``-m``, standard input and an interactive interpreter.
    """
    words = iter(command[1:])
    for word in words:
        if word == "--":
            return next(words, None)
        if word == LONG_OPTION_WITH_VALUE:
            next(words, None)
        elif word == "-" or word.startswith("--"):
            return None
        elif not word.startswith("-"):
            return word
        elif option := re.fullmatch("-[^cmWX]*([cmWX])(.*)", word, re.DOTALL):
            if option[1] in "cm":
                return None
            if not option[2]:  # else the rest of the word is the value of -W or -X
                next(words, None)
    return None


def launcher_variable(environment: Mapping[str, str]) -> str | None:
    """The variable that shows that a job launcher started a process; None where there is none."""
    is_rank = "RANK" in environment and "WORLD_SIZE" in environment
    return next((name for name in LAUNCHER_VARIABLES if name in environment), "RANK" if is_rank else None)


def find_ghosts(entry_point: Path) -> list[psutil.Process]:
    """The present ghosts of ``entry_point``, without processes that end during the check or deny access."""
    import psutil

    own = psutil.Process()
    family = {own, *own.parents(), *own.children(recursive=True)}
    script = os.path.realpath(entry_point)
    ghosts = []
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            if process not in family and _is_older_twin(process, own, script) and not _is_protected(process):
                ghosts.append(process)
    return ghosts


def _is_older_twin(process: psutil.Process, own: psutil.Process, script: str) -> bool:
    """Whether ``process`` is this user's, runs ``script`` and is older than this process."""
    return (
        process.uids().real == own.uids().real
        and process.create_time() < own.create_time()
        and Path(process.exe()).name.lower().startswith(("python", "pypy"))  # not an editor
        and _script_of(process) == script
    )


def _script_of(process: psutil.Process) -> str | None:
    argument = script_argument(process.cmdline())
    return None if argument is None else os.path.realpath(Path(process.cwd()) / argument)


def _is_protected(process: psutil.Process) -> bool:
    """Whether ``process`` or an ancestor holds a lock, or it belongs to a job launcher or another container."""
    import psutil

    if not _shares_namespaces(process.pid) or launcher_variable(process.environ()) is not None or holds_lock(process):
        return True
    for ancestor in process.parents():
        with suppress(psutil.AccessDenied):  # another user's process or a login service, so not a run
            if holds_lock(ancestor):
                return True
    return False


def _shares_namespaces(pid: int) -> bool:
    """Whether ``pid`` has the same paths and process numbers as this process, unlike in another container."""
    ours, theirs = Path("/proc/self/ns"), Path(f"/proc/{pid}/ns")
    if not ours.is_dir():  # not Linux: no such containers
        return True
    try:
        return all((theirs / space).samefile(ours / space) for space in ("pid", "mnt"))
    except OSError:  # it has ended, or denies access
        return False


def _end(ghosts: list[psutil.Process], terminate_wait_s: float, kill_wait_s: float) -> int:
    """Terminate, wait, kill, wait; return the number of ghosts that have ended."""
    import psutil

    names: dict[psutil.Process, str] = {}
    for ghost in ghosts:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name = _describe(ghost)
            ghost.terminate()
            names[ghost] = name
            log.warning("Process guard: terminating %s: it runs this program without holding a lock.", name)
    survivors = _wait_for(names, terminate_wait_s)
    for ghost in survivors:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            ghost.kill()
            log.warning("Process guard: killed %s: it did not end within %g s.", names[ghost], terminate_wait_s)
    unkillable = _wait_for(survivors, kill_wait_s)
    for ghost, name in names.items():
        if ghost in unkillable:
            log.warning("Process guard: %s cannot be ended; it may still use memory and the GPU.", name)
        else:
            log.info("Process guard: %s has ended.", name)
    return len(names) - len(unkillable)


def _describe(process: psutil.Process) -> str:
    age = timedelta(seconds=round(time.time() - process.create_time()))
    return f"pid {process.pid} (age {age}, {shlex.join(process.cmdline())})"


def _wait_for(processes: Iterable[psutil.Process], wait_s: float) -> list[psutil.Process]:
    """Wait until ``processes`` have ended, at most ``wait_s`` seconds; return those that have not."""
    deadline = time.monotonic() + wait_s
    while (remaining := [process for process in processes if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return remaining


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        # not psutil's wait(), which would wait in vain for a zombie: only its own parent can remove it
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
