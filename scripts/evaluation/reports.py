"""Everything that a finished run tells: pictures, workbook, predictions and ``summary.json``.

Nothing is computed here that a reader would quote: results go in, files come out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.config import Config
from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import TrainingResult
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.label_plots import draw_label_curves, draw_label_figures, draw_label_predictions
from scripts.evaluation.metrics import Estimate, EvaluationResult, Metrics
from scripts.evaluation.page import Caption, save_figure
from scripts.evaluation.plots import (
    draw_confusion_matrix,
    draw_dataset_samples,
    draw_sample_predictions,
    draw_training_curves,
)
from scripts.evaluation.predictions import standard_file_name, write_predictions
from scripts.evaluation.workbook import write_workbook


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """All that the reports of a finished run are written from."""

    paths: RunPaths
    config: Config  # the settings as applied
    dataset: Dataset
    training: TrainingResult
    evaluation: EvaluationResult
    environment: Mapping[str, Any]  # versions and hardware at the run's start, as config.json records them
    train: Split  # samples of it are shown
    test: Split
    finished: datetime  # local time


def write_reports(report: RunReport) -> list[Path]:
    """Write every report of a run; ``summary.json`` comes last, so that where it is the others are.

    Returns:
        The files written.

    Raises:
        StorageError: A file cannot be written.
    """
    paths, config, dataset = report.paths, report.config, report.dataset
    training, evaluation, finished = report.training, report.evaluation, report.finished
    card = json.loads(paths.best_model_card.read_text(encoding="utf-8"))
    write_json(paths.best_model_card, card | {"test": _card_figures(evaluation)})
    caption = Caption(dataset.title, config.model_name, dataset.note)
    figures = _write_figures(paths, caption, dataset, training, evaluation, report.train, report.test.images)
    write_workbook(
        paths.workbook,
        caption=caption,
        config=config,
        dataset=dataset,
        training=training,
        evaluation=evaluation,
        environment=report.environment,
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
        "environment": dict(report.environment),
        "files": [path.relative_to(paths.root).as_posix() for path in (*_earlier_files(paths), *written)],
    }
    write_json(paths.summary, _json_ready(summary))
    _log_figures(report)
    return [*written, paths.summary]


def _log_figures(report: RunReport) -> None:
    for name, metrics in _variants(report.evaluation).items():
        figures = (
            _figure_in_words(title, estimate)
            for title, estimate in (
                ("accuracy", metrics.accuracy),
                ("AUC", metrics.auc),
                ("macro-F1", metrics.macro_f1),
                ("quadratic-weighted kappa", metrics.quadratic_weighted_kappa),
                ("mean absolute error", metrics.mean_absolute_error),
            )
            if estimate is not None
        )
        log.info("test, %s: %s", name, "  ".join(figures))
    note = report.dataset.note
    log.info("reports in %s%s", report.paths.root, f"  ({note})" if note else "")


def _figure_in_words(title: str, estimate: Estimate) -> str:
    if not estimate.is_defined:
        return f"{title} undefined"
    return f"{title} {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _variants(evaluation: EvaluationResult) -> dict[str, Metrics]:
    """The figures without TTA, and with it where there is TTA."""
    with_tta = {} if evaluation.tta is None else {"with TTA": evaluation.tta}
    return {"without TTA": evaluation.plain} | with_tta


def _card_figures(evaluation: EvaluationResult) -> dict[str, dict[str, float | None]]:
    return {
        # NaN is not JSON
        name: {
            figure: estimate.value if estimate.is_defined else None for figure, estimate in metrics.estimates.items()
        }
        for name, metrics in _variants(evaluation).items()
    }


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
