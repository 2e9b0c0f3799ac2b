"""The tables behind sheets and figures, as data frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.core.config import SETTINGS, Config
from scripts.core.records import TrainingResult
from scripts.evaluation.metrics import EvaluationResult, Metrics

MAX_MATRIX_CLASSES = 100  # with more, the largest confusions are listed instead of a matrix


def history_frame(training: TrainingResult) -> pd.DataFrame:
    """One row per epoch, with the fields of ``EpochRecord`` as columns."""
    return pd.DataFrame([asdict(record) for record in training.history])


def class_frame(metrics: Metrics) -> pd.DataFrame:
    """One row per class or label, with the fields of ``ClassMetrics`` as columns; NaN where a figure is undefined."""
    figures = pd.DataFrame([asdict(of_class) for of_class in metrics.per_class])
    return figures.astype(dict.fromkeys(("precision", "recall", "f1", "auc"), float))


def label_counts_frame(metrics: Metrics) -> pd.DataFrame:
    """One row per label of a multi-label task: how many test images it is right and wrong for."""
    titles = ["True negatives", "False positives", "False negatives", "True positives"]
    counts = pd.DataFrame(metrics.confusion.reshape(-1, 4), columns=titles)
    return counts[["True positives", "False positives", "False negatives", "True negatives"]]


def confusion_frames(metrics: Metrics) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The confusion matrix in counts, and as shares of the true class; rows are true classes."""
    names = [of_class.name for of_class in metrics.per_class]
    counts, shares = (
        pd.DataFrame(cells, index=names, columns=names) for cells in (metrics.confusion, metrics.confusion_by_row)
    )
    return counts, shares


def largest_confusions(metrics: Metrics, limit: int) -> pd.DataFrame:
    """The pairs of a true and a wrongly predicted class with the most images, at most ``limit`` rows.

    Columns: indices of both classes, images, and their share of the true class.
    """
    wrong = metrics.confusion * ~np.eye(len(metrics.confusion), dtype=bool)
    true, predicted = np.nonzero(wrong)
    shares = metrics.confusion_by_row[true, predicted]
    order = np.lexsort((-shares, -wrong[true, predicted]))[:limit]
    columns = {"true": true, "predicted": predicted, "images": wrong[true, predicted], "share": shares}
    return pd.DataFrame({name: values[order] for name, values in columns.items()})


def headline_frame(evaluation: EvaluationResult) -> pd.DataFrame:
    """One row per headline figure by name; for each variant its value and the two ends of its interval."""
    columns = {
        (variant.key, part): {name: getattr(figure, part) for name, figure in variant.metrics.estimates.items()}
        for variant in evaluation.variants
        for part in ("value", "low", "high")
    }
    return pd.DataFrame(columns, index=list(evaluation.headline.estimates))


def configuration_frame(config: Config) -> pd.DataFrame:
    """One row per setting: its flag, value, default, group and meaning."""
    rows = []
    for name, value in config.as_dict().items():
        known = SETTINGS[name]
        default = str(known.default) if isinstance(known.default, Path) else known.default
        rows.append((known.flag, value, default, known.metadata["group"], known.metadata["help"]))
    return pd.DataFrame(rows, columns=["Setting", "Applied value", "Default", "Group", "Meaning"], dtype=object)


def environment_frame(environment: Mapping[str, Any]) -> pd.DataFrame:
    """One row per value; the names of nested values are joined by " / "."""
    return pd.DataFrame(_flat(environment), columns=["What", "Value"], dtype=object)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value
