"""The Excel report: numbers that are numbers, text that is never a formula."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from openpyxl import Workbook
from openpyxl.drawing.image import Image
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.styles import Alignment, Font, PatternFill
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.pagebreak import Break
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from scripts.core.config import SETTINGS, Config
from scripts.core.errors import storage_errors
from scripts.core.files import write_bytes
from scripts.core.records import TrainingResult
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.metrics import ClassMetrics, EvaluationResult, Metrics
from scripts.evaluation.page import Caption

SHARE, FIGURE, COUNT, SECONDS = "0.00%", "0.0000", "#,##0", "#,##0.0"
RATE, DATE, DURATION = "0.00E+00", "yyyy-mm-dd hh:mm:ss", "[h]:mm:ss"
BOOLEAN = '"TRUE";"TRUE";"FALSE"'  # Excel shows a boolean so anyway; LibreOffice may show 1 and 0
INK, MUTED, ORANGE = "FF1F2933", "FF5F6B7A", "FFC8500A"
HEADER_FILL = PatternFill("solid", fgColor="FFE3ECF5")
BEST_FILL = PatternFill("solid", fgColor="FFFFE8B8")
FONT = "Calibri"
UNDEFINED = "–"
FIGURE_WIDTH = 1000  # pixels on the sheet, at most
ROW_PIXELS, ROW_POINTS = 20, 15  # of a row of the usual height
NAME_WIDTH, MAX_NAME_LINES = 40, 8  # of a class's name, in characters and lines

HEADLINES = {
    "accuracy": ("Accuracy", SHARE),
    "auc": ("AUC", FIGURE),
    "macro_f1": ("Macro-F1", FIGURE),
    "balanced_accuracy": ("Balanced accuracy", SHARE),
    "quadratic_weighted_kappa": ("Quadratic-weighted kappa", FIGURE),
    "mean_absolute_error": ("Mean absolute error, classes", FIGURE),
}


def write_workbook(
    path: Path,
    *,
    caption: Caption,
    config: Config,
    dataset: Dataset,
    training: TrainingResult,
    evaluation: EvaluationResult,
    environment: Mapping[str, Any],
    figures: Mapping[str, Path],
    finished: datetime,
) -> None:
    """Write the Excel report, whole or not at all.

    Args:
        path: Where it goes.
        caption: What stands on top of every sheet.
        config: The settings as applied.
        dataset: What was trained on.
        training: The epochs.
        evaluation: The figures of the test split.
        environment: Versions and hardware; values, or mappings of values.
        figures: A title for each picture, and its PNG file.
        finished: When the run ended, in local time.

    Raises:
        StorageError: The file cannot be written.
    """
    book = new_workbook(caption.origin)
    _write_summary(add_sheet(book, "Summary", caption), config, dataset, training, evaluation, finished)
    _write_history(add_sheet(book, "History", caption), training)
    if dataset.task == MULTI_LABEL:
        _write_per_class(add_sheet(book, "Per label", caption), evaluation, "Label")
        _write_label_counts(add_sheet(book, "Right and wrong per label", caption), evaluation)
    else:
        _write_per_class(add_sheet(book, "Per class", caption), evaluation, "Class")
        _write_confusion(add_sheet(book, "Confusion matrix", caption), evaluation.headline)
    _write_configuration(add_sheet(book, "Configuration", caption), config)
    _write_environment(add_sheet(book, "Environment", caption), environment)
    _write_figures(add_sheet(book, "Figures", caption), figures)
    save_workbook(book, path)


def new_workbook(title: str) -> Workbook:
    """A workbook without sheets."""
    book = Workbook()
    book.remove(book.worksheets[0])
    book.properties.title = clean_text(title)
    return book


def save_workbook(book: Workbook, path: Path) -> None:
    """Write a workbook, whole or not at all.

    Raises:
        StorageError: The file cannot be written.
    """
    content = io.BytesIO()
    # openpyxl writes every sheet to a temporary file of its own first
    with storage_errors(Path(tempfile.gettempdir()), "write a sheet of the workbook"):
        book.save(content)
    write_bytes(path, content.getvalue())


def clean_text(text: str) -> str:
    """``text`` with a replacement character wherever XML, and so Excel, allows none."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def add_sheet(book: Workbook, title: str, caption: Caption) -> Worksheet:
    """A new sheet with the caption on top, in the first two rows."""
    sheet: Worksheet = book.create_sheet(title)
    put(sheet, 1, 1, caption.origin, bold=True, size=14)
    if caption.note:
        put(sheet, 2, 1, caption.note, bold=True, colour=ORANGE)
    sheet.sheet_view.showGridLines = False
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.fitToHeight = 0
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    return sheet


