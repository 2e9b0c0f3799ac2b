"""Resuming a run: which settings count, which may be given again, and which are refused with which message."""

from __future__ import annotations

import json
import random
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.core.command_line import parse_command_line
from scripts.core.config import SETTINGS, Config
from scripts.core.errors import ConfigError
from scripts.core.paths import RunPaths
from scripts.core.resume import FREE, UNSTORED, differences, next_step, resume_command, start_command

STARTED_WITH = Config(
    epochs=4,
    lr=0.01,
    dataset="synthblood",
    device="cpu",
    precision="fp32",
    feed="streamed",
    num_workers=2,
    output_dir=Path("elsewhere"),
    data_dir=Path("my_data"),
    no_tta=True,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run as far as resuming looks at it."""
    write_config(tmp_path / "run", STARTED_WITH)
    return tmp_path / "run"


def write_config(folder: Path, config: Config, source: str = "generated", **changed: Any) -> None:
    folder.mkdir(exist_ok=True)
    content = {"settings": config.as_dict() | changed, "dataset": {"source": source, "md5": "0" * 32}}
    (folder / "config.json").write_text(json.dumps(content))


def resumed(folder: Path, *words: str) -> Config:
    return parse_command_line(["--resume", str(folder), *words], {})


def problems_of(folder: Path | str, *words: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--resume", str(folder), *words], environment or {})
    return list(caught.value.problems)


def test_a_resumed_run_has_the_settings_it_was_started_with(folder):
    config = resumed(folder)
    stored = {name for name in SETTINGS if name not in UNSTORED}
    assert {name: getattr(config, name) for name in stored} == {name: getattr(STARTED_WITH, name) for name in stored}
    assert config.resume == str(folder)
    assert (config.feed, config.num_workers) == ("auto", 4)  # of the invocation, not of the run


def test_what_changes_no_bit_may_be_given_anew(folder, tmp_path):
    words = ["--lock_file", "mine.lock", "--no_process_guard", "--num_workers", "1", "--feed", "resident"]
    config = resumed(folder, *words, "--data_dir", str(tmp_path))
    assert (config.lock_file, config.no_process_guard) == (Path("mine.lock"), True)
    assert (config.num_workers, config.feed, config.data_dir) == (1, "resident", tmp_path)
    assert config.lr == 0.01


def test_only_settings_that_change_no_bit_are_free():
    assert sorted(FREE) == [
        "checkpoint_every",
        "data_dir",
        "feed",
        "lock_file",
        "no_process_guard",
        "num_workers",
        "resume",
        "track",
    ]


def test_a_run_goes_on_being_tracked_as_it_began_unless_another_tracker_is_given(folder):
    write_config(folder, replace(STARTED_WITH, track="mlflow"))
    assert resumed(folder).track == "mlflow"
    assert resumed(folder, "--track", "tensorboard").track == "tensorboard"
    assert resumed(folder, "--track", "none").track == "none"


def test_a_run_from_before_tracking_can_be_resumed_and_tracked(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["settings"]["track"]
    (folder / "config.json").write_text(json.dumps(content))
    assert resumed(folder).track == "none"
    assert resumed(folder, "--track", "mlflow").track == "mlflow"


def test_giving_the_same_again_is_no_problem(folder):
    words = ["--epochs", "4", "--lr", "1e-2", "--dataset", "synthblood", "--no_tta", "--output_dir", "elsewhere"]
    assert resumed(folder, *words) == resumed(folder)


def test_auto_is_no_conflict_with_what_the_run_chose_and_another_choice_is_one(folder):
    resolved = [name for name, known in SETTINGS.items() if known.default == "auto"]
    assert sorted(resolved) == ["device", "feed", "monitor", "precision", "stem"]
    write_config(folder, replace(STARTED_WITH, monitor="auc", stem="stock"))
    assert resumed(folder, *(word for name in resolved for word in (f"--{name}", "auto"))) == resumed(folder)
    (problem,) = problems_of(folder, "--monitor", "loss")
    assert problem.startswith(f"--monitor loss cannot be used with --resume {folder}, which was started with auc: ")


def test_every_flag_that_would_change_the_result_has_its_line(folder):
    words = ["--lr", "0.02", "--seed", "7", "--reproducible", "--device", "cuda", "--dataset", "bloodmnist"]
    start = f"cannot be used with --resume {folder}, which was started with"
    end = "the result would change. Leave it out, or start a new run."
    assert problems_of(folder, *words) == [
        f"--lr 0.02 {start} 0.01: {end}",
        f"--seed 7 {start} 42: {end}",
        f"--reproducible {start} False: {end}",
        f"--device cuda {start} cpu: {end}",
        f"--dataset bloodmnist {start} synthblood: {end}",
    ]


def test_the_resolution_and_the_stem_are_taken_over_and_no_others_accepted(tmp_path):
    folder = tmp_path / "run"
    write_config(folder, Config(dataset="bloodmnist", resolution=64, stem="adapted"))
    assert (resumed(folder).resolution, resumed(folder).stem) == (64, "adapted")
    assert resumed(folder, "--stem", "auto", "--resolution", "64") == resumed(folder)
    start = f"cannot be used with --resume {folder}, which was started with"
    end = "the result would change. Leave it out, or start a new run."
    assert problems_of(folder, "--resolution", "28", "--stem", "stock") == [
        f"--resolution 28 {start} 64: {end}",
        f"--stem stock {start} adapted: {end}",
    ]


@pytest.mark.parametrize("missing", ["resolution", "stem"])
def test_a_run_from_before_a_setting_was_known_is_refused_rather_than_guessed_at(folder, missing):
    content = json.loads((folder / "config.json").read_text())
    del content["settings"][missing]
    (folder / "config.json").write_text(json.dumps(content))
    assert problems_of(folder) == [
        f"--resume {folder} cannot be used: its config.json is damaged or of another version of the program "
        f"(KeyError: '{missing}'). Start a new run."
    ]


def test_where_left_and_right_differ_hflip_may_be_given_again_since_it_has_no_effect(tmp_path):
    for name, orientation_free in (("organs", False), ("cells", True)):
        write_config(tmp_path / name, Config(dataset="organamnist", hflip=0.0))
        content = json.loads((tmp_path / name / "config.json").read_text())
        content["dataset"]["orientation_free"] = orientation_free
        (tmp_path / name / "config.json").write_text(json.dumps(content))

    assert resumed(tmp_path / "organs").hflip == 0
    assert (
        resumed(tmp_path / "organs", "--hflip", "0.5").hflip == 0.5
    )  # as at the start, where the data set rules it out
    assert problems_of(tmp_path / "organs", "--hflip", "7") == ["--hflip must be at most 1, got 7."]
    (problem,) = problems_of(tmp_path / "cells", "--hflip", "0.5")
    assert problem.startswith("--hflip 0.5 cannot be used with --resume")


def test_the_default_model_name_may_be_given_again_where_the_stem_changed_it_and_only_there(tmp_path):
    for name in ("ResNet-18", "Mine"):
        write_config(tmp_path / name, Config(dataset="bloodmnist", resolution=224, stem="stock", model_name=name))
    default = ("--model_name", "ResNet-18 Adapted")
    assert resumed(tmp_path / "ResNet-18", *default).model_name == "ResNet-18"
    assert problems_of(tmp_path / "Mine", *default)[0].startswith("--model_name ResNet-18 Adapted cannot be used with")
    assert problems_of(tmp_path / "ResNet-18", "--model_name", "Mine")[0].startswith("--model_name Mine cannot be used")


def test_the_device_may_be_given_again_as_it_was_typed(tmp_path):
    write_config(tmp_path / "run", Config(dataset="bloodmnist", device="cuda:0"))  # as --device cuda is applied
    assert resumed(tmp_path / "run", "--device", "cuda").device == "cuda:0"
    (problem,) = problems_of(tmp_path / "run", "--device", "cuda:1")
    assert problem.startswith("--device cuda:1 cannot be used with --resume")


def test_the_environment_counts_as_a_flag(folder):
    (problem,) = problems_of(folder, environment={"DOCKER_REPRODUCIBILITY_MODE": "TRUE"})
    assert problem.startswith(f"--reproducible cannot be used with --resume {folder}")


def test_other_epochs_are_refused_with_the_reason(folder):
    assert problems_of(folder, "--epochs", "8") == [
        f"--epochs 8 cannot be used with --resume {folder}, which was started with 4: the learning rate follows its "
        "schedule over all epochs, so another number would have changed every epoch so far. "
        f"Leave it out, or start a new run, from these weights if you like (--weights {folder}/models/best_model.pth)."
    ]


def test_problems_of_resuming_come_together_with_the_others(folder):
    assert [problem.split()[0] for problem in problems_of(folder, "--lr", "0.02", "--batch_size", "few", "--oops")] == [
        "Unknown",
        "--batch_size",
        "--lr",
    ]


def test_an_own_file_is_found_from_any_folder_and_may_have_moved(tmp_path):
    write_config(tmp_path / "run", Config(dataset="cells.npz"), source="/data/cells.npz")
    assert resumed(tmp_path / "run").dataset == "/data/cells.npz"
    assert resumed(tmp_path / "run", "--dataset", "moved/cells.npz").dataset == "moved/cells.npz"
    (problem,) = problems_of(tmp_path / "run", "--dataset", "synthblood")
    assert problem.startswith("--dataset synthblood cannot be used with --resume")


@pytest.mark.parametrize("place", ["missing", "file", "", "x" * 5000, "~nobody_of_that_name/run", "a\0b"])
def test_what_is_no_folder_of_a_run_is_refused_in_one_sentence(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    (problem,) = problems_of(place)
    assert problem.startswith("--resume must be the folder of a run, but ")
    assert problem.endswith(".")


def test_a_folder_without_settings_has_nothing_to_resume(tmp_path):
    assert problems_of(tmp_path) == [
        f"--resume must be the folder of a run, but {tmp_path} has no config.json, so nothing was trained there yet."
    ]
    assert problems_of(tmp_path / "missing") == [
        f"--resume must be the folder of a run, but {tmp_path}/missing does not exist."
    ]


def test_an_empty_variable_does_not_start_a_new_training():
    assert problems_of("") == ["--resume must be the folder of a run, but got ''."]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "JSONDecodeError: Expecting value"),
        ("[]", "TypeError: list indices must be integers"),
        ("{}", "KeyError: 'settings'"),
        ('{"settings": {}, "dataset": {"source": "generated"}}', "KeyError: 'recipe'"),
        ('{"settings": null, "dataset": {"source": "generated"}}', "TypeError: 'NoneType' object"),
        ("[" * 100_000, "RecursionError: maximum recursion depth exceeded"),
        ("\udcff", "UnicodeDecodeError: 'utf-8' codec"),
    ],
)
def test_settings_that_are_damaged_are_refused_with_what_is_wrong(folder, content, reason):
    (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    (problem,) = problems_of(folder)
    start = f"--resume {folder} cannot be used: its config.json is damaged or of another version of the program ("
    assert problem.startswith(start + reason)
    assert problem.endswith("). Start a new run.")


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", "4"), ("lr", -1.0), ("output_dir", 5), ("dataset", None), ("no_tta", "no")]
)
def test_a_stored_setting_that_cannot_be_is_damage(folder, name, value):
    write_config(folder, STARTED_WITH, **{name: value})
    (problem,) = problems_of(folder)
    assert "its config.json is damaged or of another version of the program" in problem


def test_settings_that_cannot_be_read_are_refused(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "IsADirectoryError" in problems_of(folder)[0]


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_to_the_settings_gives_a_config_or_a_refusal(folder, seed):
    chance, path = random.Random(seed), folder / "config.json"
    whole, problems = path.read_bytes(), list[str]()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.choice([0, 1, 1, 20])] = chance.choice([b"", b"9", b'"', b"[", b"null", b"\xff"])
        path.write_bytes(damaged)
        try:
            config = resumed(folder)
        except ConfigError as error:
            problems += error.problems
        else:
            assert config == Config(**{name: getattr(config, name) for name in SETTINGS})
    assert len(problems) > 50
    assert all(problem.endswith(".") for problem in problems)


@pytest.fixture
def typed(monkeypatch):
    """Pretends that the program was started by these words."""

    def pretend(*words: str) -> None:
        monkeypatch.setattr(sys, "orig_argv", list(words))
        monkeypatch.setattr(sys, "argv", list(words[1:]))

    return pretend


def test_the_command_to_go_on_is_what_was_typed_with_the_folder_in_place_of_the_settings(typed, tmp_path):
    typed("python", "main.py", "--epochs", "4")
    assert resume_command(Config(epochs=4), Path("outputs/run")) == "python main.py --resume outputs/run"
    own = Config(lock_file=tmp_path / "my lock", no_process_guard=True, track="mlflow,tensorboard")
    assert shlex.split(resume_command(own, Path("out puts/run"))) == [
        *("python", "main.py", "--resume", "out puts/run", "--lock_file", str(tmp_path / "my lock")),
        *("--no_process_guard", "--track", "mlflow,tensorboard"),
    ]


def test_the_command_to_start_again_is_what_was_typed(typed):
    typed("python3", "main.py", "--model_name", "My net!")
    assert start_command() == "python3 main.py --model_name 'My net!'"


def test_differences_that_may_change_bits_are_named_and_no_others():
    before = {"commit": "abc", "torch_threads": 2, "platform": "a", "packages": {"torch": "2.8", "tqdm": "4.1"}}
    now = {"commit": "def", "torch_threads": 1, "platform": "b", "packages": {"torch": "2.9", "tqdm": "4.2"}}
    assert list(differences(before, now)) == [
        "commit was abc and is def",
        "torch_threads was 2 and is 1",
        "torch was 2.8 and is 2.9",
    ]
    assert list(differences(before, before)) == []


def test_after_a_stop_the_advice_is_to_resume_once_there_is_a_checkpoint_and_to_start_again_before(typed, tmp_path):
    typed("python", "main.py", "--epochs", "4")
    paths = RunPaths(tmp_path)
    paths.models.mkdir()
    assert next_step(Config(), paths) == "Start again with: python main.py --epochs 4"
    assert next_step(Config(resume=str(tmp_path)), paths) == f"Go on with: python main.py --resume {tmp_path}"
    paths.last_checkpoint.touch()
    assert next_step(Config(), paths) == f"Go on with: python main.py --resume {tmp_path}"
