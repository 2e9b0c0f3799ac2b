"""Shared by the tests of the tools: small image files with known content, and signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools import make_dataset

Draw = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


def noise(number: int, side: int = 12) -> Image.Image:
    """An image that differs from that of every other number."""
    values = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


@contextmanager
def default_signal(number: int) -> Iterator[None]:
    """Inside, a signal is not ignored, as SIGHUP is under ``nohup``."""
    earlier = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, earlier)


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Writes the image of a number, or an image, to a path below the test's folder."""

    def write(name: str, image: int | Image.Image = 0, **settings: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (noise(image) if isinstance(image, int) else image).save(path, **settings)
        return path

    return write


@pytest.fixture
def cells(draw: Draw, tmp_path: Path) -> Path:
    """Two classes of ten images, all of them different."""
    for number in range(10):
        draw(f"cells/round/{number}.png", number)
        draw(f"cells/long/{number}.png", 100 + number)
    return tmp_path / "cells"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the program in the test's folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = make_dataset.main([*map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call
