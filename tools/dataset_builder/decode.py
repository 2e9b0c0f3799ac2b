"""Decode an image file into a square uint8 array, the same on every machine with the same Pillow version."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# only these: some of Pillow's readers start other programs (EPS) or read other files
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns of decompression bombs
LARGE_PIXELS = 20_000_000  # above which images are decoded one at a time, since each takes up to 1 GB of memory
_LARGE_IMAGE = Lock()
TOO_LARGE = f"it has more than {MAX_PIXELS:,} pixels"
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
LEVELS_16_PER_8 = 257  # 65535 / 255
TWELVE_BITS = 4095
PNG_BIT_DEPTH = 24  # position of the byte

# remarks about an image, as they are logged
ROTATED = "rotated by their EXIF orientation"
NOT_SQUARE = "not square, cropped to the centre"
ENLARGED = "smaller than the stored size, and enlarged"
TRANSPARENT = "partly transparent, placed on black"
SIXTEEN_BITS = "of 16 bits, divided by 257"
SIXTEEN_BITS_IN_COLOUR = "of 16 bits in colour, the lower 8 left out"
DARK = f"of 16 bits but nowhere above {TWELVE_BITS:,}, and so almost black (scale the values up to 65,535 first)"
FIRST_OF_MANY = "of several pages or frames, only the first used"
COLOURED_TO_GREY = "in colour, converted to grey"


# what all recipes have in common, as it is recorded: a record that differs is of another version of this module
COMMON = {
    "exif_orientation": "applied",
    "crop_position": "centre",
    "resize": "bicubic, antialiased",
    "grey_from_colour": "ITU-R 601",
    "transparent_pixels": "on black",
    "16_bits": "divided by 257",
    "frames": "the first",
}


class UnusableImageError(Exception):
    """The reason why a file cannot be used, as the part of a sentence that follows its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How images are made; BloodMNIST's is ``Recipe(size=28, crop=200)``."""

    size: int  # side of the result, in pixels
    crop: int | None = None  # side of the square that is cropped from the centre first; None for the largest possible
    grey: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return (self.size, self.size) if self.grey else (self.size, self.size, 3)

    def as_dict(self) -> dict[str, Any]:
        """The whole preparation as JSON values, to be recorded with a data set."""
        return asdict(self) | COMMON

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a record; ``ValueError`` if it is not one of this version."""
        size, crop, grey = (values.get(name) for name in ("size", "crop", "grey"))
        numbers = (size,) if crop is None else (size, crop)
        if not (all(type(number) is int and number > 0 for number in numbers) and isinstance(grey, bool)):
            raise ValueError("size, crop or grey is missing or wrong")
        recipe = cls(size=size, crop=crop, grey=grey)  # type: ignore[arg-type]
        if dict(values) != recipe.as_dict():
            raise ValueError("it is of another version of this program")
        return recipe


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The image of a file."""

    pixels: NDArray[np.uint8]  # of the recipe's shape
    is_coloured: bool  # before a conversion to grey
    remarks: frozenset[str]


def decode(content: bytes, recipe: Recipe) -> DecodedImage:
    """Decode a file: rotate by EXIF orientation, convert to 8 bits, crop, resize.

    The crop is central, with an odd pixel cut off at the right and the bottom, and resized by Pillow's bicubic filter,
    with antialiasing. Colour becomes grey by the luma of ITU-R 601. Colour profiles are not applied.

    Raises:
        UnusableImageError: The file is not an image, is damaged or too large, or has values without a known range.
    """
    if not content:
        raise UnusableImageError("it is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableImageError(TOO_LARGE)
            with _LARGE_IMAGE if image.width * image.height > LARGE_PIXELS else nullcontext():
                decoded = _transform(image, recipe)
            # Pillow opens colour of 16 bits as 8 bits, by leaving out the lower ones
            if image.format == "PNG" and content[PNG_BIT_DEPTH] == 16 and SIXTEEN_BITS not in decoded.remarks:
                return replace(decoded, remarks=decoded.remarks | {SIXTEEN_BITS_IN_COLOUR})
            return decoded
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError("it is not an image of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImageError(TOO_LARGE) from error
    except Exception as error:  # Pillow raises many kinds of errors for malformed files
        text = "".join(letter if letter.isprintable() else " " for letter in str(error)[:100]).strip()
        raise UnusableImageError(f"it is damaged: {text or type(error).__name__}") from error


def _transform(image: Image.Image, recipe: Recipe) -> DecodedImage:
    remarks: set[str] = set()
    if getattr(image, "n_frames", 1) > 1:
        remarks.add(FIRST_OF_MANY)
    if image.getexif().get(ORIENTATION, 1) in range(2, 9):
        remarks.add(ROTATED)
    upright = ImageOps.exif_transpose(image)
    plain = _eight_bits(upright, image.format or "", remarks)
    square = _crop_centre(plain, recipe, remarks)
    is_coloured = square.mode == "RGB" and len({channel.tobytes() for channel in square.split()}) > 1
    if is_coloured and recipe.grey:
        remarks.add(COLOURED_TO_GREY)
    wanted = square.convert("L" if recipe.grey else "RGB")
    if square.width < recipe.size:
        remarks.add(ENLARGED)
    if square.width != recipe.size:
        wanted = wanted.resize((recipe.size, recipe.size), Image.Resampling.BICUBIC)
    return DecodedImage(np.array(wanted, dtype=np.uint8), is_coloured, frozenset(remarks))


def _eight_bits(image: Image.Image, file_format: str, remarks: set[str]) -> Image.Image:
    """Convert to mode L or RGB, with values from 0 to 255."""
    # some versions of Pillow open 16-bit PNG, and PGM of any depth, as 32-bit integers
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        remarks.add(SIXTEEN_BITS)
        if 0 < values.max() <= TWELVE_BITS:
            remarks.add(DARK)
        return Image.fromarray(((values + LEVELS_16_PER_8 // 2) // LEVELS_16_PER_8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnusableImageError("it has 32-bit values of unknown range; save it with 8 or 16 bits per channel")
    if image.mode not in EIGHT_BIT_MODES:
        raise UnusableImageError(f"its colour mode is {image.mode}; save it as RGB or grey")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema()[0] != 255:
            remarks.add(TRANSPARENT)
            layered = Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered)
        return layered.convert("L" if image.mode in ("L", "LA", "1") else "RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _crop_centre(image: Image.Image, recipe: Recipe, remarks: set[str]) -> Image.Image:
    side = recipe.crop or min(image.size)
    if min(image.size) < side:
        raise UnusableImageError(f"it has {image.width} × {image.height} pixels, too few for a crop of {side}")
    if recipe.crop is None and image.width != image.height:
        remarks.add(NOT_SQUARE)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
