"""The cells of a suite: their order, their command lines, and their state on the disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core import parse_command_line
from scripts.core.config import Config
from scripts.core.errors import DataError
from scripts.core.system.device import select_device, select_precision
from scripts.data_handler.dataset import Dataset
from scripts.provenance import describe_run
from scripts.resolve import resolve_settings
from tests.test_resolve import images_of
from tools.suite.cells import (
    FINISHED,
    INTERRUPTED,
    NEW,
    Cell,
    file_problems,
    make_cells,
    parse_numbers,
    read_state,
    setting_conflicts,
    training_arguments,
)


def test_every_set_is_trained_once_before_any_gets_its_second_seed():
    cells = make_cells(["bloodmnist", "pathmnist"], [28, 64], [1, 2])

    assert [cell.name for cell in cells] == [
        "bloodmnist_28_seed1",
        "bloodmnist_64_seed1",
        "pathmnist_28_seed1",
        "pathmnist_64_seed1",
        "bloodmnist_28_seed2",
        "bloodmnist_64_seed2",
        "pathmnist_28_seed2",
        "pathmnist_64_seed2",
    ]


def test_own_files_and_synthblood_are_trained_at_their_own_size():
    cells = make_cells(["synthblood", "some/where/My Cells.npz", "bloodmnist"], [28, 64], [7])

    assert [cell.name for cell in cells] == [
        "synthblood_seed7",
        "my_cells_seed7",
        "bloodmnist_28_seed7",
        "bloodmnist_64_seed7",
    ]
    assert [cell.is_own for cell in cells] == [False, True, False, False]


def test_the_arguments_of_a_cell_name_the_resolution_only_where_it_is_not_the_usual_one():
    own = ["--dataset", "bloodmnist", "--seed", "3", "--output_dir"]

    assert Cell("bloodmnist", 28, 3).arguments(Path("s")) == [*own, "s/bloodmnist_28_seed3"]
    assert Cell("bloodmnist", 64, 3).arguments(Path("s")) == [*own, "s/bloodmnist_64_seed3", "--resolution", "64"]
    assert "--resolution" not in Cell("cells.npz", None, 3).arguments(Path("s"))


def test_every_backbone_is_trained_with_every_recipe_before_any_row_gets_its_second_seed(tmp_path):
    cells = make_cells(["synthblood"], [28], [1, 2], ["resnet18", "timm/mixer_b16.miil"], ["seed", "strong"])

    assert [cell.name for cell in cells] == [
        "synthblood_seed1",
        "synthblood_strong_seed1",
        "synthblood_timm_mixer_b16_miil_seed1",
        "synthblood_timm_mixer_b16_miil_strong_seed1",
        "synthblood_seed2",
        "synthblood_strong_seed2",
        "synthblood_timm_mixer_b16_miil_seed2",
        "synthblood_timm_mixer_b16_miil_strong_seed2",
    ]
    assert cells[-1].arguments(tmp_path)[-4:] == ["--backbone", "timm/mixer_b16.miil", "--recipe", "strong"]
    configs = [parse_command_line(cell.arguments(tmp_path)) for cell in cells]
    assert [(config.backbone, config.recipe) for config in configs] == [(cell.backbone, cell.recipe) for cell in cells]


def run_folder(folder: Path, name: str, *files: str) -> Path:
    """A run's folder with the smallest JSON files."""
    root = folder / name
    root.mkdir(parents=True)
    for file in files:
        content = {"command": [], "settings": {"dataset": "cells.npz"}, "dataset": {"md5": "m"}}
        (root / file).write_text(json.dumps(content if file == "config.json" else {}), encoding="utf-8")
    return root


def test_the_state_of_a_cell_is_what_the_disk_says(tmp_path):
    assert read_state(tmp_path / "cell").stage == NEW
    run_folder(tmp_path / "cell", "20260131_000000_a_resnet18")  # a start that failed
    assert read_state(tmp_path / "cell").stage == NEW
    older = run_folder(tmp_path / "cell", "20260131_000001_a_resnet18", "config.json")
    newer = run_folder(tmp_path / "cell", "20260131_000002_a_resnet18", "config.json")
    interrupted = read_state(tmp_path / "cell")
    assert (interrupted.stage, interrupted.paths and interrupted.paths.root) == (INTERRUPTED, newer)
    (older / "summary.json").write_text("{}")
    finished = read_state(tmp_path / "cell")
    assert (finished.stage, finished.paths and finished.paths.root) == (FINISHED, older)


