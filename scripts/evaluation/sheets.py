"""Data frames as sheets of an Excel workbook: numbers stay numbers, and text is never a formula."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl.cell import Cell, MergedCell
from openpyxl.styles import Alignment, Font, PatternFill
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from scripts.core.errors import storage_errors
from scripts.core.files import write_bytes
from scripts.evaluation.style import Caption

SHARE, FIGURE, COUNT, SECONDS, RATE = "0.00%", "0.0000", "#,##0", "#,##0.0", "0.00E+00"
BOOLEAN = '"TRUE";"TRUE";"FALSE"'  # as Excel shows a boolean anyway; LibreOffice may show 1 and 0
INK, MUTED, ORANGE = "FF1F2933", "FF5F6B7A", "FFC8500A"
HEADER_FILL, MARK_FILL = PatternFill("solid", fgColor="FFE3ECF5"), PatternFill("solid", fgColor="FFFFE8B8")
FONT, UNDEFINED = "Calibri", "–"
TOP_ROW, ROW_POINTS, MAX_LINES = 3, 15, 8  # first row below the caption; height of a line; lines of a wrapped cell

Format = str | None  # of a number; None for general
# a text to write above neighbouring columns: the number of the first column, how many there are
Group = tuple[str, int, int]


@contextmanager
def workbook_writer(path: Path, title: str) -> Iterator[pd.ExcelWriter]:
    """Yield the writer of a workbook, which appears at ``path`` atomically when the block ends without an error.

    Raises:
        StorageError: A file cannot be written.
    """
    content = io.BytesIO()
    # not used as a context manager: after an error nothing is to be written
    writer = pd.ExcelWriter(content, engine="openpyxl")
    writer.book.properties.title = clean_text(title)
    yield writer
    # openpyxl writes every sheet to a temporary file first
    with storage_errors(Path(tempfile.gettempdir()), "write a sheet of the workbook"):
        writer.close()
    write_bytes(path, content.getvalue())


def write_frame(
    writer: pd.ExcelWriter,
    frame: pd.DataFrame,
    sheet: str,
    caption: Caption,
    *,
    formats: Sequence[Format] = (),
    widths: Sequence[float] = (),
    groups: Iterable[Group] = (),
) -> Worksheet:
    """Write a frame without its index to a new sheet, below the caption and a header that stays in view.

    Args:
        writer: From ``workbook_writer``.
        frame: Column names are the header. Missing values become a dash; control characters are replaced.
        sheet: Name of the sheet.
        caption: The first two rows.
        formats: Number format of each column; None or a missing one for general.
        widths: Width of each column in characters.
        groups: Texts above the header, each with its first column, counted from 1, and the number of columns.
    """
    target, row = add_sheet(writer, sheet, caption), TOP_ROW
    for index, width in enumerate(widths, start=1):
        target.column_dimensions[get_column_letter(index)].width = width
    for title, first, count in groups:
        put(target, TOP_ROW, first, title, bold=True, fill=HEADER_FILL, align="center")
        target.merge_cells(start_row=TOP_ROW, end_row=TOP_ROW, start_column=first, end_column=first + count - 1)
        row = TOP_ROW + 1
    for index, title in enumerate(frame.columns, start=1):
        if title:
            put(target, row, index, title, bold=True, fill=HEADER_FILL, align="left" if index == 1 else "center")
    target.freeze_panes = f"B{row + 1}"
    target.print_title_rows = f"{row}:{row}"
    clean = frame.map(lambda value: clean_text(value) if isinstance(value, str) else value)
    clean.to_excel(writer, sheet_name=sheet, header=False, index=False, na_rep=UNDEFINED, startrow=row)
    for index, cells in enumerate(target.iter_rows(row + 1, row + len(frame)), start=row + 1):
        lines = 1
        for cell, number_format in zip(cells, [*formats, *[None] * len(cells)], strict=False):
            style_cell(cell, number_format)
            if isinstance(cell.value, str):
                width = target.column_dimensions[cell.column_letter].width
                lines = max(lines, math.ceil(len(cell.value) / max(1, width - 4)))
        if lines > 1:
            target.row_dimensions[index].height = ROW_POINTS * min(lines, MAX_LINES)
    return target


def add_sheet(writer: pd.ExcelWriter, name: str, caption: Caption) -> Worksheet:
    """Add a sheet with the caption in its first two rows."""
    sheet: Worksheet = writer.book.create_sheet(name)
    put(sheet, 1, 1, caption.origin, bold=True, size=14)
    if caption.note:
        put(sheet, 2, 1, caption.note, bold=True, color=ORANGE)
    sheet.sheet_view.showGridLines = False
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.fitToHeight = 0
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    return sheet


def put(
    sheet: Worksheet,
    row: int,
    column: int,
    value: Any,
    number_format: Format = None,
    *,
    fill: PatternFill | None = None,
    align: str | None = None,
    **font: Any,
) -> None:
    """Write one cell; ``font`` goes to openpyxl's ``Font``. A text without a fill may extend over empty cells."""
    cell = sheet.cell(row, column, clean_text(value) if isinstance(value, str) else value)
    style_cell(cell, number_format, align=align, wrap=fill is not None)
    look: dict[str, Any] = {"name": FONT, "size": 11, "color": INK}
    cell.font = Font(**look | font)
    if fill is not None:
        cell.fill = fill


def style_cell(cell: Cell | MergedCell, number_format: Format, *, align: str | None = None, wrap: bool = True) -> None:
    """Give a cell its number format; a text is marked as text, whatever it begins with."""
    if isinstance(cell.value, str):
        cell.data_type = "s"  # openpyxl takes a leading "=" for a formula
        cell.quotePrefix = cell.value.startswith(("=", "+", "-", "@"))
        align = align or ("right" if cell.value == UNDEFINED else None)
    elif isinstance(cell.value, bool):
        cell.number_format = BOOLEAN
    elif number_format is not None:
        cell.number_format = number_format
    cell.alignment = Alignment(horizontal=align, vertical="center", wrap_text=wrap and isinstance(cell.value, str))


def clean_text(text: str) -> str:
    """``text`` with a replacement character wherever XML, and so Excel, allows none."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
