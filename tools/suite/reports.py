"""The files that a suite leaves beside its cells: two CSV files, Markdown, an Excel workbook and a picture.

Nothing is computed here. The CSV and Markdown files hold neither times nor dates, so that the same figures give the
same bytes; the workbook has the times.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from openpyxl.worksheet.worksheet import Worksheet

from scripts.core.files import write_text
from scripts.evaluation.page import (
    FAINT,
    INK,
    MARGIN,
    MUTED,
    RIGHT_COLOUR,
    STYLE,
    WRONG_COLOUR,
    Caption,
    Page,
    save_figure,
)
from scripts.evaluation.workbook import (
    COUNT,
    FIGURE,
    SECONDS,
    add_sheet,
    new_workbook,
    put,
    put_header,
    save_workbook,
    set_widths,
)
from tools.suite.cells import Cell
from tools.suite.results import (
    GENERAL_NOTES,
    METRICS,
    VARIANTS,
    CellResult,
    Row,
    Spread,
    note_list,
    numbered,
    table_texts,
    unfinished,
)

Results = Mapping[Cell, CellResult | None]
TITLE = "Benchmark suite"
SIGNED = "+0.0000;−0.0000;0.0000"
ROW_HEIGHT, PANEL_WIDTH, PANEL_GAP, NAMES_WIDTH = 84, 620, 70, 300  # pixels of the picture
METRIC_TITLES = {"accuracy": "Accuracy", "auc": "AUC", "macro_f1": "Macro-F1"}
VARIANT_TITLES = {"plain": "without TTA", "tta": "with TTA"}


def write_suite_reports(folder: Path, results: Results, rows: Sequence[Row], settings: str) -> None:
    """Write every file, each whole or not at all.

    Args:
        folder: The suite's folder.
        results: Every cell; None where it is not finished.
        rows: The table that they make.
        settings: What all cells have in common that is not a default, as typed; "" where there is nothing.

    Raises:
        StorageError: A file cannot be written.
    """
    write_text(folder / "cells.csv", cells_csv(results))
    write_text(folder / "results.csv", results_csv(rows))
    write_text(folder / "results.md", results_markdown(results, rows, settings))
    _write_workbook(folder / "results.xlsx", results, rows, settings)
    save_figure(draw_results(rows, settings), folder / "results.png")


def cells_csv(results: Results) -> str:
    """One line per cell; what is unknown is empty."""
    figures = [f"{metric}_{variant}" for variant in VARIANTS for metric in METRICS]
    header = ["dataset", "resolution", "seed", "state", "image_width", "image_height", "test_images", *figures]
    return _csv([*header, "best_epoch", "epochs", "data_md5"], (_cell_line(*item) for item in results.items()))


def _cell_line(cell: Cell, result: CellResult | None) -> list[Any]:
    line = [cell.set_name, cell.resolution, cell.seed]
    if result is None:
        return [*line, "unfinished"]
    figures = [result.figures.get(variant, {}).get(metric) for variant in VARIANTS for metric in METRICS]
    facts = [result.width, result.height, result.test_images]
    return [*line, "finished", *facts, *figures, result.best_epoch, result.epochs, result.md5]


def results_csv(rows: Sequence[Row]) -> str:
    """One line per data set and resolution; what is unknown is empty."""
    header = ["dataset", "pixels", "seeds_finished", "seeds_planned", "seeds"]
    for variant in VARIANTS:
        for metric in METRICS:
            header += [f"{metric}_{variant}_mean", f"{metric}_{variant}_sd"]
    header += ["official_accuracy_28", "official_auc_28", "official_accuracy_224", "official_auc_224"]
    header += ["accuracy_difference", "auc_difference", "notes"]
    return _csv(header, map(_row_line, rows))


def _row_line(row: Row) -> list[Any]:
    line: list[Any] = [row.dataset, row.size, len(row.seeds), row.num_planned, " ".join(map(str, row.seeds))]
    for variant in VARIANTS:
        for metric in METRICS:
            spread = row.spreads[variant, metric]
            line += [None, None] if spread is None else [spread.mean, spread.deviation]
    line += [*_official(row), row.differences["accuracy"], row.differences["auc"], " ".join(row.notes)]
    return line


def _official(row: Row) -> list[float | None]:
    known = row.official
    return [None] * 4 if known is None else [known.accuracy_28, known.auc_28, known.accuracy_224, known.auc_224]


def _csv(header: Sequence[str], lines: Iterator[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([*line, *[None] * (len(header) - len(line))])
    return text.getvalue()


def results_markdown(results: Results, rows: Sequence[Row], settings: str) -> str:
    """The table and what must be known to read it."""
    header, *texts = table_texts(rows)
    lines = [f"# {TITLE}", "", _settings_sentence(settings), ""]
    lines += [_markdown_line(header), _markdown_line(["---", *["---:"] * (len(header) - 1)])]
    lines += [_markdown_line(line) for line in texts]
    if missing := unfinished(results):
        lines += ["", f"Not finished: {', '.join(missing)}."]
    if notes := numbered(rows):
        lines += ["", "Notes on the rows, and what makes them unequal to the official values:", ""]
        lines += [f"{number}. {_escaped(note)}" for note, number in notes.items()]
    lines += ["", "How to read it:", "", *(f"- {_escaped(note)}" for note in GENERAL_NOTES)]
    return "\n".join(lines) + "\n"


def _settings_sentence(settings: str) -> str:
    return f"Settings other than the defaults: `{settings}`." if settings else "All settings are the defaults."


def _markdown_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _write_workbook(path: Path, results: Results, rows: Sequence[Row], settings: str) -> None:
    caption = Caption(TITLE, settings or "default settings", None)
    book = new_workbook(caption.origin)
    _write_rows(add_sheet(book, "Results", caption), rows)
    _write_cells(add_sheet(book, "Cells", caption), results)
    _write_notes(add_sheet(book, "Notes", caption), rows)
    save_workbook(book, path)


def _write_rows(sheet: Worksheet, rows: Sequence[Row]) -> None:
    numbers = numbered(rows)
    spreads = [(variant, metric) for variant in VARIANTS for metric in METRICS]
    set_widths(sheet, 28, 10, 8, *[12] * (2 * len(spreads) + 6), 16)
    titles = ["Data set", "Pixels", "Seeds"]
    for variant, metric in spreads:
        titles += [f"{METRIC_TITLES[metric]}, {VARIANT_TITLES[variant]}", "standard deviation"]
    titles += ["official ACC 28", "official AUC 28", "official ACC 224", "official AUC 224"]
    put_header(sheet, 3, [*titles, "difference ACC", "difference AUC", "Notes"])
    sheet.row_dimensions[3].height = 48
    for line, row in enumerate(rows, start=4):
        values: list[tuple[Any, str | None]] = [(row.title, None), (_number(row.size), "0"), (len(row.seeds), COUNT)]
        for key in spreads:
            spread = row.spreads[key]
            values += [(spread and spread.mean, FIGURE), (spread and spread.deviation, FIGURE)]
        values += [(value, "0.000") for value in _official(row)]
        values += [(row.differences[metric], SIGNED) for metric in ("accuracy", "auc")]
        for column, (value, number_format) in enumerate(values, start=1):
            put(sheet, line, column, value, number_format, bold=column == 1)
        put(sheet, line, len(values) + 1, note_list(row, numbers), align="center")


def _number(text: str) -> int | str | None:
    return int(text) if text.isdigit() else text or None


def _write_cells(sheet: Worksheet, results: Results) -> None:
    spreads = [(variant, metric) for variant in VARIANTS for metric in METRICS]
    titles = [f"{METRIC_TITLES[metric]}, {VARIANT_TITLES[variant]}" for variant, metric in spreads]
    set_widths(sheet, 34, 12, 12, *[12] * len(spreads), 10, 10, 14, 36)
    put_header(
        sheet, 3, ["Cell", "State", "Test images", *titles, "Best epoch", "Epochs", "Training, seconds", "Data MD5"]
    )
    sheet.row_dimensions[3].height = 48
    for line, (cell, result) in enumerate(results.items(), start=4):
        put(sheet, line, 1, cell.name, bold=True)
        put(sheet, line, 2, "unfinished" if result is None else "finished")
        if result is None:
            continue
        values: list[tuple[Any, str | None]] = [(result.test_images, COUNT)]
        values += [(result.figures.get(variant, {}).get(metric), FIGURE) for variant, metric in spreads]
        values += [(result.best_epoch, COUNT), (result.epochs, COUNT), (result.seconds, SECONDS), (result.md5, None)]
        for column, (value, number_format) in enumerate(values, start=3):
            put(sheet, line, column, value, number_format)


def _write_notes(sheet: Worksheet, rows: Sequence[Row]) -> None:
    set_widths(sheet, 10, 130)
    put_header(
        sheet,
        3,
        ["Number", "Notes on the rows, what makes them unequal to the official values, and how to read the table"],
    )
    notes: list[tuple[int | None, str]] = [(number, note) for note, number in numbered(rows).items()]
    for line, (number, note) in enumerate([*notes, *((None, note) for note in GENERAL_NOTES)], start=4):
        put(sheet, line, 1, number, "0")
        put(sheet, line, 2, note, wrap=True)
        sheet.row_dimensions[line].height = 15 * (1 + len(note) // 125)


@style.context(STYLE)
def draw_results(rows: Sequence[Row], settings: str) -> Figure:
    """Accuracy and AUC of every row: seeds, means with their standard deviation, and the official values."""
    caption = Caption("Beside ResNet-18 of the MedMNIST v2 table", settings or "default settings", None)
    top, left = caption.height + 100, MARGIN + NAMES_WIDTH
    height = ROW_HEIGHT * len(rows)
    page = Page(left + 2 * PANEL_WIDTH + PANEL_GAP + MARGIN, top + height + 90 + MARGIN)
    finished, planned = sum(len(row.seeds) for row in rows), sum(row.num_planned for row in rows)
    page.head(
        TITLE, f"{finished} of {planned} trainings finished; bars are ± one standard deviation over seeds", caption
    )
    _draw_legend(page, caption.height)
    for index, row in enumerate(rows):
        middle = top + (index + 0.5) * ROW_HEIGHT
        seeds = f"{row.size or '?'} px, {len(row.seeds)} of {row.num_planned} seeds"
        page.text(left - 28, middle - 4, _fitted(row.title), ha="right", va="bottom")
        page.text(left - 28, middle + 2, seeds, ha="right", size=7.5, color=MUTED)
    for index, metric in enumerate(("accuracy", "auc")):
        axes = page.axes(left + index * (PANEL_WIDTH + PANEL_GAP), top, PANEL_WIDTH, height)
        for position, row in enumerate(rows):
            _draw_row(axes, position, row, metric)
        axes.set_title(METRIC_TITLES[metric], loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xlabel("share" if metric == "accuracy" else "area")
        axes.margins(x=0.06)
        lowest, highest = axes.get_xlim()
        if highest > 1:  # a bar may go beyond what the figure can be
            axes.set_xlim(right=1 + 0.02 * (1 - lowest))
        axes.grid(axis="x", color=FAINT, linewidth=0.6, alpha=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        for edge in range(1, len(rows)):
            axes.axhline(edge - 0.5, color=FAINT, linewidth=0.5)
    return page.figure


PLAIN_LOOK: dict[str, Any] = {"color": RIGHT_COLOUR, "marker": "o", "markersize": 6}
OFFICIAL_HEIGHTS = {"28": 0.21, "224": 0.37}  # of the rows' distance; apart, so that equal values hide neither mark
TTA_LOOK: dict[str, Any] = {"color": RIGHT_COLOUR, "marker": "o", "markersize": 6, "markerfacecolor": "white"}
OFFICIAL_LOOKS: dict[str, dict[str, Any]] = {
    "28": {"color": WRONG_COLOUR, "marker": "D", "markersize": 5.5, "linestyle": ""},
    "224": {"color": WRONG_COLOUR, "marker": "D", "markersize": 5.5, "linestyle": "", "markerfacecolor": "white"},
}


def _draw_row(axes: Axes, position: int, row: Row, metric: str) -> None:
    for variant, offset, look in (("plain", -0.26, PLAIN_LOOK), ("tta", 0.0, TTA_LOOK)):
        spread = row.spreads[variant, metric]
        if spread is not None:
            _draw_spread(axes, position + offset, spread, look)
    if row.official is not None:
        for side, look in OFFICIAL_LOOKS.items():
            axes.plot([getattr(row.official, f"{metric}_{side}")], [position + OFFICIAL_HEIGHTS[side]], **look)


def _draw_spread(axes: Axes, height: float, spread: Spread, look: Mapping[str, Any]) -> None:
    if spread.deviation is not None:
        axes.plot(
            spread.values, [height + 0.09] * len(spread.values), color=MUTED, marker="|", markersize=4, linestyle=""
        )
    axes.errorbar([spread.mean], [height], xerr=[spread.deviation or 0], capsize=3, elinewidth=1.2, **look)


def _draw_legend(page: Page, top: float) -> None:
    axes = page.axes(MARGIN, top, page.width - 2 * MARGIN, 36)
    axes.set_axis_off()
    axes.set(xlim=(0, page.width - 2 * MARGIN), ylim=(0, 1), autoscale_on=False)
    entries: list[tuple[str, dict[str, Any]]] = [
        ("mean without TTA", PLAIN_LOOK),
        ("mean with TTA", TTA_LOOK),
        ("one seed", {"color": MUTED, "marker": "|", "markersize": 5}),
        ("official ResNet-18, 28", OFFICIAL_LOOKS["28"]),
        ("official ResNet-18, 224 (enlarged from 28)", OFFICIAL_LOOKS["224"]),
    ]
    x = 10.0
    for title, look in entries:
        axes.plot([x], [0.5], **look)
        axes.text(x + 18, 0.46, title, va="center", fontsize=8.5, color=INK)
        x += 70 + 10.2 * len(title)


def _fitted(title: str, most: int = 24) -> str:
    return title if len(title) <= most else f"{title[: most - 1]}…"
