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
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.files import write_json, write_text
from scripts.core.log import log
from scripts.data_handler.dataset import Dataset
from scripts.evaluation.figures import write_figures
from scripts.evaluation.html_report import write_html_report
from scripts.evaluation.metrics import Estimate, Metrics
from scripts.evaluation.run_report import COVERAGES, MAX_MATRIX_CLASSES, RunReport, reliability_frame
from scripts.evaluation.trust import Trust
from scripts.evaluation.workbook import write_workbook

__all__ = ["RunReport", "write_reports"]

STANDARD_SIDE = 28  # pixels; only another size is part of the name of a file of predictions
LOGGED = {"accuracy": "accuracy", "auc": "AUC", "macro_f1": "macro-F1"}
LOGGED |= {"quadratic_weighted_kappa": "quadratic-weighted kappa", "mean_absolute_error": "mean absolute error"}


def add_test_figures_to_card(report: RunReport) -> list[Path]:
    """Add the test figures and the temperatures to ``best_model.json``, which training wrote."""
    card = json.loads(report.paths.best_model_card.read_text(encoding="utf-8"))
    figures = {
        variant.phrase: {name: estimate.value for name, estimate in variant.metrics.estimates.items()}
        for variant in report.evaluation.variants
    }
    temperatures = _by_variant(report, lambda trust: trust.calibration.temperature)
    card |= {"test": _json_ready(figures), "calibration": temperatures}
    write_json(report.paths.best_model_card, card)
    return []


def write_all_predictions(report: RunReport) -> list[Path]:
    """Write the scores of every variant in MedMNIST's own CSV format, which its ``Evaluator`` reads, and the labels."""
    paths = []
    for variant in report.evaluation.variants:
        name = standard_file_name(report.dataset, variant.metrics, split="test", run=variant.key)
        paths.append(report.paths.reports / name)
        write_rows(paths[-1], variant.scores)
    labels = report.evaluation.labels
    write_rows(report.paths.test_labels, labels.reshape(len(labels), -1))
    return [*paths, report.paths.test_labels]


def standard_file_name(dataset: Dataset, metrics: Metrics, *, split: str, run: str) -> str:
    """Return the name that MedMNIST gives a file of predictions: data set, split, AUC, accuracy and run.

    ``_`` separates parts, and so becomes ``-`` in the key of an own set. ``run`` has letters, digits, ``-`` and ``_``.

    Reference: ``Evaluator.get_standard_evaluation_filename`` of https://github.com/MedMNIST/MedMNIST
    """
    height, width = dataset.height, dataset.width
    size = "" if height == width == STANDARD_SIDE else f"_{height}" if height == width else f"_{height}x{width}"
    flag = dataset.key.replace("_", "-")
    return f"{flag}{size}_{split}_[AUC]{metrics.auc.value:.3f}_[ACC]{metrics.accuracy.value:.3f}@{run}.csv"


def write_rows(path: Path, values: NDArray[np.float64] | NDArray[np.int64]) -> None:
    """Write one line ``index,value,value,…`` per row of ``values`` (N, C); read back they are the same numbers.

    ``StorageError`` is raised if the file cannot be written.
    """
    lines = (f"{index},{','.join(map(repr, row))}\n" for index, row in enumerate(values.tolist()))
    write_text(path, "".join(lines))


# in this order: the workbook shows the figures, and the page links to all other files
Writer = Callable[[RunReport], list[Path]]
WRITERS: tuple[Writer, ...] = (
    add_test_figures_to_card,
    write_figures,
    write_workbook,
    write_all_predictions,
    write_html_report,
)


def write_reports(report: RunReport) -> list[Path]:
    """Write every report of a run and return the files; ``summary.json`` is the last, so that it implies the others.

    Raises:
        StorageError: A file cannot be written.
    """
    # a bar on a terminal; disable=None leaves it out elsewhere
    steps = tqdm(WRITERS, desc="reports", leave=False, disable=None)
    with pd.option_context("mode.string_storage", "python"):  # pyarrow, where installed, refuses unpaired surrogates
        written = [path for write in steps for path in write(report)]
    _write_summary(report, written)
    for variant in report.evaluation.variants:
        estimates = variant.metrics.estimates
        figures = [_figure_in_words(title, estimates[name]) for name, title in LOGGED.items() if name in estimates]
        figures[0] += f" (commonest class {report.evaluation.majority_class_accuracy:.4f})"
        log.info("test, %s: %s", variant.phrase, "  ".join(figures))
    log.info("reports in %s%s", report.paths.root, f"  ({report.dataset.note})" if report.dataset.note else "")
    return [*written, report.paths.summary]


