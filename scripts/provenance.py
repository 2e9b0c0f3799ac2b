"""Describe a run and its model for programs, and record what the result depends on."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from scripts.core.config import BACKBONE, Config
from scripts.core.environment import describe_environment
from scripts.core.errors import DataError
from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.resume import differences, resume_command
from scripts.core.system import StopRequest
from scripts.data_handler.augmentation import MEAN, STD
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.models.stem import STEMS
from scripts.resolve import applied_views

DECISIONS = {  # by task, p being what the activation gives
    MULTI_CLASS: "argmax of softmax",
    ORDINAL: "argmax of softmax",
    BINARY: "p[1] > 0.5",
    MULTI_LABEL: "p > 0.5, label by label",
}


def record_provenance(config: Config, dataset: Dataset, paths: RunPaths, stop: StopRequest) -> dict[str, Any]:
    """Write all that the result depends on into ``config.json``; from here on the run can be resumed.

    A resumed run keeps its ``config.json``, compares it with what is here now, and says what differs.

    Raises:
        DataError: The data are not those that the run was started with.
    """
    provenance = describe_run(config, dataset)
    with stop.deferred():  # the advice is good once the file is there, and not before
        if not config.resume:
            write_json(paths.config, provenance)
        stop.advice = f"Go on with: {resume_command(config, paths.root)}"
    if not config.resume:
        return provenance
    stored: dict[str, Any] = json.loads(paths.config.read_text())
    if dataset.md5 != stored["dataset"]["md5"]:
        raise DataError(
            f"--resume {paths.root} was trained on data with the MD5 {stored['dataset']['md5']}, but {dataset.source} "
            f"has {dataset.md5}. Put the right file there, or name it with --dataset."
        )
    for difference in differences(stored["environment"], provenance["environment"]):
        log.warning(f"{difference}: the result may differ in its last bits from that of an uninterrupted run")
    return stored


def describe_run(config: Config, dataset: Dataset) -> dict[str, Any]:
    """All that the result depends on, as values that JSON knows."""
    return {
        "command": [os.fspath(word) for word in sys.argv],
        "settings": config.as_dict(),
        "backbone": BACKBONE,
        "memory_format": "channels_last",
        "dataset": dataset.as_dict(),
        "environment": describe_environment(config.device),
    }


def describe_model(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a user of the weights needs to know, as values that JSON knows."""
    return {
        "model_name": config.model_name,
        "backbone": BACKBONE,
        "stem": config.stem,
        "stem_layers": STEMS[config.stem].layers,
        "class_names": list(dataset.class_names),
        "task": dataset.task,
        "input": {
            "height": dataset.height,
            "width": dataset.width,
            "channels": 3,
            "stored_channels": dataset.channels,
            "range": "uint8 / 255, then normalised; RGB; grey pictures become three equal channels",
        },
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "activation": "sigmoid, label by label" if dataset.task == MULTI_LABEL else "softmax over the classes",
        "decision": DECISIONS[dataset.task],
        "tta_views": [] if config.no_tta else [view.name for view in applied_views(config)],
        "precision": config.precision,
        "dataset": {"key": dataset.key, "title": dataset.title, "md5": dataset.md5, "note": dataset.note},
    }
