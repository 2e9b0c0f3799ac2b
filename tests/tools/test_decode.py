"""How image files of every common kind are decoded, and how other files are refused."""

from __future__ import annotations

import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.conftest import noise
from tools.dataset_builder import decode as module
from tools.dataset_builder.decode import (
    COLOURED_TO_GREY,
    DARK,
    ENLARGED,
    FIRST_OF_MANY,
    NOT_SQUARE,
    ROTATED,
    SIXTEEN_BITS,
    SIXTEEN_BITS_IN_COLOUR,
    TRANSPARENT,
    DecodedImage,
    Recipe,
    UnusableImageError,
    decode,
)

EIGHT = Recipe(size=8)
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)


def encoded(image: Image.Image, file_format: str = "PNG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **settings)
    return stream.getvalue()


def decoded(image: Image.Image, file_format: str = "PNG", recipe: Recipe = EIGHT, **settings: Any) -> DecodedImage:
    return decode(encoded(image, file_format, **settings), recipe)


def plain(colour: Any, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def test_an_image_of_the_right_size_is_taken_as_it_is():
    result = decoded(noise(1, side=8))
    assert np.array_equal(result.pixels, np.asarray(noise(1, side=8)))
    assert result.remarks == frozenset()
    assert result.is_coloured


def test_the_crop_is_the_middle_with_the_odd_pixel_right_and_below():
    values = np.arange(13 * 11, dtype=np.uint8).reshape(13, 11)
    result = decoded(Image.fromarray(values), recipe=Recipe(size=8, crop=8, grey=True))
    # 13 - 8 = 5 rows are cut: 2 above, 3 below; 11 - 8 = 3 columns: 1 left, 2 right
    assert np.array_equal(result.pixels, values[2:10, 1:9])
    assert result.remarks == frozenset()


def test_bloodmnists_recipe_is_crop_and_pillows_bicubic():
    image = noise(5, side=363)
    result = decoded(image, recipe=Recipe(size=28, crop=200))
    expected = image.crop((81, 81, 281, 281)).resize((28, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(result.pixels, np.asarray(expected))


def test_without_crop_the_largest_square_is_taken_and_remarked():
    values = np.zeros((8, 12), dtype=np.uint8)
    values[:, 2:10] = 200
    result = decoded(Image.fromarray(values), recipe=Recipe(size=8, grey=True))
    assert np.all(result.pixels == 200)
    assert result.remarks == {NOT_SQUARE}


@pytest.mark.parametrize("side", [8, 28, 224, 1024])
def test_every_size_has_its_shape(side):
    assert decoded(noise(1), recipe=Recipe(size=side)).pixels.shape == (side, side, 3)
    assert decoded(noise(1), recipe=Recipe(size=side, grey=True)).pixels.shape == (side, side)


def test_a_small_image_is_enlarged_with_a_remark():
    assert decoded(plain(RED, size=(4, 4))).remarks == {ENLARGED}


@pytest.mark.parametrize(("colour", "luma"), [(RED, 76), (GREEN, 150), (BLUE, 29), (GREY, 90)])
def test_grey_is_the_luma_of_itu_r_601(colour, luma):
    result = decoded(plain(colour), recipe=Recipe(size=8, grey=True))  # 0.299 R + 0.587 G + 0.114 B
    assert np.all(result.pixels == luma)
    assert result.remarks == (frozenset() if colour == GREY else {COLOURED_TO_GREY})


def test_grey_becomes_three_equal_channels_and_is_no_colour():
    result = decoded(plain(90, mode="L"))
    assert np.all(result.pixels == 90)
    assert not result.is_coloured
    assert not decoded(plain(GREY)).is_coloured


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 255, 0, 0])
    return encoded(image, "PNG", **({"transparency": 1} if transparent else {}))


def test_palettes_are_resolved_with_their_transparency():
    assert np.all(decode(palette(False), EIGHT).pixels == (10, 20, 30))
    see_through = decode(palette(True), EIGHT)
    assert np.all(see_through.pixels == 0)
    assert see_through.remarks == {TRANSPARENT}


def test_transparent_pixels_are_placed_on_black():
    half = decoded(plain((200, 100, 50, 128), mode="RGBA"))
    assert np.all(np.abs(half.pixels.astype(int) - (100, 50, 25)) <= 1)
    assert half.remarks == {TRANSPARENT}
    opaque = decoded(plain((200, 100, 50, 255), mode="RGBA"))
    assert np.all(opaque.pixels == (200, 100, 50))
    assert opaque.remarks == frozenset()
    assert np.all(np.abs(decoded(plain((200, 128), mode="LA")).pixels.astype(int) - 100) <= 1)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_divided_by_257(file_format):
    values = np.full((8, 8), 257 * 100, dtype=np.uint16)
    values[0, :3] = 65535, 257 * 7 + 128, 257 * 7 + 129  # the brightest, the last rounded down, the first rounded up
    result = decode(encoded(Image.fromarray(values), file_format), Recipe(size=8, grey=True))

    assert result.pixels[0].tolist()[:4] == [255, 7, 8, 100]
    assert result.remarks == {SIXTEEN_BITS}


def test_twelve_bits_in_sixteen_are_remarked_as_dark():
    values = np.full((8, 8), 4095, dtype=np.uint16)
    assert decoded(Image.fromarray(values)).remarks == {SIXTEEN_BITS, DARK}
    assert decoded(Image.fromarray(values + 1)).remarks == {SIXTEEN_BITS}


def test_colour_of_sixteen_bits_is_remarked():
    pixel = struct.pack(">HHH", 0x64FF, 0x0700, 0xFFFF)
    result = decode(png(8, 8, 16, (b"\0" + pixel * 8) * 8), EIGHT)
    assert np.all(result.pixels == (0x64, 0x07, 0xFF))
    assert result.remarks == {SIXTEEN_BITS_IN_COLOUR}


@pytest.mark.parametrize(("limit", "most"), [(63, 1), (64, 2)])
def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch, limit: int, most: int):
    transform, inside, counts, both = module._transform, threading.Semaphore(2), list[int](), threading.Event()

    def count_and_transform(image: Image.Image, recipe: Recipe) -> DecodedImage:
        with inside:
            counts.append(2 - inside._value)
            if counts[-1] == 2:
                both.set()
            both.wait(0.2 if most == 1 else 60)
            return transform(image, recipe)

    monkeypatch.setattr(module, "LARGE_PIXELS", limit)
    monkeypatch.setattr(module, "_transform", count_and_transform)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decode, [encoded(noise(1, side=8))] * 2, [EIGHT] * 2))
    assert max(counts) == most


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(dtype):
    with pytest.raises(UnusableImageError, match="32-bit values of unknown range"):
        decoded(Image.fromarray(np.ones((8, 8), dtype=dtype)), "TIFF")


