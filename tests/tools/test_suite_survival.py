"""A suite of real trainings that is killed and started again ends with the table of one that was not."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT_ROOT, CommandLine, Npz

PROGRAM = PROJECT_ROOT / "tools" / "benchmark_suite.py"
TABLES = ("cells.csv", "results.csv", "results.md")
LONGEST_S = 1200  # on a busy machine

pytestmark = pytest.mark.slow


class RealSuite:
    """One suite on three small data sets with two seeds, with all its stops and starts."""

    def __init__(self, folder: Path, data: list[Path], *, epochs: int = 2) -> None:
        folder.mkdir()
        self.folder, self.output = folder / "suite", folder / "screen"
        self.command = [
            *(sys.executable, str(PROGRAM), "--datasets", *map(str, data), "--seeds", "1", "2"),
            *("--suite_dir", str(self.folder), "--", "--weights", "none", "--epochs", str(epochs)),
            *("--batch_size", "16", "--lock_file", str(folder / "lock"), "--no_process_guard"),
        ]
        self.environment = CommandLine(folder).environment | {"OMP_NUM_THREADS": "1"}

    def start(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                self.command, stdout=output, stderr=output, env=self.environment, start_new_session=True
            )

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def finish(self, process: subprocess.Popen[bytes], code: int) -> None:
        assert process.wait(LONGEST_S) == code, self.printed()

    def tables(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in TABLES}

    def weights(self) -> dict[str, str]:
        """SHA-256 of the best weights of each cell."""
        found = sorted(self.folder.glob("*/*/models/best_model.pth"))
        return {path.parents[2].name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def wait_for_training(self, cell: str) -> None:
        """Until the cell has its first epoch behind it, and so a checkpoint."""
        wait_until(lambda: any((self.folder / cell).glob("*/history.jsonl")), self.printed)

    def training(self, process: subprocess.Popen[bytes]) -> psutil.Process:
        """The process of the cell that is being trained."""
        (child,) = psutil.Process(process.pid).children()
        return child


def wait_until(condition: Callable[[], bool], printed: Callable[[], str]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < deadline, printed()
        time.sleep(0.02)


@pytest.mark.timeout(3000)
def test_a_suite_that_was_killed_twice_ends_with_the_same_table(make_npz: Npz, tmp_path: Path):
    sizes = (64, 12, 16)
    data = [make_npz(f"{name}.npz", sizes=sizes, classes=classes) for name, classes in (("a", 2), ("b", 3), ("c", 4))]
    whole, broken = RealSuite(tmp_path / "whole", data), RealSuite(tmp_path / "broken", data)
    uninterrupted = whole.start()

    process = broken.start()
    broken.wait_for_training("b_seed1")
    training = broken.training(process)
    os.killpg(process.pid, signal.SIGKILL)
    broken.finish(process, -signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in (broken.folder / "a_seed1").rglob("*")}

    process = broken.start()  # at once: the training of before may still be saving its state, and hold the lock
    broken.wait_for_training("c_seed1")
    broken.training(process).kill()
    broken.finish(process, 1)
    assert not training.is_running()
    assert "c_seed1 failed, killed by SIGKILL" in broken.printed()
    assert "[2/6] b_seed1  resuming" in broken.printed()
    assert b"c,,resnet18,seed,1,unfinished" in broken.tables()["cells.csv"]

    broken.finish(broken.start(), 0)
    whole.finish(uninterrupted, 0)
    assert broken.tables() == whole.tables()
    assert len(whole.weights()) == 6
    assert broken.weights() == whole.weights()
    assert kept == {path: path.stat().st_mtime_ns for path in (broken.folder / "a_seed1").rglob("*")}
    assert all(len(list(cell.glob("*/config.json"))) == 1 for cell in broken.folder.glob("*_seed*"))
    assert "6 cells, 5 finished, 1 interrupted, 0 not started" in broken.printed()


@pytest.mark.timeout(2000)
def test_a_corrupt_file_fails_alone_and_is_tried_again_once_it_is_repaired(make_npz: Npz, tmp_path: Path):
    data = [make_npz(f"{name}.npz", sizes=(32, 12, 16)) for name in ("a", "b", "c")]
    intact = data[1].read_bytes()
    data[1].write_bytes(intact[: len(intact) // 2])
    suite = RealSuite(tmp_path / "suite", data, epochs=1)
    suite.command[suite.command.index("--seeds") + 1 : suite.command.index("--suite_dir")] = ["1"]

    suite.finish(suite.start(), 1)
    assert f"b_seed1 failed, exit code 3: error: Cannot use {data[1]}" in suite.printed()
    assert "1 of 3 cells failed" in suite.printed()
    kept = {path: path.stat().st_mtime_ns for name in "ac" for path in (suite.folder / f"{name}_seed1").rglob("*")}
    data[1].write_bytes(intact)
    suite.finish(suite.start(), 0)
    assert kept == {
        path: path.stat().st_mtime_ns for name in "ac" for path in (suite.folder / f"{name}_seed1").rglob("*")
    }
    assert b"unfinished" not in suite.tables()["cells.csv"]


@pytest.mark.timeout(2000)
def test_ctrl_c_saves_the_training_and_the_suite_goes_on_from_there(make_npz: Npz, tmp_path: Path):
    suite = RealSuite(tmp_path / "suite", [make_npz(sizes=(320, 12, 16))], epochs=3)
    process = suite.start()
    suite.wait_for_training("squares_seed1")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does

    suite.finish(process, 130)
    last = suite.printed().splitlines()[-1]
    assert last.startswith("error: Stopped by SIGINT. Continue with: ")
    assert str(PROGRAM) in last
    assert "error: Stopped by SIGINT. Everything up to " in suite.printed()  # from the training
    (checkpoint,) = suite.folder.glob("squares_seed1/*/models/last_checkpoint.pth")
    assert checkpoint.stat().st_size > 0
    assert not list(suite.folder.glob("squares_seed1/*/summary.json"))
