"""A small real training through the real command line, to be killed, stopped, starved and gone on with."""

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
TIMES = ("seconds", "images_per_second")  # of an epoch's record: never the same twice
UNWANTED = ("DOCKER_REPRODUCIBILITY_MODE", "TORCH_HOME", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")
LONGEST_RUN_S = 300.0
POLL_S = 0.01

Outcome = dict[str, str]  # what must be the same: SHA-256 by the name of the file


class NotSurvivedError(Exception):
    """A fault had a consequence that it must not have."""


def require(condition: bool, otherwise: str) -> None:
    """Fail the try at hand unless the condition holds."""
    if not condition:
        raise NotSurvivedError(otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large the training is."""

    train: int  # images
    val: int
    test: int
    epochs: int
    batch_size: int = 16


SMALL = Size(train=240, val=64, test=96, epochs=4)
TINY = Size(train=64, val=24, test=32, epochs=2)


def write_small_cells(path: Path, size: Size) -> None:
    """Some of ``synthblood`` at 12 × 12 pixels, the means of 2 × 2, as an own data set."""
    drawn = open_synthblood()
    arrays: dict[str, Any] = {"class_names": np.array(drawn.class_names)}
    for name, count in (("train", size.train), ("val", size.val), ("test", size.test)):
        split = drawn.load(name)
        middle = split.images[:count, 2:26, 2:26].astype(np.float32)
        means = middle.reshape(count, 12, 2, 12, 2, 3).mean(axis=(2, 4))
        arrays |= {f"{name}_images": means.round().astype(np.uint8), f"{name}_labels": split.labels[:count, None]}
    np.savez(path, **arrays)


class Training:
    """One run of the program in a folder of its own, with all its stops and starts."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.words = folder, list(words)
        self.outputs = folder / "outputs"
        self.screen = folder.with_name(f"{folder.name}.screen")  # beside the folder: its disk may be full

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it anew."""
        return self.launch([sys.executable, str(ENTRY_POINT), *self.words, *words])

    def go_on(self, *words: str) -> subprocess.Popen[bytes]:
        """Resume it; where there is nothing to resume yet, start it."""
        runs = self.runs()
        if not runs:
            return self.start(*words)
        own = ["--lock_file", "lock", "--no_process_guard"]
        return self.launch([sys.executable, str(ENTRY_POINT), "--resume", str(runs[-1].root), *own, *words])

    def launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start any command in the training's folder, its output in ``screen``."""
        environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        with self.screen.open("wb") as screen:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                start_new_session=True,  # a group of its own, which a signal can be sent to as a terminal does
            )

    def launch_as_printed(self) -> subprocess.Popen[bytes]:
        """Type what the last message says to go on with."""
        _, found, command = self.said().rpartition(" with: ")
        require(bool(found), "no command to go on with was printed")
        return self.launch(["sh", "-c", command.strip()])

    def said(self) -> str:
        """What the last start printed."""
        return self.screen.read_text(errors="backslashreplace")

    def runs(self) -> list[RunPaths]:
        """The run folders that can be gone on with, the oldest first."""
        return [RunPaths(path.parent) for path in sorted(self.outputs.glob("*/config.json"))]

    @property
    def paths(self) -> RunPaths:
        """The files of the only run that got anywhere."""
        runs = self.runs()
        require(len(runs) == 1, f"{len(runs)} run folders have a config.json, expected 1")
        return runs[0]

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end, which must be a good one."""
        code = end_of(process)
        require(code == 0, f"exit code {code}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what the last start printed."""
        return " | ".join(self.said().splitlines()[-6:]) or "(nothing printed)"

    def require_same(self, expected: Outcome) -> None:
        """The result must be that of the uninterrupted run, and nothing half written be left."""
        found = outcome_of(self.paths)
        different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        require(not different, f"other than in the uninterrupted run: {', '.join(sorted(different))}")
        require(not self.leftovers(), f"left half written: {self.leftovers()}")

    def leftovers(self) -> list[str]:
        """Temporary files below the folder."""
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob(f".*{PART}")]

    def remove(self) -> None:
        """Make room for others."""
        shutil.rmtree(self.folder, ignore_errors=True)


def end_of(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, which is killed if it takes too long."""
    try:
        return process.wait(LONGEST_RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise NotSurvivedError(f"still running after {LONGEST_RUN_S:g} s") from None


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends by itself before so many seconds are over."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Wait for something that must happen soon."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        require(time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def outcome_of(paths: RunPaths) -> Outcome:
    """Digests of the best weights, of the predictions, and of the history without its times."""
    contents = {path.name: path.read_bytes() for path in (paths.best_model, *sorted(paths.reports.glob("*.csv")))}
    history = [json.loads(line) for line in paths.history.read_text().splitlines()]
    kept = [{name: value for name, value in record.items() if name not in TIMES} for record in history]
    contents[paths.history.name] = json.dumps(kept, sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def require_whole_files(paths: RunPaths) -> None:
    """Every file under its final name must open as what it is."""
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
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".xlsx":
        load_workbook(path)
    elif path.name.endswith("_checkpoint.pth"):
        require(is_sealed(path.read_bytes()), "its checksum does not fit")
    elif path.suffix == ".pth":
        torch.load(path, map_location="cpu", weights_only=True)


class Laboratory:
    """What the tries of a campaign share: the data, the uninterrupted run, and a seed for everything random."""

    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self.folder, self.seed, self.size = folder, seed, size
        self.data = folder / "cells.npz"
        write_small_cells(self.data, size)

    def training(self, name: str, *words: str, folder: Path | None = None) -> Training:
        """A training that is not yet started; ``words`` are added to what all of them have in common."""
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
        return Training(folder or self.folder / name, [*given, "--no_process_guard", *words])

    @cached_property
    def reference(self) -> Outcome:
        """The result of the uninterrupted run: of two at once, which must agree."""
        trainings = [self.training(f"reference_{number}") for number in range(2)]
        started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda training: training.finish(training.start()), trainings))
        self.seconds = time.monotonic() - started  # of one run while another one runs beside it, as in the tries
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