def test_a_cell_is_tracked_from_its_start_and_when_it_is_resumed(tmp_path):
    cell, further = Cell("cells.npz", None, 1), ["--track", "tensorboard", "--track", "mlflow"]
    config = parse_command_line([*cell.arguments(tmp_path), *further])

    started = training_arguments(cell, config, read_state(tmp_path / cell.name), tmp_path, further)
    run_folder(tmp_path / cell.name, "20260131_000000_a_resnet18", "config.json")
    resumed = training_arguments(cell, config, read_state(tmp_path / cell.name), tmp_path, further)

    assert started[-4:] == further
    assert resumed[-2:] == ["--track", "tensorboard,mlflow"]


def test_a_new_cell_is_started_and_an_interrupted_one_resumed(tmp_path):
    cell, further = Cell("cells.npz", None, 1), ["--epochs", "3", "--feed", "streamed", "--no_process_guard"]
    config = Config(dataset="cells.npz", seed=1, epochs=3, feed="streamed", no_process_guard=True)

    started = training_arguments(cell, config, read_state(tmp_path / cell.name), tmp_path, further)
    root = run_folder(tmp_path / cell.name, "20260131_000000_a_resnet18", "config.json")
    resumed = training_arguments(cell, config, read_state(tmp_path / cell.name), tmp_path, further)

    assert started == [*cell.arguments(tmp_path), *further]
    # the settings come with the run; what changes no bit of the result may be another than at the start
    own = ["--dataset", "cells.npz", "--feed", "streamed"]
    assert resumed == ["--resume", str(root), *own, "--no_process_guard"]


def stored_run(folder: Path, cell: Cell, config: Config, *argv: str, md5: str = "m", **changed: Any) -> None:
    """A cell's run with a ``config.json`` as ``main.py`` writes it: settings as applied."""
    root = run_folder(folder / cell.name, "20260131_000000_a_resnet18")
    applied = config.as_dict() | {"device": "cpu", "precision": "bf16", "feed": "resident", "num_workers": 0} | changed
    stored = {"command": ["main.py", *argv], "settings": applied, "dataset": {"md5": md5}}
    (root / "config.json").write_text(json.dumps(stored))


BLOOD = Cell("bloodmnist", 28, 1)
REQUESTED = Config(dataset="bloodmnist", seed=1)


def conflicts(folder: Path, config: Config = REQUESTED, cell: Cell = BLOOD) -> list[str]:
    return list(setting_conflicts({cell: config}, folder))


def test_a_run_with_the_requested_settings_is_kept(tmp_path):
    stored_run(tmp_path, BLOOD, REQUESTED)

    assert conflicts(tmp_path) == []
    # what changes no bit may differ, and so may names
    assert conflicts(tmp_path, dataclasses.replace(REQUESTED, feed="streamed", num_workers=7, model_name="x")) == []


def test_a_choice_that_was_left_to_the_run_is_no_difference_but_one_that_was_made_is(tmp_path):
    stored_run(tmp_path, BLOOD, REQUESTED, "--device", "auto", no_tta=True)
    assert conflicts(tmp_path) == []  # no TTA for want of a second view, and the device that was there
    assert len(conflicts(tmp_path, dataclasses.replace(REQUESTED, precision="fp32"))) == 1
    assert len(conflicts(tmp_path, dataclasses.replace(REQUESTED, no_tta=True))) == 0


def resolved_run(folder: Path, cell: Cell, config: Config, dataset: Dataset, *argv: str) -> Config:
    """A cell's run with the settings that ``main.py`` applies to a data set, which are given back."""
    device = select_device(config.device)
    precision, _ = select_precision(config.precision, device, reproducible=config.reproducible)
    applied = resolve_settings(dataclasses.replace(config, device=str(device), precision=precision), dataset, device)
    description = describe_run(applied, dataset) | {"command": ["main.py", *cell.arguments(folder), *argv]}
    (run_folder(folder / cell.name, "20260131_000000_a_resnet18") / "config.json").write_text(json.dumps(description))
    return applied


