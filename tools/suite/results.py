"""Read the result of a finished cell from the summary of its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.core.config import SETTINGS
from scripts.core.errors import DataError
from scripts.core.paths import RunPaths
from scripts.core.recipes import RECIPES
from tools.suite.cells import DAMAGED, as_flag

METRICS = ("accuracy", "auc", "macro_f1")
VARIANTS = ("plain", "tta")
# a sentence for each kind of augmentation, and whether the settings leave it out
NOT_APPLIED: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "No image was flipped in training.": lambda run: (
        run["symmetries"] == "none" or (run["symmetries"] == "flip" and run["hflip"] == 0)
    ),
    "No image was rotated in training.": lambda run: (
        run["symmetries"] != "all" and run["rotation_angle"] * run["rotation_prob"] == 0
    ),
    "Brightness and contrast were not changed in training.": lambda run: run["jitter_val"] == 0,
    "No images were mixed (MixUp) in training.": lambda run: run["mixup_alpha"] == run.get("cutmix_alpha", 0) == 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The facts of one finished cell that the tables need."""

    title: str  # of the data set
    width: int  # pixels
    height: int  # pixels
    test_images: int
    figures: Mapping[str, Mapping[str, float | None]]  # "plain" and, with TTA, "tta"; then by metric; None: undefined
    undefined: tuple[str, ...]  # sentences about undefined metrics
    best_epoch: int
    epochs: int
    max_epochs: int
    seconds: float  # of training
    weights: str  # the setting
    recipe_settings: str  # those of the recipe, as applied; "" where they are the defaults
    not_applied: tuple[str, ...]  # sentences about augmentation that was not applied
    data_note: str | None  # such as that the data are synthetic
    md5: str
    made_with: tuple[tuple[str, str], ...]  # what may change the bits of a result: commit, versions, hardware


def read_result(paths: RunPaths) -> CellResult:
    """Read the result from a finished run's folder.

    Raises:
        DataError: Its ``summary.json`` cannot be read.
    """
    try:
        return _parse(json.loads(paths.summary.read_text(encoding="utf-8")))
    except DAMAGED as error:
        raise DataError(
            f"{paths.summary} is damaged ({type(error).__name__}: {error}). Remove its folder to train the cell again."
        ) from error


def _parse(summary: Mapping[str, Any]) -> CellResult:
    dataset, training, test, environment = (summary[name] for name in ("dataset", "training", "test", "environment"))
    # a setting that is younger than the run had its default
    settings = {name: known.default for name, known in SETTINGS.items()} | summary["config"]
    of_recipe = RECIPES[settings["recipe"]].settings(settings["epochs"])
    return CellResult(
        title=dataset["title"],
        width=dataset["width"],
        height=dataset["height"],
        test_images=test["num_images"],
        figures={variant: _figures(test[variant]) for variant in VARIANTS if test[variant] is not None},
        undefined=tuple(test["plain"].get("notes", ())),
        best_epoch=training["best_epoch"],
        epochs=training["epochs"],
        max_epochs=training["epochs_at_most"],
        seconds=training["seconds"],
        weights=settings["weights"],
        recipe_settings=" ".join(as_flag(name, settings[name]) for name in of_recipe),
        not_applied=tuple(sentence for sentence, is_left_out in NOT_APPLIED.items() if is_left_out(settings)),
        data_note=summary["note"],
        md5=dataset["md5"],
        made_with=(
            ("commit", str(environment["commit"])),
            ("torch", str(environment["packages"]["torch"])),
            ("device", str(environment["device_name"])),
            ("precision", str(settings["precision"])),
        ),
    )


def _figures(facts: Mapping[str, Any]) -> dict[str, float | None]:
    # some tasks have no macro-F1
    return {metric: facts[metric]["value"] if facts.get(metric) else None for metric in METRICS}
