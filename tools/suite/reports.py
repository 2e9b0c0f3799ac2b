"""Write the tables of a suite: two CSV files, Markdown, an Excel workbook and a figure.

Nothing is computed here. The CSV and Markdown files hold neither times nor dates, so that the same figures give the
same bytes; the workbook has the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.core.files import write_text
from scripts.evaluation.sheets import COUNT, FIGURE, SECONDS, workbook_writer, write_frame
from scripts.evaluation.style import (
    FAINT,
    MUTED,
    RIGHT_COLOUR,
    STYLE,
    WRONG_COLOUR,
    Caption,
    new_figure,
    one_line,
    save_figure,
    set_panel_title,
)
from tools.suite.tables import (
    CELL_COLUMNS,
    COMPARED,
    DIFFERENCES,
    FIGURES,
    GENERAL_NOTES,
    OFFICIAL_COLUMNS,
    ROW_COLUMNS,
    STATISTICS,
    Tables,
    readable,
)

TITLE = "Benchmark suite"
SIGNED = "+0.0000;−0.0000;0.0000"
FIGURE_TITLES = [
    f"{metric}, {variant}" for variant in ("without TTA", "with TTA") for metric in ("Accuracy", "AUC", "Macro-F1")
]
WIDTH, ROW_HEIGHT, EDGES = 10.4, 0.56, 1.1  # of the figure's plots, in inches
FURTHER_LINE = 0.1  # inches more for a row whose label has a third line
MAX_TITLE = 24  # characters of a name in the figure
SEED_DISTANCE = 0.09  # of a mark for one seed below its mean, in rows
MEANS: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("plain", "mean without TTA", -0.26, {"color": RIGHT_COLOUR}),
    ("tta", "mean with TTA", 0.0, {"color": RIGHT_COLOUR, "markerfacecolor": "white"}),
)
OFFICIAL_MARKS: tuple[tuple[int, str, float, dict[str, Any]], ...] = (  # apart, so that equal values are both visible
    (28, "official ResNet-18, 28", 0.21, {"color": WRONG_COLOUR}),
    (224, "official ResNet-18, 224 (enlarged from 28)", 0.37, {"color": WRONG_COLOUR, "markerfacecolor": "white"}),
)
SEED = "one seed"
LABELS = [*(label for _, label, _, _ in MEANS), SEED, *(label for _, label, _, _ in OFFICIAL_MARKS)]


def write_suite_reports(folder: Path, tables: Tables, settings: str) -> None:
    """Write every file atomically into the suite's folder, or raise ``StorageError``.

    ``settings`` are those of all cells that are not defaults, as typed; "" where there are none.
    """
    for name, frame, columns in (("cells.csv", tables.cells, CELL_COLUMNS), ("results.csv", tables.rows, ROW_COLUMNS)):
        write_text(folder / name, frame.to_csv(columns=columns, index=False, lineterminator="\n"))
    write_text(folder / "results.md", results_markdown(tables, settings))
    _write_workbook(folder / "results.xlsx", tables, settings)
    save_figure(draw_results(tables, settings), folder / "results.png")


def results_markdown(tables: Tables, settings: str) -> str:
    """The table and the notes that are needed to read it."""
    table = readable(tables)
    intro = f"Settings other than the defaults: `{settings}`." if settings else "All settings are the defaults."
    lines = [f"# {TITLE}", "", intro, ""]
    lines += [_markdown_line([*table.columns]), _markdown_line(["---", *["---:"] * (table.shape[1] - 1)])]
    lines += map(_markdown_line, table.to_numpy().tolist())
    missing = tables.cells["name"][tables.cells["state"] == "unfinished"]
    if not missing.empty:
        lines += ["", f"Not finished: {', '.join(missing)}."]
    if tables.notes:
        lines += ["", "Notes on the rows, and what makes them unequal to the official values:", ""]
        lines += [f"{number}. {_escaped(note)}" for number, note in enumerate(tables.notes, start=1)]
    lines += ["", "How to read it:", "", *(f"- {_escaped(note)}" for note in GENERAL_NOTES)]
    return "\n".join(lines) + "\n"


def _markdown_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _write_workbook(path: Path, tables: Tables, settings: str) -> None:
    caption = Caption(TITLE, settings or "default settings", None)
    official = [f"official {metric} {side}" for side in (28, 224) for metric in ("ACC", "AUC")]
    titles = ["Data set", "Pixels", *tables.varied.values(), "Seeds"]
    for title in FIGURE_TITLES:
        titles += [title, "standard deviation"]
    titles += [*official, "difference ACC", "difference AUC", "Notes"]
    pixels: list[Any] = [int(text) if text.isdigit() else text or None for text in tables.rows["pixels"]]
    rows = tables.rows.assign(pixels=pixels)
    columns = ["title", "pixels", *tables.varied, "seeds_finished", *STATISTICS, *OFFICIAL_COLUMNS, *DIFFERENCES]
    rows = rows[[*columns, "note_numbers"]]
    row_formats = [None, "0", *[None] * len(tables.varied), COUNT, *[FIGURE] * len(STATISTICS)]
    row_formats += [*["0.000"] * 4, SIGNED, SIGNED]
    cells = tables.cells[["name", "state", "test_images", *FIGURES, "best_epoch", "epochs", "seconds", "data_md5"]]
    cell_titles = ["Cell", "State", "Test images", *FIGURE_TITLES]
    cell_titles += ["Best epoch", "Epochs", "Training, seconds", "Data MD5"]
    cell_formats = [None, None, COUNT, *[FIGURE] * len(FIGURES), COUNT, COUNT, SECONDS]
    numbers = [*range(1, len(tables.notes) + 1), *[""] * len(GENERAL_NOTES)]
    heading = "Notes on the rows, what makes them unequal to the official values, and how to read the table"
    notes = pd.DataFrame({"Number": numbers, heading: [*tables.notes, *GENERAL_NOTES]}, dtype=object)
    with workbook_writer(path, caption.origin) as writer:
        for name, frame, formats, widths in (
            ("Results", rows.set_axis(titles, axis="columns"), row_formats, (28, *[12] * (len(titles) - 2), 16)),
            ("Cells", cells.set_axis(cell_titles, axis="columns"), cell_formats, (34, 12, 12, *[12] * 8, 14, 36)),
            ("Notes", notes, ("0",), (10, 130)),
        ):
            sheet = write_frame(writer, frame, name, caption, formats=formats, widths=widths)
            if name != "Notes":
                sheet.row_dimensions[3].height = 48  # titles of three lines


@style.context(STYLE)
def draw_results(tables: Tables, settings: str) -> Figure:
    """Draw accuracy and AUC of every row: seeds, means with their standard deviation, and any official values."""
    rows, cells = tables.rows, tables.cells
    has_official = bool(rows[OFFICIAL_COLUMNS].notna().any(axis=None))
    subject = "Compared with ResNet-18 of the MedMNIST v2 table" if has_official else "Without official values"
    detail = f"{rows['seeds_finished'].sum()} of {len(cells)} trainings finished"
    if rows["seeds_finished"].max() > 1:
        detail += "; bars are ± one standard deviation over seeds"
    caption = Caption(subject, settings or "default settings", None)
    height = EDGES + (ROW_HEIGHT + FURTHER_LINE * bool(tables.varied)) * len(rows)
    figure = new_figure(TITLE, detail, caption, width=WIDTH, height=height)
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    for axes, metric, unit in zip(panels, COMPARED, ("share", "area"), strict=True):
        _draw_panel(axes, tables, metric)
        set_panel_title(axes, {"accuracy": "Accuracy", "auc": "AUC"}[metric])
        axes.set_xlabel(unit)
    columns = ["title", "pixels", "seeds_finished", "seeds_planned", *tables.varied]
    lines = [
        (_fitted(title), ", ".join(map(_fitted, how)), f"{pixels or '?'} px, {finished} of {planned} seeds")
        for title, pixels, finished, planned, *how in rows[columns].to_numpy()
    ]
    labels = ["\n".join(filter(None, texts)) for texts in lines]
    panels[0].set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
    entries = [entry for axes in panels for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in sorted(entries, key=lambda entry: LABELS.index(entry[1]))}
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=len(handles), frameon=False)
    return figure


def _draw_panel(axes: Axes, tables: Tables, metric: str) -> None:
    rows, cells = tables.rows, tables.cells
    centre = 0 if rows[OFFICIAL_COLUMNS].notna().any(axis=None) else 0.1
    places = pd.Series(np.arange(len(rows)) + centre, index=rows.index)
    for variant, label, offset, look in MEANS:
        means, deviations = rows[f"{metric}_{variant}_mean"], rows[f"{metric}_{variant}_sd"]
        if deviations.notna().any():
            seeds = cells[cells["row"].map(deviations).notna()]
            heights = seeds["row"].map(places) + offset + SEED_DISTANCE
            axes.plot(seeds[f"{metric}_{variant}"], heights, "|", color=MUTED, markersize=4, label=SEED)
        if means.notna().any():
            bars: dict[str, Any] = {"capsize": 3, "elinewidth": 1.2}
            if deviations.notna().any():
                bars["xerr"] = deviations.fillna(0)
            axes.errorbar(means, places + offset, fmt="o", markersize=6, label=label, **bars, **look)
    for side, label, offset, look in OFFICIAL_MARKS:
        values = rows[f"official_{metric}_{side}"].astype(float)
        if values.notna().any():
            axes.plot(values, places + offset, "D", markersize=5.5, label=label, **look)
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=6)
    lowest, highest = axes.get_xlim()
    if highest > 1:  # a bar may extend beyond the largest possible value
        axes.set_xlim(right=1 + 0.02 * (1 - lowest))
    axes.grid(axis="x")
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=FAINT, linewidth=0.5)


def _fitted(title: str) -> str:
    title = one_line(title)
    return title if len(title) <= MAX_TITLE else f"{title[: MAX_TITLE // 2]}…{title[1 - MAX_TITLE // 2 :]}"
