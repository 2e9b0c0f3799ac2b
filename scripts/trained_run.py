"""Open the folder of a finished run, for everything that uses its trained model."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.core.config import SETTINGS, Config
from scripts.core.errors import ConfigError, DataError
from scripts.core.paths import RunPaths

if TYPE_CHECKING:
    import torch
    from torch import nn

    from scripts.data_handler.dataset import Dataset
    from scripts.evaluation.inference import Predictor


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, as its own files describe it."""

    paths: RunPaths
    config: Config  # the settings as applied
    card: dict[str, Any]  # best_model.json: what a user of the weights needs to know
    summary: dict[str, Any]  # summary.json: the figures

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.paths.root.resolve().name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, or labels, in the order of the model's outputs."""
        return tuple(self.card["class_names"])

    @property
    def task(self) -> str:
        """As in ``DatasetInfo``."""
        return str(self.card["task"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.card["input"]["height"], self.card["input"]["width"]

    @property
    def is_grey(self) -> bool:
        """Whether the training images had one channel."""
        return bool(self.card["input"]["stored_channels"] == 1)

    def temperature(self, *, tta: bool) -> float | None:
        """The temperature that calibrates the probabilities with or without TTA; None where none is recorded."""
        recorded = self.card.get("calibration")
        value = recorded.get("tta" if tta else "plain") if isinstance(recorded, dict) else None
        return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None

    def load_model(self, device: torch.device) -> nn.Module:
        """Build the model with its best weights, in evaluation mode, in the memory layout of the training.

        Raises:
            DataError: The weights are missing, damaged, or of another model.
        """
        import torch

        from scripts.models.factory import new_model
        from scripts.models.weights import load_best_weights

        config = self.config
        model = new_model(
            config.backbone, len(self.class_names), stem=config.stem, seed=config.seed, sides=self.image_size
        )
        load_best_weights(model, self.paths.best_model)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.eval()

    def predictor(self, device: torch.device, *, tta: bool) -> Predictor:
        """Make the predictor that evaluated the run's test split, with or without its TTA views.

        Raises:
            DataError: The weights are missing, damaged, or of another model.
        """
        from scripts.data_handler.registry import MULTI_LABEL
        from scripts.data_handler.tasks import MULTI_LABEL_TASK, SINGLE_LABEL_TASK
        from scripts.evaluation.inference import Predictor
        from scripts.resolve import applied_views

        mean, std = (tuple(self.card["normalisation"][name]) for name in ("mean", "std"))
        return Predictor(
            model=self.load_model(device),
            task=MULTI_LABEL_TASK if self.task == MULTI_LABEL else SINGLE_LABEL_TASK,
            mean=mean,
            std=std,
            views=applied_views(self.config) if tta else (),
            precision=self.config.precision,
        )

    @cached_property
    def dataset(self) -> Dataset:
        """The data set that the run was trained on, from where it was then.

        Raises:
            DataError: It is missing, unreachable or damaged, or the file has changed since.
        """
        from scripts.data_handler.opening import open_dataset

        dataset = open_dataset(self.config.dataset, self.config.data_dir, self.config.resolution)
        if dataset.md5 != (expected := self.card["dataset"]["md5"]):
            raise DataError(
                f"{self.paths.root} was trained on data with the MD5 {expected}, but {dataset.source} has "
                f"{dataset.md5}. Put the right file there."
            )
        return dataset


def open_run(root: Path) -> TrainedRun:
    """Read what a finished run says of itself; its weights are read when they are needed.

    Raises:
        ConfigError: ``root`` is not the folder of a run, or the run is not finished.
        DataError: A file of the run is damaged, or of another version of the program.
    """
    paths = RunPaths(root)
    if not os.path.isfile(paths.config):  # noqa: PTH113 (never raises)
        what = "has no config.json" if os.path.isdir(root) else "does not exist"  # noqa: PTH112
        raise ConfigError(f"{root} is not the folder of a run: it {what}.")
    if not paths.summary.is_file():
        raise ConfigError(f"{root} is not finished: it has no summary.json. Resume it: main.py --resume {root}")
    stored, card, summary = (_read_object(path) for path in (paths.config, paths.best_model_card, paths.summary))
    try:
        values = {name: value for name, value in stored["settings"].items() if name in SETTINGS}
        values |= {name: Path(value) for name, value in values.items() if SETTINGS[name].kind is Path}
        # absolute, unlike the settings: the tool may run in another folder
        source = stored["dataset"]["source"]
        if source != "generated" and Config(**values).is_dataset_path:
            values["dataset"] = source
        elif source != "generated" and os.path.isfile(source):  # noqa: PTH113 (never raises)
            values["data_dir"] = Path(source).parent  # a set of the registry
        run = TrainedRun(paths, Config(**values), card, summary)
        _ = run.class_names, run.task, run.image_size, run.is_grey, card["normalisation"], card["dataset"]["md5"]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{root} is damaged, or a run of another version of the program ({reason}).") from error
    return run


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; ``DataError`` if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it must hold a JSON object.")
    return content