def _write_summary(
    sheet: Worksheet,
    config: Config,
    dataset: Dataset,
    training: TrainingResult,
    evaluation: EvaluationResult,
    finished: datetime,
) -> None:
    set_widths(sheet, 30, 20, *[13] * 5)
    variants = _variants(evaluation)
    _spanning_header(sheet, 3, 2, [f"{name}, 95% interval" for name in variants], 3)
    put_header(sheet, 4, ["Test split", *["value", "low", "high"] * len(variants)])
    headlines = list(evaluation.headline.estimates)
    for row, name in enumerate(headlines, start=5):
        title, number_format = HEADLINES[name]
        put(sheet, row, 1, title, bold=True)
        for index, metrics in enumerate(variants.values()):
            estimate = metrics.estimates[name]
            for column, value in enumerate((estimate.value, estimate.low, estimate.high), start=2 + 3 * index):
                put(sheet, row, column, value, number_format, bold=column % 3 == 2, size=12 if column % 3 == 2 else 11)
    facts = _facts(config, dataset, training, evaluation, finished)
    for row, (title, value, fact_format) in enumerate(facts, start=6 + len(headlines)):
        put(sheet, row, 1, title, colour=MUTED)
        put(sheet, row, 2, value, fact_format, align="left")


def _facts(
    config: Config, dataset: Dataset, training: TrainingResult, evaluation: EvaluationResult, finished: datetime
) -> Iterator[tuple[str, Any, str | None]]:
    right, classes = ("Right in every label", "Labels") if dataset.task == MULTI_LABEL else ("Right", "Classes")
    yield "Test images", len(evaluation.labels), COUNT
    for name, metrics in _variants(evaluation).items():
        yield f"{right} {name[0].lower()}{name[1:]}", metrics.num_correct, COUNT
    yield "Views of TTA", ", ".join(evaluation.views) or "none: test-time augmentation was off", None
    for note in evaluation.headline.notes:
        yield "Note", note, None
    yield "Best epoch", training.best_epoch, COUNT
    yield "Best validation accuracy", training.best_val_accuracy, SHARE
    yield "Validation loss of that epoch", training.best_val_loss, FIGURE
    yield "Epochs trained", len(training.history), COUNT
    yield "Epochs at most", config.epochs, COUNT
    yield "Stopped early", training.stopped_early, None
    yield "Training time", timedelta(seconds=round(training.seconds)), DURATION
    yield "Finished", finished, DATE
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


def _write_history(sheet: Worksheet, training: TrainingResult) -> None:
    columns = (
        ("Epoch", "epoch", COUNT),
        ("Training loss", "train_loss", FIGURE),
        ("Validation loss", "val_loss", FIGURE),
        ("Validation accuracy", "val_accuracy", SHARE),
        ("Learning rate", "learning_rate", RATE),
        ("Images per second", "images_per_second", COUNT),
        ("Seconds", "seconds", SECONDS),
        ("Best so far", "is_best", None),
    )
    set_widths(sheet, 10, *[19] * 7)
    put_header(sheet, 3, [title for title, _, _ in columns])
    for row, record in enumerate(training.history, start=4):
        is_best = record.epoch == training.best_epoch
        for column, (_, name, number_format) in enumerate(columns, start=1):
            put(
                sheet,
                row,
                column,
                getattr(record, name),
                number_format,
                bold=is_best,
                fill=BEST_FILL if is_best else None,
            )


