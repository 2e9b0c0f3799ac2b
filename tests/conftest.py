"""What tests of several packages share: tiny data sets on disk, and a command line's surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PROJECT_ROOT = Path(__file__).resolve().parents[1]

Npz = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(2)


def coloured_squares(
    count: int, *, side: int = 12, channels: int = 3, classes: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness tells their class, with noise: learnt in an epoch or two.

    Returns:
        uint8 images (count, side, side[, 3]) and labels (count, 1).
    """
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    levels = 40 + 170 * labels / (classes - 1)
    noise = random.integers(-25, 26, shape)
    images = np.clip(levels.reshape(-1, *[1] * (len(shape) - 1)) + noise, 0, 255).astype(np.uint8)
    return images, labels.astype(np.uint8).reshape(-1, 1)


@pytest.fixture
def make_npz(tmp_path: Path) -> Npz:
    """Writes a small valid data set, with any of its arrays replaced, and returns its path."""

    def make(
        name: str = "squares.npz",
        *,
        sizes: tuple[int, int, int] = (48, 16, 24),
        side: int = 12,
        channels: int = 3,
        classes: int = 2,
        **arrays: np.ndarray,
    ) -> Path:
        content: dict[str, Any] = {}
        for number, (split, count) in enumerate(zip(("train", "val", "test"), sizes, strict=True)):
            images, labels = coloured_squares(count, side=side, channels=channels, classes=classes, seed=number)
            content |= {f"{split}_images": images, f"{split}_labels": labels}
        path = tmp_path / name
        np.savez_compressed(path, **(content | arrays))
        return path

    return make


class CommandLine:
    """Runs ``main.py`` as a user does, in an empty folder with a lock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "outputs"

    def __call__(
        self, *words: str | Path, environment: dict[str, str] | None = None, timeout_s: float = 200
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment | (environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def command(self, *words: str | Path) -> list[str]:
        own = ("--lock_file", str(self.folder / "lock"), "--no_process_guard")
        return [sys.executable, str(PROJECT_ROOT / "main.py"), *own, *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without what would change a run."""
        unwanted = ("DOCKER_REPRODUCIBILITY_MODE", "TORCH_HOME", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")
        return {name: value for name, value in os.environ.items() if name not in unwanted}

    def run_folder(self) -> Path:
        """The only run folder there is."""
        (folder,) = self.outputs.iterdir()
        return folder


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)
