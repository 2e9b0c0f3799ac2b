"""Read ``.npz`` files in MedMNIST's schema without trusting anything that they claim.

Headers are checked before any array is allocated, and objects are never unpickled. A file gives data or ``DataError``.
"""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NoReturn

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from scripts.core.errors import DataError
from scripts.core.log import log
from scripts.data_handler.memory import ImageSizes

SPLITS = ("train", "val", "test")
KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
CLASS_NAMES = "class_names"
MAX_CLASSES = 1000
MAX_CLASS_NAME_LENGTH = 200
PREPARATION = "preparation"  # how tools/make_dataset.py made the images, as JSON
MAX_PREPARATION_LENGTH = 2000  # characters
MAX_SHOWN = 10  # names or values in a message

PIECE_BYTES = 1 << 22
MAX_BYTES_AT_ONCE = 1 << 24  # room for a zip directory of some 100,000 entries
MAX_HEADER_BYTES = 4096
MAX_DEFLATE_RATIO = 1032  # of uncompressed to compressed bytes (https://zlib.net/zlib_tech.html)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """Shape and type of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool = False  # Fortran order: the first index runs fastest

    @property
    def num_bytes(self) -> int:
        """Memory that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return _brief(f"shape {self.shape}, dtype {self.dtype}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzLayout(ImageSizes):
    """A file whose headers make a data set: six arrays that fit together, and optional class names."""

    path: Path
    headers: Mapping[str, ArrayHeader]  # by key, such as "train_images"
    label_columns: int  # labels per image


def validate_npz_keys(path: Path) -> NpzLayout:
    """Check from the zip directory and the array headers alone that ``path`` holds a data set in MedMNIST's schema.

    Each split needs uint8 images of shape (N, H, W) or (N, H, W, 3) and integer labels of shape (N, L), none of them 0;
    H, W, channels and L are the same in all splits. ``class_names``, a vector of text, is optional; further arrays are
    ignored.

    Raises:
        DataError: The file is not such a data set, or cannot be read.
    """
    with _archive(path) as archive:
        found = [name.removesuffix(".npy") for name in archive.namelist()]
        if missing := [key for key in KEYS if key not in found]:
            refuse(path, f"it has no array {_listed(missing)}; expected {_listed(KEYS)}, found {_listed(found)}")
        headers = {key: _read_header(path, archive, key) for key in (*KEYS, CLASS_NAMES) if key in found}
    shapes = {key: header.shape for key, header in headers.items()}
    _check_consistency(path, shapes)
    _, height, width, channels = (*shapes["train_images"], 1)[:4]
    return NpzLayout(
        num_samples={split: shapes[f"{split}_images"][0] for split in SPLITS},
        height=height,
        width=width,
        channels=channels,
        path=path,
        headers=MappingProxyType(headers),
        label_columns=shapes["train_labels"][1],
    )


def verify_checksums(layout: NpzLayout) -> None:
    """Read every array once, in pieces, and raise ``DataError`` if its checksum differs from the zip directory's."""
    for key in layout.headers:
        deque(read_pieces(layout, key), maxlen=0)


def require_memory(layout: NpzLayout, free_bytes: int) -> None:
    """Raise ``DataError`` if the labels, as stored and as int64, do not fit into memory; images can be streamed.

    This is known before anything is read: a small file may unpack to a thousand times its size.
    """
    stored = [layout.headers[f"{split}_labels"] for split in SPLITS]
    needed = sum(header.num_bytes + 8 * math.prod(header.shape) for header in stored)
    if needed > free_bytes:
        refuse(layout.path, f"its labels need {needed:,} bytes of memory, and {free_bytes:,} are free")


def read_pieces(layout: NpzLayout, key: str) -> Iterator[bytes]:
    """Yield the content of the array ``key`` in pieces of ``PIECE_BYTES``, and compare its checksum after the last.

    ``DataError`` if the file is damaged or has changed.
    """
    expected = layout.headers[key]
    with _archive(layout.path) as archive:
        found = _read_header(layout.path, archive, key)
        if found != expected:
            refuse(layout.path, f"{key} has changed from {expected} to {found} in the meantime")
        with _damage(layout.path, key), archive.open(f"{key}.npy") as stream:
            _parse_header(stream)
            missing = expected.num_bytes
            while piece := stream.read(PIECE_BYTES):
                missing -= len(piece)
                yield piece
            if missing:
                raise EOFError(f"{missing:,} bytes are missing")


