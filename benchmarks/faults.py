"""What may happen to a training, one function per fault: each makes one try, and fails unless the run survives it."""

from __future__ import annotations

import math
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.trainings import (
    Laboratory,
    NotSurvivedError,
    Training,
    end_of,
    ends_within,
    outcome_of,
    require,
    require_whole_files,
    wait_until,
)
from scripts.core.system.lock import LockRecord

MAX_KILLS = 8  # of one run, before it is let finish
MAX_MOMENTS = 8  # drawn for a fault that came too late to have an effect
DISK_BYTES = 1 << 30  # room for all that a run writes
MAX_SLACK_BYTES = 1 << 20  # what a disk that fills has left, at most
# a limit on the size of files: between what the screen's file needs, too, and a little more than a checkpoint
SMALLEST_LIMIT_BYTES, MAX_LIMIT_BYTES = 20_000, 150_000_000
FEEDS: tuple[tuple[str, ...], ...] = (
    ("--feed", "streamed", "--num_workers", "1"),
    ("--feed", "resident"),
    ("--feed", "streamed", "--num_workers", "4"),
    ("--feed", "streamed", "--num_workers", "0"),
)

CHECKPOINTS = tuple(("--checkpoint_every", seconds) for seconds in ("0", "0", "1", "30"))

Notes = dict[str, Any]
Try = Callable[[Laboratory, int, random.Random], Notes]


@dataclass(slots=True)
class Result:
    """What all tries of one fault gave."""

    tries: int
    failures: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=dict)


def make_tries(laboratory: Laboratory, name: str, attempt: Try, tries: int, *, at_once: int = 2) -> Result:
    """Make all tries of one fault, some at a time; each has a generator of its own."""
    result, notes = Result(tries), list[Notes]()

    def one_try(number: int) -> None:
        chance = random.Random(f"{laboratory.seed}/{name}/{number}")  # noqa: S311 (no secret)
        try:
            notes.append(attempt(laboratory, number, chance))
        except NotSurvivedError as error:
            result.failures.append(f"{name} {number}: {error}")
        except Exception as error:  # of the campaign itself: no try counts that was not made
            result.failures.append(f"{name} {number}: the try itself failed: {error!r}")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one_try, range(tries)))
    result.notes = {key: _summary([note[key] for note in notes if key in note]) for key in _keys(notes)}
    return result


def _keys(notes: Sequence[Notes]) -> list[str]:
    return list(dict.fromkeys(key for note in notes for key in note))


def _summary(values: list[Any]) -> Any:
    if all(isinstance(value, float) for value in values):
        return {"median": round(statistics.median(values), 2), "largest": round(max(values), 2)}
    if all(isinstance(value, int) for value in values):
        return sum(values)
    return {str(value): values.count(value) for value in sorted(set(values), key=str)}


def kill(laboratory: Laboratory, number: int, chance: random.Random) -> Notes:
    """SIGKILL at a uniformly random moment of every start, until one of them gets to the end."""
    training = laboratory.training(f"kill_{number}")
    kills = 0
    while True:
        process = training.go_on(*FEEDS[number % 2], *CHECKPOINTS[number % 4])
        if kills == MAX_KILLS or ends_within(process, chance.uniform(0, laboratory.seconds)):
            break
        process.kill()
        process.wait()
        kills += 1
        for paths in training.runs():
            require_whole_files(paths)
    training.finish(process)
    training.require_same(laboratory.reference)
    training.remove()
    return {"kills": kills}


def terminate(laboratory: Laboratory, number: int, chance: random.Random) -> Notes:
    """SIGTERM at a random moment, then the printed command as it stands."""
    return _stop(laboratory, number, chance, signal.SIGTERM)


def interrupt(laboratory: Laboratory, number: int, chance: random.Random) -> Notes:
    """SIGINT at a random moment, then the printed command as it stands."""
    return _stop(laboratory, number, chance, signal.SIGINT)


