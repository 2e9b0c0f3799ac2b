"""A small training through the real command line, which the campaign kills, stops and resumes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.environment import PROJECT_ROOT
from scripts.core.files import PART
from scripts.core.paths import RunPaths
from scripts.data_handler.synthetic import open_synthblood

ENTRY_POINT = PROJECT_ROOT / "main.py"
TIMES = ("seconds", "images_per_second")  # of an epoch's record; they differ between runs
REMOVED_VARIABLES = ("DOCKER_REPRODUCIBILITY_MODE", "TORCH_HOME", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")
MAX_RUN_S = 300.0
POLL_S = 0.01

Outcome = dict[str, str]  # what must be the same: the SHA-256 of each file, by its name


class NotSurvivedError(Exception):
    """A fault had a consequence that is not allowed."""


def require(condition: bool, message: str) -> None:
    """Raise ``NotSurvivedError`` unless the condition holds."""
    if not condition:
        raise NotSurvivedError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of the training."""

    train: int  # images
    val: int
    test: int
    epochs: int
    batch_size: int = 16


SMALL = Size(train=240, val=64, test=96, epochs=4)
TINY = Size(train=64, val=24, test=32, epochs=2)


def write_small_cells(path: Path, size: Size) -> None:
    """Write some images of ``synthblood`` as a data set of its own, reduced to 12 × 12 pixels, the means of 2 × 2."""
    drawn = open_synthblood()
    arrays: dict[str, Any] = {"class_names": np.array(drawn.class_names)}
    for name, count in (("train", size.train), ("val", size.val), ("test", size.test)):
        split = drawn.load(name)
        middle = split.images[:count, 2:26, 2:26].astype(np.float32)
        means = middle.reshape(count, 12, 2, 12, 2, 3).mean(axis=(2, 4))
        arrays |= {f"{name}_images": means.round().astype(np.uint8), f"{name}_labels": split.labels[:count, None]}
    np.savez(path, **arrays)


class Training:
    """One run of the program in its own folder, with all its starts."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.arguments = folder, list(arguments)
        self.outputs = folder / "outputs"
        self.output_file = folder.with_name(f"{folder.name}.output")  # beside the folder, whose disk may be full

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a new run."""
        return self.launch([sys.executable, str(ENTRY_POINT), *self.arguments, *arguments])

    def resume(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Resume the run, or start it if nothing can be resumed yet."""
        runs = self.runs()
        if not runs:
            return self.start(*arguments)
        own = ["--lock_file", "lock", "--no_process_guard"]
        return self.launch([sys.executable, str(ENTRY_POINT), "--resume", str(runs[-1].root), *own, *arguments])

    def launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start any command in the training's folder; its output goes to ``output_file``."""
        environment = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
        with self.output_file.open("wb") as stream:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # its own process group, to which signals are sent as a terminal does
            )

    def run_printed_command(self) -> subprocess.Popen[bytes]:
        """Run the command that the last message says to continue with."""
        _, found, command = self.output().rpartition(" with: ")
        require(bool(found), "no command to continue with was printed")
        return self.launch(["sh", "-c", command.strip()])

    def output(self) -> str:
        """Read what the last start printed."""
        return self.output_file.read_text(errors="backslashreplace")

    def runs(self) -> list[RunPaths]:
        """List the run folders that can be resumed, the oldest first."""
        return [RunPaths(path.parent) for path in sorted(self.outputs.glob("*/config.json"))]

    @property
    def paths(self) -> RunPaths:
        """The files of the only run that can be resumed."""
        runs = self.runs()
        require(len(runs) == 1, f"{len(runs)} run folders have a config.json, expected 1")
        return runs[0]

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the process, which must exit with 0."""
        code = wait_for_exit(process)
        require(code == 0, f"exit code {code}: {self.last_lines()}")

    def last_lines(self) -> str:
        """The last six lines that the last start printed."""
        return " | ".join(self.output().splitlines()[-6:]) or "(nothing printed)"

    def require_same(self, expected: Outcome) -> None:
        """Require the result of the uninterrupted run and no temporary files."""
        found = outcome_of(self.paths)
        different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        require(not different, f"other than in the uninterrupted run: {', '.join(sorted(different))}")
        require(not self.leftovers(), f"left half written: {self.leftovers()}")

    def leftovers(self) -> list[str]:
        """Temporary files below the folder."""
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob(f".*{PART}")]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process, which is killed if it takes longer than ``MAX_RUN_S``."""
    try:
        return process.wait(MAX_RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise NotSurvivedError(f"still running after {MAX_RUN_S:g} s") from None


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends by itself within ``seconds``."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Wait for a condition, which must hold within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        require(time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def outcome_of(paths: RunPaths) -> Outcome:
    """Compute digests of the best weights, of the predictions, and of the history without its times."""
    contents = {path.name: path.read_bytes() for path in (paths.best_model, *sorted(paths.reports.glob("*.csv")))}
    history = [json.loads(line) for line in paths.history.read_text().splitlines()]
    kept = [{name: value for name, value in record.items() if name not in TIMES} for record in history]
    contents[paths.history.name] = json.dumps(kept, sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def require_whole_files(paths: RunPaths) -> None:
    """Require that every file under its final name can be read."""
    for path in paths.root.rglob("*"):
        if path.is_file() and not path.name.endswith(PART):
            try:
                _open(path)
            except Exception as error:
                raise NotSurvivedError(f"{path.relative_to(paths.root)} is broken: {error!r}") from error


def _open(path: Path) -> None:
    import torch
    from openpyxl import load_workbook
    from PIL import Image

    from scripts.trainer.checkpoint import is_sealed

    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".csv":
        with path.open(newline="") as stream:
            np.array(list(csv.reader(stream)), dtype=np.float64)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".xlsx":
        load_workbook(path)
    elif path.name.endswith("_checkpoint.pth"):
        require(is_sealed(path.read_bytes()), "its checksum does not fit")
    elif path.suffix == ".pth":
        torch.load(path, map_location="cpu", weights_only=True)


class Campaign:
    """What the tries of a campaign share: the data, the uninterrupted run, and the seed of all random choices."""

    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self.folder, self.seed, self.size = folder, seed, size
        self.data = folder / "cells.npz"
        write_small_cells(self.data, size)

    def training(self, name: str, *arguments: str, folder: Path | None = None) -> Training:
        """Prepare a training without starting it; ``arguments`` are added to those that all trainings share."""
        common = {
            "--dataset": str(self.data),
            "--weights": "none",
            "--epochs": str(self.size.epochs),
            "--batch_size": str(self.size.batch_size),
            "--mixup_alpha": "0.2",
            "--lr": "0.02",
            "--device": "cpu",
            "--lock_file": "lock",
        }
        given = [word for pair in common.items() for word in pair]
        return Training(folder or self.folder / name, [*given, "--no_process_guard", *arguments])

    @cached_property
    def reference(self) -> Outcome:
        """The result of two uninterrupted runs at once, which must agree."""
        trainings = [self.training(f"reference_{number}") for number in range(2)]
        started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda training: training.finish(training.start()), trainings))
        self.seconds = time.monotonic() - started  # of one run while another one is running, as in the tries
        outcome = outcome_of(trainings[0].paths)
        for training in trainings:
            training.require_same(outcome)
            require_whole_files(training.paths)
            training.remove()
        return outcome

    seconds: float = 0.0


def restore_interrupts() -> None:
    """Let SIGINT reach the trainings even where this campaign runs in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