def read_array(layout: NpzLayout, key: str) -> NDArray[Any]:
    """Read the array ``key``; ``DataError`` if the file is damaged or has changed, or the memory does not suffice."""
    header, start = layout.headers[key], 0
    try:
        content = np.empty(header.num_bytes, np.uint8)
    except MemoryError:
        refuse(layout.path, f"{key} needs {header.num_bytes:,} bytes of memory, more than there is")
    for piece in read_pieces(layout, key):
        content[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        start += len(piece)
    array = np.ndarray(header.shape, header.dtype, content, order="F" if header.by_columns else "C")
    return np.ascontiguousarray(array)


def read_labels(layout: NpzLayout, split: str, num_classes: int = MAX_CLASSES) -> NDArray[np.int64]:
    """Read the labels of one split: class indices (N,) below ``num_classes``, or 0 and 1 (N, L) if L is above 1.

    Raises:
        DataError: A label is out of range, or the file is damaged.
    """
    key, labels = f"{split}_labels", read_array(layout, f"{split}_labels")
    if layout.label_columns == 1:
        labels, highest, problem = labels[:, 0], num_classes - 1, "out of range"
        needed = f"expected class indices from 0 to {highest}"
    else:
        highest, problem = 1, "that are neither 0 nor 1"
        needed = f"expected 1 in each of the {labels.shape[1]} columns whose label the image has, else 0"
    wrong = labels[(labels < 0) | (labels > highest)]
    if wrong.size:
        values = ", ".join(str(value) for value in np.unique(wrong)[:MAX_SHOWN])
        found = f"{wrong.size:,} of {labels.size:,} labels {problem} (such as {values})"
        refuse(layout.path, f"{key} has {found}; {needed}")
    return labels.astype(np.int64)


def read_class_names(layout: NpzLayout) -> tuple[str, ...] | None:
    """Read the file's own class names in the order of the label values, ``None`` where it has none.

    ``DataError`` if a name is empty, not printable or a duplicate, or the file is damaged.
    """
    if CLASS_NAMES not in layout.headers:
        return None
    array = read_array(layout, CLASS_NAMES)
    with _damage(layout.path, CLASS_NAMES):  # NumPy stores four bytes per character, which need not be one
        names = tuple(map(str, array.tolist()))
    for index, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            refuse(layout.path, f"{CLASS_NAMES}[{index}] is {name!r}; expected a printable name")
        if name in names[:index]:
            refuse(layout.path, f"{CLASS_NAMES} has {name!r} twice; expected different names")
    return names


def read_preparation(layout: NpzLayout) -> dict[str, Any] | None:
    """Read how the images were prepared from image files, as ``tools/make_dataset.py`` records it.

    Returns a flat object of text, whole numbers, true, false and null; None where the file has no such record, or an
    unusable one, which a warning states.
    """
    try:
        with _archive(layout.path) as archive:
            if f"{PREPARATION}.npy" not in archive.namelist():
                return None
            header = _read_header(layout.path, archive, PREPARATION)
        array = read_array(replace(layout, headers={PREPARATION: header}), PREPARATION)
        with _damage(layout.path, PREPARATION):  # the parser raises several kinds of errors for malformed text
            return _flat_object(json.loads(array.item()))
    except DataError as error:
        log.warning("%s Its record of how the images were prepared is ignored.", error)
        return None


def _flat_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(part, str | int | None) for part in value.values()):
        raise ValueError("it is not a flat JSON object")
    if not all(str(part).isprintable() for item in value.items() for part in item):
        raise ValueError("it has characters that cannot be printed")
    return value


class _BoundedReads(io.FileIO):
    """A file that refuses large reads: zipfile reads a zip directory of any size at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_BYTES_AT_ONCE:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes")
        return super().read(MAX_BYTES_AT_ONCE if size is None or size < 0 else size) or b""


def refuse(path: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    """Raise the ``DataError`` of a file that cannot be used."""
    raise DataError(f"Cannot use {path}: {reason}.") from cause


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` raised inside into a ``DataError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip file."""
    with read_errors(path):
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            refuse(path, "it is not a regular file")
        with _BoundedReads(path) as stream:
            beginning = stream.read(16)
            try:
                archive = zipfile.ZipFile(stream)
            except Exception as error:  # malformed directories raise more than BadZipFile
                if beginning.startswith(b"PK\x03\x04"):
                    reason = f"it begins like an .npz file, but is cut short or damaged ({_brief(error)})"
                elif beginning:
                    reason = f"it is not an .npz file (a zip archive): it begins with {beginning!r}"
                else:
                    reason = "it is empty"
                refuse(path, f"{reason}; make or fetch it again")
            with archive:
                yield archive


@contextmanager
def _damage(path: Path, key: str) -> Iterator[None]:
    """Turn any error over an array's content into a ``DataError``."""
    try:
        yield
    except Exception as error:  # zipfile, zlib and NumPy's parser raise almost anything over a malformed file
        refuse(path, f"{key} is damaged ({_brief(error)}); make or fetch the file again", error)


