"""The benchmarks' arithmetic and plumbing, on toys; what they measure is in benchmarks/README.md."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import conventional, page_faults, precision, speed
from benchmarks import ways as ways_module
from benchmarks.precision import Training, compare, every_nth
from benchmarks.speed import Measurement, memory_of, run_program, table, three_splits
from benchmarks.ways import CONVENTIONAL, CONVENTIONAL_WORK, PIPELINE, PIPELINE_WORK, Bench, Task, Way, ways
from scripts.core.config import Config
from scripts.data_handler.dataset import Split
from tests.conftest import FinishedRun, Npz, TinyNetwork


def measured(ours: list[float], conventional: list[float] | None = None, **facts: object) -> Measurement:
    return Measurement(name="toy", unit="img/s", ours=ours, conventional=conventional or [], **facts)  # type: ignore[arg-type]


def test_the_advantage_is_the_median_of_the_ratios_turn_by_turn():
    # the machine was half as fast in the second turn: 2, 4 and 3 times as fast; the medians alone would say 20 / 5
    assert measured([20, 20, 30], [10, 5, 10]).advantage == 3
    assert measured([2, 1, 1], [4, 4, 3], more_is_better=False).advantage == pytest.approx(3)
    assert measured([5]).advantage is None


@pytest.mark.parametrize(
    ("measurement", "verdict"),
    [
        (measured([20], [10], bar=2), True),
        (measured([19], [10], bar=2), False),
        (measured([19], [10]), None),
        (measured([0.4], more_is_better=False, bar=0.5), True),
        (measured([0.6], more_is_better=False, bar=0.5), False),
        (measured([29_000], bar=30_000), False),
        (measured([31_000], bar=30_000), True),
        (measured([100], [120], more_is_better=False, bar=1), True),
        (measured([120], [100], more_is_better=False, bar=1), False),
    ],
)
def test_a_bar_is_met_or_missed(measurement, verdict):
    assert measurement.meets_its_bar is verdict
    word = {None: "img/s", True: "met", False: "MISSED"}[verdict]
    assert word in table([measurement]).splitlines()[-1]


def test_four_parts_are_trained_on_and_one_each_validated_and_tested():
    arrays = dict(three_splits(Split(np.zeros((12, 4, 4), np.uint8), np.arange(12))))

    assert {name: len(values) for name, values in arrays.items() if name.endswith("images")} == {
        "train_images": 8,
        "val_images": 2,
        "test_images": 2,
    }
    assert arrays["test_labels"].tolist() == [[10], [11]]


def test_every_conventional_work_has_its_counterpart():
    assert set(CONVENTIONAL_WORK) < set(PIPELINE_WORK)


def test_a_programs_memory_includes_that_of_its_children():
    child = "block = b'x' * 100_000_000; print('ready', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert memory_of(process.pid) > 100_000_000
        process.communicate(b"\n")
    assert memory_of(2**22 + 1) == 0  # beyond the largest process id


def test_a_program_is_watched_while_it_runs():
    assert run_program(("-c", "pass"))[1] == 0
    seconds, megabytes = run_program(("-c", "pass"), watch_memory=True)
    assert seconds > 0
    assert megabytes > 0


def test_a_program_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="ended with 3: no paper left"):
        run_program(("-c", "import sys; sys.stderr.write('no paper left'); sys.exit(3)"))


@pytest.fixture
def bench(make_npz: Npz, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Works on tiny images with a tiny network, and without worker processes."""
    for module in (ways_module, conventional):
        monkeypatch.setattr(
            module, "new_model", lambda _, num_classes, **options: TinyNetwork(num_classes, stem="adapted")
        )
    monkeypatch.setattr(conventional, "NUM_WORKERS", 0)
    config = Config(weights="none", batch_size=16)
    return Bench(data=make_npz(classes=8, sizes=(64, 16, 16)), device="cpu", config=config)