ORGANS, LARGE = Cell("organamnist", 28, 1), Cell("bloodmnist", 224, 1)


@pytest.mark.parametrize(
    ("cell", "dataset", "argv", "resolved"),
    [
        (BLOOD, images_of(28), (), {"device", "precision", "feed", "num_workers", "stem"}),
        (ORGANS, images_of(28, orientation_free=False), (), {"hflip", "stem"}),
        (ORGANS, images_of(28, orientation_free=False), ("--hflip", "0.25"), {"hflip"}),
        (ORGANS, images_of(28, orientation_free=False), ("--rotation_angle", "0"), {"hflip", "no_tta"}),
        (LARGE, images_of(224), (), {"stem", "model_name"}),
        (LARGE, images_of(224), ("--stem", "stock"), {"model_name"}),
        (BLOOD, images_of(28), ("--reproducible", "--device", "cpu", "--hflip", "0"), {"precision", "num_workers"}),
        (BLOOD, images_of(28), ("--hflip", "0", "--rotation_angle", "0"), {"no_tta"}),
    ],
)
def test_the_same_command_typed_again_finds_its_cell_although_the_run_resolved_settings(
    tmp_path, cell, dataset, argv, resolved
):
    requested = parse_command_line([*cell.arguments(tmp_path), *argv])
    applied = resolved_run(tmp_path, cell, requested, dataset, *argv)

    assert resolved <= {name for name, value in applied.as_dict().items() if value != requested.as_dict()[name]}
    assert conflicts(tmp_path, requested, cell) == []


def test_flips_are_a_difference_only_where_they_are_applied(tmp_path):
    requested = Config(dataset="bloodmnist", seed=1, hflip=0.0)
    resolved_run(tmp_path, BLOOD, requested, images_of(28), "--hflip", "0")

    (conflict,) = conflicts(tmp_path, dataclasses.replace(requested, hflip=0.5))
    assert "was trained with --hflip 0.0, but --hflip 0.5 is requested" in conflict


def test_the_first_gpu_is_the_one_that_has_no_number(tmp_path):
    stored_run(tmp_path, BLOOD, REQUESTED, "--device", "cuda", device=str(torch.device("cuda", 0)))

    assert conflicts(tmp_path, dataclasses.replace(REQUESTED, device="cuda")) == []
    assert len(conflicts(tmp_path, dataclasses.replace(REQUESTED, device="cuda:1"))) == 1


@pytest.mark.parametrize("argv", [("--precision", "bf16"), ("--precision=bf16",), ("--no_tta",)])
def test_a_choice_that_was_made_then_and_is_left_open_now_is_a_difference(tmp_path, argv):
    stored_run(tmp_path, BLOOD, REQUESTED, *argv, no_tta="--no_tta" in argv)
    assert len(conflicts(tmp_path)) == 1


def test_other_settings_are_one_sentence_with_what_to_do(tmp_path):
    cells = {Cell("bloodmnist", 28, seed): Config(dataset="bloodmnist", seed=seed, epochs=15) for seed in range(6)}
    for cell, config in cells.items():
        stored_run(tmp_path, cell, dataclasses.replace(config, epochs=60))

    assert list(setting_conflicts(cells, tmp_path)) == [
        "bloodmnist_28_seed0, bloodmnist_28_seed1, bloodmnist_28_seed2, bloodmnist_28_seed3 and 2 more in "
        f"{tmp_path} were trained with --epochs 60, but --epochs 15 is requested. Request the same, choose another "
        "--suite_dir, or remove what should be trained again."
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 2}, "with --seed 1, but --seed 2 is requested"),
        ({"weights": "none"}, "with --weights imagenet, but --weights none is requested"),
        ({"reproducible": True}, "with no --reproducible, but --reproducible is requested"),
        ({"dataset": "pathmnist"}, "with --dataset bloodmnist, but --dataset pathmnist is requested"),
    ],
)
def test_each_setting_that_changes_the_result_is_compared(tmp_path, change, problem):
    stored_run(tmp_path, BLOOD, REQUESTED)
    (conflict,) = conflicts(tmp_path, dataclasses.replace(REQUESTED, **change))
    assert problem in conflict


