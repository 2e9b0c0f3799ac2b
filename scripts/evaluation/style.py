"""The common style of all figures: colours, heading, fonts, and how a figure is saved.

A figure depends on neither a display, nor pyplot, nor the user's settings: the same values give the same bytes with the
same versions. Right and wrong are blue and orange, tick and cross, solid and dashed: never red and green alone.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.style import context
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from scripts.core.files import write_bytes

DPI, MARGIN = 150, 0.32  # pixels per inch; inches
INK, MUTED, FAINT = "#1f2933", "#5f6b7a", "#c3cad3"
RIGHT_COLOUR, WRONG_COLOUR, NOTE_COLOUR = "#0a5fa4", "#c8500a", "#fff1e0"
DASHES = (0, (3, 1.6))
FONT = "DejaVu Sans"  # comes with matplotlib
STYLE: list[Any] = [
    "default",
    {"font.family": FONT, "font.size": 9, "text.color": INK, "text.parse_math": False, "axes.edgecolor": FAINT}
    | {"xtick.color": MUTED, "ytick.color": MUTED, "axes.labelcolor": MUTED}
    | {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    | {"grid.color": FAINT, "grid.linewidth": 0.6, "grid.alpha": 0.7},
]
with_style = context(STYLE)  # decorates the functions that draw


@dataclass(frozen=True, slots=True)
class Caption:
    """The origin of a figure or a sheet."""

    dataset: str
    model: str
    note: str | None  # such as that the data are synthetic

    @property
    def origin(self) -> str:
        """The data set and the model, in one line."""
        return f"{self.dataset} · {self.model}"


def new_figure(
    title: str, detail: str, caption: Caption, *, width: float, height: float, layout: str | None = "constrained"
) -> Figure:
    """Make a figure with a heading: the title in bold, the origin, one line of details, and any note in a box.

    ``width`` and ``height`` of the plots' area are in inches; ``save_figure`` adds the heading and a margin. ``layout``
    names matplotlib's layout engine; None is for axes that are placed explicitly.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)  # type: ignore[arg-type]
    box = {"facecolor": NOTE_COLOUR, "edgecolor": WRONG_COLOUR, "boxstyle": "round,pad=0.35", "linewidth": 0.8}
    lines: list[tuple[str, float, dict[str, Any]]] = [
        (title, 0.23, {"size": 14, "weight": "bold", "color": INK}),
        (caption.origin, 0.19, {"color": MUTED}),
        (detail, 0.26, {"color": MUTED}),
    ]
    if caption.note:
        lines.append((caption.note, 0.28, {"size": 8.5, "color": WRONG_COLOUR, "bbox": box}))
    room, rise = max(100, int(14 * width)), 0.05
    for text, step, look in reversed(lines):
        rise += step
        short = textwrap.shorten(one_line(text), room, placeholder=" …")
        figure.text(0.05 / width if "bbox" in look else 0, 1 + rise / height, short, va="center", **look)
        rise += 0.02
    return figure


def set_panel_title(axes: Axes, title: str, detail: str = "") -> None:
    """Write a bold title and a smaller second line above axes, from their left edge."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=20 if detail else 8)
    if detail:
        axes.annotate(detail, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", color=MUTED, size=8)


def add_footer(figure: Figure, text: str) -> None:
    """Write a line below the area of the plots."""
    figure.text(0, -0.12 / figure.get_figheight(), text, va="top", size=8.5, color=MUTED)


@with_style
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure and its heading as PNG, cropped to its content; the same figure gives the same bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    for text in figure.findobj(Text):
        _choose_fonts(text)  # type: ignore[arg-type]
    figure.draw_without_rendering()
    edges = figure.get_tightbbox().padded(MARGIN).get_points() * DPI  # type: ignore[call-arg]
    box = Bbox(np.array([np.floor(edges[0]), np.ceil(edges[1])]) / DPI)  # whole pixels, so that images stay sharp
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, bbox_inches=box, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def _choose_fonts(text: Text) -> None:
    """Let a text fall back to installed fonts that have its characters; what none has becomes an escape sequence."""
    content = text.get_text()
    missing = missing_characters(content)
    escapes = {ord(character): character.encode("ascii", "backslashreplace").decode() for character in missing}
    text.set_text(content.translate(escapes))
    fonts = {font_with(character) for character in content} - {FONT, None}
    if fonts:
        text.set(fontfamily=[FONT, *sorted(map(str, fonts))], fontweight="normal")  # a weight that each of them has


def missing_characters(text: str) -> set[str]:
    """The characters of ``text`` that no installed font has."""
    return {character for character in text if not character.isspace() and font_with(character) is None}


@cache
def font_with(character: str) -> str | None:
    """The family of an installed font that has the character; None if there is none."""
    return next((family for family, path in _fonts() if ord(character) in _characters(path)), None)


@cache
def _fonts() -> list[tuple[str, str]]:
    """Families and paths of the installed fonts of normal weight, matplotlib's own first."""
    normal = (font for font in font_manager.fontManager.ttflist if font.weight == 400 and font.style == "normal")
    # a font of last resort has a box for every character
    installed = {(font.name, font.fname) for font in normal if "resort" not in font.name.lower()}
    return sorted(installed, key=lambda font: (font[0] != FONT, font))


@cache
def _characters(path: str) -> frozenset[int]:
    """Code points of the glyphs in a font file; none where matplotlib cannot draw them."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def short_names(names: Sequence[str], *, width: int, lines: int) -> list[str]:
    """The names in at most ``lines`` lines of about ``width`` characters; numbered where that makes two the same."""
    return short_names_in_ways(names, width=width, ways=[lines])[0]


def short_names_in_ways(names: Sequence[str], *, width: int, ways: Sequence[int]) -> list[list[str]]:
    """``short_names`` for several numbers of lines; numbered in all of them if any has two that are the same.

    A name with a character that no installed font has is replaced by the number of its class.
    """
    texts = [
        f"class {number}" if missing_characters(text) else text for number, text in enumerate(map(one_line, names))
    ]
    labels = [[_shorten(text, width, lines) for text in texts] for lines in ways]
    if all(len(set(of_way)) == len(texts) for of_way in labels):
        return labels
    return [[f"{number}: {label}" for number, label in enumerate(of_way)] for of_way in labels]


def _shorten(name: str, width: int, lines: int) -> str:
    wrapped = textwrap.wrap(name, width, max_lines=lines, placeholder="…")
    before_bracket = name.split("(")[0].strip()
    if wrapped and wrapped[-1].endswith("…") and "(" in name and len(before_bracket) < width:
        return f"{before_bracket}…"
    if lines == 1 and len(name) > width:  # within a word: more of the name than a whole number of words
        return f"{name[: width - 1].rstrip()}…"
    return "\n".join(wrapped) or "?"


def one_line(text: str) -> str:
    """``text`` without line breaks and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", text).strip()
