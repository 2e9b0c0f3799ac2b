"""Check that the whole pipeline works on this machine, in under 30 seconds and offline.

python smoke_test.py

Trains two short epochs on a few synthetic cells in a temporary folder, starting from a 7×7 state dict as torchvision
writes it, then opens and checks every file. Prints one line per check. The first check that fails is named and ends the
test with exit code 1. The temporary folder is removed.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openpyxl import load_workbook
from PIL import Image
from torchvision.models import get_model

from main import run
from scripts.core import Config, RunPaths, ensure_single_instance, parse_command_line
from scripts.core.errors import ConfigError, DataError, Interrupted, LockHeldError
from scripts.core.system import stop_request
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.npz import validate_npz_keys
from scripts.data_handler.opening import open_dataset
from scripts.data_handler.synthetic import open_synthblood
from scripts.models.factory import build_model, new_model
from scripts.models.stem import transfer_kernels

NUM_IMAGES = {"train": 128, "val": 32, "test": 48}
EPOCHS = 2
SHEETS = ["Summary", "History", "Per class", "Confusion matrix", "Trust", "Configuration", "Environment"]
FIGURES = ["confusion_matrix", "dataset_samples", "reliability", "risk_and_coverage"]
FIGURES += ["sample_predictions", "training_curves"]


@dataclass
class Trial:
    """Values that the checks share."""

    folder: Path
    config: Config
    large_stem: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    paths: RunPaths = field(default_factory=lambda: RunPaths(Path()))

    @property
    def dataset(self) -> Dataset:
        """The synthetic cells."""
        return open_dataset(self.config.dataset, self.config.data_dir)


class CheckError(Exception):
    """A check failed; the message says what was found."""


def expect(condition: bool, found: str) -> None:
    """Fail the current check with what was found, unless the condition holds."""
    if not condition:
        raise CheckError(found)


def check_command_line(_trial: Trial) -> None:
    """Command line: defaults, and every problem at once."""
    expect(parse_command_line([], {}) == Config(), "an empty command line does not give the defaults")
    try:
        parse_command_line(["--epochs", "0", "--lr", "nan"], {})
    except ConfigError as error:
        expect(len(error.problems) == 2, f"two wrong values gave: {error}")
    else:
        raise CheckError("--epochs 0 --lr nan was accepted")


def check_lock(trial: Trial) -> None:
    """Lock: a second instance is refused."""
    with ensure_single_instance(trial.config.lock_file):
        try:
            with ensure_single_instance(trial.config.lock_file):
                raise CheckError("two instances held the lock at once")
        except LockHeldError:
            return


def check_data(trial: Trial) -> None:
    """Data: a valid file is read, a damaged one refused."""
    drawn = open_synthblood()
    arrays: dict[str, Any] = {}
    for name, count in NUM_IMAGES.items():
        split = drawn.load(name)
        arrays |= {f"{name}_images": split.images[:count], f"{name}_labels": split.labels[:count, None]}
    path = Path(trial.config.dataset)
    np.savez_compressed(path, class_names=np.array(drawn.class_names), **arrays)
    expect(
        np.array_equal(trial.dataset.load("test").images, arrays["test_images"]),
        "the images read are not those written",
    )

    damaged = trial.folder / "damaged.npz"
    damaged.write_bytes(path.read_bytes()[:-100])
    try:
        validate_npz_keys(damaged)
    except DataError:
        return
    raise CheckError("a truncated file was accepted")


def check_weight_transfer(trial: Trial) -> None:
    """Weights: torchvision's 7×7 stem becomes 3×3, the rest is copied."""
    torch.manual_seed(0)
    source = get_model(trial.config.backbone).state_dict()
    torch.save(source, trial.config.weights)
    model = build_model(
        trial.config.backbone,
        class_names=list("abcdefgh"),
        weights=trial.config.weights,
        data_dir=trial.config.data_dir,
        seed=0,
    )
    state = model.state_dict()
    expect(
        torch.equal(state["conv1.weight"], transfer_kernels(source["conv1.weight"], 3)),
        "conv1 is not the transferred stem",
    )
    expect(torch.equal(state["layer4.1.conv2.weight"], source["layer4.1.conv2.weight"]), "layer4 was not copied")
    trial.large_stem = source["conv1.weight"]


def check_training(trial: Trial) -> None:
    """Run: two epochs, evaluation with TTA and all reports."""
    with stop_request() as stop:
        trial.paths = run(trial.config, stop)
    history = [json.loads(line) for line in trial.paths.history.read_text(encoding="utf-8").splitlines()]
    expect([record["epoch"] for record in history] == [1, 2], f"the history holds {history}")
    losses = [record["train_loss"] for record in history]
    expect(losses[1] < losses[0], f"the training loss went from {losses[0]:.3f} to {losses[1]:.3f}")


