"""The faults, one function each: it makes one try and raises ``NotSurvivedError`` unless the run survives it."""

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
    Campaign,
    NotSurvivedError,
    Training,
    ends_within,
    outcome_of,
    require,
    require_whole_files,
    wait_for_exit,
    wait_until,
)
from scripts.core.system.lock import LockRecord

MAX_KILLS = 8  # of one run, which then finishes
MAX_ATTEMPTS = 8  # of a try whose fault came too late to have an effect
EARLIER = 0.7  # of the time in which the next attempt's fault comes: the machine may have become faster since
DISK_BYTES = 1 << 30  # more than a run writes
MAX_SLACK_BYTES = 1 << 20  # free space of a disk that fills up, at most
# limits on the size of files: the file of the printed output must still fit; the largest is larger than a checkpoint
SMALLEST_LIMIT_BYTES, MAX_LIMIT_BYTES = 20_000, 150_000_000
FEEDS: tuple[tuple[str, ...], ...] = (
    ("--feed", "streamed", "--num_workers", "1"),
    ("--feed", "resident"),
    ("--feed", "streamed", "--num_workers", "4"),
    ("--feed", "streamed", "--num_workers", "0"),
)

CHECKPOINTS = tuple(("--checkpoint_every", seconds) for seconds in ("0", "0", "1", "30"))

Notes = dict[str, Any]
Try = Callable[[Campaign, int, random.Random], Notes]


@dataclass(slots=True)
class Result:
    """The result of all tries of one fault."""

    tries: int
    failures: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=dict)


def make_tries(campaign: Campaign, name: str, attempt: Try, tries: int, *, at_once: int = 2) -> Result:
    """Make all tries of one fault, ``at_once`` in parallel; each has its own generator of random numbers."""
    result, notes = Result(tries), list[Notes]()

    def one_try(number: int) -> None:
        rng = random.Random(f"{campaign.seed}/{name}/{number}")  # noqa: S311 (no secret)
        try:
            notes.append(attempt(campaign, number, rng))
        except NotSurvivedError as error:
            result.failures.append(f"{name} {number}: {error}")
        except Exception as error:  # a mistake of the campaign: the try was not made, so it is not survived
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


def kill(campaign: Campaign, number: int, rng: random.Random) -> Notes:
    """Send SIGKILL at a uniformly random moment of every start, until one of them finishes."""
    training = campaign.training(f"kill_{number}")
    kills = 0
    while True:
        process = training.resume(*FEEDS[number % 2], *CHECKPOINTS[number % 4])
        if kills == MAX_KILLS or ends_within(process, rng.uniform(0, campaign.seconds)):
            break
        process.kill()
        process.wait()
        kills += 1
        for paths in training.runs():
            require_whole_files(paths)
    training.finish(process)
    training.require_same(campaign.reference)
    training.remove()
    return {"kills": kills}


def terminate(campaign: Campaign, number: int, rng: random.Random) -> Notes:
    """Send SIGTERM at a random moment, then run the printed command."""
    return _stop(campaign, number, rng, signal.SIGTERM)


def interrupt(campaign: Campaign, number: int, rng: random.Random) -> Notes:
    """Send SIGINT at a random moment, then run the printed command."""
    return _stop(campaign, number, rng, signal.SIGINT)