def _stop(laboratory: Laboratory, number: int, chance: random.Random, wanted: signal.Signals) -> Notes:
    for moment in range(MAX_MOMENTS):
        training = laboratory.training(f"{wanted.name}_{number}_{moment}", *FEEDS[number % 2], *CHECKPOINTS[number % 4])
        process = training.start()
        if ends_within(process, chance.uniform(0, laboratory.seconds)):
            training.remove()
            continue
        # to the worker processes, too, where there are any
        (os.killpg if number % 2 == 0 else os.kill)(process.pid, wanted)
        sent = time.monotonic()
        code = end_of(process)
        seconds = time.monotonic() - sent
        if any(paths.summary.exists() for paths in training.runs()):  # all was done already
            require(code in (0, -wanted), f"exit code {code} at the end: {training.last_words()}")
            training.require_same(laboratory.reference)
            training.remove()
            continue
        stage = _stage(training, code)
        if code == -wanted:  # before Python had got as far as our first line
            require(not training.runs(), "the signal was not caught although the run had begun")
            training.finish(training.start())
        else:
            require(code == 128 + wanted, f"exit code {code}, expected {128 + wanted}: {training.last_words()}")
            require("Traceback" not in training.said(), f"a traceback: {training.last_words()}")
            training.finish(training.launch_as_printed())
        training.require_same(laboratory.reference)
        training.remove()
        return {"stopped while": stage, f"seconds from signal to exit while {stage}": seconds}
    raise NotSurvivedError(f"{MAX_MOMENTS} signals came after the end of the run")


def _stage(training: Training, code: int) -> str:
    """How far a stopped run had come."""
    if code < 0:
        return "Python was starting"
    log = "".join(path.read_text() for path in training.outputs.glob("*/logs/run.log")).split("Stopped by")[0]
    if "best epoch" in log:
        return "it was evaluated or reported"
    return "it trained" if "run folder" in log and "feed " in log else "it was starting"


def damage(laboratory: Laboratory, number: int, chance: random.Random) -> Notes:
    """The newest checkpoint truncated, or one bit of it flipped, then resume."""
    training = laboratory.training(f"damage_{number}")
    _stop_in_epoch(training, 1 + number % laboratory.size.epochs, chance)
    path = training.paths.last_checkpoint
    content = bytearray(path.read_bytes())
    if is_truncation := chance.random() < 0.5:
        del content[chance.randrange(len(content)) :]
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    training.finish(training.go_on())
    warning = "last_checkpoint.pth is damaged: its checksum does not fit"
    require(warning in training.said(), f"no warning of the damage: {training.last_words()}")
    training.require_same(laboratory.reference)
    training.remove()
    return {"damage": "truncated" if is_truncation else "one bit flipped"}


def _stop_in_epoch(training: Training, epoch: int, chance: random.Random) -> None:
    """Leave a run that SIGTERM stopped while it trained a certain epoch, or soon after."""
    process = training.start()

    def has_begun() -> bool:
        if epoch == 1:  # with the first checkpoint
            return any(paths.last_checkpoint.exists() for paths in training.runs())
        return f"epoch {epoch - 1}/" in training.said()

    wait_until(lambda: has_begun() or process.poll() is not None, f"epoch {epoch} has begun")
    ends_within(process, chance.uniform(0.1, 0.4))
    process.send_signal(signal.SIGTERM)
    end_of(process)
    require(training.paths.last_checkpoint.exists(), f"stopping left no checkpoint: {training.last_words()}")


def fill_disk(laboratory: Laboratory, number: int, chance: random.Random) -> Notes:
    """A full disk at a random write, then resume with space: a small tmpfs, or a limit on the size of files."""
    for moment in range(MAX_MOMENTS):
        folder = laboratory.folder / f"disk_{number}_{moment}"
        with _small_disk(folder, wanted=number % 2 == 0) as is_small_disk:
            training = laboratory.training(folder.name, *CHECKPOINTS[number % 4], folder=folder / "run")
            if _run_until_full(training, chance.uniform(0, laboratory.seconds), is_small_disk, chance):
                if is_small_disk:
                    _resize(folder, DISK_BYTES)
                training.finish(training.launch_as_printed())
                training.require_same(laboratory.reference)
                return {"full": "tmpfs" if is_small_disk else "file-size limit"}
    raise NotSurvivedError(f"{MAX_MOMENTS} full disks came after the last write")


