"""Draw heat maps: an image beside its overlays, and a sheet of many."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PANEL_SIDE = 224  # pixels to which the larger side of a small image is enlarged
MAX_OPACITY = 0.75  # of the colour over the image, where the class is supported most
COLOURS = colormaps["inferno"]  # also ordered by brightness, for those who see few colours
GAP, MARGIN, FONT_SIZE, LINE_HEIGHT = 12, 20, 14, 20  # pixels
PANELS_PER_ROW = 8
SHEET_WIDTH, MAX_SHEET_PANELS = 2400, 96
INK, MUTED, PAPER = "#1f2933", "#5f6b7a", "#ffffff"

CAVEATS = (
    "Bright places raise the score of the named class. Each map is scaled to its maximum: compare places, not maps.",
    "A map is as coarse as the last feature maps, and shows neither a cause nor that the prediction is right.",
)

Pixels = NDArray[np.uint8]
Heat = NDArray[np.float32]  # (H, W) in [0, 1]


@dataclass(frozen=True, slots=True)
class Panel:
    """An image with the lines below it."""

    image: Image.Image
    lines: tuple[str, ...]


def enlarge(image: Pixels) -> Image.Image:
    """An image (H, W) or (H, W, 3) in colour, enlarged by a whole factor so that its pixels stay squares."""
    factor = max(1, round(PANEL_SIDE / max(image.shape[:2])))
    return (
        Image.fromarray(image)
        .convert("RGB")
        .resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST)
    )


def overlay(image: Pixels, heat: Heat) -> Image.Image:
    """The image in grey, coloured where ``heat`` (H, W) is high, enlarged as by ``enlarge``."""
    base = enlarge(image)
    smooth = Image.fromarray(heat).resize(base.size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(smooth), 0, 1)[..., np.newaxis]
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., np.newaxis]
    colour = COLOURS(strength[..., 0])[..., :3] * 255
    opacity = MAX_OPACITY * strength
    return Image.fromarray(np.rint(grey * (1 - opacity) + colour * opacity).astype(np.uint8))


def draw_panels(panels: Sequence[Panel]) -> Image.Image:
    """Panels of one size side by side, in rows, with their lines below them."""
    width, height = panels[0].image.size
    width = max(width, PANEL_SIDE)
    below = 6 + LINE_HEIGHT * max(len(panel.lines) for panel in panels)
    rows = -(-len(panels) // PANELS_PER_ROW)
    columns = -(-len(panels) // rows)  # the same number in each row, as far as possible
    canvas = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + below + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        x, y = column * (width + GAP), row * (height + below + GAP)
        canvas.paste(panel.image, (x, y))
        for number, line in enumerate(panel.lines):
            at = (x, y + height + 6 + number * LINE_HEIGHT)
            draw.text(at, _shorten(line, width), font=_font(), fill=MUTED if number else INK)
    return canvas


def draw_sheet(strips: Sequence[Image.Image], title: str, lines: Sequence[str]) -> Image.Image:
    """Strips in columns below a title, lines of text and the scale of the colours."""
    width, height = (max(strip.size[axis] for strip in strips) for axis in (0, 1))
    columns = max(1, min(len(strips), SHEET_WIDTH // (width + 2 * GAP)))
    rows = -(-len(strips) // columns)
    text_width = max(round(_font(bold=not number).getlength(line)) for number, line in enumerate((title, *lines)))
    top = MARGIN + LINE_HEIGHT * (len(lines) + 2) + 2 * GAP
    size = (
        2 * MARGIN + max(columns * (width + 2 * GAP) - 2 * GAP, text_width),
        top + rows * (height + 2 * GAP) - 2 * GAP + MARGIN,
    )
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate((title, *lines)):
        at = (MARGIN, MARGIN + number * LINE_HEIGHT)
        draw.text(at, line, font=_font(bold=not number), fill=MUTED if number else INK)
    _draw_scale(canvas, MARGIN, top - LINE_HEIGHT - 2 * GAP + 4)
    for place, strip in enumerate(strips):
        row, column = divmod(place, columns)
        canvas.paste(strip, (MARGIN + column * (width + 2 * GAP), top + row * (height + 2 * GAP)))
    return canvas


def png_bytes(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _draw_scale(canvas: Image.Image, x: int, y: int) -> None:
    draw = ImageDraw.Draw(canvas)
    draw.text((x, y), "0", font=_font(), fill=MUTED)
    ramp = np.tile(np.linspace(0, 1, 160, dtype=np.float32), (14, 1))
    bar = overlay(np.full((14, 160), 128, np.uint8), ramp)
    canvas.paste(bar, (x + 16, y + 2))
    draw.text((x + 24 + bar.width, y), "1", font=_font(), fill=MUTED)


def _shorten(text: str, width: int) -> str:
    """``text`` in one line of at most ``width`` pixels; what is too much is left out of its middle."""
    shown = text
    while _font().getlength(shown) > width and len(text) > 1:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
        shown = f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"
    return shown


@cache
def _font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), FONT_SIZE)