def _read_header(path: Path, archive: zipfile.ZipFile, key: str) -> ArrayHeader:
    """Read the header of one array; check its kind, and its size against the zip directory's."""
    name = f"{key}.npy"
    if (count := archive.namelist().count(name)) != 1:
        refuse(path, f"it has {count} arrays {name}; expected one")
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others need unbounded memory
        refuse(path, f"{key} is packed by method {info.compress_type}; expected stored (0) or deflated (8)")
    with _damage(path, key), archive.open(name) as stream:
        beginning = io.BytesIO(stream.read(MAX_HEADER_BYTES + 16))  # the header may claim to be 4 GiB long
        header = _parse_header(beginning)
    _check_kind(path, key, header)
    declared = beginning.tell() + header.num_bytes
    if info.file_size != declared:
        claim = f"{key} would be {declared:,} bytes by its header ({header})"
        refuse(path, f"{claim}, but the file holds {info.file_size:,} bytes of it; make or fetch it again")
    packed = min(info.compress_size, path.stat().st_size)
    if declared > packed * MAX_DEFLATE_RATIO:
        refuse(path, f"{key} cannot unpack to {declared:,} bytes from {packed:,}; make or fetch it again")
    return header


def _parse_header(stream: IO[bytes]) -> ArrayHeader:
    """Parse the header of the array that begins here; NumPy raises almost anything over a malformed one."""
    version = npy_format.read_magic(stream)
    parse = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}[version]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files that Python 2 wrote are read all the same
        shape, by_columns, dtype = parse(stream, max_header_size=MAX_HEADER_BYTES)
    return ArrayHeader(tuple(int(side) for side in shape), dtype, by_columns)


def _check_kind(path: Path, key: str, header: ArrayHeader) -> None:
    """Check one array's type and shape."""
    shape, dtype = header.shape, header.dtype
    its_shape, its_dtype = f"{key} has {_brief(f'shape {shape}')}", f"{key} has {_brief(f'dtype {dtype}')}"
    if key == CLASS_NAMES:
        if dtype.kind != "U" or len(shape) != 1:
            refuse(path, f"{key} is {header}; expected a vector of text, such as shape (8,), dtype <U20")
        if not 2 <= shape[0] <= MAX_CLASSES:
            refuse(path, f"{key} has {_brief(f'{shape[0]:,}')} names; expected 2 to {MAX_CLASSES}")
        if dtype.itemsize > 4 * MAX_CLASS_NAME_LENGTH:  # NumPy stores four bytes per character
            refuse(path, f"{its_dtype}; expected at most {MAX_CLASS_NAME_LENGTH} characters each")
    elif key == PREPARATION:
        if dtype.kind != "U" or shape or dtype.itemsize > 4 * MAX_PREPARATION_LENGTH:
            refuse(path, f"{key} is {header}; expected one text of at most {MAX_PREPARATION_LENGTH:,} characters")
    elif key.endswith("images"):
        if dtype != np.uint8:
            refuse(path, f"{its_dtype}; expected uint8 (0 to 255)")
        if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)):
            refuse(path, f"{its_shape}; expected (N, H, W) for grey images or (N, H, W, 3) for RGB")
        if min(shape) < 1:
            refuse(path, f"{its_shape}; expected at least one image of at least one pixel")
    elif dtype.kind not in "iu":
        refuse(path, f"{its_dtype}; expected integers")
    elif len(shape) != 2 or min(shape) < 1:
        refuse(path, f"{its_shape}; expected (N, L), such as (100, 1)")


def _check_consistency(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the arrays fit together."""
    image_shape, columns = shapes["train_images"][1:], shapes["train_labels"][1]
    for split in SPLITS:
        (num_images, *one), (rows, width) = shapes[f"{split}_images"], shapes[f"{split}_labels"]
        if tuple(one) != image_shape:
            found = f"{split}_images has images of shape {tuple(one)}, train_images {image_shape}"
            refuse(path, f"{found}; expected the same in all")
        if rows != num_images:
            found = f"{split}_labels has {rows:,} rows, {split}_images {num_images:,} images"
            refuse(path, f"{found}; expected a row for each")
        if width != columns:
            refuse(path, f"{split}_labels has {width} columns, train_labels {columns}; expected the same in all")


def _listed(names: Sequence[str]) -> str:
    shown = [name if name.isidentifier() and len(name) <= 40 else repr(name[:40]) for name in names[:MAX_SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "") or "none"


def _brief(value: object) -> str:
    """The beginning of a text that may quote the file, safe to print."""
    text = "".join(character if character.isprintable() else " " for character in str(value)[:100])
    return text.strip() or type(value).__name__
