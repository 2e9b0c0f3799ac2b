"""The short survival campaign: a few tries of every fault, on a real training through the real command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.faults import make_tries
from benchmarks.fuzzing import FuzzTarget, fuzz
from benchmarks.mutated_command_lines import fuzz_command_line
from benchmarks.survival import FAULTS, Row, table
from benchmarks.trainings import (
    TINY,
    Campaign,
    NotSurvivedError,
    Training,
    ends_within,
    outcome_of,
    require_whole_files,
    wait_until,
)
from scripts.core.environment import PROJECT_ROOT
from scripts.core.paths import RunPaths


@pytest.mark.slow
@pytest.mark.timeout(900)  # about 90 s on two idle cores
def test_every_fault_is_survived(tmp_path):
    command = [sys.executable, "-m", "benchmarks.survival", "--short", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["name"] for row in figures["rows"]] == [fault.name for fault in FAULTS]
    assert all(row["survived"] == row["tries"] > 0 for row in figures["rows"])
    assert {"seed", "command", "environment", "training"} <= figures.keys()
    assert figures["environment"]["commit"]


@pytest.mark.parametrize("seed", range(300))
def test_a_mutated_command_line_is_valid_or_refused_in_sentences(seed, tmp_path):
    assert fuzz_command_line(random.Random(seed), tmp_path) in ("valid", "refused", "helped")


@pytest.mark.slow
def test_adamw_one_cycle_averages_and_cutmix_survive_five_kills(tmp_path):
    campaign, rng, kills = Campaign(tmp_path, seed=7, size=TINY), random.Random(7), 0
    settings = {
        "optimizer": "adamw",
        "schedule": "onecycle",
        "decay_params": "weights",
        "ema_decay": "0.9",
        "label_smoothing": "0.1",
        "class_weights": "balanced",
        "grad_clip": "1",
        "dropout": "0.2",
        "cutmix_alpha": "1",
        "checkpoint_every": "0",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]

    def is_training(training: Training) -> bool:
        return "model resnet18:" in training.output()

    reference = campaign.training("reference", *flags)
    process = reference.start()
    wait_until(lambda: is_training(reference), "the training")
    started = time.monotonic()
    reference.finish(process)
    seconds, expected = time.monotonic() - started, outcome_of(reference.paths)

    while kills < 5:
        training = campaign.training(f"after_{kills}_kills", *flags)
        process = training.start()
        while kills < 5:
            wait_until(lambda: is_training(training), "the training")  # noqa: B023 (called at once)
            if ends_within(process, rng.uniform(0, seconds / 2)):
                break
            process.kill()
            process.wait()
            kills += 1
            process = training.resume()
        training.finish(process)
        training.require_same(expected)


def test_the_full_campaign_has_the_tries_that_were_promised():
    assert {fault.name: fault.tries for fault in FAULTS} == {
        "kill": 25,
        "sigterm": 10,
        "sigint": 10,
        "damage": 20,
        "disk": 10,
        "starts": 50,
        "npz": 10_000,
        "command_line": 5_000,
        "repeat": 5,
        "feed": 4,
    }


def test_the_table_is_aligned_and_says_what_was_required():
    rows = [
        Row("kill", "SIGKILL", 25, 25, "the same", 412.4, {}, []),
        Row("npz", "files", 10_000, 9_999, "valid or DataError", 9.6, {}, ["npz 7: crashed"]),
    ]
    assert table(rows) == [
        "| fault   |  tries | survived | required           | seconds |",
        "|---------|-------:|---------:|--------------------|--------:|",
        "| SIGKILL |     25 |       25 | the same           |     412 |",
        "| files   | 10,000 |    9,999 | valid or DataError |      10 |",
    ]
    assert [row.is_survived for row in rows] == [True, False]


def test_a_try_that_fails_is_counted_and_named_and_so_is_one_that_could_not_be_made():
    def attempt(_laboratory: object, number: int, rng: random.Random) -> dict[str, float]:
        if number == 1:
            raise NotSurvivedError("other weights")
        if number == 2:
            raise KeyError("a mistake of the campaign")
        return {"seconds": rng.random()}

    class Campaign:
        seed = 7

    first, again = (make_tries(Campaign(), "fault", attempt, 4) for _ in range(2))  # type: ignore[arg-type]

    assert sorted(first.failures) == [
        "fault 1: other weights",
        "fault 2: the try itself failed: KeyError('a mistake of the campaign')",
    ]
    assert first.notes == again.notes  # random moments follow from the seed
    assert first.notes["seconds"]["largest"] > 0


def evaluate_in_turn(_rng: random.Random, folder: Path) -> str:
    """Fail for lack of memory at the second input, end the process at the fourth, accept the others."""
    number = len(list(folder.iterdir())) + 1
    (folder / str(number)).touch()
    if number == 2:
        raise MemoryError
    if number == 4:
        os._exit(7)
    return "valid"


def prepare_nothing(_folder: Path) -> None:
    """Do nothing: this target imports nothing late."""


def test_a_crash_of_a_worker_is_a_failure_and_the_rest_is_still_evaluated():
    # two workers with five inputs each; a new one begins after each crash
    result = fuzz(FuzzTarget("toy", evaluate_in_turn, prepare_nothing), seed=1, tries=10)

    assert result.notes["valid"] == 6
    assert sorted(failure.split(":")[0] for failure in result.failures) == ["toy 1", "toy 3", "toy 6", "toy 8"]
    assert sum(failure.endswith("the process died (exit code 7)") for failure in result.failures) == 2
    assert sum(failure.endswith("MemoryError") for failure in result.failures) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{"),
        ("history.jsonl", b'{"epoch": 1}\n{"epo'),
        ("reports/predictions.csv", b"0,0.5,0.5\n1,0.5"),
        ("figures/curves.png", b"\x89PNG"),
        ("reports/training_summary.xlsx", b"PK"),
        ("models/last_checkpoint.pth", b"PK"),
        ("models/best_model.pth", b"PK"),
    ],
)
def test_a_broken_file_under_its_final_name_is_found(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(NotSurvivedError, match=f"{name} is broken"):
        require_whole_files(RunPaths(tmp_path))


def finished(folder: Path, weights: bytes = b"weights", val_loss: float = 0.5, seconds: float = 3.5) -> Training:
    """Write the files of a finished training that are compared."""
    training = Training(folder, [])
    paths = RunPaths.create(training.outputs, "cells", "resnet18", now=datetime(2026, 1, 31, 22, 15))
    paths.config.write_text("{}")
    paths.history.write_text(json.dumps({"epoch": 1, "seconds": seconds, "val_loss": val_loss}) + "\n")
    paths.best_model.write_bytes(weights)
    (paths.reports / "cells.csv").write_text("0,0.5,0.5\n")
    return training


def test_the_same_result_is_the_same_whatever_time_it_took(tmp_path):
    finished(tmp_path / "a").require_same(outcome_of(finished(tmp_path / "b", seconds=9.0).paths))


@pytest.mark.parametrize(
    ("changed", "named"), [({"weights": b"other"}, "best_model.pth"), ({"val_loss": 0.4}, "history.jsonl")]
)
def test_another_result_is_named(tmp_path, changed, named):
    expected = outcome_of(finished(tmp_path / "reference").paths)
    with pytest.raises(NotSurvivedError, match=f"other than in the uninterrupted run: {named}"):
        finished(tmp_path / "try", **changed).require_same(expected)


def test_missing_predictions_and_leftovers_are_named(tmp_path):
    training = finished(tmp_path / "try")
    expected = outcome_of(training.paths)
    (training.paths.models / ".best_model.pth.abc.part").touch()
    with pytest.raises(NotSurvivedError, match=r"left half written: .*models/\.best_model\.pth\.abc\.part"):
        training.require_same(expected)
    (training.paths.reports / "cells.csv").unlink()
    with pytest.raises(NotSurvivedError, match=r"cells\.csv"):
        training.require_same(expected)
