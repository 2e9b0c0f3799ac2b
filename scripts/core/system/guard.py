"""Ends what is left of earlier runs of this program, and touches nothing else."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.core.log import log
from scripts.core.system.lock import holds_lock

if TYPE_CHECKING:
    import psutil

GRACE_S = 2.0
TERMINATE_WAIT_S = 10.0
KILL_WAIT_S = 5.0
POLL_S = 0.05

LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "LOCAL_RANK")
OPTIONS_WITH_VALUE = "WX"
OPTIONS_INSTEAD_OF_SCRIPT = "cm"
LONG_OPTION_WITH_VALUE = "--check-hash-based-pycs"


def terminate_ghosts(
    entry_point: Path,
    *,
    grace_s: float = GRACE_S,
    terminate_wait_s: float = TERMINATE_WAIT_S,
    kill_wait_s: float = KILL_WAIT_S,
) -> int:
    """End the ghosts: older processes of this user that run ``entry_point`` without a lock. Call it holding the lock.

    Args:
        entry_point: The script that runs are started with.
        grace_s: Pause before a suspect is looked at again, in seconds; one that has only just started may not have its
            lock yet. Without suspects there is no pause.
        terminate_wait_s: How long a ghost may take to follow SIGTERM before it is killed, in seconds.
        kill_wait_s: How long to wait for the killed ones, in seconds.

    Returns:
        The number of processes that were ended.
    """
    if (variable := launcher_variable(os.environ)) is not None:
        log.info(f"Process guard: off, because a job launcher started this run ({variable} is set).")
        return 0
    suspects = find_ghosts(entry_point)
    if not suspects:
        return 0
    time.sleep(grace_s)
    ghosts = [process for process in find_ghosts(entry_point) if process in suspects]
    return _end(ghosts, terminate_wait_s, kill_wait_s)


def script_argument(command: Sequence[str]) -> str | None:
    """The script that a Python interpreter was asked to run.

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
        else:
            for position, letter in enumerate(word[1:], start=2):
                if letter in OPTIONS_INSTEAD_OF_SCRIPT:
                    return None
                if letter in OPTIONS_WITH_VALUE:
                    if position == len(word):  # else the rest of the word is the value
                        next(words, None)
                    break
    return None


def launcher_variable(environment: Mapping[str, str]) -> str | None:
    """The variable that shows a process to be part of a job launcher's group; None where there is none."""
    for name in LAUNCHER_VARIABLES:
        if name in environment:
            return name
    return "RANK" if "RANK" in environment and "WORLD_SIZE" in environment else None


def find_ghosts(entry_point: Path) -> list[psutil.Process]:
    """The processes that are ghosts of ``entry_point`` at this moment.

    Processes that end while they are looked at, and those that deny access, are left out.
    """
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
    """Whether ``process`` is our user's, runs ``script`` and was there before us."""
    return (
        process.uids().real == own.uids().real
        and process.create_time() < own.create_time()
        and Path(process.exe()).name.lower().startswith(("python", "pypy"))  # an editor has the same argument
        and _script_of(process) == script
    )


def _script_of(process: psutil.Process) -> str | None:
    argument = script_argument(process.cmdline())
    if argument is None:
        return None
    return os.path.realpath(Path(process.cwd()) / argument)  # an absolute argument stays what it is


def _is_protected(process: psutil.Process) -> bool:
    """Whether ``process`` may run: it or an ancestor has a lock, or it has a job launcher or container of its own."""
    import psutil

    if not _shares_our_view(process.pid) or launcher_variable(process.environ()) is not None or holds_lock(process):
        return True
    for ancestor in process.parents():
        with suppress(psutil.AccessDenied):  # then it is another user's, or a login service: no run of ours
            if holds_lock(ancestor):
                return True
    return False


def _shares_our_view(pid: int) -> bool:
    """Whether paths and process numbers mean the same to ``pid`` as to us; not so in another container."""
    ours, theirs = Path("/proc/self/ns"), Path(f"/proc/{pid}/ns")
    if not ours.is_dir():  # no Linux, no such containers
        return True
    try:
        return all((theirs / space).samefile(ours / space) for space in ("pid", "mnt"))
    except OSError:  # it has ended, or does not let us look
        return False


def _end(ghosts: list[psutil.Process], terminate_wait_s: float, kill_wait_s: float) -> int:
    """Terminate, wait, kill, wait; the number of ghosts that are gone through it."""
    import psutil

    names: dict[psutil.Process, str] = {}
    for ghost in ghosts:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name = _describe(ghost)
            ghost.terminate()
            names[ghost] = name
            log.warning(f"Process guard: asked {name} to end: it runs this program without holding a lock.")
    survivors = _still_there(list(names), terminate_wait_s)
    for ghost in survivors:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            ghost.kill()
            log.warning(f"Process guard: killed {names[ghost]}: it did not end within {terminate_wait_s:g} s.")
    unkillable = _still_there(survivors, kill_wait_s)
    for ghost, name in names.items():
        if ghost in unkillable:
            log.warning(f"Process guard: {name} cannot be ended; it may still use memory and the GPU.")
        else:
            log.info(f"Process guard: {name} is gone.")
    return len(names) - len(unkillable)


def _describe(process: psutil.Process) -> str:
    age = timedelta(seconds=round(time.time() - process.create_time()))
    return f"pid {process.pid} (age {age}, {shlex.join(process.cmdline())})"


def _still_there(processes: list[psutil.Process], wait_s: float) -> list[psutil.Process]:
    """Those of ``processes`` that have not ended after at most ``wait_s`` seconds."""
    deadline = time.monotonic() + wait_s
    remaining = [process for process in processes if _is_alive(process)]
    while remaining and time.monotonic() < deadline:
        time.sleep(POLL_S)
        remaining = [process for process in remaining if _is_alive(process)]
    return remaining


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        # not psutil's wait: a zombie, which only its own parent can remove, would be waited for in vain
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
