"""End what is left of earlier runs of this program, and nothing else."""

from __future__ import annotations

import getopt
import os
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

GRACE_S = 2.0  # a run that has just started may not have its lock yet
TERMINATE_WAIT_S, KILL_WAIT_S, POLL_S = 10.0, 5.0, 0.02
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "LOCAL_RANK")
PYTHON_OPTIONS = "bBc:dEhiIm:OPqRsStuvVW:xX:"  # for getopt: a colon follows those with a value


def terminate_ghosts(entry_point: Path) -> int:
    """End the ghosts: older processes of this user that run ``entry_point`` without a lock. Hold the lock when calling.

    Suspects are checked again after a pause. Ghosts get SIGTERM, and SIGKILL if they do not end. Return how many ended.
    """
    if (variable := launcher_variable(os.environ)) is not None:
        log.info("Process guard: off, because a job launcher started this run (%s is set).", variable)
        return 0
    suspects = _find_ghosts(entry_point)
    if not suspects:
        return 0
    time.sleep(GRACE_S)
    return _end([process for process in _find_ghosts(entry_point) if process in suspects])


def script_argument(command: Sequence[str]) -> str | None:
    """The script, as it was typed, in the command line of a Python interpreter, which is the first of ``command``.

    None for ``-c``, ``-m``, standard input, an interactive interpreter and an unknown option.
    """
    try:
        options, words = getopt.getopt(list(command[1:]), PYTHON_OPTIONS, ["check-hash-based-pycs="])
    except getopt.GetoptError:
        return None
    is_script = bool(words) and words[0] != "-" and not {"-c", "-m"} & dict(options).keys()
    return words[0] if is_script else None


def launcher_variable(environment: Mapping[str, str]) -> str | None:
    """The variable that shows that a job launcher started a process; None where there is none."""
    is_rank = "RANK" in environment and "WORLD_SIZE" in environment
    return next((name for name in LAUNCHER_VARIABLES if name in environment), "RANK" if is_rank else None)


def _find_ghosts(entry_point: Path) -> list[psutil.Process]:
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
        and (argument := script_argument(process.cmdline())) is not None
        and os.path.realpath(Path(process.cwd()) / argument) == script
    )


def _is_protected(process: psutil.Process) -> bool:
    """Whether ``process`` or an ancestor holds a lock, or it belongs to a job launcher or another container."""
    import psutil

    if not _shares_namespaces(process.pid) or launcher_variable(process.environ()) or holds_lock(process.pid):
        return True
    for ancestor in process.parents():
        with suppress(psutil.AccessDenied):  # another user's process or a login service, so not a run
            if holds_lock(ancestor.pid):
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


def _end(ghosts: list[psutil.Process]) -> int:
    """Terminate, wait, kill, wait; return the number of ghosts that have ended."""
    import psutil

    names: dict[psutil.Process, str] = {}
    for ghost in ghosts:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            age = timedelta(seconds=round(time.time() - ghost.create_time()))
            name = f"pid {ghost.pid} (age {age}, {shlex.join(ghost.cmdline())})"
            ghost.terminate()
            names[ghost] = name
            log.warning("Process guard: terminating %s: it runs this program without holding a lock.", name)
    survivors = _wait_for(names, TERMINATE_WAIT_S)
    for ghost in survivors:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            ghost.kill()
            log.warning("Process guard: killed %s: it did not end within %g s.", names[ghost], TERMINATE_WAIT_S)
    unkillable = _wait_for(survivors, KILL_WAIT_S)
    for ghost, name in names.items():
        if ghost in unkillable:
            log.warning("Process guard: %s cannot be ended; it may still use memory and the GPU.", name)
        else:
            log.info("Process guard: %s has ended.", name)
    return len(names) - len(unkillable)


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