def _stop(campaign: Campaign, number: int, rng: random.Random, wanted: signal.Signals) -> Notes:
    for attempt in range(MAX_ATTEMPTS):
        training = campaign.training(f"{wanted.name}_{number}_{attempt}", *FEEDS[number % 2], *CHECKPOINTS[number % 4])
        process = training.start()
        # every second time while it trains, which a short training rarely does at a random moment
        if number % 2:
            _wait_for_epoch(training, process, rng.randint(1, campaign.size.epochs))
            seconds = rng.uniform(0, 0.2)
        else:
            seconds = rng.uniform(0, campaign.seconds * EARLIER**attempt)
        if ends_within(process, seconds):
            training.remove()
            continue
        # of four times, two to the worker processes as well
        (os.killpg if number % 4 < 2 else os.kill)(process.pid, wanted)
        sent = time.monotonic()
        code = wait_for_exit(process)
        seconds = time.monotonic() - sent
        if any(paths.summary.exists() for paths in training.runs()):  # the run was finished
            require(code in (0, -wanted), f"exit code {code} at the end: {training.last_lines()}")
            training.require_same(campaign.reference)
            training.remove()
            continue
        stage = _stage(training, code)
        if code == -wanted:  # before the first line of the program
            require(not training.runs(), "the signal was not caught although the run had begun")
            training.finish(training.start())
        else:
            require(code == 128 + wanted, f"exit code {code}, expected {128 + wanted}: {training.last_lines()}")
            require("Traceback" not in training.output(), f"a traceback: {training.last_lines()}")
            training.finish(training.run_printed_command())
        training.require_same(campaign.reference)
        training.remove()
        return {"stopped while": stage, f"seconds from signal to exit while {stage}": seconds}
    raise NotSurvivedError(f"{MAX_ATTEMPTS} signals came after the end of the run")


def _stage(training: Training, code: int) -> str:
    """Name the stage that a stopped run had reached."""
    if code < 0:
        return "Python was starting"
    log = "".join(path.read_text() for path in training.outputs.glob("*/logs/run.log")).split("Stopped by")[0]
    if "best epoch" in log:
        return "it was evaluated or reported"
    return "it trained" if "run folder" in log and "feed " in log else "it was starting"


def damage(campaign: Campaign, number: int, rng: random.Random) -> Notes:
    """Truncate the newest checkpoint or flip one bit of it, then resume."""
    training = campaign.training(f"damage_{number}")
    _stop_in_epoch(training, 1 + number % campaign.size.epochs, rng)
    path = training.paths.last_checkpoint
    content = bytearray(path.read_bytes())
    if is_truncation := rng.random() < 0.5:
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    training.finish(training.resume())
    warning = "last_checkpoint.pth is damaged: its checksum does not fit"
    require(warning in training.output(), f"no warning of the damage: {training.last_lines()}")
    training.require_same(campaign.reference)
    training.remove()
    return {"damage": "truncated" if is_truncation else "one bit flipped"}


def _stop_in_epoch(training: Training, epoch: int, rng: random.Random) -> None:
    """Start a run and stop it by SIGTERM while it trains a certain epoch, or soon after."""
    process = training.start()
    _wait_for_epoch(training, process, epoch)
    ends_within(process, rng.uniform(0.1, 0.4))
    process.send_signal(signal.SIGTERM)
    wait_for_exit(process)
    require(training.paths.last_checkpoint.exists(), f"stopping left no checkpoint: {training.last_lines()}")


def _wait_for_epoch(training: Training, process: subprocess.Popen[bytes], epoch: int) -> None:
    """Wait until a run that was started trains a certain epoch, or has ended."""

    def has_begun() -> bool:
        if epoch == 1:  # with the first checkpoint
            return any(paths.last_checkpoint.exists() for paths in training.runs())
        return f"epoch {epoch - 1}/" in training.output()

    wait_until(lambda: has_begun() or process.poll() is not None, f"epoch {epoch} has begun")


def fill_disk(campaign: Campaign, number: int, rng: random.Random) -> Notes:
    """Fill the disk at a random write, then resume with space: a small tmpfs, or a limit on the size of files."""
    for attempt in range(MAX_ATTEMPTS):
        folder = campaign.folder / f"disk_{number}_{attempt}"
        with _small_disk(folder, wanted=number % 2 == 0) as is_small_disk:
            training = campaign.training(folder.name, *CHECKPOINTS[number % 4], folder=folder / "run")
            seconds = rng.uniform(0, campaign.seconds * EARLIER**attempt)
            if _run_until_full(training, seconds, is_small_disk, rng):
                if is_small_disk:
                    _resize(folder, DISK_BYTES)
                training.finish(training.run_printed_command())
                training.require_same(campaign.reference)
                return {"full": "tmpfs" if is_small_disk else "file-size limit"}
    raise NotSurvivedError(f"{MAX_ATTEMPTS} full disks came after the last write")


