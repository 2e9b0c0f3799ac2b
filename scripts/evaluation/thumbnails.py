"""Thumbnails of many images, packed into a few large ones (sprite sheets) for an HTML page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS, PER_SHEET = 32, 1024
# from the best quality to the smallest size: the longer side in pixels, Pillow's format and its options
QUALITIES: tuple[tuple[int, str, dict[str, Any]], ...] = (
    (56, "PNG", {"compress_level": 6}),
    (56, "JPEG", {"quality": 90, "subsampling": 0}),
    (56, "JPEG", {"quality": 75}),
    (40, "JPEG", {"quality": 75}),
    (28, "JPEG", {"quality": 75}),
    (28, "JPEG", {"quality": 50}),
    (20, "JPEG", {"quality": 40}),
)
SAMPLE_MARGIN = 1.03  # what all sheets may need beyond the estimate from a sample

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sprites:
    """Sprite sheets; thumbnail i is in sheet i // PER_SHEET, row by row from the top left."""

    count: int
    width: int  # of one thumbnail, in pixels
    height: int
    lossless: bool
    sheets: tuple[bytes, ...]
    media_type: str

    @property
    def data_uris(self) -> list[str]:
        """The sheets as addresses that contain them."""
        return [f"data:{self.media_type};base64,{base64.b64encode(sheet).decode()}" for sheet in self.sheets]


def thumbnail(image: Pixels, side: int) -> Image.Image:
    """Reduce an image (H, W) or (H, W, 3) to at most ``side`` pixels a side; a smaller one keeps its pixels."""
    reduced = Image.fromarray(image)
    reduced.thumbnail((side, side), Image.Resampling.BOX)
    return reduced


def pack_sprites(images: Pixels, chosen: NDArray[np.int64], *, max_bytes: int) -> Sprites:
    """Pack the thumbnails of the chosen images of (N, H, W[, 3]) in the best quality of at most ``max_bytes``.

    The last entry of ``QUALITIES`` is taken whatever its size.
    """
    sample = chosen[np.unique(np.linspace(0, len(chosen) - 1, PER_SHEET).astype(np.int64))] if len(chosen) else chosen
    for quality in QUALITIES[:-1]:
        estimate = _encode(images, sample, *quality)
        expected = sum(map(len, estimate.sheets)) * SAMPLE_MARGIN * len(chosen) / max(1, len(sample))
        if expected > max_bytes and len(chosen) > len(sample):
            continue
        sprites = estimate if len(chosen) == len(sample) else _encode(images, chosen, *quality)
        if sum(map(len, sprites.sheets)) <= max_bytes:
            return sprites
    return _encode(images, chosen, *QUALITIES[-1])


def _encode(images: Pixels, chosen: NDArray[np.int64], side: int, kind: str, options: dict[str, Any]) -> Sprites:
    pattern = thumbnail(np.zeros(images.shape[1:], np.uint8), side)
    width, height = pattern.size
    sheets = []
    for start in range(0, len(chosen), PER_SHEET):
        part = chosen[start : start + PER_SHEET].tolist()
        sheet = Image.new(pattern.mode, (COLUMNS * width, -(-len(part) // COLUMNS) * height))
        for place, index in enumerate(part):
            row, column = divmod(place, COLUMNS)
            sheet.paste(thumbnail(images[index], side), (column * width, row * height))
        content = io.BytesIO()
        sheet.save(content, kind, **options)
        sheets.append(content.getvalue())
    lossless = kind == "PNG" and (height, width) == images.shape[1:3]
    return Sprites(len(chosen), width, height, lossless, tuple(sheets), f"image/{kind.lower()}")
