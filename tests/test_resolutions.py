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

import main
from scripts.data_handler.registry import DATASET_REGISTRY
from scripts.models.resnet import adapted_resnet18, stock_resnet18
from tests.conftest import Npz, coloured_squares

Run = Callable[..., tuple[int, str, str]]
Place = Callable[..., Path]

QUICK = ("--weights", "none", "--epochs", "1", "--batch_size", "8")
SIZES = {"train": 22, "val": 11, "test": 11}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls ``main.main`` in an empty folder; returns the exit code, the screen and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DOCKER_REPRODUCIBILITY_MODE", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        code = main.main([*words, "--lock_file", str(tmp_path / "lock"), "--no_process_guard"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Puts a small file of a set's schema where the download would put it, and its checksum into the registry."""

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


def only_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs").iterdir()
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "models/best_model.pth").read_bytes()).hexdigest()


def test_a_set_is_trained_on_at_another_resolution(run: Run, place: Place, tmp_path: Path):
    path = place("bloodmnist", 64)
    code, shown, complaint = run("--dataset", "bloodmnist", "--resolution", "64", *QUICK, "--rotation_angle", "0")

    assert (code, complaint) == (0, "")
    folder = only_folder(tmp_path)
    assert folder.name.endswith("_bloodmnist_64_resnet18")
    recorded = read(folder / "config.json")
    assert (recorded["settings"]["resolution"], recorded["settings"]["stem"]) == (64, "adapted")
    assert recorded["settings"]["hflip"] == 0.5
    assert recorded["dataset"]["source"] == str(path)
    assert recorded["dataset"]["md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert (recorded["dataset"]["height"], recorded["dataset"]["width"]) == (64, 64)
    card = read(folder / "models/best_model.json")
    assert (card["stem"], card["input"]["height"], card["tta_views"]) == ("adapted", 64, ["plain", "flipped"])
    assert "stem adapted (3x3, stride 1, no max-pool): images of 64 × 64 pixels, which are small" in shown
    predictions = [file.name for file in (folder / "reports").glob("*.csv")]
    assert len(predictions) == 2
    assert all(name.startswith("bloodmnist_64_test_[AUC]") for name in predictions)
    adapted_resnet18(8, seed=0).load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))


def test_a_large_picture_gets_the_stock_stem_and_every_report_says_so(run: Run, make_npz: Npz, tmp_path: Path):
    path = make_npz(sizes=(16, 8, 8), side=72, classes=3)
    code, shown, complaint = run("--dataset", str(path), *QUICK)

    assert (code, complaint) == (0, "")
    folder = only_folder(tmp_path)
    assert folder.name.endswith("_squares_resnet18")
    for settings in (read(folder / "config.json")["settings"], read(folder / "summary.json")["config"]):
        assert (settings["stem"], settings["model_name"]) == ("stock", "ResNet-18")
    card = read(folder / "models/best_model.json")
    assert (card["stem"], card["model_name"]) == ("stock", "ResNet-18")
    book = load_workbook(folder / "reports/training_summary.xlsx")
    rows = {row[0].value: row[1].value for row in book["Configuration"].iter_rows()}
    assert (rows["--stem"], rows["--model_name"]) == ("stock", "ResNet-18")
    assert "stem stock (7x7, stride 2, max-pool 3x3, stride 2): images of 72 × 72 pixels" in shown
    assert "model resnet18: 11,178,051 parameters, stock stem, weights none" in shown
    stock_resnet18(3, seed=0).load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))

    weights = str(folder / "models/best_model.pth")
    chosen = ("--dataset", str(path), "--weights", weights, "--epochs", "1", "--batch_size", "8", "--no_tta")
    assert "(7×7 stem taken as it is, fc kept (same class names))" in run(*chosen, "--stem", "stock")[1]
    assert "(7×7 stem transferred to 3×3, fc kept (same class names))" in run(*chosen, "--stem", "adapted")[1]


