"""The value that every report of a finished run is written from, and the tables that sheets and figures share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from scripts.core.config import Config
from scripts.core.paths import RunPaths
from scripts.core.records import TrainingResult
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.duplicates import Duplicates
from scripts.evaluation.calibration import ProbabilityMetrics
from scripts.evaluation.metrics import EvaluationResult, Metrics
from scripts.evaluation.style import Caption

COVERAGES = tuple(percent / 100 for percent in range(5, 101, 5))  # at which the risk is listed
MAX_MATRIX_CLASSES = 100  # with more, the largest confusions are listed instead of a matrix


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
    duplicates: Duplicates
    finished: datetime  # local time

    @property
    def caption(self) -> Caption:
        """The origin of every figure and sheet."""
        return Caption(self.dataset.title, self.config.model_name, self.dataset.note)


def history_frame(training: TrainingResult) -> pd.DataFrame:
    """One row per epoch, with the fields of ``EpochRecord`` as columns, as the lines of ``history.jsonl``."""
    return pd.DataFrame([*training.history])


def class_frame(metrics: Metrics) -> pd.DataFrame:
    """One row per class or label, with the fields of ``ClassMetrics`` as columns; NaN where a figure is undefined."""
    return pd.DataFrame([*metrics.per_class]).astype(dict.fromkeys(("precision", "recall", "f1", "auc"), float))


def reliability_frame(metrics: ProbabilityMetrics) -> pd.DataFrame:
    """One row per bin of confidence: its edges, decisions, mean confidence and accuracy; NaN in an empty bin."""
    bins = metrics.reliability
    columns = {"above": bins.edges[:-1], "up_to": bins.edges[1:], "count": bins.counts}
    return pd.DataFrame({**columns, "confidence": bins.confidence, "accuracy": bins.accuracy})


def largest_confusions(metrics: Metrics, limit: int) -> pd.DataFrame:
    """The pairs of a true and a wrongly predicted class with the most images, at most ``limit`` rows.

    Columns: indices of both classes, images, and their share of the true class.
    """
    true, predicted = np.nonzero(metrics.confusion * ~np.eye(len(metrics.confusion), dtype=bool))
    images, shares = metrics.confusion[true, predicted], metrics.confusion_by_row[true, predicted]
    order = np.lexsort((-shares, -images))[:limit]
    pairs = pd.DataFrame({"true": true, "predicted": predicted, "images": images, "share": shares})
    return pairs.iloc[order].reset_index(drop=True)
