"""``main.py`` at other resolutions, with other stems and on sets that have a left and a right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openpyxl import load_workbook

from scripts.data_handler.registry import DATASET_REGISTRY
from scripts.models.factory import new_model
from tests.conftest import InProcess, Npz, TinyNetwork, coloured_squares

Place = Callable[..., Path]

QUICK = ("--weights", "none", "--epochs", "1", "--batch_size", "8")
SIZES = {"train": 22, "val": 11, "test": 11}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Write a small file of a set's schema where the download would put it, and register its checksum."""

    def put(key: str, resolution: int, folder: str = "dataset") -> Path:
        info, arrays = DATASET_REGISTRY[key], dict[str, Any]()
        classes = len(info.class_names)
        for number, (split, count) in enumerate(SIZES.items()):
            images, labels = coloured_squares(
                count, side=resolution, channels=info.channels, classes=classes, seed=number
            )
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        path = tmp_path / folder / info.file_name(resolution)
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **arrays)
        md5s = {resolution: hashlib.md5(path.read_bytes()).hexdigest()}
        small = replace(info, num_samples=SIZES, md5s=md5s, files_url="http://127.0.0.1:9")
        monkeypatch.setattr("scripts.data_handler.opening.DATASET_REGISTRY", {**DATASET_REGISTRY, key: small})
        return path

    return put


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "models/best_model.pth").read_bytes()).hexdigest()


