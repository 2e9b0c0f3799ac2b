"""The Excel report of a run: a summary, the tables behind the figures, the settings, and the figures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl.drawing.image import Image
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.pagebreak import Break
from openpyxl.worksheet.worksheet import Worksheet

from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.figures import figure_files
from scripts.evaluation.frames import (
    MAX_MATRIX_CLASSES,
    class_frame,
    configuration_frame,
    confusion_frames,
    environment_frame,
    headline_frame,
    history_frame,
    label_counts_frame,
    largest_confusions,
)
from scripts.evaluation.metrics import Metrics
from scripts.evaluation.run_report import RunReport
from scripts.evaluation.sheets import (
    COUNT,
    FIGURE,
    FONT,
    MARK_FILL,
    MUTED,
    RATE,
    SECONDS,
    SHARE,
    add_sheet,
    put,
    style_cell,
    workbook_writer,
    write_frame,
)

DATE, DURATION = "yyyy-mm-dd hh:mm:ss", "[h]:mm:ss"
FIGURE_WIDTH, ROW_PIXELS = 1000, 20  # pixels on the sheet, at most; height of a row
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
    """Write the Excel report atomically; the figures are already written.

    Raises:
        StorageError: The file cannot be written.
    """
    with workbook_writer(report.paths.workbook, report.caption.origin) as writer:
        _write_summary(writer, report)
        _write_history(writer, report)
        if report.dataset.task == MULTI_LABEL:
            _write_variants(writer, report, "Per label", class_frame)
            _write_variants(writer, report, "Right and wrong per label", label_counts_frame)
        else:
            _write_variants(writer, report, "Per class", class_frame)
            _write_confusion(writer, report)
        _write_configuration(writer, report)
        environment = environment_frame(report.environment)
        sheet = write_frame(writer, environment, "Environment", report.caption, widths=(28, 70))
        for name, (_, value) in zip(environment["What"], sheet.iter_rows(min_row=4), strict=False):
            style_cell(value, COUNT if name.endswith("_bytes") else None, align="left")
        _write_figures(add_sheet(writer, "Figures", report.caption), report)
    return [report.paths.workbook]


def _write_summary(writer: pd.ExcelWriter, report: RunReport) -> None:
    variants, headlines = report.evaluation.variants, headline_frame(report.evaluation)
    titles = [HEADLINES[name][0] for name in headlines.index]
    headlines.columns = pd.Index(["value", "low", "high"] * len(variants))
    headlines.insert(0, "Test split", titles)
    groups = [(f"{variant.title}, 95% interval", 2 + 3 * index, 3) for index, variant in enumerate(variants)]
    widths = (30, 20, *[13] * 5)
    sheet = write_frame(writer, headlines, "Summary", report.caption, widths=widths, groups=groups)
    for name, cells in zip(headlines.index, sheet.iter_rows(min_row=5), strict=False):
        for index, cell in enumerate(cells):
            style_cell(cell, HEADLINES[name][1])
            cell.font = Font(name=FONT, bold=index == 0 or index % 3 == 1, size=12 if index % 3 == 1 else 11)
    facts = pd.DataFrame([fact[:2] for fact in _facts(report)], dtype=object)
    first = 6 + len(headlines)
    write_frame(writer, facts, "Summary", report.caption, header=False, row=first)
    for (_, _, number_format), cells in zip(_facts(report), sheet.iter_rows(min_row=first, max_col=2), strict=True):
        cells[0].font = Font(name=FONT, color=MUTED)
        style_cell(cells[1], number_format, align="left", wrap=False)


def _facts(report: RunReport) -> Iterator[tuple[str, Any, str | None]]:
    dataset, training, evaluation, config = report.dataset, report.training, report.evaluation, report.config
    right, classes = ("Right in every label", "Labels") if dataset.task == MULTI_LABEL else ("Right", "Classes")
    yield "Test images", len(evaluation.labels), COUNT
    for variant in evaluation.variants:
        yield f"{right} {variant.phrase}", variant.metrics.num_correct, COUNT
    yield "Views of TTA", ", ".join(evaluation.views) or "none: test-time augmentation was off", None
    for note in evaluation.headline.notes:
        yield "Note", note, None
    yield "Best epoch", training.best_epoch, COUNT
    yield "Selected by", f"validation {training.monitor}", None
    yield "Best validation accuracy", training.best_val_accuracy, SHARE
    yield "Validation AUC of that epoch", training.best_val_auc, FIGURE
    yield "Validation loss of that epoch", training.best_val_loss, FIGURE
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
    yield "MD5 of the data", dataset.md5, None
    yield "Source of the data", dataset.source, None


def _write_history(writer: pd.ExcelWriter, report: RunReport) -> None:
    titles, formats = ([column[part] for column in HISTORY.values()] for part in (0, 1))
    history = history_frame(report.training)[list(HISTORY)].set_axis(titles, axis=1)
    widths = (10, *[19] * (len(titles) - 1))
    sheet = write_frame(writer, history, "History", report.caption, formats=formats, widths=widths)
    for cell in sheet[3 + int(history.index[history["Epoch"] == report.training.best_epoch][0]) + 1]:
        cell.font, cell.fill = Font(name=FONT, bold=True), MARK_FILL


def _write_variants(writer: pd.ExcelWriter, report: RunReport, title: str, table: Any) -> None:
    """Write a table of classes or labels for each variant side by side, after names and numbers of images."""
    kind = "Label" if report.dataset.task == MULTI_LABEL else "Class"
    of_class = class_frame(report.evaluation.plain)
    parts = [of_class[["name", "support"]].set_axis([kind, "Test images"], axis=1)]
    for variant in report.evaluation.variants:
        part = table(variant.metrics)
        if table is class_frame:
            part = part[["precision", "recall", "f1", "auc"]].set_axis(["Precision", "Recall", "F1", "AUC"], axis=1)
        parts.append(part)
    number_format = FIGURE if table is class_frame else COUNT
    write_frame(
        writer,
        pd.concat(parts, axis=1),
        title,
        report.caption,
        formats=[None, COUNT, *[number_format] * 8],
        widths=(NAME_WIDTH, 12, *[12] * 8),
        groups=[(variant.title, 3 + 4 * index, 4) for index, variant in enumerate(report.evaluation.variants)],
    )


def _write_confusion(writer: pd.ExcelWriter, report: RunReport) -> None:
    metrics, title = report.evaluation.headline, "Confusion matrix"
    if len(metrics.per_class) > MAX_MATRIX_CLASSES:
        _write_largest_confusions(writer, report, metrics, title)
        return
    counts, shares = confusion_frames(metrics)
    size = len(counts)
    named = counts.reset_index(names="True class")
    groups = [("Images; columns: predicted class", 2, size), ("Share of the true class", size + 3, size)]
    look: dict[str, Any] = {"caption": report.caption, "row": 4}
    widths = (NAME_WIDTH, *[12] * size, 4, *[12] * size)
    sheet = write_frame(writer, shares, title, column=size + 3, formats=[SHARE] * size, **look)
    write_frame(writer, named, title, formats=[None, *[COUNT] * size], widths=widths, groups=groups, **look)
    sheet.row_dimensions[4].height = 15 * min(8, 1 + max(len(str(name)) for name in counts) // 9)
    for first, largest in ((2, int(metrics.confusion.max())), (size + 3, 1)):
        cells = f"{get_column_letter(first)}5:{get_column_letter(first + size - 1)}{size + 4}"
        # errors of a few per cent are of interest
        values = {"start_value": 0, "mid_value": largest * 0.1, "end_value": largest}
        colours = {"start_color": "FFFFFFFF", "mid_color": "FFD3E4F3", "end_color": "FF5B9BD5"}
        types = {f"{part}_type": "num" for part in ("start", "mid", "end")}
        sheet.conditional_formatting.add(cells, ColorScaleRule(**types, **values, **colours))


def _write_largest_confusions(writer: pd.ExcelWriter, report: RunReport, metrics: Metrics, title: str) -> None:
    names = [of_class.name for of_class in metrics.per_class]
    confusions = largest_confusions(metrics, MAX_LISTED_CONFUSIONS)
    for column in ("true", "predicted"):
        confusions[column] = [names[index] for index in confusions[column]]
    confusions.columns = pd.Index(["True class", "Predicted class", "Images", "Share of the true class"])
    text = f"The {len(confusions):,} largest confusions of {len(names):,} classes; a matrix would be too large"
    formats, widths = (None, None, COUNT, SHARE), (NAME_WIDTH, NAME_WIDTH, 12, 24)
    write_frame(writer, confusions, title, report.caption, formats=formats, widths=widths, groups=[(text, 1, 4)])


def _write_configuration(writer: pd.ExcelWriter, report: RunReport) -> None:
    configuration = configuration_frame(report.config)
    sheet = write_frame(writer, configuration, "Configuration", report.caption, widths=(22, 34, 26, 16, 90))
    is_changed = configuration["Applied value"] != configuration["Default"]
    for changed, (flag, value, default, *_) in zip(is_changed, sheet.iter_rows(min_row=4), strict=True):
        flag.font, default.font = Font(name=FONT, bold=True), Font(name=FONT, color=MUTED)
        for cell in (value, default):
            style_cell(cell, None, align="left")
        if changed:
            value.fill = MARK_FILL


def _write_figures(sheet: Worksheet, report: RunReport) -> None:
    sheet.page_setup.orientation = "portrait"
    row = 4
    for title, path in figure_files(report).items():
        if row > 4:  # printed, a figure is not cut in two
            sheet.row_breaks.append(Break(id=row - 1))
        put(sheet, row, 1, title, bold=True, size=12)
        image = Image(io.BytesIO(path.read_bytes()))
        width = min(image.width, FIGURE_WIDTH)
        image.height = round(image.height * width / image.width)
        image.width = width
        sheet.add_image(image, f"A{row + 1}")
        row += image.height // ROW_PIXELS + 4