def test_small_pictures_may_be_given_the_stock_stem(run: Run, make_npz: Npz, tmp_path: Path):
    code, shown, _ = run("--dataset", str(make_npz(channels=1)), *QUICK, "--stem", "stock")

    assert code == 0
    assert "stem stock (7x7, stride 2, max-pool 3x3, stride 2): as requested" in shown
    folder = only_folder(tmp_path)
    assert read(folder / "config.json")["settings"]["stem"] == "stock"
    stock_resnet18(2, seed=0).load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))


def test_weights_with_a_small_stem_end_with_3_where_the_stem_is_the_stock_one(run: Run, make_npz: Npz, tmp_path: Path):
    torch.save(adapted_resnet18(2, seed=0).state_dict(), tmp_path / "earlier.pth")
    code, _, complaint = run("--dataset", str(make_npz(side=72)), "--weights", "earlier.pth")

    assert code == 3
    assert complaint == (
        "error: --weights earlier.pth have the 3×3 stem of --stem adapted, which does not make the 7×7 one of --stem "
        "stock. Add --stem adapted, or take weights with a 7×7 stem.\n"
    )


def test_in_a_set_with_a_left_and_a_right_nothing_is_mirrored_and_the_run_can_be_resumed(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from scripts.trainer import fit as module

    path = place("organamnist", 28)
    words = ("--dataset", "organamnist", "--weights", "none", "--epochs", "2", "--batch_size", "16")
    assert run(*words, "--hflip", "0.5", "--output_dir", "straight")[0] == 0
    with monkeypatch.context() as patch:  # as if the machine had gone
        patch.setattr(module, "epoch_line", lambda *_: 1 / 0)
        assert run(*words, "--hflip", "0.5")[0] == 1
    folder = only_folder(tmp_path)
    recorded = read(folder / "config.json")
    assert recorded["settings"]["hflip"] == 0
    assert recorded["dataset"]["orientation_free"] is False

    code, shown, complaint = run("--resume", str(folder), "--hflip", "0.5", "--stem", "auto", "--resolution", "28")

    assert (code, complaint) == (0, "")
    assert f"in OrganAMNIST (given by its path, {path} is taken as a file of your own" in shown
    assert "stem adapted (3x3, stride 1, no max-pool): as the run began" in shown
    assert read(folder / "models/best_model.json")["tta_views"] == ["plain", "rotated +5°", "rotated -5°"]
    (straight,) = (tmp_path / "straight").iterdir()
    assert digest(folder) == digest(straight)


def test_given_by_its_path_the_file_of_a_set_is_an_own_one_whose_flags_decide(run: Run, place: Place, tmp_path: Path):
    path = place("organamnist", 28)
    code, shown, _ = run("--dataset", str(path), *QUICK, "--hflip", "0.25")

    assert code == 0
    assert "mirrored" not in shown
    assert read(only_folder(tmp_path) / "config.json")["settings"]["hflip"] == 0.25
    assert "flipped" in read(only_folder(tmp_path) / "models/best_model.json")["tta_views"]


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_what_has_no_such_resolution_ends_with_2_and_one_sentence(run: Run, tmp_path: Path, words, message):
    code, _, complaint = run(*words)

    assert code == 2
    assert complaint.startswith(f"error: {message}")
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_volumes_ends_with_3_and_one_sentence(run: Run, make_npz: Npz):
    volumes = {f"{split}_images": np.zeros((4, 28, 28, 28), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.zeros((4, 1), np.uint8) for split in ("train", "val", "test")}
    path = make_npz("organmnist3d.npz", **volumes, **labels)
    code, _, complaint = run("--dataset", str(path))

    assert code == 3
    assert complaint == (
        f"error: Cannot use {path}: train_images has shape (4, 28, 28, 28); needed is (N, H, W) for grey images or "
        "(N, H, W, 3) for RGB.\n"
    )