def _write_summary(report: RunReport, written: list[Path]) -> None:
    paths, config, training, evaluation = report.paths, report.config, report.training, report.evaluation
    best = training.best
    earlier = (paths.config, paths.history, paths.log, paths.best_model, paths.best_model_card, paths.last_checkpoint)
    summary = {
        "finished": report.finished.isoformat(timespec="seconds"),
        "note": report.dataset.note,
        "model_name": config.model_name,
        "dataset": report.dataset.as_dict(),
        "training": {
            "epochs": len(training.history),
            "epochs_at_most": config.epochs,
            "best_epoch": best.epoch,
            "monitor": training.monitor,
            **{f"best_{name}": getattr(best, name) for name in ("val_accuracy", "val_auc", "val_loss")},
            "stopped_early": training.stopped_early,
            "seconds": training.seconds,
        },
        "test": {
            "num_images": len(evaluation.labels),
            "headline": evaluation.variants[-1].key,
            "views": list(evaluation.views),
            "tta": None,
            **{variant.key: _metrics_facts(variant.metrics) for variant in evaluation.variants},
        },
        "calibration": _by_variant(report, _calibration_facts),
        "risk_coverage": _by_variant(report, _risk_facts),
        "majority_class_accuracy": evaluation.majority_class_accuracy,
        "duplicates": report.duplicates.as_dict(),
        "config": config.as_dict(),
        "environment": dict(report.environment),
        "files": [path.relative_to(paths.root).as_posix() for path in (*filter(Path.is_file, earlier), *written)],
    }
    write_json(paths.summary, _json_ready(summary))


def _metrics_facts(metrics: Metrics) -> dict[str, Any]:
    facts: dict[str, Any] = {name: asdict(estimate) for name, estimate in metrics.estimates.items()}
    facts |= {"num_correct": metrics.num_correct, "per_class": [asdict(of_class) for of_class in metrics.per_class]}
    if metrics.confusion.ndim == 3:
        facts["confusion_by_label"] = metrics.confusion.tolist()  # of each label [[tn, fp], [fn, tp]]
    elif len(metrics.confusion) > MAX_MATRIX_CLASSES:
        true, predicted = np.nonzero(metrics.confusion)
        cells = zip(true, predicted, metrics.confusion[true, predicted], strict=True)
        facts["confusion_cells"] = [",".join(map(str, cell)) for cell in cells]
    else:
        facts |= {"confusion": metrics.confusion.tolist(), "confusion_by_row": metrics.confusion_by_row.tolist()}
    return facts | {"notes": list(metrics.notes)}


def _by_variant(report: RunReport, facts: Callable[[Trust], Any]) -> dict[str, Any]:
    """Facts of each variant by its key; null where there is no TTA."""
    return {"plain": None, "tta": None} | {it.key: facts(it.trust) for it in report.evaluation.variants}


def _calibration_facts(trust: Trust) -> dict[str, Any]:
    found = trust.calibration
    parts = {"before": found.before, "after": found.after}
    facts = {name: {"ece": of.ece, "nll": of.nll, "brier": of.brier} for name, of in parts.items()}
    bins = {name: reliability_frame(of).to_dict("list") for name, of in parts.items()}
    return {"temperature": found.temperature, **facts, "reliability": bins}


def _risk_facts(trust: Trust) -> dict[str, Any]:
    curve = trust.risk_coverage
    return {"area": curve.area, "coverage": list(COVERAGES), "risk": curve.at(np.array(COVERAGES)).tolist()}


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


def _figure_in_words(title: str, estimate: Estimate) -> str:
    interval = f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
    return f"{title} {interval if estimate.is_defined else 'undefined'}"