def test_a_set_is_trained_on_at_another_resolution(tiny_network: None, in_process: InProcess, place: Place):
    path = place("bloodmnist", 64)
    done = in_process("--dataset", "bloodmnist", "--resolution", "64", *QUICK, "--rotation_angle", "0")

    assert (done.returncode, done.stderr) == (0, "")
    folder = in_process.run_folder()
    assert folder.name.endswith("_bloodmnist_64_resnet18")
    recorded = read(folder / "config.json")
    assert (recorded["settings"]["resolution"], recorded["settings"]["stem"]) == (64, "adapted")
    assert recorded["settings"]["hflip"] == 0.5
    assert recorded["dataset"]["source"] == str(path)
    assert recorded["dataset"]["md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert (recorded["dataset"]["height"], recorded["dataset"]["width"]) == (64, 64)
    card = read(folder / "models/best_model.json")
    assert (card["stem"], card["input"]["height"], card["tta_views"]) == ("adapted", 64, ["plain", "flipped"])
    assert "stem adapted (3x3, stride 1, no max-pool): images of 64 × 64 pixels, which are small" in done.stdout
    predictions = [file.name for file in (folder / "reports").glob("*@*.csv")]
    assert len(predictions) == 2
    assert all(name.startswith("bloodmnist_64_test_[AUC]") for name in predictions)
    weights = torch.load(folder / "models/best_model.pth", weights_only=True)
    TinyNetwork(8, stem="adapted").load_state_dict(weights)


def test_large_images_get_the_stock_stem_and_every_report_says_so(in_process: InProcess, make_npz: Npz):
    path = make_npz(sizes=(16, 8, 8), side=72, classes=3)
    done = in_process("--dataset", str(path), *QUICK)

    assert (done.returncode, done.stderr) == (0, "")
    folder = in_process.run_folder()
    assert folder.name.endswith("_squares_resnet18")
    for settings in (read(folder / "config.json")["settings"], read(folder / "summary.json")["config"]):
        assert (settings["stem"], settings["model_name"]) == ("stock", "ResNet-18")
    card = read(folder / "models/best_model.json")
    assert (card["stem"], card["model_name"]) == ("stock", "ResNet-18")
    book = load_workbook(folder / "reports/training_summary.xlsx")
    rows = {row[0].value: row[1].value for row in book["Configuration"].iter_rows()}
    assert (rows["--stem"], rows["--model_name"]) == ("stock", "ResNet-18")
    assert "stem stock (7x7, stride 2, max-pool 3x3, stride 2): images of 72 × 72 pixels" in done.stdout
    assert "model resnet18: 11,178,051 parameters, stock stem, weights none" in done.stdout
    new_model("resnet18", 3, stem="stock", seed=0).load_state_dict(
        torch.load(folder / "models/best_model.pth", weights_only=True)
    )


def test_weights_of_a_stock_stem_are_taken_as_they_are_or_transferred_to_the_small_one(
    tiny_network: None, no_reports: None, in_process: InProcess, make_npz: Npz
):
    dataset = make_npz(sizes=(16, 8, 8), side=72, classes=3)
    assert in_process("--dataset", dataset, *QUICK).returncode == 0
    chosen = ("--dataset", dataset, *QUICK, "--weights", in_process.run_folder() / "models/best_model.pth")

    assert "(7×7 stem taken as it is, fc kept (same class names))" in in_process(*chosen, "--stem", "stock").stdout
    assert (
        "(7×7 stem transferred to 3×3, fc kept (same class names))" in in_process(*chosen, "--stem", "adapted").stdout
    )


def test_small_images_may_be_given_the_stock_stem(
    tiny_network: None, no_reports: None, in_process: InProcess, make_npz: Npz
):
    done = in_process("--dataset", str(make_npz(channels=1)), *QUICK, "--stem", "stock")

    assert done.returncode == 0
    assert "stem stock (7x7, stride 2, max-pool 3x3, stride 2): as requested" in done.stdout
    folder = in_process.run_folder()
    assert read(folder / "config.json")["settings"]["stem"] == "stock"
    weights = torch.load(folder / "models/best_model.pth", weights_only=True)
    TinyNetwork(2).load_state_dict(weights)


def test_weights_with_a_small_stem_end_with_3_where_the_stem_is_the_stock_one(
    in_process: InProcess, make_npz: Npz, tmp_path: Path
):
    torch.save(new_model("resnet18", 2, seed=0).state_dict(), tmp_path / "earlier.pth")
    done = in_process("--dataset", str(make_npz(side=72)), "--weights", "earlier.pth")

    assert done.returncode == 3
    assert done.stderr == (
        "error: --weights earlier.pth have the 3×3 stem of --stem adapted, which does not make the 7×7 one of --stem "
        "stock. Add --stem adapted, or take weights with a 7×7 stem.\n"
    )


def test_in_a_set_with_a_left_and_a_right_nothing_is_mirrored_and_the_run_can_be_resumed(
    tiny_network: None,
    no_reports: None,
    in_process: InProcess,
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from scripts.trainer import fit as module

    path = place("organamnist", 28)
    argv = ("--dataset", "organamnist", "--weights", "none", "--epochs", "2", "--batch_size", "16")
    assert in_process(*argv, "--hflip", "0.5", "--output_dir", "straight").returncode == 0
    with monkeypatch.context() as patch:  # as if the machine had gone
        patch.setattr(module, "epoch_line", lambda *_: 1 / 0)
        assert in_process(*argv, "--hflip", "0.5").returncode == 1
    folder = in_process.run_folder()
    recorded = read(folder / "config.json")
    assert recorded["settings"]["hflip"] == 0
    assert recorded["dataset"]["orientation_free"] is False

    done = in_process("--resume", str(folder), "--hflip", "0.5", "--stem", "auto", "--resolution", "28")

    assert (done.returncode, done.stderr) == (0, "")
    assert f"in OrganAMNIST (given by its path, {path} is taken as a file of your own" in done.stdout
    assert "stem adapted (3x3, stride 1, no max-pool): as the run began" in done.stdout
    assert read(folder / "models/best_model.json")["tta_views"] == ["plain", "rotated +5°", "rotated -5°"]
    (straight,) = (tmp_path / "straight").iterdir()
    assert digest(folder) == digest(straight)


def test_given_by_its_path_the_file_of_a_set_is_an_own_one_whose_flags_decide(
    tiny_network: None, no_reports: None, in_process: InProcess, place: Place
):
    path = place("organamnist", 28)
    done = in_process("--dataset", str(path), *QUICK, "--hflip", "0.25")

    assert done.returncode == 0
    assert "mirrored" not in done.stdout
    assert read(in_process.run_folder() / "config.json")["settings"]["hflip"] == 0.25
    assert "flipped" in read(in_process.run_folder() / "models/best_model.json")["tta_views"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--resolution", "32"), "--resolution must be one of 28, 64, 128, 224, got 32."),
        (
            ("--dataset", "synthblood", "--resolution", "64"),
            "--resolution 64 cannot be used with --dataset synthblood: ",
        ),
        (("--dataset", "own.npz", "--resolution", "224"), "--resolution 224 cannot be used with a file of your own: "),
        (
            ("--dataset", "organmnist3d", "--resolution", "64"),
            "--dataset organmnist3d is a set of 3D volumes at every --resolution; only 2D images are supported. ",
        ),
        (("--dataset", "vesselmnist3d"), "--dataset vesselmnist3d is a set of 3D volumes at every --resolution; "),
    ],
)
def test_what_has_no_such_resolution_ends_with_2_and_one_sentence(in_process: InProcess, tmp_path: Path, argv, message):
    done = in_process(*argv)

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_volumes_ends_with_3_and_one_sentence(in_process: InProcess, make_npz: Npz):
    volumes = {f"{split}_images": np.zeros((4, 28, 28, 28), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.zeros((4, 1), np.uint8) for split in ("train", "val", "test")}
    path = make_npz("organmnist3d.npz", **volumes, **labels)
    done = in_process("--dataset", str(path))

    assert done.returncode == 3
    assert done.stderr == (
        f"error: Cannot use {path}: train_images has shape (4, 28, 28, 28); expected (N, H, W) for grey images or "
        "(N, H, W, 3) for RGB.\n"
    )