STRONG = Cell("bloodmnist", 28, 1, recipe="strong")


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ({}, ""),
        ({"backbone": "resnet34"}, "with --backbone resnet34, but --backbone resnet18 is requested"),
        ({"recipe": "seed"}, "with --recipe seed, but --recipe strong is requested"),
        ({"lr": 0.05}, "with --lr 0.05, but --lr 0.1 is requested"),  # of an earlier version of the recipe
        ({"nesterov": False}, "with no --nesterov, but --nesterov is requested"),
    ],
)
def test_backbone_recipe_and_what_the_recipe_sets_are_compared(tmp_path, stored, problem):
    requested = parse_command_line(STRONG.arguments(tmp_path))
    stored_run(tmp_path, STRONG, requested, **stored)

    found = conflicts(tmp_path, requested, STRONG)
    assert len(found) == bool(problem)
    assert problem in " ".join(found)


def test_symmetries_of_a_recipe_that_the_data_ruled_out_are_no_difference_but_requested_ones_are(tmp_path):
    recipe = parse_command_line(STRONG.arguments(tmp_path))
    assert recipe.symmetries == "all"
    stored_run(tmp_path / "of_recipe", STRONG, recipe, symmetries="flip")  # what main.py does where sides differ
    stored_run(tmp_path / "given", STRONG, recipe, "--symmetries", "flip", symmetries="flip")
    stored_run(tmp_path / "default", BLOOD, REQUESTED)

    assert conflicts(tmp_path / "of_recipe", recipe, STRONG) == []
    for folder, config, cell in (
        ("of_recipe", dataclasses.replace(recipe, symmetries="none"), STRONG),
        ("given", recipe, STRONG),
        ("default", dataclasses.replace(REQUESTED, symmetries="all"), BLOOD),
    ):
        assert len(conflicts(tmp_path / folder, config, cell)) == 1, folder


def test_the_same_request_is_no_difference_although_the_run_could_not_apply_it(tmp_path):
    requested = dataclasses.replace(REQUESTED, stem="adapted")  # some of timm's models have no such stem
    stored_run(tmp_path, BLOOD, requested, "--stem", "adapted", stem="stock")

    assert conflicts(tmp_path, requested) == []
    assert len(conflicts(tmp_path)) == 1


def test_an_own_file_is_compared_by_its_content_wherever_it_is(tmp_path):
    data = tmp_path / "elsewhere.npz"
    data.write_bytes(b"abc")  # its MD5 is one of RFC 1321's examples
    cell, config = Cell(str(data), None, 1), Config(dataset=str(data), seed=1)
    stored_run(
        tmp_path, cell, dataclasses.replace(config, dataset="here/before.npz"), md5="900150983cd24fb0d6963f7d28e17f72"
    )
    assert conflicts(tmp_path, config, cell) == []

    data.write_bytes(b"abd")
    (conflict,) = conflicts(tmp_path, config, cell)
    assert "was trained on data with the MD5 900150983cd24fb0d6963f7d28e17f72, but" in conflict


def test_an_own_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cells.npz").mkdir()
    config = Config(dataset=str(tmp_path / "cells.npz"))
    cell = Cell(config.dataset, None, 1)
    stored_run(tmp_path, cell, dataclasses.replace(config, dataset="here/before.npz"))

    with pytest.raises(DataError, match=r"Cannot read .*cells\.npz: Is a directory\."):
        conflicts(tmp_path, config, cell)
    for path in (config.dataset, "~nobody-here/cells.npz"):
        (problem,) = file_problems([Cell(path, None, 1)])
        assert problem.startswith(f"--datasets {path}: there is no such file.")


