"""The benchmarks' arithmetic, and that each of them starts."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.precision import Training, compare, every_nth
from benchmarks.speed import Measurement, memory_of, run_program, table, three_splits
from benchmarks.ways import CONVENTIONAL_WORK, PIPELINE_WORK, Bench, Task, ways
from scripts.core.config import Config
from scripts.data_handler.dataset import Split
from tests.conftest import PROJECT_ROOT, Npz


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


def test_a_programs_memory_is_that_of_all_its_processes():
    child = "import time; block = bytearray(200_000_000); time.sleep(3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seconds, megabytes = run_program(("-c", parent), watch_memory=True)

    assert seconds > 3
    assert 200 < megabytes < 300
    assert memory_of(2**22 + 1) == 0  # beyond the largest process id


def test_a_program_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="ended with 3: no paper left"):
        run_program(("-c", "import sys; sys.stderr.write('no paper left'); sys.exit(3)"))


@pytest.mark.timeout(200)
def test_a_way_whose_process_has_ended_is_no_way_to_wait_for():
    bench = Bench(data=None, device="cpu", config=Config(weights="none"))
    task = Task(kind="input pipeline", num_images=64)
    with ways(bench) as (pipeline, _):
        assert pipeline.seconds(task) > 0
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]  # or deterministic kernels would fail on a GPU
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(RuntimeError, match=r"input pipeline.*has ended"):
            pipeline.seconds(task)


def test_what_a_way_cannot_do_is_told():
    bench = Bench(data=None, device="cpu", config=Config(weights="none"))
    with ways(bench) as (pipeline, _), pytest.raises(RuntimeError, match="pipeline way: KeyError: 'juggling'"):
        pipeline.seconds(Task(kind="juggling", num_images=64))


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


@pytest.mark.timeout(280)
def test_the_speed_benchmark_measures_both_ways(tmp_path: Path):
    path = tmp_path / "speed.json"
    words = ("--only", "training step", "--turns", "1", "--device", "cpu", "--json", str(path))
    subprocess.run([sys.executable, "-m", "benchmarks.speed", *words], cwd=PROJECT_ROOT, check=True, timeout=270)

    content = json.loads(path.read_text())
    assert content["environment"]["commit"]
    assert content["config"]["batch_size"] == 128
    for measurement in content["measurements"]:
        assert measurement["name"].startswith("training step")
        assert measurement["advantage"] == pytest.approx(measurement["ours"][0] / measurement["conventional"][0])
