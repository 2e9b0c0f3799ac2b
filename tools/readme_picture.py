"""Draw README's figure: what a finished run leaves, in one image.

python tools/readme_picture.py RUN_DIR docs/media/run.png

It shows the training curves, the confusion matrix, the sample predictions and the top of the workbook's first sheet.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import openpyxl
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

WIDTH, GAP, NUM_COLORS = 2000, 24, 128  # pixels, and a palette that keeps the file below 400 kB
FIGURES = ("training_curves", "confusion_matrix", "sample_predictions")
SHEET_ROWS, SHEET_COLUMNS = 20, "ABCDEFG"


def main() -> None:
    """Read the run folder and write the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run_dir", "output"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    curves, matrix, samples = (Image.open(args.run_dir / f"figures/{name}.png").convert("RGB") for name in FIGURES)
    sheet = draw_sheet(args.run_dir / "reports/training_summary.xlsx")
    top, bottom = fill_width([curves, matrix]), fill_width([samples, sheet])
    page = Image.new("RGB", (WIDTH, top.height + GAP + bottom.height), "white")
    page.paste(top, (0, 0))
    page.paste(bottom, (0, top.height + GAP))
    page.quantize(NUM_COLORS, dither=Image.Dither.NONE).save(args.output, optimize=True)


def fill_width(images: list[Image.Image]) -> Image.Image:
    """Place images side by side at one height, so that together they fill the width."""
    height = round((WIDTH - GAP * (len(images) - 1)) / sum(image.width / image.height for image in images))
    strip, left = Image.new("RGB", (WIDTH, height), "white"), 0
    for image in images:
        scaled = image.resize((round(height * image.width / image.height), height), Image.Resampling.LANCZOS)
        strip.paste(scaled, (left, 0))
        left += scaled.width + GAP
    return strip


def draw_sheet(path: Path) -> Image.Image:
    """Draw the top left of the workbook's first sheet with its fills, bold text, merged cells and column widths."""
    sheet = openpyxl.load_workbook(path).worksheets[0]
    edges = [0.0]  # of the columns, in characters
    for letter in SHEET_COLUMNS:
        edges.append(edges[-1] + sheet.column_dimensions[letter].width)
    last_columns = {merged.coord.split(":")[0]: merged.max_col for merged in sheet.merged_cells.ranges}
    figure = Figure(figsize=(edges[-1] / 10, SHEET_ROWS / 3), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, edges[-1]), ylim=(SHEET_ROWS, 0), frame_on=False)
    cells = (cell for row in sheet.iter_rows(max_row=SHEET_ROWS, max_col=len(SHEET_COLUMNS)) for cell in row)
    for cell in (cell for cell in cells if not isinstance(cell, openpyxl.cell.cell.MergedCell)):
        left, right = edges[cell.column - 1], edges[min(last_columns.get(cell.coordinate, cell.column), len(edges) - 1)]
        fill = f"#{cell.fill.start_color.rgb[2:]}" if cell.fill.fill_type == "solid" else "white"
        axes.add_patch(Rectangle((left, cell.row - 1), right - left, 1, facecolor=fill, edgecolor="#d0d5dd"))
        text, weight = format_value(cell.value, cell.number_format), "bold" if cell.font.bold else "normal"
        axes.text(left + 0.8, cell.row - 0.45, text, va="center", fontsize=13, weight=weight)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def format_value(value: object, number_format: str) -> str:
    """Return a cell's value as a spreadsheet shows it, as far as this workbook's formats go."""
    if isinstance(value, float):
        return f"{value:.2%}" if "%" in number_format else f"{value:.4f}"
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    main()
