"""Everything that a finished run tells: pictures, workbook, predictions and ``summary.json``.

Nothing is computed here that a reader would quote: results go in, files come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.config import Config
from scripts.core.files import write_json
from scripts.core.paths import RunPaths
from scripts.core.records import TrainingResult
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.label_plots import draw_label_curves, draw_label_figures, draw_label_predictions
from scripts.evaluation.metrics import EvaluationResult, Metrics
from scripts.evaluation.page import Caption, save_figure
from scripts.evaluation.plots import (
    draw_confusion_matrix,
    draw_dataset_samples,
    draw_sample_predictions,
    draw_training_curves,
)
from scripts.evaluation.predictions import standard_file_name, write_predictions
from scripts.evaluation.workbook import write_workbook


def write_reports(
    paths: RunPaths,
    *,
    config: Config,
    dataset: Dataset,
    training: TrainingResult,
    evaluation: EvaluationResult,
    environment: Mapping[str, Any],
    train: Split,
    test_images: NDArray[np.uint8],
    finished: datetime,
) -> list[Path]:
    """Write every report of a run; ``summary.json`` comes last, so that where it is the others are.

    Args:
        paths: The run's folder.
        config: The settings as applied.
        dataset: What was trained on.
        training: The epochs.
        evaluation: Scores and figures of the test split.
        environment: Versions and hardware, as values that JSON knows.
        train: The training split, of which samples are shown.
        test_images: The test split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        finished: When the run ended, in local time.

    Returns:
        The files written.

    Raises:
        StorageError: A file cannot be written.
    """
    caption = Caption(dataset.title, config.model_name, dataset.note)
    figures = _write_figures(paths, caption, dataset, training, evaluation, train, test_images)
    write_workbook(
        paths.workbook,
        caption=caption,
        config=config,
        dataset=dataset,
        training=training,
        evaluation=evaluation,
        environment=environment,
        figures=figures,
        finished=finished,
    )
    written = [*figures.values(), paths.workbook, *_write_predictions(paths, dataset, evaluation)]
    summary = {
        "finished": finished.isoformat(timespec="seconds"),
        "note": dataset.note,
        "model_name": config.model_name,
        "dataset": dataset.as_dict(),
        "training": _training_facts(config, training),
        "test": _test_facts(evaluation),
        "config": config.as_dict(),
        "environment": dict(environment),
        "files": [path.relative_to(paths.root).as_posix() for path in (*_earlier_files(paths), *written)],
    }
    write_json(paths.summary, _json_ready(summary))
    return [*written, paths.summary]


def _write_figures(
    paths: RunPaths,
    caption: Caption,
    dataset: Dataset,
    training: TrainingResult,
    evaluation: EvaluationResult,
    train: Split,
    test_images: NDArray[np.uint8],
) -> dict[str, Path]:
    names = dataset.class_names
    figures = {"training_curves": draw_training_curves(training, caption)}
    if dataset.task == MULTI_LABEL:
        figures |= {
            "ROC_curves": draw_label_curves(evaluation, caption),
            "label_figures": draw_label_figures(evaluation, caption),
            "sample_predictions": draw_label_predictions(test_images, evaluation, names, caption),
        }
    else:
        scores = "without TTA" if evaluation.tta is None else "with TTA"
        figures |= {
            "confusion_matrix": draw_confusion_matrix(evaluation.headline, caption, scores=scores),
            "sample_predictions": draw_sample_predictions(test_images, evaluation, names, caption),
        }
    figures["dataset_samples"] = draw_dataset_samples(train.images, train.labels, names, caption)
    written = {}
    for name, figure in figures.items():
        path = paths.figures / f"{name.lower()}.png"
        save_figure(figure, path)
        title = name.replace("_", " ")
        written[title[0].upper() + title[1:]] = path
    return written


def _write_predictions(paths: RunPaths, dataset: Dataset, evaluation: EvaluationResult) -> Iterator[Path]:
    variants = [("plain", evaluation.plain, evaluation.plain_scores)]
    if evaluation.tta is not None and evaluation.tta_scores is not None:
        variants.append(("tta", evaluation.tta, evaluation.tta_scores))
    for run, metrics, scores in variants:
        path = paths.reports / standard_file_name(dataset, metrics, split="test", run=run)
        write_predictions(path, scores)
        yield path


def _earlier_files(paths: RunPaths) -> Iterator[Path]:
    """What other steps of the run have left and a reader may look for, as far as it is there."""
    earlier = (paths.config, paths.history, paths.log, paths.best_model, paths.best_model_card, paths.last_checkpoint)
    return (path for path in earlier if path.is_file())


def _training_facts(config: Config, training: TrainingResult) -> dict[str, Any]:
    return {
        "epochs": len(training.history),
        "epochs_at_most": config.epochs,
        "best_epoch": training.best_epoch,
        "best_val_accuracy": training.best_val_accuracy,
        "best_val_loss": training.best_val_loss,
        "stopped_early": training.stopped_early,
        "seconds": training.seconds,
    }


def _test_facts(evaluation: EvaluationResult) -> dict[str, Any]:
    return {
        "num_images": len(evaluation.labels),
        "headline": "plain" if evaluation.tta is None else "tta",
        "views": list(evaluation.views),
        "plain": _metrics_facts(evaluation.plain),
        "tta": None if evaluation.tta is None else _metrics_facts(evaluation.tta),
    }


def _metrics_facts(metrics: Metrics) -> dict[str, Any]:
    counts = {"confusion": metrics.confusion.tolist(), "confusion_by_row": metrics.confusion_by_row.tolist()}
    if metrics.confusion.ndim == 3:
        counts = {"confusion_by_label": metrics.confusion.tolist()}  # of each label [[absent, false], [missed, found]]
    return {
        **{name: asdict(estimate) for name, estimate in metrics.estimates.items()},
        "num_correct": metrics.num_correct,
        "per_class": [asdict(of_class) for of_class in metrics.per_class],
        **counts,
        "notes": list(metrics.notes),
    }


def _json_ready(value: Any) -> Any:
    """``value`` as strict JSON in UTF-8 can hold it: what is undefined is null, bytes that are no text are escaped."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {_json_ready(name): _json_ready(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value