def _run_until_full(training: Training, seconds: float, is_small_disk: bool, rng: random.Random) -> bool:
    """Run with a disk that is full after ``seconds``; return whether the run failed, which it must do cleanly."""
    process = training.start()
    if not ends_within(process, seconds):
        if is_small_disk:
            _shrink(training.folder.parent, rng.randrange(MAX_SLACK_BYTES))
        else:
            exponent = rng.uniform(math.log(SMALLEST_LIMIT_BYTES), math.log(MAX_LIMIT_BYTES))
            _limit_files(process, round(math.exp(exponent)))
    code = wait_for_exit(process)
    if code != 0:
        _require_clean_failure(training, code)
    return code != 0


def _require_clean_failure(training: Training, code: int) -> None:
    require(code == 6, f"exit code {code}, expected 6: {training.last_lines()}")
    output = training.output()
    require("Traceback" not in output, f"a traceback: {training.last_lines()}")
    require(
        " needs " in output and training.outputs.name in output, f"path or space not named: {training.last_lines()}"
    )
    require(not training.leftovers(), f"left half written: {training.leftovers()}")
    for paths in training.runs():
        require_whole_files(paths)


@contextmanager
def _small_disk(folder: Path, *, wanted: bool) -> Iterator[bool]:
    """Mount a small disk at ``folder`` while inside, if that is wanted and allowed; yield whether it is mounted."""
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
    """Shrink a small disk to ``slack_bytes`` of free space; it is tried again while files grow."""
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
    with suppress(ProcessLookupError):  # the process has just ended
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def start_together(campaign: Campaign, number: int, _rng: random.Random) -> Notes:
    """Start four runs at once under one lock: one must run, the others must name it and leave nothing."""
    folder = campaign.folder / f"starts_{number}"
    trainings = [campaign.training("", folder=folder / str(which)) for which in range(4)]
    for training in trainings:  # with the process guard, as by default
        training.arguments = [word for word in training.arguments if word != "--no_process_guard"]
    own = ["--lock_file", str(folder / "lock"), "--output_dir", str(folder / "outputs")]
    processes = [training.start(*own) for training in trainings]
    try:
        wait_until(lambda: sum(process.poll() is not None for process in processes) >= 3, "three starts are refused")
        running = [process for process in processes if process.poll() is None]
        require(len(running) == 1, " / ".join(training.last_lines() for training in trainings))
        holder = running[0]
        wait_until(lambda: _noted_folder(folder / "lock") is not None, "the run has made its folder")
        for training, process in zip(trainings, processes, strict=True):
            if process is not holder:
                lines = training.last_lines()
                require(process.returncode == 4, f"exit code {process.returncode}, expected 4: {lines}")
                require(f"pid {holder.pid}," in lines, f"the holder is not named: {lines}")
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


def repeat(campaign: Campaign, number: int, rng: random.Random) -> Notes:
    """Run the same command twice in reproducibility mode."""
    arguments = ("--reproducible", "--seed", str(rng.randrange(2**32)))
    trainings = [campaign.training(f"repeat_{number}_{which}", *arguments) for which in range(2)]
    processes = [training.start() for training in trainings]
    for training, process in zip(trainings, processes, strict=True):
        training.finish(process)
    training.require_same(outcome_of(trainings[0].paths))
    for training in trainings:
        training.remove()
    return {}


def feed(campaign: Campaign, number: int, _rng: random.Random) -> Notes:
    """Run with another way to bring the images to the device."""
    training = campaign.training(f"feed_{number}", *FEEDS[number])
    training.finish(training.start())
    training.require_same(campaign.reference)
    training.remove()
    return {}