def _write_per_class(sheet: Worksheet, evaluation: EvaluationResult, kind: str) -> None:
    variants = _variants(evaluation)
    figures = ("Precision", "Recall", "F1", "AUC")
    set_widths(sheet, NAME_WIDTH, 12, *[11] * 8)
    _spanning_header(sheet, 3, 3, list(variants), len(figures))
    put_header(sheet, 4, [kind, "Test images", *figures * len(variants)])
    for row, first in enumerate(evaluation.plain.per_class, start=5):
        _put_name(sheet, row, first.name)
        put(sheet, row, 2, first.support, COUNT)
        for index, metrics in enumerate(variants.values()):
            of_class: ClassMetrics = metrics.per_class[row - 5]
            values = (of_class.precision, of_class.recall, of_class.f1, of_class.auc)
            for column, value in enumerate(values, start=3 + len(figures) * index):
                put(sheet, row, column, value, FIGURE)


def _write_label_counts(sheet: Worksheet, evaluation: EvaluationResult) -> None:
    """How many test images each label was rightly and wrongly said and not said of."""
    variants = _variants(evaluation)
    titles = ("True positives", "False positives", "False negatives", "True negatives")
    set_widths(sheet, NAME_WIDTH, 12, *[12] * len(titles) * 2)
    _spanning_header(sheet, 3, 3, list(variants), len(titles))
    put_header(sheet, 4, ["Label", "Test images", *titles * len(variants)])
    sheet.row_dimensions[4].height = 2 * ROW_POINTS
    for row, first in enumerate(evaluation.plain.per_class, start=5):
        _put_name(sheet, row, first.name)
        put(sheet, row, 2, first.support, COUNT)
        for index, metrics in enumerate(variants.values()):
            (right_absent, false_alarms), (missed, found) = metrics.confusion[row - 5].tolist()
            counts = found, false_alarms, missed, right_absent
            for column, count in enumerate(counts, start=3 + len(titles) * index):
                put(sheet, row, column, count, COUNT)


def _write_confusion(sheet: Worksheet, metrics: Metrics) -> None:
    names = [of_class.name for of_class in metrics.per_class]
    size = len(names)
    set_widths(sheet, NAME_WIDTH, *[12] * size, 4, *[12] * size)
    _spanning_header(sheet, 3, 2, ["Images; columns: predicted class"], size)
    _spanning_header(sheet, 3, size + 3, ["Share of the true class"], size)
    put_header(sheet, 4, ["True class", *names, None, *names])
    sheet.row_dimensions[4].height = _height(max(map(len, names)), 9)
    shares = metrics.confusion_by_row
    for row, name in enumerate(names):
        _put_name(sheet, row + 5, name)
        for column in range(size):
            put(sheet, row + 5, column + 2, int(metrics.confusion[row, column]), COUNT)
            put(sheet, row + 5, column + size + 3, float(shares[row, column]), SHARE)
    for first_column, largest in ((2, int(metrics.confusion.max())), (size + 3, 1)):
        cells = f"{get_column_letter(first_column)}5:{get_column_letter(first_column + size - 1)}{size + 4}"
        scale = ColorScaleRule(
            start_type="num",
            start_value=0,
            start_color="FFFFFFFF",
            mid_type="num",
            mid_value=largest * 0.1,  # errors of a few per cent are what one looks for
            mid_color="FFD3E4F3",
            end_type="num",
            end_value=largest,
            end_color="FF5B9BD5",
        )
        sheet.conditional_formatting.add(cells, scale)


def _write_configuration(sheet: Worksheet, config: Config) -> None:
    set_widths(sheet, 22, 34, 26, 16, 90)
    put_header(sheet, 3, ["Setting", "Applied value", "Default", "Group", "Meaning"], align="left")
    for row, (name, value) in enumerate(config.as_dict().items(), start=4):
        known = SETTINGS[name]
        default = str(known.default) if isinstance(known.default, Path) else known.default
        is_changed = value != default
        put(sheet, row, 1, known.flag, bold=True)
        put(sheet, row, 2, value, align="left", fill=BEST_FILL if is_changed else None, wrap=True)
        put(sheet, row, 3, default, align="left", colour=MUTED, wrap=True)
        put(sheet, row, 4, known.metadata["group"], colour=MUTED)
        put(sheet, row, 5, known.metadata["help"], wrap=True)


