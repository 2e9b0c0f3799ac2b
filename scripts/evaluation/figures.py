"""The figures of a run: which there are, and their files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from scripts.core.log import log
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation import style
from scripts.evaluation.image_grids import draw_dataset_samples, draw_predictions
from scripts.evaluation.label_plots import draw_label_curves, draw_label_figures
from scripts.evaluation.plots import draw_confusion_matrix, draw_training_curves
from scripts.evaluation.run_report import RunReport
from scripts.evaluation.trust_plots import draw_reliability, draw_risk_coverage


def _drawings(report: RunReport) -> dict[str, Callable[[], Figure]]:
    """A function that draws each figure, by the figure's title."""
    evaluation, train, caption, names = report.evaluation, report.train, report.caption, report.dataset.class_names
    results: dict[str, Callable[[], Figure]] = {
        "ROC curves": partial(draw_label_curves, evaluation, caption),
        "Label figures": partial(draw_label_figures, evaluation, caption),
    }
    if report.dataset.task != MULTI_LABEL:
        results = {"Confusion matrix": partial(draw_confusion_matrix, evaluation.variants[-1], caption)}
    return {
        "Training curves": partial(draw_training_curves, report.training, caption),
        **results,
        "Reliability": partial(draw_reliability, evaluation, report.dataset.task, caption),
        "Risk and coverage": partial(draw_risk_coverage, evaluation, report.dataset.task, caption),
        "Sample predictions": partial(draw_predictions, report.test.images, evaluation, names, caption),
        "Dataset samples": partial(draw_dataset_samples, train.images, train.labels, names, caption),
    }


def figure_files(report: RunReport) -> dict[str, Path]:
    """The file of each figure, by the figure's title."""
    return {title: report.paths.figures / f"{title.lower().replace(' ', '_')}.png" for title in _drawings(report)}


def write_figures(report: RunReport) -> list[Path]:
    """Draw and write every figure; raise ``StorageError`` if a file cannot be written."""
    files = figure_files(report)
    for title, draw in _drawings(report).items():
        style.save_figure(draw(), files[title])
    texts = map(style.one_line, (*report.dataset.class_names, report.caption.origin, report.caption.note or ""))
    if lacking := [text for text in texts if style.missing_characters(text)]:
        log.warning(
            "No installed font has all characters of %s%s: figures show numbers or escape sequences instead. The "
            "workbook has the full text. Install a font that has them, such as Noto Sans.",
            ", ".join(lacking[:5]),
            f" and {len(lacking) - 5} more" if len(lacking) > 5 else "",
        )
    return [*files.values()]