def _run_until_full(training: Training, seconds: float, is_small_disk: bool, chance: random.Random) -> bool:
    """Run with a disk that is full after so many seconds; whether that had an effect, which must be a clean failure."""
    process = training.start()
    if not ends_within(process, seconds):
        if is_small_disk:
            _shrink(training.folder.parent, chance.randrange(MAX_SLACK_BYTES))
        else:
            exponent = chance.uniform(math.log(SMALLEST_LIMIT_BYTES), math.log(MAX_LIMIT_BYTES))
            _limit_files(process, round(math.exp(exponent)))
    code = end_of(process)
    if code != 0:
        _require_clean_failure(training, code)
    return code != 0


def _require_clean_failure(training: Training, code: int) -> None:
    require(code == 6, f"exit code {code}, expected 6: {training.last_words()}")
    said = training.said()
    require("Traceback" not in said, f"a traceback: {training.last_words()}")
    require(
        " needs " in said and str(training.outputs.name) in said, f"path or space not named: {training.last_words()}"
    )
    require(not training.leftovers(), f"left half written: {training.leftovers()}")
    for paths in training.runs():
        require_whole_files(paths)


@contextmanager
def _small_disk(folder: Path, *, wanted: bool) -> Iterator[bool]:
    """A folder that is a disk of its own while inside, where that is wanted and allowed; yields whether it is."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "survival", str(folder)]
    is_small_disk = wanted and sys.platform == "linux" and os.geteuid() == 0 and _succeeds(command)
    try:
        yield is_small_disk
    finally:
        if is_small_disk:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _shrink(folder: Path, slack_bytes: int) -> None:
    """Leave so little space on a small disk; what is being written may need some more attempts."""
    for _ in range(100):
        usage = shutil.disk_usage(folder)
        if _resize(folder, usage.used + slack_bytes):
            return
        time.sleep(0.01)
    raise NotSurvivedError("the small disk could not be made smaller")


def _resize(folder: Path, size_bytes: int) -> bool:
    return _succeeds(["mount", "-o", f"remount,size={size_bytes}", str(folder)])


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _limit_files(process: subprocess.Popen[bytes], size_bytes: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def start_together(laboratory: Laboratory, number: int, _chance: random.Random) -> Notes:
    """Four starts at once under one lock: one runs, and the others name it and leave nothing."""
    folder = laboratory.folder / f"starts_{number}"
    trainings = [laboratory.training("", folder=folder / str(which)) for which in range(4)]
    for training in trainings:  # the guard is on, as for every user
        training.words = [word for word in training.words if word != "--no_process_guard"]
    own = ["--lock_file", str(folder / "lock"), "--output_dir", str(folder / "outputs")]
    processes = [training.start(*own) for training in trainings]
    try:
        wait_until(lambda: sum(process.poll() is not None for process in processes) >= 3, "three starts are refused")
        running = [process for process in processes if process.poll() is None]
        require(len(running) == 1, " / ".join(training.last_words() for training in trainings))
        holder = running[0]
        wait_until(lambda: _noted_folder(folder / "lock") is not None, "the one that runs has made its folder")
        for training, process in zip(trainings, processes, strict=True):
            if process is not holder:
                words = training.last_words()
                require(process.returncode == 4, f"exit code {process.returncode}, expected 4: {words}")
                require(f"pid {holder.pid}," in words, f"the holder is not named: {words}")
        made = sorted((folder / "outputs").iterdir())
        require(made == [_noted_folder(folder / "lock")], f"run folders {made}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    shutil.rmtree(folder)
    return {}


def _noted_folder(lock_file: Path) -> Path | None:
    record = LockRecord.parse(lock_file.read_bytes()) if lock_file.exists() else None
    return Path(record.run_folder) if record is not None and record.run_folder is not None else None


def repeat(laboratory: Laboratory, number: int, chance: random.Random) -> Notes:
    """The same command twice in reproducibility mode."""
    words = ("--reproducible", "--seed", str(chance.randrange(2**32)))
    trainings = [laboratory.training(f"repeat_{number}_{which}", *words) for which in range(2)]
    processes = [training.start() for training in trainings]
    for training, process in zip(trainings, processes, strict=True):
        training.finish(process)
    training.require_same(outcome_of(trainings[0].paths))
    for training in trainings:
        training.remove()
    return {}


def feed(laboratory: Laboratory, number: int, _chance: random.Random) -> Notes:
    """Another way to bring the images to the device."""
    training = laboratory.training(f"feed_{number}", *FEEDS[number])
    training.finish(training.start())
    training.require_same(laboratory.reference)
    training.remove()
    return {}