def _write_environment(sheet: Worksheet, environment: Mapping[str, Any]) -> None:
    set_widths(sheet, 28, 70)
    put_header(sheet, 3, ["What", "Value"], align="left")
    for row, (name, value) in enumerate(_flat(environment), start=4):
        put(sheet, row, 1, name, bold=True)
        put(sheet, row, 2, value, COUNT if name.endswith("_bytes") else None, align="left", wrap=True)


def _write_figures(sheet: Worksheet, figures: Mapping[str, Path]) -> None:
    sheet.page_setup.orientation = "portrait"
    row = 4
    for title, path in figures.items():
        if row > 4:  # printed, a picture is not cut in two
            sheet.row_breaks.append(Break(id=row - 1))
        put(sheet, row, 1, title, bold=True, size=12)
        picture = Image(io.BytesIO(path.read_bytes()))
        width = min(picture.width, FIGURE_WIDTH)
        picture.height = round(picture.height * width / picture.width)
        picture.width = width
        sheet.add_image(picture, f"A{row + 1}")
        row += picture.height // ROW_PIXELS + 4


def _variants(evaluation: EvaluationResult) -> dict[str, Metrics]:
    variants = {"Without TTA": evaluation.plain}
    if evaluation.tta is not None:
        variants["With TTA"] = evaluation.tta
    return variants


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value


def set_widths(sheet: Worksheet, *widths: float) -> None:
    """Set the widths of the first columns, in characters."""
    for column, width in enumerate(widths, start=1):
        sheet.column_dimensions[get_column_letter(column)].width = width


def put_header(sheet: Worksheet, row: int, titles: Sequence[str | None], *, align: str = "center") -> None:
    """Bold titles that stay in sight, and the first column with them."""
    for column, title in enumerate(titles, start=1):
        if title is not None:
            look = "left" if column == 1 else align
            put(sheet, row, column, title, bold=True, fill=HEADER_FILL, wrap=True, align=look)
    sheet.freeze_panes = f"B{row + 1}"
    sheet.print_title_rows = f"{row}:{row}"


def _spanning_header(sheet: Worksheet, row: int, column: int, titles: Sequence[str], span: int) -> None:
    for index, title in enumerate(titles):
        first = column + index * span
        put(sheet, row, first, title, bold=True, fill=HEADER_FILL, align="center")
        if span > 1:
            sheet.merge_cells(start_row=row, end_row=row, start_column=first, end_column=first + span - 1)


def _put_name(sheet: Worksheet, row: int, name: str) -> None:
    """Write a class's name in the first column, in as many lines as it takes."""
    put(sheet, row, 1, name, wrap=True)
    sheet.row_dimensions[row].height = _height(len(name), NAME_WIDTH - 4)


def _height(length: int, width: int) -> int:
    """The height, in points, of a row that holds text of ``length`` characters in lines of ``width``."""
    return ROW_POINTS * min(max(1, math.ceil(length / width)), MAX_NAME_LINES)


def put(
    sheet: Worksheet,
    row: int,
    column: int,
    value: Any,
    number_format: str | None = None,
    *,
    bold: bool = False,
    size: float = 11,
    colour: str = INK,
    fill: PatternFill | None = None,
    align: str | None = None,
    wrap: bool = False,
) -> None:
    """Write one cell with the type of its value; what is undefined becomes a dash."""
    cell = sheet.cell(row, column)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value, align = UNDEFINED, align or "right"
    if isinstance(value, str):
        cell.value = clean_text(value)
        cell.data_type = "s"  # openpyxl takes a leading "=" for a formula, whoever wrote it
        cell.quotePrefix = value.startswith(("=", "+", "-", "@"))
    else:
        cell.value = value
    if isinstance(value, bool):
        number_format = BOOLEAN
    if number_format is not None and not isinstance(value, str):
        cell.number_format = number_format
    cell.font = Font(name=FONT, bold=bold, size=size, color=colour)
    cell.alignment = Alignment(horizontal=align, vertical="center", wrap_text=wrap and isinstance(value, str))
    if fill is not None:
        cell.fill = fill
