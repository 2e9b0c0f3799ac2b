"""The suite from its command line: the checks, and the loop around a program that does not really train."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.core.errors import ConfigError
from scripts.core.system import ensure_single_instance
from scripts.data_handler.registry import DATASET_REGISTRY
from tests.conftest import PROJECT_ROOT
from tests.tools import fake_training
from tools import benchmark_suite
from tools.benchmark_suite import main, parse_suite
from tools.suite import reports
from tools.suite.running import run_process

PROGRAM = PROJECT_ROOT / "tools" / "benchmark_suite.py"
FAKE_TRAINING = Path(fake_training.__file__)


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_suite(argv)
    return list(caught.value.problems)


def test_without_arguments_it_is_every_set_at_28_pixels_with_three_seeds():
    given = benchmark_suite.build_parser().parse_args([])

    assert given.datasets == list(DATASET_REGISTRY)
    assert len(given.datasets) == 12
    assert (given.resolutions, given.seeds, given.suite_dir) == (["28"], ["1", "2", "3"], "outputs/suite")
    assert (given.backbones, given.recipes) == (["resnet18"], ["seed"])


def test_arguments_after_the_dashes_go_to_every_training(tmp_path):
    suite = parse_suite(
        [
            *("--datasets", "bloodmnist", "synthblood", "--seeds", "4", "5", "--suite_dir", str(tmp_path / "s")),
            *("--", "--weights", "none", "--epochs", "15", "--feed", "streamed"),
        ]
    )

    assert [cell.name for cell in suite.cells] == [
        "bloodmnist_28_seed4",
        "synthblood_seed4",
        "bloodmnist_28_seed5",
        "synthblood_seed5",
    ]
    assert {(config.weights, config.epochs) for config in suite.cells.values()} == {("none", 15)}
    assert [config.seed for config in suite.cells.values()] == [4, 4, 5, 5]
    assert suite.common_settings == "--epochs 15 --weights none"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("argv", "listed"),
    [
        ((), ""),
        (("--recipes", "seed", "strong", "--backbones", "resnet18", "resnet34"), ""),
        (("--recipes", "strong"), "--recipe strong"),
        (("--backbones", "resnet34"), "--backbone resnet34"),
        (("--recipes", "seed", "strong", "--", "--lr", "0.1"), "--lr 0.1"),
        (("--recipes", "strong", "--", "--lr", "0.1"), "--recipe strong"),
        (("--recipes", "strong", "--", "--lr", "0.008"), "--recipe strong --lr 0.008"),
    ],
)
def test_the_common_settings_are_those_that_no_row_and_no_recipe_names(argv, listed):
    assert parse_suite(["--datasets", "bloodmnist", *argv]).common_settings == listed


def test_all_problems_are_reported_at_once_before_anything_starts(tmp_path):
    found = problems(
        *("--datasets", "bloodmnits", "pathmnist", "pathmnist", str(tmp_path / "no.npz")),
        *("--resolutions", "28", "30", "--seeds", "1", "one", "-3", "--suite_dir", str(tmp_path / "s")),
        *("--beside", "pbc28=bloodmnist", "--epochs", "3", "--"),
        *("--epohcs", "5", "--seed", "seven", "--output_dir=x", "--lr", "-1", "--device", "gpu"),
    )

    for start in (
        "--epochs is a flag of the trainings: give it, and its value, after a --.",
        "Unknown --dataset 'bloodmnits'. Did you mean 'bloodmnist'?",
        "--datasets has pathmnist more than once.",
        f"--datasets {tmp_path / 'no.npz'}: there is no such file.",
        "--resolutions must be among 28, 64, 128, 224, got 30.",
        "--seeds must be whole numbers, got 'one'.",
        "--beside pbc28=bloodmnist: pbc28 is none of the own files here (no).",
        "Unknown flag '--epohcs'. Did you mean --epochs?",
        "--seed belongs to the suite, which passes it to each training: not after the --.",
        "--output_dir belongs to the suite",
        "--lr must be above 0, got -1.",
        "--device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'.",
    ):
        assert sum(problem.startswith(start) for problem in found) == 1, start
    assert not any("'seven'" in problem for problem in found)  # the value of what was refused is no problem of its own
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("--seeds",), "--seeds needs at least one value."),
        (("--datasets",), "--datasets needs at least one value."),
        (("--seeds", "1", "1"), "--seeds has 1 more than once."),
        (("--seeds", "01", "1"), "--seeds has 1 more than once."),
        (("--seeds", "4294967296"), "--seed must be at most 4294967295, got 4294967296."),
        (("--resolutions", "28", "28"), "--resolutions has 28 more than once."),
        (("--suite_dir",), "--suite_dir must be a path, got ''."),
        (("--suite_dir", ""), "--suite_dir must be a path, got ''."),
        (("--dataset", "bloodmnist"), "Unexpected argument '--dataset'. See --help."),
        (("--datasets", "organmnist3d"), "--dataset organmnist3d is a set of 3D volumes"),
        (("--", "--resume", "x"), "--resume belongs to the suite"),
        (("--", "--recipe", "strong"), "--recipe belongs to the suite"),
        (("--backbones",), "--backbones needs at least one value."),
        (("--recipes", "seed", "seed"), "--recipes has seed more than once."),
        (("--recipes", "strog"), "--recipe must be one of seed, strong, got 'strog'."),
        (("--backbones", "resnet18", ""), "--backbone must be the name of a backbone, got ''."),
        (("--", "--"), "Unexpected argument '--'"),
    ],
)
def test_each_mistake_has_its_sentence(argv, problem, tmp_path):
    found = problems("--datasets", "bloodmnist", *argv) if "--datasets" not in argv else problems(*argv)
    assert any(one.startswith(problem) for one in found), found


def test_an_unknown_backbone_is_refused_with_a_suggestion_before_the_first_cell():
    (problem,) = problems("--datasets", "bloodmnist", "pathmnist", "--backbones", "resnet18", "convnext_tiney")
    assert problem.startswith("--backbone must be one of resnet18, ")
    assert problem.endswith("got 'convnext_tiney'. Did you mean convnext_tiny?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cells", "--beside cells: give FILE=SET, SET one of pathmnist,"),
        ("cells=blood", "--beside cells=blood: give FILE=SET"),
        ("cell=bloodmnist", "--beside cell=bloodmnist: cell is none of the own files here (cells)."),
    ],
)
def test_the_values_of_beside_are_checked(tmp_path, text, problem):
    data = tmp_path / "cells.npz"
    data.touch()
    (found,) = problems("--datasets", str(data), "--beside", text)
    assert found.startswith(problem)
    assert parse_suite(["--datasets", str(data), "--beside", "cells.npz=bloodmnist"]).references == {
        "cells": "bloodmnist"
    }


def test_help_and_a_wrong_flag_import_nothing_slow():
    program = (
        "import sys; from tools import benchmark_suite as suite; suite.parse_suite(['--datasets', 'bloodmnist']);"
        "slow = {'torch', 'numpy', 'pandas', 'seaborn', 'matplotlib', 'openpyxl', 'sklearn', 'psutil'};"
        "print(*sorted(slow & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""


def test_it_runs_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, PROGRAM, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--suite_dir" in done.stdout


class Toy:
    """Suites of fake trainings, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.suite = folder, folder / "suite"

    def order(self, name: str, text: str) -> str:
        """Say how the trainings on a data file end, and return its path."""
        path = self.folder / f"{name}.npz"
        path.write_text(name)
        path.with_suffix(".order").write_text(text)
        return str(path)

    def run(
        self, datasets: list[str], *further: str, seeds: tuple[str, ...] = ("1", "2"), varied: tuple[str, ...] = ()
    ) -> int:
        argv = ["--datasets", *datasets, "--seeds", *seeds, "--suite_dir", str(self.suite)]
        return main([*argv, *varied, "--", "--lock_file", str(self.folder / "lock"), *further])

    def calls(self) -> list[str]:
        """What was started since the last call: data set and seed, or "resume" and data set."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        found = []
        for argv in map(str.split, lines):
            data = Path(argv[argv.index("--dataset") + 1]).stem
            found.append(f"resume {data}" if "--resume" in argv else f"{data} {argv[argv.index('--seed') + 1]}")
        return found

    def states(self) -> dict[str, str]:
        with (self.suite / "cells.csv").open(newline="") as stream:
            return {f"{line['dataset']} {line['seed']}": line["state"] for line in csv.DictReader(stream)}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(benchmark_suite, "run_process", fake_training.run_in_process)
    # the figure and the workbook are the subject of test_suite_results.py, and take longer than all the rest
    monkeypatch.setattr(reports, "_write_workbook", lambda *_: None)
    monkeypatch.setattr(reports, "draw_results", lambda *_: None)
    monkeypatch.setattr(reports, "save_figure", lambda _, path: path.touch())
    monkeypatch.delenv("DOCKER_REPRODUCIBILITY_MODE", raising=False)
    return Toy(tmp_path)


def test_a_cell_runs_in_a_process_of_its_own(toy: Toy, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_suite, "run_process", run_process)
    monkeypatch.setattr(benchmark_suite, "TRAINING_PROGRAM", FAKE_TRAINING)

    assert toy.run([toy.order("ants", "fine")], seeds=("1",)) == 0
    assert toy.calls() == ["ants 1"]
    assert "    epoch 1/1  val_acc 0.9" in capsys.readouterr().out
    assert toy.run([toy.order("ants", "killed")], seeds=("1", "2")) == 1
    assert "ants_seed2 failed, killed by SIGKILL" in capsys.readouterr().err


def test_every_cell_is_run_once_and_finished_cells_are_kept(toy: Toy, capsys):
    sets = [toy.order("ants", "fine"), toy.order("bees", "fine")]

    assert toy.run(sets) == 0
    assert toy.calls() == ["ants 1", "bees 1", "ants 2", "bees 2"]
    screen = capsys.readouterr().out
    assert "4 cells, 0 finished, 0 interrupted, 4 not started" in screen
    assert "[1/4] ants_seed1  running" in screen
    assert "    epoch 1/1  val_acc 0.9" in screen
    assert "without TTA ACC 0.9100 AUC 0.9900, with TTA ACC 0.9150 AUC 0.9900" in screen
    assert "0.9150 ± 0.0071" in screen  # of 0.91 and 0.92
    assert (toy.suite / "results.md").exists()

    before = {path: path.stat().st_mtime_ns for path in toy.suite.glob("*_seed*/**/*")}
    assert toy.run(sets) == 0
    assert toy.calls() == []
    assert before == {path: path.stat().st_mtime_ns for path in toy.suite.glob("*_seed*/**/*")}
    assert "4 cells, 4 finished, 0 interrupted, 0 not started" in capsys.readouterr().out


def test_another_seed_is_added_to_the_finished_ones(toy: Toy):
    sets = [toy.order("ants", "fine")]
    assert toy.run(sets, seeds=("1",)) == 0
    assert toy.run(sets, seeds=("1", "2", "3")) == 0
    assert toy.calls() == ["ants 1", "ants 2", "ants 3"]


def test_backbones_and_recipes_are_run_once_each_kept_and_resumed(toy: Toy, capsys):
    sets, backbones = [toy.order("ants", "fine")], ("--backbones", "resnet18", "resnet34")
    assert toy.run(sets, "--epochs", "3", seeds=("1",)) == 0
    assert toy.run(sets, "--epochs", "3", seeds=("1",), varied=backbones) == 0
    toy.order("ants", "exit 1")
    varied = (*backbones, "--recipes", "seed", "strong")
    assert toy.run(sets, "--epochs", "3", seeds=("1",), varied=varied) == 1
    assert toy.calls() == 4 * ["ants 1"]  # each of the four once

    toy.order("ants", "fine")
    capsys.readouterr()
    assert toy.run(sets, "--epochs", "3", varied=varied) == 0
    assert toy.calls() == [*2 * ["resume ants"], *4 * ["ants 2"]]
    screen = capsys.readouterr().out
    assert "8 cells, 2 finished, 2 interrupted, 4 not started" in screen
    with (toy.suite / "results.csv").open(newline="") as stream:
        rows = [(row["backbone"], row["recipe"], row["seeds"]) for row in csv.DictReader(stream)]
    assert rows == [(name, recipe, "1 2") for name in ("resnet18", "resnet34") for recipe in ("seed", "strong")]
    (config,) = toy.suite.glob("ants_resnet34_strong_seed1/*/config.json")
    settings = json.loads(config.read_text())["settings"]
    assert (settings["backbone"], settings["recipe"], settings["lr"]) == ("resnet34", "strong", 0.1)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        *((f"exit {code}", f"exit code {code}: error: This is why it ends with {code}.") for code in (1, 2, 3, 5, 143)),
        ("killed", "killed by SIGKILL (the system may have run out of memory): epoch 1/1  val_acc 0.9"),
    ],
)
def test_a_cell_that_fails_does_not_affect_the_others_and_is_tried_again(toy: Toy, capsys, order, reason):
    sets = [toy.order("ants", "fine"), toy.order("bees", order), toy.order("cats", "fine")]

    assert toy.run(sets, seeds=("1",)) == 1
    assert toy.calls() == ["ants 1", "bees 1", "cats 1"]
    screen, warned = capsys.readouterr()
    assert screen.count("    epoch 1/1  val_acc 0.9\n") == 3
    assert f"warning: bees_seed1 failed, {reason}\n" in warned
    assert "1 of 3 cells failed. Try them again with: " in warned.splitlines()[-1]
    assert toy.states() == {"ants 1": "finished", "bees 1": "unfinished", "cats 1": "finished"}
    assert "Not finished: bees_seed1." in (toy.suite / "results.md").read_text()

    toy.order("bees", "fine")
    assert toy.run(sets, seeds=("1",)) == 0
    assert toy.calls() == ["resume bees"]
    assert set(toy.states().values()) == {"finished"}


@pytest.mark.parametrize("content", ["{", "{}", '{"test": []}'])
def test_a_damaged_result_does_not_affect_the_others_and_names_the_folder_to_remove(toy: Toy, capsys, content):
    sets = [toy.order(name, "fine") for name in ("ants", "bees", "cats")]
    assert toy.run(sets[:2], seeds=("1",)) == 0
    (damaged,) = toy.suite.glob("ants_seed1/*/summary.json")
    damaged.write_text(content)
    toy.calls()
    capsys.readouterr()

    assert toy.run(sets, seeds=("1",)) == 1
    assert toy.calls() == ["cats 1"]
    *_, named, advice = capsys.readouterr().err.splitlines()
    assert named.startswith(f"warning: ants_seed1 failed, {damaged} is damaged (")
    assert named.endswith("Remove its folder to train the cell again.")
    assert "1 of 3 cells failed. Try them again with: " in advice
    assert toy.states() == {"ants 1": "unfinished", "bees 1": "finished", "cats 1": "finished"}

    shutil.rmtree(damaged.parent)
    assert toy.run(sets, seeds=("1",)) == 0
    assert toy.calls() == ["ants 1"]


def test_a_full_disk_ends_the_suite(toy: Toy, capsys):
    sets = [toy.order("ants", "exit 6"), toy.order("bees", "fine")]

    assert toy.run(sets) == 6
    assert toy.calls() == ["ants 1"]
    printed = capsys.readouterr().err
    assert "The suite stops at ants_seed1, which ended with exit code 6: error: This is why it ends with 6." in printed
    assert "Continue with: " in printed


def test_the_lock_of_another_training_is_waited_for(toy: Toy, capsys, monkeypatch):
    holder, pauses = toy.folder / "holder", list[float]()
    holder.touch()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            holder.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    assert toy.run([toy.order("ants", "locked")], seeds=("1",)) == 0
    assert pauses == [2, 4, 8, 16, 30, 30]
    assert toy.calls() == 7 * ["ants 1"]
    screen = capsys.readouterr().out
    assert screen.count("waiting: error: Another training holds the lock") == 1  # logged once, whatever the attempts
    assert screen.count("Another training holds the lock") == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 1}'])
def test_a_run_with_a_damaged_config_is_named_and_the_cell_trained_again(toy: Toy, capsys, content):
    sets = [toy.order("ants", "fine"), toy.order("bees", "fine")]
    assert toy.run(sets, seeds=("1",)) == 0
    (damaged,) = toy.suite.glob("ants_seed1/*/config.json")
    moved = damaged.parent.rename(damaged.parent.with_name("20250101_000000_toy_resnet18"))
    (moved / "config.json").write_text(content)
    toy.calls()
    capsys.readouterr()

    assert toy.run(sets, seeds=("1",)) == 0
    assert toy.calls() == ["ants 1"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {moved / 'config.json'} is damaged (")
    assert warning.endswith("), so its run is ignored.")
    assert set(toy.states().values()) == {"finished"}
    assert moved.exists()


def test_other_settings_than_those_of_the_finished_cells_are_refused(toy: Toy, capsys):
    sets = [toy.order("ants", "fine")]
    assert toy.run(sets, "--epochs", "3") == 0
    before = (toy.suite / "results.md").read_bytes()
    toy.calls()

    assert toy.run(sets) == 2
    assert toy.calls() == []
    assert "were trained with --epochs 3, but --epochs 60 is requested" in capsys.readouterr().err
    (toy.folder / "ants.npz").write_text("other data")
    assert toy.run(sets, "--epochs", "3") == 2
    assert "on data with the MD5" in capsys.readouterr().err
    assert (toy.suite / "results.md").read_bytes() == before


def test_two_suites_in_one_folder_are_refused(toy: Toy, capsys):
    toy.suite.mkdir()
    with ensure_single_instance(toy.suite / ".lock"):
        assert toy.run([toy.order("ants", "fine")]) == 4
    assert toy.calls() == []
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: Another suite uses the folder {toy.suite}.")
    assert f"pid {os.getpid()}" in printed


def test_a_folder_that_cannot_be_made_is_reported(toy: Toy, capsys):
    (toy.folder / "suite").touch()
    assert toy.run([toy.order("ants", "fine")]) == 6
    assert f"Cannot make the suite's folder at {toy.suite}" in capsys.readouterr().err


def test_the_tables_are_there_after_every_cell(toy: Toy):
    sets = [toy.order("ants", "fine"), toy.order("bees", "exit 6")]
    assert toy.run(sets, seeds=("1",)) == 6
    assert toy.states() == {"ants 1": "finished", "bees 1": "unfinished"}


@pytest.mark.slow
def test_a_signal_stops_the_cell_and_then_the_suite(toy: Toy):
    program = (
        "import sys; from pathlib import Path; from tools import benchmark_suite as suite;"
        f"suite.TRAINING_PROGRAM = Path({str(FAKE_TRAINING)!r}); sys.exit(suite.main())"
    )
    argv = ["--datasets", toy.order("ants", "patient"), "--seeds", "1", "--suite_dir", str(toy.suite)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *argv],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as suite:
        assert suite.stdout is not None
        for line in suite.stdout:
            if "waiting for a signal" in line:
                suite.send_signal(signal.SIGTERM)
                break
        rest = suite.stdout.read()

    assert suite.returncode == 143
    assert rest.splitlines()[-1].startswith("error: Stopped by SIGTERM. Continue with: ")
    assert "failed" not in rest
