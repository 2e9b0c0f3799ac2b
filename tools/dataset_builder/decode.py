"""From the bytes of an image file to a square uint8 array, the same on every machine with the same Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# No others: some of Pillow's readers start programs of the system (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow's own limit, where it begins to warn of decompression bombs
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
LEVELS_16_PER_8 = 257  # 65535 / 255
TWELVE_BITS = 4095

# What may be remarked of a picture, in the words of the report.
TURNED = "turned upright by the EXIF orientation"
NOT_SQUARE = "not square, the middle taken"
ENLARGED = "smaller than the size asked for, and enlarged"
TRANSPARENT = "partly transparent, laid on black"
SIXTEEN_BITS = "of 16 bits, divided by 257"
DARK = f"of 16 bits but nowhere above {TWELVE_BITS:,}, and so almost black (stretch the values to 65,535 first)"
FIRST_OF_MANY = "of several pages or frames, the first taken"
COLOURED_TO_GREY = "in colour, turned grey"


class UnusableImage(Exception):  # noqa: N818 (it is the image that is at fault)
    """Why no picture can be made of a file, as the part of a sentence that follows its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How pictures are made; BloodMNIST's is ``Recipe(size=28, crop=200)``."""

    size: int  # side of the result, in pixels
    crop: int | None = None  # side of the square that is cut from the middle first; None for the largest there is
    grey: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a picture."""
        return (self.size, self.size) if self.grey else (self.size, self.size, 3)


@dataclass(frozen=True, slots=True)
class Picture:
    """What became of a file."""

    pixels: NDArray[np.uint8]  # of the recipe's shape
    is_coloured: bool  # before it was turned grey, if it was
    remarks: frozenset[str]


def decode(content: bytes, recipe: Recipe) -> Picture:
    """The picture in a file: turned upright, brought to 8 bits, cropped, resized.

    The middle is cut out with the odd pixel to the right and below, and resized by Pillow's bicubic filter, which
    smooths when it shrinks (antialias). Colour becomes grey by ITU-R 601's luma. Colour profiles are not applied.

    Args:
        content: The whole file.
        recipe: How to make the picture.

    Raises:
        UnusableImage: The file is no image, is damaged or too large, or holds values without a known black and white.
    """
    if not content:
        raise UnusableImage("it is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImage(_too_large())
            return _picture(image, recipe)
    except UnusableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImage("it is no image of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage(_too_large()) from error
    except Exception as error:  # a malformed file leads Pillow astray in many ways
        text = "".join(letter if letter.isprintable() else " " for letter in str(error)[:100]).strip()
        raise UnusableImage(f"it is damaged: {text or type(error).__name__}") from error


def _too_large() -> str:
    return f"it has more than {MAX_PIXELS:,} pixels"


def _picture(image: Image.Image, recipe: Recipe) -> Picture:
    remarks: set[str] = set()
    if getattr(image, "n_frames", 1) > 1:
        remarks.add(FIRST_OF_MANY)
    if image.getexif().get(ORIENTATION, 1) in range(2, 9):
        remarks.add(TURNED)
    upright = ImageOps.exif_transpose(image)
    plain = _eight_bits(upright, image.format or "", remarks)
    square = _middle(plain, recipe, remarks)
    is_coloured = square.mode == "RGB" and _has_colour(square)
    if is_coloured and recipe.grey:
        remarks.add(COLOURED_TO_GREY)
    wanted = square.convert("L" if recipe.grey else "RGB")
    if square.width < recipe.size:
        remarks.add(ENLARGED)
    if square.width != recipe.size:
        wanted = wanted.resize((recipe.size, recipe.size), Image.Resampling.BICUBIC)
    return Picture(np.array(wanted, dtype=np.uint8), is_coloured, frozenset(remarks))


def _has_colour(image: Image.Image) -> bool:
    """Whether the channels of an RGB image differ anywhere."""
    red, green, blue = (channel.tobytes() for channel in image.split())
    return not red == green == blue


def _eight_bits(image: Image.Image, file_format: str, remarks: set[str]) -> Image.Image:
    """The image in mode L or RGB, each with values from 0 to 255."""
    # Pillow opens 16-bit PNG, and stretches PGM of any depth, to 32-bit whole numbers in some versions
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        remarks.add(SIXTEEN_BITS)
        if 0 < values.max() <= TWELVE_BITS:
            remarks.add(DARK)
        return Image.fromarray(((values + LEVELS_16_PER_8 // 2) // LEVELS_16_PER_8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnusableImage(
            "it has 32-bit values, whose black and white are not known; save it with 8 or 16 bits per channel"
        )
    if image.mode not in EIGHT_BIT_MODES:
        raise UnusableImage(f"its colours are of the kind {image.mode}; save it as RGB or grey")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema()[0] != 255:
            remarks.add(TRANSPARENT)
            layered = Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered)
        return layered.convert("L" if image.mode in ("L", "LA", "1") else "RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _middle(image: Image.Image, recipe: Recipe, remarks: set[str]) -> Image.Image:
    side = recipe.crop or min(image.size)
    if min(image.size) < side:
        raise UnusableImage(f"it has {image.width} × {image.height} pixels, too few for --crop {side}")
    if recipe.crop is None and image.width != image.height:
        remarks.add(NOT_SQUARE)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
