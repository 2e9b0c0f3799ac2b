"""Predictions in MedMNIST's own CSV format, which its ``Evaluator`` reads and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.core.files import write_text
from scripts.data_handler.dataset import Dataset
from scripts.evaluation.metrics import Metrics
from scripts.evaluation.run_report import RunReport

STANDARD_SIDE = 28  # pixels; only another size is part of a file's name


def write_all_predictions(report: RunReport) -> list[Path]:
    """Write the scores of every variant; see ``write_predictions``."""
    paths = []
    for variant in report.evaluation.variants:
        name = standard_file_name(report.dataset, variant.metrics, split="test", run=variant.key)
        paths.append(report.paths.reports / name)
        write_predictions(paths[-1], variant.scores)
    return paths


def standard_file_name(dataset: Dataset, metrics: Metrics, *, split: str, run: str) -> str:
    """Return the name that MedMNIST gives a file of predictions: data set, split, AUC, accuracy and run.

    ``_`` separates parts, and so becomes ``-`` in the key of an own set. ``run`` has letters, digits, ``-`` and ``_``.

    Reference: ``Evaluator.get_standard_evaluation_filename`` of https://github.com/MedMNIST/MedMNIST
    """
    height, width = dataset.height, dataset.width
    size = "" if height == width == STANDARD_SIDE else f"_{height}" if height == width else f"_{height}x{width}"
    flag = dataset.key.replace("_", "-")
    return f"{flag}{size}_{split}_[AUC]{metrics.auc.value:.3f}_[ACC]{metrics.accuracy.value:.3f}@{run}.csv"


def write_predictions(path: Path, scores: NDArray[np.float64]) -> None:
    """Write one line ``index,score,score,…`` per image of ``scores`` (N, C); read back they are the same doubles.

    ``StorageError`` is raised if the file cannot be written.
    """
    lines = (f"{index},{','.join(map(repr, row))}\n" for index, row in enumerate(scores.tolist()))
    write_text(path, "".join(lines))
