"""The value that every report of a finished run is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scripts.core.config import Config
from scripts.core.paths import RunPaths
from scripts.core.records import TrainingResult
from scripts.data_handler.dataset import Dataset, Split
from scripts.evaluation.metrics import EvaluationResult
from scripts.evaluation.style import Caption


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything that the reports of a finished run contain."""

    paths: RunPaths
    config: Config  # the settings as applied
    dataset: Dataset
    training: TrainingResult
    evaluation: EvaluationResult
    environment: Mapping[str, Any]  # versions and hardware at the run's start, as config.json records them
    train: Split  # samples of it are shown
    test: Split
    finished: datetime  # local time

    @property
    def caption(self) -> Caption:
        """The origin of every figure and sheet."""
        return Caption(self.dataset.title, self.config.model_name, self.dataset.note)
