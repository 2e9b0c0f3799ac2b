"""All twelve sets of the registry train end to end, on small generated files of their exact schema."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openpyxl import load_workbook
from torch import nn

import main
from scripts import pipeline
from scripts.data_handler import opening
from scripts.data_handler.registry import DATASET_REGISTRY, MULTI_LABEL, ORDINAL, DatasetInfo

NUM_SAMPLES = {"train": 32, "val": 16, "test": 16}
WITH_THE_REAL_NETWORK = ("bloodmnist", "chestmnist")  # one of each kind: most of a run's time is the network's
QUICK = ("--weights", "none", "--epochs", "1", "--batch_size", "16", "--device", "cpu")
UNREACHABLE = "ftp://127.0.0.1"  # an address that fails at once

Run = Callable[..., tuple[int, str]]


def registered_as(info: DatasetInfo, file: Path, **changed: Any) -> DatasetInfo:
    """The registry's entry of a set, but for what is the generated file's own: its sizes, its MD5 and its origin."""
    own = {
        "num_samples": NUM_SAMPLES,
        "md5s": {28: hashlib.md5(file.read_bytes()).hexdigest()},
        "files_url": UNREACHABLE,
    }
    return dataclasses.replace(info, **{**own, **changed})


def generate(info: DatasetInfo, path: Path) -> None:
    """Write noise in the set's schema: 28 pixels, its channels, and labels as the official files have them, uint8."""
    random = np.random.default_rng(len(info.key))
    num_classes = len(info.class_names)
    arrays: dict[str, Any] = {}
    for split, count in NUM_SAMPLES.items():
        shape = (count, 28, 28) if info.channels == 1 else (count, 28, 28, 3)
        arrays[f"{split}_images"] = random.integers(256, size=shape, dtype=np.uint8)
        labels = (np.arange(count) % num_classes)[:, np.newaxis]  # every class or label occurs
        if info.task == MULTI_LABEL:
            labels = (random.random((count, num_classes)) < 0.1) | (np.arange(num_classes) == labels)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``main.main`` in an empty folder, on a set whose generated file lies where the download would have put it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DOCKER_REPRODUCIBILITY_MODE", raising=False)
    monkeypatch.setattr("scripts.core.download.sleep", lambda _: None)

    def train_on(key: str, **changed: Any) -> tuple[int, str]:
        file = tmp_path / "dataset" / f"{key}.npz"
        generate(DATASET_REGISTRY[key], file)
        info = registered_as(DATASET_REGISTRY[key], file, **changed)
        monkeypatch.setattr(opening, "DATASET_REGISTRY", {**DATASET_REGISTRY, key: info})
        lock = str(tmp_path / "lock")
        code = main.main(["--dataset", key, *QUICK, "--lock_file", lock, "--no_process_guard"])
        return code, capsys.readouterr().err

    return train_on


def tiny_network(*, class_names: Sequence[str], seed: int, **_: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, len(class_names))
        )


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("key", DATASET_REGISTRY)
def test_a_set_trains_end_to_end_and_its_reports_fit_its_task(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
):
    if key not in WITH_THE_REAL_NETWORK:
        monkeypatch.setattr(pipeline, "build_model", tiny_network)
    code, stderr = run(key)
    assert (code, stderr) == (0, "")
    (folder,) = (tmp_path / "outputs").iterdir()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse_constants)
    info = DATASET_REGISTRY[key]
    is_multi_label, num_classes = info.task == MULTI_LABEL, len(info.class_names)

    assert summary["dataset"]["task"] == info.task
    assert summary["dataset"]["class_names"] == list(info.class_names)
    assert summary["dataset"]["num_samples"] == NUM_SAMPLES
    assert all((folder / name).is_file() for name in summary["files"])
    for variant in ("plain", "tta"):
        figures = summary["test"][variant]
        expected = {"accuracy", "auc", "macro_f1", "balanced_accuracy"}
        if info.task == ORDINAL:
            expected |= {"quadratic_weighted_kappa", "mean_absolute_error"}
        estimates = {name: value for name, value in figures.items() if isinstance(value, dict)}
        assert set(estimates) == expected
        assert 0 <= figures["accuracy"]["low"] <= figures["accuracy"]["high"] <= 1
        assert 0 <= figures["auc"]["value"] <= 1
        assert [one["name"] for one in figures["per_class"]] == list(info.class_names)
        counts = np.array(figures["confusion_by_label" if is_multi_label else "confusion"])
        assert counts.shape == ((num_classes, 2, 2) if is_multi_label else (num_classes, num_classes))
        assert counts.sum() == NUM_SAMPLES["test"] * (num_classes if is_multi_label else 1)

    predictions = sorted(folder.glob("reports/*@*.csv"))
    assert len(predictions) == 2
    for path in predictions:
        assert path.name.startswith(f"{key}_test_[AUC]")
        rows = np.loadtxt(path, delimiter=",")
        assert rows.shape == (NUM_SAMPLES["test"], 1 + num_classes)
        # sigmoids are free, softmaxes share one probability out
        assert (np.abs(rows[:, 1:].sum(axis=1) - 1).max() < 1e-5) == (not is_multi_label)
    card = json.loads((folder / "models" / "best_model.json").read_text(encoding="utf-8"))
    assert card["task"] == info.task
    assert set(card["test"]["with TTA"]) == expected
    assert ("sigmoid" in card["activation"]) == is_multi_label
    figure, sheet = ("roc_curves", "Per label") if is_multi_label else ("confusion_matrix", "Per class")
    assert (folder / "figures" / f"{figure}.png").is_file()
    assert sheet in load_workbook(folder / "reports" / "training_summary.xlsx").sheetnames
    log = (folder / "logs" / "run.log").read_text(encoding="utf-8")
    assert ("quadratic-weighted kappa" in log) == (info.task == ORDINAL)


def test_a_file_with_another_md5_is_refused_when_the_right_one_cannot_be_fetched(run: Run, tmp_path: Path):
    code, stderr = run("breastmnist", md5s={28: "0" * 32})

    assert code == 3
    assert f"Put the file with MD5 {'0' * 32} at {tmp_path / 'dataset' / 'breastmnist.npz'}" in stderr
    assert not list((tmp_path / "outputs").glob("*/models/*"))
    assert (tmp_path / "dataset" / "breastmnist.npz").is_file()  # no invalid file goes before a valid one is there