@contextmanager
def served(name: str, bench: Bench) -> Iterator[Way]:
    """A way whose process is a thread of this one."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=ways_module._serve, args=(theirs, name, bench))
    thread.start()
    try:
        yield Way(ours)
    finally:
        ours.send(None)
        thread.join()


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")  # bookkeeping's folder
@pytest.mark.parametrize(("name", "works"), [(PIPELINE, PIPELINE_WORK), (CONVENTIONAL, CONVENTIONAL_WORK)])
def test_both_ways_do_all_their_work(bench: Bench, name, works):
    with served(name, bench) as way:
        assert all(way.seconds(Task(kind=kind, num_images=32)) > 0 for kind in works)


def test_work_that_fails_is_named_with_its_error(bench: Bench):
    with served(PIPELINE, bench) as way, pytest.raises(RuntimeError, match="pipeline way: KeyError: 'juggling'"):
        way.seconds(Task(kind="juggling", num_images=64))


@pytest.mark.slow
def test_each_way_has_a_process_and_one_that_was_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    task = Task(kind="input pipeline", num_images=64)
    with ways(Bench(data=None, device="cpu", config=Config(weights="none"))) as both:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]  # or deterministic kernels would fail on a GPU
        assert all(way.seconds(task) > 0 for way in both)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(RuntimeError, match=r"input pipeline.*has ended"):
            both[0].seconds(task)


def training(precision: str, seed: int, accuracy: float) -> Training:
    return Training(
        precision=precision, seed=seed, val_accuracies=(accuracy,), test_accuracy=accuracy, test_accuracy_tta=accuracy
    )


@pytest.mark.parametrize(("shift", "within"), [(0.0, True), (0.01, True), (0.03, False), (-0.03, False)])
def test_the_difference_of_precisions_is_compared_with_that_of_seeds(shift, within):
    by_seed = {1: 0.90, 2: 0.91, 3: 0.92}  # standard deviation 0.01, so 2 × sqrt(2 × 0.01² / 3) = 0.0163
    trainings = [training("fp32", seed, accuracy) for seed, accuracy in by_seed.items()]
    trainings += [training("bf16", seed, accuracy + shift) for seed, accuracy in by_seed.items()]

    found = compare(trainings)
    assert found.noise == pytest.approx(0.016330, abs=1e-6)
    assert found.difference == pytest.approx(shift)
    assert found.is_within_noise is within


def test_a_part_of_a_data_set_is_spread_over_it(make_npz: Npz):
    part = every_nth(make_npz(sizes=(48, 16, 24)), 12)
    assert {name: len(values) for name, values in part.items() if name.endswith("images")} == {
        "train_images": 12,
        "val_images": 4,
        "test_images": 6,
    }


class ConstantWay:
    """Takes a constant number of seconds for every task."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds(self, task: Task) -> float:
        return self._seconds


def test_the_speed_benchmark_compares_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    @contextmanager
    def stubs(_: Bench) -> Iterator[tuple[Any, Any]]:
        yield ConstantWay(0.5), ConstantWay(2.0)

    monkeypatch.setattr(speed, "ways", stubs)
    path = tmp_path / "new folder" / "speed.json"
    argv = ["speed", "--only", "training step", "--turns", "2", "--device", "cpu", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", argv)

    assert speed.main() == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["environment"]["commit"]
    assert content["command"] == argv
    assert content["config"]["batch_size"] == 128
    assert content["measurements"]
    for measurement in content["measurements"]:
        assert measurement["name"].startswith("training step")
        assert (measurement["ours"], measurement["conventional"]) == ([512, 512], [128, 128])
        assert measurement["advantage"] == 4
    assert "4.00×" in path.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_precision_benchmark_compares_the_runs_of_both_precisions(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def run_main(command: list[str], **_: object) -> None:
        shutil.copytree(finished_run.paths.root, Path(command[command.index("--output_dir") + 1]) / "run")

    monkeypatch.setattr(precision, "subprocess", SimpleNamespace(run=run_main))
    files = {name: tmp_path / "new folder" / name for name in ("figures.json", "curves.png")}
    argv = ["precision", "--data", str(finished_run.dataset), "--images", "24", "--epochs", "2", "--seeds", "1", "2"]
    argv += ["--json", str(files["figures.json"]), "--figure", str(files["curves.png"])]
    monkeypatch.setattr(sys, "argv", argv)

    assert precision.main() == 0
    content = json.loads(files["figures.json"].read_text(encoding="utf-8"))
    assert [(each["precision"], each["seed"]) for each in content["trainings"]] == [
        ("bf16", 1),
        ("fp32", 1),
        ("bf16", 2),
        ("fp32", 2),
    ]
    assert [len(each["val_accuracies"]) for each in content["trainings"]] == [2] * 4
    assert content["images"] == {"train_labels": 24, "val_labels": 8, "test_labels": 12}
    assert content["comparison"]["difference"] == 0
    assert files["curves.png"].read_bytes()[:4] == b"\x89PNG"
    assert "bf16 minus fp32: +0.0000" in capsys.readouterr().out


def test_the_conventional_way_is_a_whole_program(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["conventional", str(bench.data), "--output_dir", str(tmp_path / "out")])
    conventional.main()

    assert torch.load(tmp_path / "out" / "conventional.pth", weights_only=True)["fc.bias"].shape == (8,)
    assert (tmp_path / "out" / "conventional.png").exists()
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(("kept", "exit_code", "verdict"), [(100, 0, "ratio 4.0, required 3: met"), (200, 1, "MISSED")])
def test_the_page_faults_of_both_modes_are_compared(monkeypatch: pytest.MonkeyPatch, capsys, kept, exit_code, verdict):
    monkeypatch.setattr(page_faults, "measure", {"keep": kept, "release": 400}.__getitem__)

    assert page_faults.main([]) == exit_code
    assert verdict in capsys.readouterr().out


def test_page_faults_are_counted_in_the_process_itself(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(page_faults, "NUM_FLOATS", 10)

    assert page_faults.main(["release"]) == 0
    assert int(capsys.readouterr().out) >= 0
