"""The Excel report of a run: a summary, the tables behind the figures, the settings, and the figures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from openpyxl.drawing.image import Image
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.pagebreak import Break
from openpyxl.worksheet.worksheet import Worksheet

from scripts.core.config import SETTINGS
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation import sheets
from scripts.evaluation.calibration import temperature_note
from scripts.evaluation.figures import figure_files
from scripts.evaluation.metrics import Metrics
from scripts.evaluation.run_report import (
    COVERAGES,
    MAX_MATRIX_CLASSES,
    RunReport,
    class_frame,
    history_frame,
    largest_confusions,
    reliability_frame,
)
from scripts.evaluation.sheets import COUNT, FIGURE, RATE, SECONDS, SHARE, put, style_cell, write_frame

DATE, DURATION = "yyyy-mm-dd hh:mm:ss", "[h]:mm:ss"
FIGURE_WIDTH, FIGURE_HEIGHT, ROW_PIXELS = 1000, 1300, 20  # pixels on the sheet, at most; height of a row
NAME_WIDTH = 40  # of a class's name, in characters
MAX_LISTED_CONFUSIONS = 1000

HEADLINES = {
    "accuracy": ("Accuracy", SHARE),
    "auc": ("AUC", FIGURE),
    "macro_f1": ("Macro-F1", FIGURE),
    "balanced_accuracy": ("Balanced accuracy", SHARE),
    "quadratic_weighted_kappa": ("Quadratic-weighted kappa", FIGURE),
    "mean_absolute_error": ("Mean absolute error, classes", FIGURE),
}
PROBABILITY = {"ece": "Expected calibration error", "nll": "Negative log-likelihood", "brier": "Brier score"}
BINS = {"count": "Decisions", "confidence": "Confidence", "accuracy": "Accuracy"}
HISTORY = {
    "epoch": ("Epoch", COUNT),
    "train_loss": ("Training loss", FIGURE),
    "val_loss": ("Validation loss", FIGURE),
    "val_accuracy": ("Validation accuracy", SHARE),
    "val_auc": ("Validation AUC", FIGURE),
    "learning_rate": ("Learning rate", RATE),
    "images_per_second": ("Images per second", COUNT),
    "seconds": ("Seconds", SECONDS),
    "is_best": ("Best so far", None),
}


def write_workbook(report: RunReport) -> list[Path]:
    """Write the Excel report atomically after the figures; raise ``StorageError`` if it cannot be written."""
    with sheets.workbook_writer(report.paths.workbook, report.caption.origin) as writer:
        _write_summary(writer, report)
        _write_history(writer, report)
        if report.dataset.task == MULTI_LABEL:
            _write_variants(writer, report, "Per label", _class_figures, FIGURE)
            _write_variants(writer, report, "Right and wrong per label", _label_counts, COUNT)
        else:
            _write_variants(writer, report, "Per class", _class_figures, FIGURE)
            _write_confusion(writer, report)
        _write_trust(writer, report)
        _write_configuration(writer, report)
        environment = pd.DataFrame(_flat(report.environment), columns=["What", "Value"], dtype=object)
        sheet = write_frame(writer, environment, "Environment", report.caption, widths=(28, 70))
        for name, (_, value) in zip(environment["What"], sheet.iter_rows(min_row=4), strict=False):
            style_cell(value, COUNT if name.endswith("_bytes") else None, align="left")
        _write_figures(sheets.add_sheet(writer, "Figures", report.caption), report)
    return [report.paths.workbook]


def _write_summary(writer: pd.ExcelWriter, report: RunReport) -> None:
    variants, names = report.evaluation.variants, list(report.evaluation.headline.estimates)
    rows = [
        [HEADLINES[name][0], *(number for variant in variants for number in astuple(variant.metrics.estimates[name]))]
        for name in names
    ]
    headlines = pd.DataFrame(rows, columns=["Test split", *["value", "low", "high"] * len(variants)])
    groups = [(f"{variant.title}, 95% interval", 2 + 3 * index, 3) for index, variant in enumerate(variants)]
    widths = (30, 20, *[13] * 5)
    sheet = write_frame(writer, headlines, "Summary", report.caption, widths=widths, groups=groups)
    for name, cells in zip(names, sheet.iter_rows(min_row=5), strict=True):
        for index, cell in enumerate(cells):
            style_cell(cell, HEADLINES[name][1])
            cell.font = Font(name=sheets.FONT, bold=index == 0 or index % 3 == 1, size=12 if index % 3 == 1 else 11)
    for row, (title, value, number_format) in enumerate(_facts(report), start=6 + len(names)):
        put(sheet, row, 1, title, color=sheets.MUTED)
        put(sheet, row, 2, sheets.UNDEFINED if pd.isna(value) else value, number_format, align="left")


def _facts(report: RunReport) -> Iterator[tuple[str, Any, str | None]]:
    dataset, training, evaluation, config = report.dataset, report.training, report.evaluation, report.config
    right, classes = ("Right in every label", "Labels") if dataset.task == MULTI_LABEL else ("Right", "Classes")
    yield "Test images", len(evaluation.labels), COUNT
    for variant in evaluation.variants:
        yield f"{right} {variant.phrase}", variant.metrics.num_correct, COUNT
    yield "Accuracy of the commonest class", evaluation.majority_class_accuracy, SHARE
    yield "Views of TTA", ", ".join(evaluation.views) or "none: test-time augmentation was off", None
    for note in evaluation.headline.notes:
        yield "Note", note, None
    for variant in evaluation.variants:
        if note := temperature_note(variant.trust.calibration.temperature):
            yield "Note", f"The temperature {variant.phrase} is {note}.", None
    yield "Best epoch", training.best.epoch, COUNT
    yield "Selected by", f"validation {training.monitor}", None
    yield "Best validation accuracy", training.best.val_accuracy, SHARE
    yield "Validation AUC of that epoch", training.best.val_auc, FIGURE
    yield "Validation loss of that epoch", training.best.val_loss, FIGURE
    yield "Epochs trained", len(training.history), COUNT
    yield "Epochs at most", config.epochs, COUNT
    yield "Stopped early", training.stopped_early, None
    yield "Training time", timedelta(seconds=round(training.seconds)), DURATION
    yield "Finished", report.finished, DATE
    yield "Seed", config.seed, "0"
    yield "Data set", dataset.title, None
    yield "Task", dataset.task, None
    yield classes, len(dataset.class_names), COUNT
    colours = "grey" if dataset.channels == 1 else "RGB"
    yield "Image size, width × height", f"{dataset.width} × {dataset.height}, {colours}", None
    for split, title in (("train", "Training images"), ("val", "Validation images")):
        yield title, dataset.num_samples[split], COUNT
    yield "Duplicates", str(report.duplicates), None
    yield "MD5 of the data", dataset.md5, None
    yield "Source of the data", dataset.source, None


def _write_history(writer: pd.ExcelWriter, report: RunReport) -> None:
    titles, formats = zip(*HISTORY.values(), strict=True)
    history = history_frame(report.training)[list(HISTORY)].set_axis(titles, axis=1)
    widths = (10, *[19] * (len(titles) - 1))
    sheet = write_frame(writer, history, "History", report.caption, formats=formats, widths=widths)
    for cell in sheet[3 + report.training.best.epoch]:
        cell.font, cell.fill = Font(name=sheets.FONT, bold=True), sheets.MARK_FILL


def _class_figures(metrics: Metrics) -> pd.DataFrame:
    columns = {"precision": "Precision", "recall": "Recall", "f1": "F1", "auc": "AUC"}
    return class_frame(metrics)[list(columns)].rename(columns=columns)


def _label_counts(metrics: Metrics) -> pd.DataFrame:
    """One row per label of a multi-label task: how many test images it is right and wrong for."""
    absent, false, missed, found = metrics.confusion.reshape(-1, 4).T
    positives = {"True positives": found, "False positives": false}
    return pd.DataFrame(positives | {"False negatives": missed, "True negatives": absent})


def _write_variants(
    writer: pd.ExcelWriter, report: RunReport, title: str, table: Callable[[Metrics], pd.DataFrame], number_format: str
) -> None:
    """Write a table of classes or labels for each variant side by side, after names and numbers of images."""
    kind, variants = "Label" if report.dataset.task == MULTI_LABEL else "Class", report.evaluation.variants
    of_class = class_frame(report.evaluation.plain)[["name", "support"]].set_axis([kind, "Test images"], axis=1)
    frame = pd.concat([of_class, *(table(variant.metrics) for variant in variants)], axis=1)
    formats, widths = (None, COUNT, *[number_format] * 8), (NAME_WIDTH, 12, *[12] * 8)
    groups = [(variant.title, 3 + 4 * index, 4) for index, variant in enumerate(variants)]
    write_frame(writer, frame, title, report.caption, formats=formats, widths=widths, groups=groups)


def _write_confusion(writer: pd.ExcelWriter, report: RunReport) -> None:
    """Write the matrix in counts and as shares of the true class side by side; of very many classes a list."""
    metrics, title = report.evaluation.headline, "Confusion matrix"
    names = [of_class.name for of_class in metrics.per_class]
    size = len(names)
    if size > MAX_MATRIX_CLASSES:
        largest = largest_confusions(metrics, MAX_LISTED_CONFUSIONS)
        for column in ("true", "predicted"):
            largest[column] = [names[index] for index in largest[column]]
        largest.columns = pd.Index(["True class", "Predicted class", "Images", "Share of the true class"])
        text = f"The {len(largest):,} largest confusions of {size:,} classes; a matrix would be too large"
        look: dict[str, Any] = {"formats": (None, None, COUNT, SHARE), "widths": (NAME_WIDTH, NAME_WIDTH, 12, 24)}
        write_frame(writer, largest, title, report.caption, groups=[(text, 1, 4)], **look)
        return
    wide = min(24, max(12, 2 + max(len(word) for name in names for word in name.split() or [""])))
    counts, shares = (pd.DataFrame(cells, columns=names) for cells in (metrics.confusion, metrics.confusion_by_row))
    frame = pd.concat([pd.DataFrame({"True class": names}), counts, pd.DataFrame({"": [""] * size}), shares], axis=1)
    formats, widths = (None, *[COUNT] * size, None, *[SHARE] * size), (NAME_WIDTH, *[wide] * size, 4, *[wide] * size)
    groups = [("Images; columns: predicted class", 2, size), ("Share of the true class", size + 3, size)]
    sheet = write_frame(writer, frame, title, report.caption, formats=formats, widths=widths, groups=groups)
    sheet.row_dimensions[4].height = 15 * min(8, 1 + max(map(len, names)) // 9)
    for first, highest in ((2, int(metrics.confusion.max())), (size + 3, 1)):
        cells = f"{get_column_letter(first)}5:{get_column_letter(first + size - 1)}{size + 4}"
        # errors of a few per cent are of interest
        values = {"start_value": 0, "mid_value": highest * 0.1, "end_value": highest}
        colours = {"start_color": "FFFFFFFF", "mid_color": "FFD3E4F3", "end_color": "FF5B9BD5"}
        types = {f"{part}_type": "num" for part in ("start", "mid", "end")}
        sheet.conditional_formatting.add(cells, ColorScaleRule(**types, **values, **colours))


def _write_trust(writer: pd.ExcelWriter, report: RunReport) -> None:
    """Write what the probabilities are worth before and after the temperature, and risk against coverage."""
    variants = report.evaluation.variants
    columns: list[list[Any]] = [["Temperature", *PROBABILITY.values(), "Area under risk and coverage"]]
    risks = pd.DataFrame({"Coverage": COVERAGES})
    for variant in variants:
        found, curve = variant.trust.calibration, variant.trust.risk_coverage
        for metrics, temperature, area in ((found.before, 1.0, curve.area), (found.after, found.temperature, None)):
            columns.append([temperature, *(getattr(metrics, name) for name in PROBABILITY), area])
        risks[f"Risk {variant.phrase}"] = curve.at(np.array(COVERAGES))
    frame = pd.DataFrame(zip(*columns, strict=True), columns=["Test split", *["before", "after"] * len(variants)])
    groups = [(f"{variant.title}, temperature", 2 + 2 * index, 2) for index, variant in enumerate(variants)]
    look: dict[str, Any] = {"formats": (None, *[FIGURE] * 4), "widths": (30, *[14] * 4)}
    write_frame(writer, frame, "Trust", report.caption, groups=groups, **look)
    _write_reliability(writer, report)
    write_frame(writer, risks, "Risk and coverage", report.caption, formats=[SHARE] * 3, widths=(14, 20, 20))


def _write_reliability(writer: pd.ExcelWriter, report: RunReport) -> None:
    """Write the bins of confidence before and after the temperature side by side."""
    bins, groups = [], []
    for variant in report.evaluation.variants:
        found = variant.trust.calibration
        for state, metrics in (("before", found.before), ("after", found.after)):
            bins.append(reliability_frame(metrics))
            groups.append((f"{variant.title}, {state} the temperature", 3 * len(bins), 3))
    edges = bins[0][["above", "up_to"]].set_axis(["Confidence above", "up to"], axis=1)
    frame = pd.concat([edges, *(of_state[list(BINS)].set_axis([*BINS.values()], axis=1) for of_state in bins)], axis=1)
    look: dict[str, Any] = {"formats": (SHARE, SHARE, *[COUNT, SHARE, SHARE] * 4), "widths": (18, *[12] * 13)}
    write_frame(writer, frame, "Reliability", report.caption, groups=groups, **look)


def _write_configuration(writer: pd.ExcelWriter, report: RunReport) -> None:
    rows = []
    for name, value in report.config.as_dict().items():
        known = SETTINGS[name]
        default = str(known.default) if isinstance(known.default, Path) else known.default
        rows.append((known.flag, value, default, known.metadata["group"], known.metadata["help"]))
    columns = ["Setting", "Applied value", "Default", "Group", "Meaning"]
    configuration = pd.DataFrame(rows, columns=columns, dtype=object)
    sheet = write_frame(writer, configuration, "Configuration", report.caption, widths=(22, 34, 26, 16, 90))
    for (_, applied, usual, *_), (flag, value, default, *_) in zip(rows, sheet.iter_rows(min_row=4), strict=True):
        flag.font, default.font = Font(name=sheets.FONT, bold=True), Font(name=sheets.FONT, color=sheets.MUTED)
        for cell in (value, default):
            style_cell(cell, None, align="left")
        if applied != usual:
            value.fill = sheets.MARK_FILL


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values; the names of nested values are joined by " / "."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value


def _write_figures(sheet: Worksheet, report: RunReport) -> None:
    sheet.page_setup.orientation = "portrait"
    row = 4
    for title, path in figure_files(report).items():
        if row > 4:  # printed, a figure is not cut in two
            sheet.row_breaks.append(Break(id=row - 1))
        put(sheet, row, 1, title, bold=True, size=12)
        image = Image(io.BytesIO(path.read_bytes()))
        scale = min(1, FIGURE_WIDTH / image.width, FIGURE_HEIGHT / image.height)
        image.width, image.height = round(image.width * scale), round(image.height * scale)
        sheet.add_image(image, f"A{row + 1}")
        row += image.height // ROW_PIXELS + 4