DAMAGED = ["", "{", "[]", '{"settings": {}}', '{"settings": 1, "command": [], "dataset": {}}', "[" * 100_000, "\xff"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_run_with_a_damaged_config_is_named_and_treated_as_not_there(tmp_path, content):
    stored_run(tmp_path, BLOOD, REQUESTED)
    (path,) = tmp_path.rglob("config.json")
    path.write_text(content, encoding="latin-1")
    path.with_name("summary.json").touch()

    assert conflicts(tmp_path, dataclasses.replace(REQUESTED, epochs=3)) == []
    state = read_state(tmp_path / BLOOD.name)
    assert (state.stage, state.paths) == (NEW, None)
    (warning,) = state.warnings
    assert warning.startswith(f"{path} is damaged (")
    assert warning.endswith("), so its run is ignored.")


def test_a_damaged_run_does_not_hide_the_others_of_its_cell(tmp_path):
    cell = tmp_path / BLOOD.name
    whole = run_folder(cell, "20260131_000000_a_resnet18", "config.json")
    for name in ("20260130_000000_a_resnet18", "20260131_000001_a_resnet18"):
        (run_folder(cell, name, "config.json") / "config.json").write_text("{")

    state = read_state(cell)
    assert (state.stage, state.paths and state.paths.root) == (INTERRUPTED, whole)
    assert len(state.warnings) == 2


def test_a_setting_that_is_younger_than_the_run_had_its_default(tmp_path):
    stored_run(tmp_path, BLOOD, REQUESTED)
    (path,) = tmp_path.rglob("config.json")
    stored = json.loads(path.read_text())
    del stored["settings"]["jitter_val"]
    path.write_text(json.dumps(stored))

    assert conflicts(tmp_path) == []
    assert len(conflicts(tmp_path, dataclasses.replace(REQUESTED, jitter_val=0.1))) == 1


def test_files_that_are_missing_or_would_share_their_folders_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cells.npz").touch()
    first, second = (str(tmp_path / name / "cells.npz") for name in ("a", "b"))
    missing = str(tmp_path / "none.npz")

    assert list(file_problems(make_cells([first, "bloodmnist"], [28, 64], [1, 2]))) == []
    assert list(file_problems(make_cells([first, missing, second], [28], [1, 2]))) == [
        f"--datasets {missing}: there is no such file. Give registry names or paths of .npz files.",
        f"--datasets {first} and {second} would share the folder cells_seed1. Rename the file, or give each a suite of "
        "its own.",
    ]


def test_an_own_file_with_the_folder_of_a_published_set_is_refused(tmp_path):
    own = str(tmp_path / "bloodmnist_64.npz")
    Path(own).touch()

    for order in ([own, "bloodmnist"], ["bloodmnist", own]):
        (problem,) = file_problems(make_cells(order, [28, 64], [1, 2]))  # once for all seeds
        names = [name if name == own else "bloodmnist at 64 pixels" for name in order]
        assert problem == (
            f"--datasets {names[0]} and {names[1]} would share the folder bloodmnist_64_seed1. Rename the file, or "
            "give each a suite of its own."
        )
    assert list(file_problems(make_cells([own, "bloodmnist"], [28], [1, 2]))) == []


def test_a_file_or_backbone_with_the_folder_of_another_is_refused(tmp_path):
    plain, named = (str(tmp_path / name) for name in ("cells.npz", "cells_resnet34.npz"))
    for path in (plain, named):
        Path(path).touch()

    (problem,) = file_problems(make_cells([plain, named], [], [1, 2], ["resnet18", "resnet34"]))
    assert f"{plain} with resnet34 and {named} would share the folder cells_resnet34_seed1." in problem
    (problem,) = file_problems(make_cells(["bloodmnist"], [28], [1], ["timm/a.b", "timm/a_b"]))
    assert "bloodmnist at 28 pixels with timm/a.b and bloodmnist at 28 pixels with timm/a_b would share" in problem


def test_numbers_are_whole_different_and_among_the_choices():
    assert parse_numbers("--seeds", ["3", "1"]) == ([3, 1], [])
    assert parse_numbers("--seeds", ["01", "1"]) == ([1], ["--seeds has 1 more than once."])
    assert parse_numbers("--seeds", []) == ([], ["--seeds needs at least one value."])
    assert parse_numbers("--resolutions", ["28", "x", "32", "6.4"], (28, 64))[1] == [
        "--resolutions must be whole numbers, got 'x'.",
        "--resolutions must be among 28, 64, got 32.",
        "--resolutions must be whole numbers, got '6.4'.",
    ]