def check_weights(trial: Trial) -> None:
    """Weights: best_model.pth loads into the model, and training has changed it."""
    model = new_model(trial.config.backbone, 8, seed=0)
    model.load_state_dict(torch.load(trial.paths.best_model, weights_only=True))
    expect(
        not torch.equal(model.state_dict()["conv1.weight"], transfer_kernels(trial.large_stem, 3)),
        "training did not change the stem",
    )
    card = json.loads(trial.paths.best_model_card.read_text(encoding="utf-8"))
    expect(card["class_names"] == list(trial.dataset.class_names), f"the card names the classes {card['class_names']}")
    state = torch.load(trial.paths.last_checkpoint, weights_only=True)
    expect(len(state["history"]) == EPOCHS, f"the checkpoint is of epoch {len(state['history'])}")


def check_summary(trial: Trial) -> None:
    """Summary: every file it names exists, its accuracies lie in their intervals."""
    summary = json.loads(trial.paths.summary.read_text(encoding="utf-8"))
    missing = [name for name in summary["files"] if not (trial.paths.root / name).is_file()]
    expect(not missing, f"files named and not there: {missing}")
    for variant in ("plain", "tta"):
        accuracy = summary["test"][variant]["accuracy"]
        expect(0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1, f"accuracy {accuracy}")


def check_workbook(trial: Trial) -> None:
    """Workbook: its sheets, a row per epoch and per class, its figures."""
    workbook = load_workbook(trial.paths.workbook)
    expect(set(SHEETS) <= set(workbook.sheetnames), f"the sheets are {workbook.sheetnames}")
    first_cells = {name: [str(row[0].value) for row in workbook[name].iter_rows()] for name in SHEETS}
    epochs = [cell for cell in first_cells["History"] if cell in ("1", "2")]
    expect(epochs == ["1", "2"], f"the History sheet has the epochs {epochs}")
    missing = set(trial.dataset.class_names) - set(first_cells["Per class"])
    expect(not missing, f"the Per class sheet lacks {missing}")
    with zipfile.ZipFile(trial.paths.workbook) as archive:  # openpyxl does not list embedded images
        embedded = [name for name in archive.namelist() if name.startswith("xl/media/")]
    expect(len(embedded) == len(FIGURES), f"the embedded figures are {embedded}")


def check_figures(trial: Trial) -> None:
    """Figures: none is missing or blank."""
    for name in FIGURES:
        with Image.open(trial.paths.figures / f"{name}.png") as image:
            pixels = np.asarray(image.convert("L"), dtype=np.float64)
        expect(min(pixels.shape) >= 300, f"{name} has only {pixels.shape[1]} × {pixels.shape[0]} pixels")
        expect(pixels.std() > 5, f"{name} is blank")


def check_predictions(trial: Trial) -> None:
    """Predictions: their CSV files give the accuracies of the summary."""
    labels = trial.dataset.load("test").labels
    summary = json.loads(trial.paths.summary.read_text(encoding="utf-8"))
    wanted = sorted(summary["test"][variant]["accuracy"]["value"] for variant in ("plain", "tta"))
    found = []
    for path in trial.paths.reports.glob("*@*.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            scores = np.array([row[1:] for row in csv.reader(stream)], dtype=np.float64)
        expect(scores.shape == (NUM_IMAGES["test"], 8), f"{path.name} holds scores of shape {scores.shape}")
        found.append(float((scores.argmax(axis=1) == labels).mean()))
    expect(np.allclose(sorted(found), wanted), f"the CSV files give {sorted(found)}, the summary says {wanted}")


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_command_line,
    check_lock,
    check_data,
    check_weight_transfer,
    check_training,
    check_weights,
    check_summary,
    check_workbook,
    check_figures,
    check_predictions,
)


def main() -> int:
    """Run the checks in order; 0 if all pass, 1 at the first that fails."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every character
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="smoke_test_") as name:
        folder = Path(name)
        config = Config(
            dataset=str(folder / "cells.npz"),
            weights=str(folder / "torchvision.pth"),
            data_dir=folder / "dataset",
            output_dir=folder / "outputs",
            lock_file=folder / "lock",
            no_process_guard=True,
            epochs=EPOCHS,
            batch_size=32,
        )
        trial = Trial(folder, config)
        for check in CHECKS:
            title = str(check.__doc__).rstrip(".")
            try:
                check(trial)
            except Interrupted as stopped:
                print(f"STOPPED {title}", flush=True)
                return stopped.exit_code
            except Exception as error:  # of any kind: the check has failed
                print(f"FAILED  {title}\n        {type(error).__name__}: {error}", flush=True)
                return 1
            print(f"ok      {title}", flush=True)
    print(f"all {len(CHECKS)} checks passed in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
