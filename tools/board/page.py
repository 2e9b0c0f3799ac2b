"""The two files of a leaderboard: one HTML page without any other file, and a CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.board.runs import FIGURES, FINISHED, Figure, Row

TEMPLATE = Path(__file__).with_name("leaderboard.html")
REPORT = "report.html"
METRIC_TITLES = {"accuracy": "Accuracy", "auc": "AUC", "macro_f1": "Macro-F1"}
FIGURE_TITLES = [
    f"{title}{suffix}" for suffix in ("", ", TTA") for title in METRIC_TITLES.values()
]  # in the order of FIGURES
FACTS = ("dataset", "resolution", "backbone", "recipe", "seed")
LATER_FACTS = ("epochs", "seconds", "finished", "commit", "note")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the page's table."""

    title: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the page's table."""

    text: str
    sort: str | float | None = None  # compared when the column is sorted; None comes last
    detail: str = ""  # below the text
    link: str = ""


COLUMNS = (
    Column("State"),
    Column("Run"),
    Column("Set"),
    Column("Pixels", is_number=True),
    Column("Backbone"),
    Column("Recipe"),
    Column("Seed", is_number=True),
    *(Column(title, is_number=True) for title in FIGURE_TITLES),
    Column("Epochs", is_number=True),
    Column("Training", is_number=True),
    Column("Finished"),
    Column("Commit"),
    Column("Note"),
)


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The rows by set and resolution, the highest accuracy first, and unfinished ones last."""

    def key(row: Row) -> tuple[bool, str, str, float, str]:
        figure = row.figures.get("accuracy_tta") or row.figures.get("accuracy_plain")
        accuracy = -figure.value if figure else 0.0
        return row.state != FINISHED, row.dataset or "", row.resolution or "", accuracy, str(row.folder)

    return sorted(rows, key=key)


def as_html(rows: Sequence[Row], root: Path, page_folder: Path, now: datetime) -> str:
    """The page; its links are relative to ``page_folder``, and the names of runs to ``root``."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    choices = {
        name: sorted({value for row in rows if (value := getattr(row, name))})
        for name in ("dataset", "backbone", "state")
    }
    return environment.get_template(TEMPLATE.name).render(
        root=_shown(root.absolute()),
        made=f"{now:%Y-%m-%d %H:%M}",
        columns=COLUMNS,
        choices=choices,
        rows=[(row, list(_cells(row, root, page_folder))) for row in rows],
    )


def _cells(row: Row, root: Path, page_folder: Path) -> Iterator[Cell]:
    name = _relative(row.folder, root)
    yield Cell(row.state, row.state)
    yield Cell(name, name, link=_link(row.folder, page_folder))
    for fact in FACTS:
        value = getattr(row, fact)
        number = float(value.partition("x")[0]) if fact == "resolution" and value else value
        yield Cell("–" if value is None else str(value), number)
    for figure in FIGURES:
        yield _figure_cell(row.figures.get(figure))
    yield Cell("–" if row.epochs is None else str(row.epochs), row.epochs)
    duration = "–" if row.seconds is None else str(timedelta(seconds=round(row.seconds)))
    yield Cell(duration, row.seconds)
    yield Cell((row.finished or "–").replace("T", " "), row.finished)
    yield Cell(row.commit or "–", row.commit)
    yield Cell(row.note or "", row.note)


def _figure_cell(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell("–")
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4f}–{figure.high:.4f}"
    return Cell(f"{figure.value:.4f}", figure.value, interval)


def as_csv(rows: Sequence[Row], root: Path) -> str:
    """The table with all digits; what is not known is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    of_figures = [name for figure in FIGURES for name in (figure, f"{figure}_low", f"{figure}_high")]
    writer.writerow(["run", "state", *FACTS, *of_figures, *LATER_FACTS])
    for row in rows:
        found = [row.figures.get(figure) for figure in FIGURES]
        figures = [value for one in found for value in ((one.value, one.low, one.high) if one else ("", "", ""))]
        facts, later = ([getattr(row, name) for name in names] for names in (FACTS, LATER_FACTS))
        writer.writerow([_relative(row.folder, root), row.state, *facts, *figures, *later])
    return stream.getvalue()


def _relative(folder: Path, root: Path) -> str:
    return _shown(Path(os.path.relpath(folder, root))) if folder != root else _shown(Path(folder.absolute().name))


def _shown(path: Path) -> str:
    """A path as text that UTF-8 can hold."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _link(folder: Path, page_folder: Path) -> str:
    """The report of a run, or its folder where there is none, as a relative address."""
    target = folder / REPORT if (folder / REPORT).is_file() else folder
    relative = os.path.relpath(target.absolute(), page_folder.absolute())
    return quote(os.fsencode(relative)) + ("" if target.name == REPORT else "/")
