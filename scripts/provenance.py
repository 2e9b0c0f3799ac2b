"""Write ``config.json``, which records everything the result depends on, and describe the model as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from scripts.core.config import Config
from scripts.core.environment import describe_environment
from scripts.core.errors import DataError
from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.recipes import RECIPES
from scripts.core.resume import differences
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.models.backbones import find_backbone
from scripts.models.factory import normalisation, outline
from scripts.models.stem import stem_layers, window_of
from scripts.resolve import applied_views

DECISIONS = {  # by task; p is the activation's output
    MULTI_CLASS: "argmax of softmax",
    ORDINAL: "argmax of softmax",
    BINARY: "p[1] > 0.5",
    MULTI_LABEL: "p > 0.5, label by label",
}


def record_provenance(config: Config, dataset: Dataset, paths: RunPaths) -> dict[str, Any]:
    """Write everything the result depends on into ``config.json``.

    A resumed run keeps its ``config.json``, and logs what differs from it now. Returns the content of the file.

    Raises:
        DataError: The data are not those that the run was started with.
    """
    now = describe_run(config, dataset)
    _log_recipe(now["recipe"])
    if not config.resume:
        write_json(paths.config, now)
        return now
    stored: dict[str, Any] = json.loads(paths.config.read_text(encoding="utf-8"))
    if dataset.md5 != stored["dataset"]["md5"]:
        raise DataError(
            f"--resume {paths.root} was trained on data with the MD5 {stored['dataset']['md5']}, but {dataset.source} "
            f"has {dataset.md5}. Put the right file there, or name it with --dataset."
        )
    for difference in differences(stored["environment"], now["environment"]):
        log.warning("%s: the result may differ in its last bits from that of an uninterrupted run", difference)
    return stored


def _log_recipe(recipe: Mapping[str, Any]) -> None:
    changes = [f"{name} {value['applied']} (not {value['recipe']})" for name, value in recipe["overridden"].items()]
    log.info("recipe %s%s", recipe["name"], f", overridden: {', '.join(changes)}" if changes else "")


def describe_run(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything the result depends on, as JSON values."""
    return {
        "command": [str(word) for word in sys.argv],
        "settings": config.as_dict(),
        "recipe": {
            "name": config.recipe,
            "source": RECIPES[config.recipe].source,
            "overridden": config.overridden,
        },
        "backbone": config.backbone,
        "memory_format": "channels_last",
        "dataset": dataset.as_dict(),
        "environment": describe_environment(config.device),
    }


def describe_model(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a user of the weights needs to know, as JSON values."""
    backbone = find_backbone(config.backbone)
    model = outline(config.backbone, stem=config.stem, sides=(dataset.height, dataset.width))
    window, (mean, std) = window_of(model), normalisation(config.backbone)
    return {
        "model_name": config.model_name,
        "backbone": config.backbone,
        "stem": config.stem,
        "stem_layers": stem_layers(model, backbone),
        **({} if window is None else {"window": window}),
        "recipe": config.recipe,
        "class_names": list(dataset.class_names),
        "task": dataset.task,
        "input": {
            "height": dataset.height,
            "width": dataset.width,
            "channels": 3,
            "stored_channels": dataset.channels,
            "range": "uint8 / 255, then normalised; RGB; grey images become three equal channels",
        },
        "preparation": dataset.preparation,  # of image files, see tools/make_dataset.py; null if unknown
        "normalisation": {"mean": list(mean), "std": list(std)},
        "activation": "sigmoid, label by label" if dataset.task == MULTI_LABEL else "softmax over the classes",
        "decision": DECISIONS[dataset.task],
        "tta_views": [view.name for view in applied_views(config)],
        "precision": config.precision,
        "dataset": {"key": dataset.key, "title": dataset.title, "md5": dataset.md5, "note": dataset.note},
    }
