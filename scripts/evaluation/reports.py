"""All reports of a finished run: figures, workbook, predictions and ``summary.json``.

Nothing is computed here. A new format is a function from a ``RunReport`` to the files that it has written, and one
line in ``WRITERS``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.evaluation.figures import write_figures
from scripts.evaluation.frames import MAX_MATRIX_CLASSES
from scripts.evaluation.metrics import Estimate, EvaluationResult, Metrics
from scripts.evaluation.predictions import write_all_predictions
from scripts.evaluation.run_report import RunReport
from scripts.evaluation.workbook import write_workbook

__all__ = ["RunReport", "write_reports"]


def add_test_figures_to_card(report: RunReport) -> list[Path]:
    """Add the test figures to ``best_model.json``, which training wrote."""
    path = report.paths.best_model_card
    card = json.loads(path.read_text(encoding="utf-8"))
    figures = {
        variant.phrase: {name: estimate.value for name, estimate in variant.metrics.estimates.items()}
        for variant in report.evaluation.variants
    }
    write_json(path, card | {"test": _json_ready(figures)})
    return []


# in this order: the workbook shows the figures
WRITERS: tuple[Callable[[RunReport], list[Path]], ...] = (
    add_test_figures_to_card,
    write_figures,
    write_workbook,
    write_all_predictions,
)


def write_reports(report: RunReport) -> list[Path]:
    """Write every report of a run; ``summary.json`` comes last, so that the others exist wherever it does.

    Returns:
        The files written.

    Raises:
        StorageError: A file cannot be written.
    """
    # a bar on a terminal; disable=None leaves it out elsewhere
    steps = tqdm(WRITERS, desc="reports", leave=False, disable=None)
    written = [path for write in steps for path in write(report)]
    _write_summary(report, written)
    _log_figures(report)
    return [*written, report.paths.summary]


def _write_summary(report: RunReport, written: list[Path]) -> None:
    paths, config, dataset, training = report.paths, report.config, report.dataset, report.training
    summary = {
        "finished": report.finished.isoformat(timespec="seconds"),
        "note": dataset.note,
        "model_name": config.model_name,
        "dataset": dataset.as_dict(),
        "training": {
            "epochs": len(training.history),
            "epochs_at_most": config.epochs,
            "best_epoch": training.best_epoch,
            "monitor": training.monitor,
            "best_val_accuracy": training.best_val_accuracy,
            "best_val_auc": training.best_val_auc,
            "best_val_loss": training.best_val_loss,
            "stopped_early": training.stopped_early,
            "seconds": training.seconds,
        },
        "test": _test_facts(report.evaluation),
        "config": config.as_dict(),
        "environment": dict(report.environment),
        "files": [path.relative_to(paths.root).as_posix() for path in (*_earlier_files(paths), *written)],
    }
    write_json(paths.summary, _json_ready(summary))


def _earlier_files(paths: RunPaths) -> list[Path]:
    """The files of interest that earlier steps of the run have written."""
    earlier = (paths.config, paths.history, paths.log, paths.best_model, paths.best_model_card, paths.last_checkpoint)
    return [path for path in earlier if path.is_file()]


def _test_facts(evaluation: EvaluationResult) -> dict[str, Any]:
    return {
        "num_images": len(evaluation.labels),
        "headline": evaluation.variants[-1].key,
        "views": list(evaluation.views),
        "tta": None,
        **{variant.key: _metrics_facts(variant.metrics) for variant in evaluation.variants},
    }


def _metrics_facts(metrics: Metrics) -> dict[str, Any]:
    if metrics.confusion.ndim == 3:
        counts = {"confusion_by_label": metrics.confusion.tolist()}  # of each label [[tn, fp], [fn, tp]]
    elif len(metrics.confusion) > MAX_MATRIX_CLASSES:
        true, predicted = np.nonzero(metrics.confusion)
        cells = zip(true, predicted, metrics.confusion[true, predicted], strict=True)
        counts = {"confusion_cells": [",".join(map(str, cell)) for cell in cells]}
    else:
        counts = {"confusion": metrics.confusion.tolist(), "confusion_by_row": metrics.confusion_by_row.tolist()}
    return {
        **{name: asdict(estimate) for name, estimate in metrics.estimates.items()},
        "num_correct": metrics.num_correct,
        "per_class": [asdict(of_class) for of_class in metrics.per_class],
        **counts,
        "notes": list(metrics.notes),
    }


def _json_ready(value: Any) -> Any:
    """``value`` as strict JSON in UTF-8 can hold it: undefined numbers are null, undecodable bytes are escaped."""
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


def _log_figures(report: RunReport) -> None:
    titles = {
        "accuracy": "accuracy",
        "auc": "AUC",
        "macro_f1": "macro-F1",
        "quadratic_weighted_kappa": "quadratic-weighted kappa",
        "mean_absolute_error": "mean absolute error",
    }
    training = report.training
    auc = "" if training.best_val_auc is None else f"  val_auc {training.best_val_auc:.4f}"
    log.info(
        "best epoch %d by validation %s: val_acc %.4f%s  val_loss %.3f",
        training.best_epoch,
        training.monitor,
        training.best_val_accuracy,
        auc,
        training.best_val_loss,
    )
    for variant in report.evaluation.variants:
        estimates = variant.metrics.estimates
        figures = (_figure_in_words(title, estimates[name]) for name, title in titles.items() if name in estimates)
        log.info("test, %s: %s", variant.phrase, "  ".join(figures))
    note = report.dataset.note
    log.info("reports in %s%s", report.paths.root, f"  ({note})" if note else "")


def _figure_in_words(title: str, estimate: Estimate) -> str:
    if not estimate.is_defined:
        return f"{title} undefined"
    return f"{title} {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
