"""A training small enough to run dozens of times, and ways to stop it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from scripts.core import files
from scripts.core.config import Config
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.core.system import StopRequest
from scripts.data_handler.dataset import Split
from scripts.data_handler.plan import EpochPlan, draw_plan
from scripts.data_handler.sources import DeviceSplit, make_device_split
from scripts.trainer.checkpoint import load_checkpoint
from scripts.trainer.fit import begin_training, fit
from tests.conftest import coloured_squares

CPU = torch.device("cpu")
HEAD = "4"  # of the small network
TIMES = ("seconds", "images_per_second")
NEVER = 1e9  # seconds between checkpoints
CONFIG = Config(
    epochs=3, batch_size=8, lr=0.02, precision="fp32", mixup_alpha=0.2, monitor="accuracy", checkpoint_every=0
)


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def examples(count: int, feed: str = "resident", num_workers: int = 0) -> DeviceSplit:
    images, labels = coloured_squares(count, side=8, seed=count)
    split = Split(images, labels[:, 0].astype(np.int64))
    return make_device_split(split, 2, feed=feed, device=CPU, num_workers=num_workers)


def plan_for(examples: DeviceSplit, config: Config, *, epoch: int = 1) -> EpochPlan:
    device = examples.targets.device
    return draw_plan(config, examples.size, epoch=epoch, image_size=examples.image_size, device=device)


def record(epoch: int = 1) -> EpochRecord:
    figures = dict.fromkeys(("train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds"), 0.5)
    return EpochRecord(epoch=epoch, images_per_second=None, is_best=True, **figures)


def train(
    folder: Path,
    config: Config = CONFIG,
    *,
    model: nn.Module | None = None,
    stop: StopRequest | None = None,
    resume: bool = False,
    splits: tuple[DeviceSplit, DeviceSplit] | None = None,
    **options: Any,
) -> tuple[RunPaths, TrainingResult]:
    if resume:
        (root,) = folder.iterdir()
        paths = RunPaths(root)
    else:
        paths = RunPaths.create(folder, "squares", "small", now=datetime(2026, 1, 31, 22, 15))
    state = begin_training(model or small_network(), config, CPU, head=HEAD)
    if resume:
        saved = load_checkpoint(paths)
        assert saved is not None
        state.restore(saved)
    result = fit(
        state,
        *(splits or (examples(20), examples(10))),
        config,
        paths=paths,
        provenance={"settings": config.as_dict()},
        model_card={"class_names": ["dark", "bright"]},
        stop=stop or StopRequest(),
        **options,
    )
    return paths, result


class StopAfter(StopRequest):
    """A signal that arrives during a certain step or validation batch."""

    def __init__(self, ticks: int) -> None:
        super().__init__()
        self.ticks = ticks

    def __getattribute__(self, name: str) -> object:
        if name == "signal_number":
            self.ticks -= 1
            if self.ticks == 0:
                self.signal_number = 15
        return super().__getattribute__(name)


def without_times(history: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def outcome(paths: RunPaths) -> tuple[bytes, list[dict[str, object]]]:
    return paths.best_model.read_bytes(), without_times(paths.history)


class KilledError(BaseException):
    """A simulated kill: nothing is written afterwards."""


class Disk:
    """Records the files that are written atomically, in their order; may be slow, or end with a kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, kill_after: int | None = None) -> None:
        self.written: list[str] = []
        self.before_write: Callable[[str], None] = lambda name: None
        self._kill_after, self._replace = kill_after, files.replace_atomically
        monkeypatch.setattr(files, "replace_atomically", self._write)

    @contextmanager
    def _write(self, path: Path, **options: Any) -> Iterator[BinaryIO]:
        self.before_write(path.name)
        if len(self.written) == self._kill_after:
            raise KilledError
        with self._replace(path, **options) as stream:
            yield stream
        self.written.append(path.name)