def test_cmyk_becomes_rgb():
    pixels = decoded(plain((0, 255, 255, 0), mode="CMYK"), "TIFF").pixels
    assert np.all(pixels == (255, 0, 0))
    jpeg = decoded(plain((0, 255, 255, 0), mode="CMYK"), "JPEG", quality=100).pixels.astype(int)
    assert np.all(np.abs(jpeg - (255, 0, 0)) <= 4)


def test_other_colours_are_refused():
    with pytest.raises(UnusableImageError, match="its colour mode is LAB; save it as RGB or grey"):
        decoded(plain((50, 10, 10), mode="LAB"), "TIFF")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format, orientation):
    upright = noise(3, side=8)
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # a quarter turn against the clock, which showing it turns back
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for method in undo:
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(stored, file_format, exif=exif)

    assert np.array_equal(result.pixels, np.asarray(upright))
    assert result.remarks == (frozenset() if orientation == 1 else {ROTATED})


def test_the_first_of_several_pages_is_taken_and_remarked():
    result = decoded(plain(RED), "TIFF", save_all=True, append_images=[plain(BLUE)])
    assert np.all(result.pixels == RED)
    assert result.remarks == {FIRST_OF_MANY}


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims to be huge."""
    return png(width, height, 8, b"\0" * 1000)


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """A PNG in RGB; each row begins with a 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    pixels = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 14_000, 1_000_000])  # from where Pillow warns, from where it refuses, absurd
def test_decompression_bombs_are_refused_unopened(side):
    with pytest.raises(UnusableImageError, match="more than 89,478,485 pixels"):
        decode(bomb(side, side), EIGHT)


def test_the_limit_is_the_programs_own_even_if_pillow_has_none(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnusableImageError, match="more than 89,478,485 pixels"):
        decode(bomb(9_500, 9_500), EIGHT)


def test_an_image_smaller_than_the_crop_is_refused():
    with pytest.raises(UnusableImageError, match="it has 20 × 12 pixels, too few for a crop of 13"):
        decoded(plain(RED, size=(20, 12)), recipe=Recipe(size=8, crop=13))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"a text", "it is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "it is not an image of a known format"),
        (b"\0" * 1000, "it is not an image of a known format"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused(content, reason):
    with pytest.raises(UnusableImageError) as caught:
        decode(content, EIGHT)
    assert str(caught.value) == reason


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused(file_format, kept):
    content = encoded(noise(1, side=64), file_format)
    with pytest.raises(UnusableImageError):
        decode(content[: int(len(content) * kept)], EIGHT)


@pytest.mark.filterwarnings("ignore")  # Pillow's, which build ignores too
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "JPEG2000"])
def test_damaged_files_give_an_image_or_a_reason(file_format):
    content = encoded(noise(1, side=16), file_format)
    random = np.random.default_rng(0)
    reasons = []
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(damaged), 8).tolist():
            damaged[place] = int(random.integers(0, 256))
        try:
            assert decode(bytes(damaged), EIGHT).pixels.shape == (8, 8, 3)
        except UnusableImageError as error:
            reasons.append(str(error))
    assert reasons
    assert all(reason.isprintable() and len(reason) < 200 for reason in reasons)


def test_no_format_that_starts_other_programs_is_opened():
    assert not {"EPS", "WMF", "PDF", "FPX", "MIC"} & set(module.FORMATS)


@pytest.mark.parametrize("recipe", [Recipe(size=28, crop=200), Recipe(size=64, grey=True)])
def test_a_recipe_is_recorded_and_read_back(recipe):
    record = recipe.as_dict()
    assert record["exif_orientation"] == "applied"
    assert Recipe.from_dict(json.loads(json.dumps(record))) == recipe


@pytest.mark.parametrize(
    "changed",
    [
        *({"size": 0}, {"size": True}, {"size": "8"}, {"size": None}, {"crop": 0}, {"crop": 2.5}, {"grey": 1}),
        *({"new": 1}, {"resize": "nearest"}),
    ],
)
def test_another_record_is_not_a_recipe(changed):
    with pytest.raises(ValueError, match=r"missing or wrong|another version"):
        Recipe.from_dict(EIGHT.as_dict() | changed)
