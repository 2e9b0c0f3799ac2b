"""How pictures are laid out: in pixels from the top left corner, on a figure of their own.

No display, no settings of the user's and no global state take part, so that the same values give the same bytes on the
same versions. Right and wrong are blue and orange, tick and cross, solid and dashed: never red and green alone.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from scripts.core.files import write_bytes

DPI = 150
MARGIN = 48
POINT = DPI / 72  # pixels
INK, MUTED, FAINT = "#1f2933", "#5f6b7a", "#c3cad3"
RIGHT_COLOUR, WRONG_COLOUR, NOTE_COLOUR = "#0a5fa4", "#c8500a", "#fff1e0"
STYLE: list[Any] = ["default", {"font.size": 9, "xtick.color": MUTED, "ytick.color": MUTED, "axes.labelcolor": MUTED}]
DASHES = (0, (3, 1.6))
LETTER_WIDTH = 0.57  # of the font size, on average


Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Caption:
    """What every picture says of where it comes from."""

    dataset: str
    model: str
    note: str | None  # such as that the data are synthetic

    @property
    def origin(self) -> str:
        """The data set and the model, in one line."""
        return f"{self.dataset} · {self.model}"

    @property
    def height(self) -> int:
        """Pixels below the top edge that a picture's heading takes."""
        return 210 if self.note else 158


class Page:
    """A white figure on which things are placed by pixels from the top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = round(width), round(height)
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        self.canvas = self.figure.add_axes((0, 0, 1, 1))
        self.canvas.set(xlim=(0, self.width), ylim=(self.height, 0), autoscale_on=False)
        self.canvas.set_axis_off()

    def text(self, x: float, y: float, text: str, **look: Any) -> None:
        """Write from (x, y) to the right and downwards, unless ``look`` says otherwise."""
        escaped = text.replace("$", r"\$")  # which would start a formula
        self.canvas.text(x, y, escaped, **{"ha": "left", "va": "top", "color": INK, **look})

    def image(self, pixels: NDArray[Any], x: float, y: float, width: float, height: float) -> None:
        """Show an image with its top left corner at (x, y)."""
        left, top = round(x), round(y)
        # enlarged, a pixel shows as a square; reduced, none may be skipped
        way = "nearest" if height >= len(pixels) else "antialiased"
        self.canvas.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto", interpolation=way)

    def frame(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        """Draw the outline of a rectangle."""
        self.canvas.add_patch(Rectangle((x, y), width, height, fill=False, **look))

    def line(self, xs: Sequence[float], ys: Sequence[float], **look: Any) -> None:
        """Draw a line, or points, through these places."""
        self.canvas.plot(xs, ys, scalex=False, scaley=False, **look)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes of their own, with their top left corner at (x, y)."""
        bottom = self.height - y - height
        return self.figure.add_axes((x / self.width, bottom / self.height, width / self.width, height / self.height))

    def head(self, title: str, detail: str, caption: Caption) -> None:
        """Title, origin and, where there is one, the note of the data set."""
        room = int((self.width - 2 * MARGIN) / (9 * POINT * LETTER_WIDTH))
        self.text(MARGIN, 34, title, size=14, weight="bold")
        for y, line in ((76, caption.origin), (104, detail)):
            self.text(MARGIN, y, textwrap.shorten(one_line(line), room, placeholder=" …"), color=MUTED)
        if caption.note:
            box = {"facecolor": NOTE_COLOUR, "edgecolor": WRONG_COLOUR, "boxstyle": "round,pad=0.35", "linewidth": 0.8}
            self.text(MARGIN + 8, 148, one_line(caption.note), size=8.5, color=WRONG_COLOUR, bbox=box)


@style.context(STYLE)
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        # a name in a script that the font lacks shows as boxes; the workbook has it in full
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def as_rgb(image: Pixels) -> Pixels:
    """An image (H, W) or (H, W, 3) as (H, W, 3)."""
    return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)


def short_names(names: Sequence[str], *, width: int, lines: int) -> list[str]:
    """The names in at most ``lines`` lines of about ``width`` characters; numbered where that makes two the same."""
    return numbered_alike(shortened(names, width=width, lines=lines))[0]


def numbered_alike(*ways: list[str]) -> list[list[str]]:
    """Labels of the same classes in several ways; all with the class's number if any way has two that are the same."""
    if all(len(set(labels)) == len(labels) for labels in ways):
        return list(ways)
    return [[f"{index}: {label}" for index, label in enumerate(labels)] for labels in ways]


def shortened(names: Sequence[str], *, width: int, lines: int) -> list[str]:
    """The names in at most ``lines`` lines of about ``width`` characters, perhaps equal ones."""
    return [_shorten(one_line(name), width, lines) for name in names]


def _shorten(name: str, width: int, lines: int) -> str:
    wrapped = textwrap.wrap(name, width, max_lines=lines, placeholder="…")
    before_bracket = name.split("(")[0].strip()
    if wrapped and wrapped[-1].endswith("…") and "(" in name and len(before_bracket) < width:
        return f"{before_bracket}…"
    if lines == 1 and len(name) > width:  # within a word: more of the name than a whole number of words
        return f"{name[: width - 1].rstrip()}…"
    return "\n".join(wrapped) or "?"


def text_width(labels: Sequence[str], *, size: float) -> float:
    """About how many pixels the longest line of the labels takes at ``size`` points."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    return longest * size * POINT * LETTER_WIDTH


def head_width(detail: str, caption: Caption) -> float:
    """About how many pixels a page needs across for its heading in full."""
    lines = [one_line(line) for line in (caption.origin, detail, caption.note or "")]
    return 2 * MARGIN + text_width([f"{line}  " for line in lines], size=9)


def one_line(text: str) -> str:
    """``text`` without line breaks and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", text).strip()
