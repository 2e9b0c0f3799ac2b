"""What tests of several packages share: tiny data sets, a tiny network, finished runs, and ways to run ``main.py``."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before torch is imported, and for the processes that tests start: one thread per process, whatever the machine has
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# variables that would change a run
CHANGING_VARIABLES = ("DOCKER_REPRODUCIBILITY_MODE", "TORCH_HOME", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")
for _name in CHANGING_VARIABLES:
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import main  # noqa: E402
from scripts.core.paths import RunPaths  # noqa: E402

torch.set_num_threads(1)

PROJECT_ROOT = Path(__file__).resolve().parents[1]

Npz = Callable[..., Path]


def tracked_files() -> list[str]:
    """Paths of the files that git tracks, below the project's root; skips the test where there is no checkout."""
    if not (PROJECT_ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(PROJECT_ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=60)
    return [name for name in listed.stdout.split("\0") if (PROJECT_ROOT / name).is_file()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def hangup_not_ignored() -> Iterator[None]:
    """Undo, here and in child processes, what a test suite that runs under nohup inherits."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, earlier)


@pytest.fixture(autouse=True)
def _restore_sigchld() -> Iterator[None]:
    """Restore the handler of SIGCHLD: PyTorch sets one with its first worker, and it raises in any later test."""
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, handler)


def coloured_squares(
    count: int, *, side: int = 12, channels: int = 3, classes: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images whose brightness shows their class, so that a network learns them in an epoch or two.

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


def write_npz(
    path: Path,
    *,
    sizes: tuple[int, int, int] = (48, 16, 24),
    side: int = 12,
    channels: int = 3,
    classes: int = 2,
    **arrays: np.ndarray,
) -> Path:
    """Write a small valid data set, with any of its arrays replaced, and return its path."""
    content: dict[str, Any] = {}
    for number, (split, count) in enumerate(zip(("train", "val", "test"), sizes, strict=True)):
        images, labels = coloured_squares(count, side=side, channels=channels, classes=classes, seed=number)
        content |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez_compressed(path, **(content | arrays))
    return path


@pytest.fixture
def make_npz(tmp_path: Path) -> Npz:
    """Call it to write a small valid data set into the test's folder; it takes what ``write_npz`` takes."""

    def make(name: str = "squares.npz", **options: Any) -> Path:
        return write_npz(tmp_path / name, **options)

    return make


class TinyNetwork(nn.Module):
    """A network of some thousand parameters with the parts of a ResNet-18 that the pipeline looks at."""

    def __init__(self, num_classes: int, *, stem: str = "stock") -> None:
        super().__init__()
        kernel, stride = {"adapted": (3, 1), "stock": (7, 2)}[stem]
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "stock" else nn.Identity()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        last_stage = F.avg_pool2d(self.maxpool(self.conv1(images)), 8, ceil_mode=True)  # 8 pixels of a side become one
        return self.fc(self.bn1(last_stage).relu().mean((2, 3)))


@contextmanager
def tiny_backbone() -> Iterator[None]:
    """Let every run that starts in this process train a ``TinyNetwork`` instead of a ResNet-18."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.models.factory.build_published", lambda _, num_classes: TinyNetwork(num_classes))
        yield


@pytest.fixture
def tiny_network() -> Iterator[None]:
    """Apply ``tiny_backbone`` to the whole test."""
    with tiny_backbone():
        yield


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """End every run of the test after its evaluation; figures and workbook take longer than a tiny training."""
    monkeypatch.setattr("scripts.pipeline.report", lambda *_: None)


class Launcher:
    """Runs ``main.py`` in a folder of its own, with a lock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "outputs"

    def arguments(self, *argv: str | Path) -> list[str]:
        """``argv`` and the flags that keep this run apart from other processes."""
        return ["--lock_file", str(self.folder / "lock"), "--no_process_guard", *map(str, argv)]

    def run_folder(self) -> Path:
        """The only run folder there is."""
        (folder,) = (path.parent for path in self.outputs.glob("*/logs"))
        return folder


class CommandLine(Launcher):
    """Runs ``main.py`` in a process of its own, as a user does."""

    def __call__(
        self, *argv: str | Path, environment: dict[str, str] | None = None, timeout_s: float = 200
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv),
            cwd=self.folder,
            env=self.environment | (environment or {}),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
        )

    def command(self, *argv: str | Path) -> list[str]:
        return [sys.executable, str(PROJECT_ROOT / "main.py"), *self.arguments(*argv)]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without the variables that would change a run."""
        return {name: value for name, value in os.environ.items() if name not in CHANGING_VARIABLES}


class InProcess(Launcher):
    """Calls ``main.main`` in this process; not for ``--reproducible``, which starts the process anew."""

    def __call__(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        arguments, out, err = self.arguments(*argv), io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            code = main.main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def in_process(tmp_path: Path) -> InProcess:
    return InProcess(tmp_path)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run that many tests share: read it, or change a copy."""

    paths: RunPaths
    dataset: Path
    stdout: str

    def copy_to(self, folder: Path) -> RunPaths:
        """Copy the run folder into ``folder`` for tests that change it; it can be resumed there."""
        return RunPaths(shutil.copytree(self.paths.root, folder / self.paths.root.name))


def finish_run(folder: Path, *flags: str) -> FinishedRun:
    """Train two epochs in fp32 on three classes, 48 / 16 / 24 images of 12 × 12 pixels in colour."""
    dataset = write_npz(folder / "squares.npz", classes=3, class_names=np.array(["dark", "medium", "bright"]))
    run = InProcess(folder)
    words = ("--weights", "none", "--epochs", "2", "--batch_size", "16", "--precision", "fp32")
    done = run("--dataset", dataset, *words, *flags)
    assert done.returncode == 0, done.stderr
    return FinishedRun(RunPaths(run.run_folder()), dataset, done.stdout)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run of the tiny network."""
    with tiny_backbone():
        return finish_run(tmp_path_factory.mktemp("finished_run"))


@pytest.fixture(scope="session")
def finished_resnet_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run of the ResNet-18, for tests in which the network matters."""
    return finish_run(tmp_path_factory.mktemp("finished_resnet_run"))
