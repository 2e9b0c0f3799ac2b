"""Read ``.npz`` files in MedMNIST's schema, trusting nothing that they say of themselves.

What can be known from the zip directory and the array headers is checked before any array is allocated. Objects are
never unpickled. Whatever a file contains, the answer is its content or a ``DataError``.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import DataError

SPLITS = ("train", "val", "test")
KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
CLASS_NAMES = "class_names"
MAX_CLASSES = 1000
MAX_CLASS_NAME_LENGTH = 200
MAX_SHOWN = 10  # names or values in a message

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 1 << 22
MAX_BYTES_AT_ONCE = 1 << 24  # room for a zip directory of some 100,000 entries
MAX_HEADER_BYTES = 4096
MAX_SIDE = 1 << 40  # of any array: beyond it lies no data but trouble with printing the number
BEST_DEFLATION = 1032  # bytes that one compressed byte can stand for at most (https://zlib.net/zlib_tech.html)
ENCRYPTED_OR_PATCHED = 0x1 | 0x20 | 0x40  # bits of a zip entry's flags
LOCAL_HEADER_BYTES = 30

_CUT_SHORT = "the file is cut short or damaged; make or fetch it again"


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What the file says of one array, checked against the array's size in the zip directory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool = False  # whether the first index runs fastest, as in Fortran

    @property
    def num_bytes(self) -> int:
        """Memory that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class NpzLayout:
    """A file whose headers make a data set: six arrays that fit together, and class names perhaps."""

    path: Path
    headers: Mapping[str, ArrayHeader]  # by key, such as "train_images"

    @property
    def height(self) -> int:
        """Height of every image, in pixels."""
        return self.headers["train_images"].shape[1]

    @property
    def width(self) -> int:
        """Width of every image, in pixels."""
        return self.headers["train_images"].shape[2]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return _channels(self.headers["train_images"].shape)

    @property
    def label_columns(self) -> int:
        """Labels per image."""
        return self.headers["train_labels"].shape[1]

    @property
    def num_samples(self) -> dict[str, int]:
        """Number of images in each split."""
        return {split: self.headers[f"{split}_images"].shape[0] for split in SPLITS}


def validate_npz_keys(path: Path) -> NpzLayout:
    """Check from the zip directory and the array headers alone that ``path`` holds a data set in MedMNIST's schema.

    Needed are, for each of train, val and test, images as uint8 of shape (N, H, W) or (N, H, W, 3) with N, H and W
    above 0 and the same H, W and channels in all splits, and labels as integers of shape (N, L) with L above 0 and the
    same L in all splits. ``class_names``, a vector of text, may be there; further arrays are ignored.

    Raises:
        DataError: The file is no such data set, or cannot be read.
    """
    with _archive(path) as archive:
        members = _members(path, archive)
        missing = [key for key in KEYS if key not in members]
        if missing:
            _refuse(path, f"it has no array {_listed(missing)}; needed are {_listed(KEYS)}, found {_listed(members)}")
        keys = [*KEYS, CLASS_NAMES] if CLASS_NAMES in members else KEYS
        headers = {key: _read_header(path, archive, key, members[key]) for key in keys}
    for split in SPLITS:
        _check_images(path, f"{split}_images", headers)
        _check_labels(path, f"{split}_labels", headers)
    if CLASS_NAMES in headers:
        _check_class_names_header(path, headers[CLASS_NAMES])
    return NpzLayout(path, MappingProxyType(headers))


def verify_checksums(layout: NpzLayout) -> None:
    """Read every array of ``layout`` through once, in pieces, and compare with the checksums in the zip directory.

    Raises:
        DataError: The file is damaged.
    """
    with _archive(layout.path) as archive:
        for key in layout.headers:
            with _member(layout.path, archive, key) as stream:
                while stream.read(CHUNK_BYTES):
                    pass


def require_memory(layout: NpzLayout, free_bytes: int) -> None:
    """Make sure that what is always kept in memory fits there: a small file may unpack to a thousand times its size.

    Those are the labels, as stored and as 64-bit integers. Whether the images fit is another question, since they can
    be streamed.

    Raises:
        DataError: They do not.
    """
    stored = [layout.headers[f"{split}_labels"] for split in SPLITS]
    needed = sum(header.num_bytes + 8 * math.prod(header.shape) for header in stored)
    if needed > free_bytes:
        _refuse(layout.path, f"its labels need {needed:,} bytes of memory, and {free_bytes:,} are free")


def read_pieces(layout: NpzLayout, key: str) -> Iterator[bytes]:
    """The content of one array in pieces of at most a few megabytes, its checksum compared after the last.

    Args:
        layout: What ``validate_npz_keys`` said of the file.
        key: An array of the layout, such as ``"train_images"``.

    Raises:
        DataError: The file is damaged or no longer what it was, or the array is stored by columns.
    """
    if layout.headers[key].by_columns:
        _refuse(
            layout.path,
            f"{key} is stored by columns (Fortran order), from which no single image can be read; save it again as "
            "numpy.ascontiguousarray gives it, or use --feed resident",
        )
    with _archive(layout.path) as archive:
        _require_same(layout, archive, key)
        with _member(layout.path, archive, key) as stream:
            _parse_header(stream)
            while piece := stream.read(PIECE_BYTES):
                yield piece


def read_array(layout: NpzLayout, key: str) -> NDArray[Any]:
    """One array, its checksum compared.

    Args:
        layout: What ``validate_npz_keys`` said of the file.
        key: An array of the layout, such as ``"train_images"``.

    Raises:
        DataError: The file is damaged or no longer what it was, or the array does not fit into memory.
    """
    expected = layout.headers[key]
    with _archive(layout.path) as archive:
        _require_same(layout, archive, key)
        with _member(layout.path, archive, key) as stream:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # see _parse_header
                    array: NDArray[Any] = np.lib.format.read_array(
                        stream, allow_pickle=False, max_header_size=MAX_HEADER_BYTES
                    )
            except MemoryError:
                _refuse(layout.path, f"{key} needs {expected.num_bytes:,} bytes of memory, more than there is")
    return np.ascontiguousarray(array)


def read_labels(layout: NpzLayout, split: str, num_classes: int | None = None) -> NDArray[np.int64]:
    """The labels of one split, checked to be class indices.

    Args:
        layout: A file with one label per image.
        split: ``"train"``, ``"val"`` or ``"test"``.
        num_classes: Labels must be below it; ``None`` stands for the most that can be handled.

    Returns:
        Class indices, shape (N,).

    Raises:
        DataError: A label is out of range, or the file is damaged.
    """
    key = f"{split}_labels"
    labels = read_array(layout, key)[:, 0]
    highest = (MAX_CLASSES if num_classes is None else num_classes) - 1
    wrong = labels[(labels < 0) | (labels > highest)]
    if wrong.size:
        _refuse(
            layout.path,
            f"{key} has {wrong.size:,} of {labels.size:,} labels out of range (such as {_values(wrong)}); "
            f"needed are class indices from 0 to {highest}",
        )
    return labels.astype(np.int64)


def read_label_rows(layout: NpzLayout, split: str) -> NDArray[np.int64]:
    """The labels of one split of a multi-label set, checked to be 0 or 1 each.

    Args:
        layout: A file with L > 1 labels per image.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Returns:
        1 where an image has a label and 0 where it has not, shape (N, L).

    Raises:
        DataError: A label is neither 0 nor 1, or the file is damaged.
    """
    key = f"{split}_labels"
    rows = read_array(layout, key)
    wrong = rows[(rows != 0) & (rows != 1)]
    if wrong.size:
        _refuse(
            layout.path,
            f"{key} has {wrong.size:,} of {rows.size:,} labels that are neither 0 nor 1 (such as {_values(wrong)}); "
            f"needed is 1 in each of the {rows.shape[1]} columns whose label the image has, else 0",
        )
    return rows.astype(np.int64)


def _values(labels: NDArray[np.integer]) -> str:
    return ", ".join(str(value) for value in np.unique(labels)[:MAX_SHOWN].tolist())


def read_class_names(layout: NpzLayout) -> tuple[str, ...] | None:
    """The file's own class names in the order of the label values, ``None`` where it has none.

    Raises:
        DataError: A name is empty, not printable or there twice, or the file is damaged.
    """
    if CLASS_NAMES not in layout.headers:
        return None
    array = read_array(layout, CLASS_NAMES)
    # NumPy keeps a character as four bytes, and fails in odd ways over those that are none
    characters = np.frombuffer(array.tobytes(), dtype=np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if np.any(characters > sys.maxunicode):
        _refuse(layout.path, f"{CLASS_NAMES} holds something that is no text; needed are printable names")
    names = tuple(str(name) for name in array.tolist())
    for index, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            _refuse(layout.path, f"{CLASS_NAMES}[{index}] is {name!r}; needed is a printable name")
        if name in names[:index]:
            _refuse(layout.path, f"{CLASS_NAMES} has {name!r} twice; needed are different names")
    return names


class _CautiousFile(io.FileIO):
    """A file that refuses to be read in one go: zipfile reads a directory, however large, whole."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_BYTES_AT_ONCE:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes")
        return super().read(MAX_BYTES_AT_ONCE if size is None or size < 0 else size) or b""


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open zip file; ``DataError`` where it is none."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            _refuse(path, "it is not a regular file")
        with _CautiousFile(path) as stream:
            beginning = stream.read(16)
            try:
                archive = zipfile.ZipFile(stream)
            except Exception as error:  # not only BadZipFile: a malformed directory leads zipfile astray in many ways
                _refuse(path, f"{_why_no_zip(beginning, error)}; make or fetch it again")
            with archive:
                yield archive
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _why_no_zip(beginning: bytes, error: BaseException) -> str:
    if beginning.startswith(b"PK\x03\x04"):
        return f"it begins like an .npz file, but is cut short or damaged ({_brief(error)})"
    return f"it is not an .npz file (a zip archive): it begins with {beginning!r}" if beginning else "it is empty"


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a file by key; no two of them may share a name or bytes."""
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        key = info.filename.removesuffix(".npy")
        if key in members:
            _refuse(path, f"it has two arrays {_shown(key)}; needed is one")
        if info.header_offset < end:
            _refuse(path, f"{_shown(key)} does not lie where its zip directory says: {_CUT_SHORT}")
        # at least so many bytes: a name has no fewer bytes than characters, and there may be extra fields
        end = info.header_offset + LOCAL_HEADER_BYTES + len(info.filename) + info.compress_size
        members[key] = info
    if end > path.stat().st_size:
        _refuse(path, f"its zip directory points behind its end: {_CUT_SHORT}")
    return members


@contextmanager
def _member(path: Path, archive: zipfile.ZipFile, key: str) -> Iterator[IO[bytes]]:
    """The open content of an array; whatever goes wrong in reading it is a ``DataError``."""
    try:
        with archive.open(f"{key}.npy") as stream:
            yield stream
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's parser raise almost anything over a malformed file
        raise DataError(
            f"Cannot use {path}: {key} is damaged ({_brief(error)}); make or fetch the file again."
        ) from error


def _require_same(layout: NpzLayout, archive: zipfile.ZipFile, key: str) -> None:
    """Refuse an array that is no longer what the layout says."""
    expected, found = (
        layout.headers[key],
        _read_header(layout.path, archive, key, _members(layout.path, archive).get(key)),
    )
    if found != expected:
        _refuse(layout.path, f"{key} has changed from {_described(expected)} to {_described(found)} in the meantime")


def _read_header(path: Path, archive: zipfile.ZipFile, key: str, info: zipfile.ZipInfo | None) -> ArrayHeader:
    """The header of one array, if the array can be what the header says."""
    if info is None or info.filename != f"{key}.npy":
        _refuse(path, f"it has no array {key}.npy")
    if info.flag_bits & ENCRYPTED_OR_PATCHED:
        _refuse(path, f"{key} is encrypted or patched; needed is a plain array, as numpy.savez writes it")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _refuse(path, f"{key} is packed by method {info.compress_type}; needed is stored (0) or deflated (8)")
    with _member(path, archive, key) as stream:
        # a bounded piece: the header itself says how long it is, and might say 4 GiB
        beginning = io.BytesIO(stream.read(MAX_HEADER_BYTES + 16))
        header = _parse_header(beginning)
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        _refuse(path, f"{key} holds pickled Python objects, which could run any code; needed are plain numbers")
    if len(shape) > 4 or not all(0 <= side <= MAX_SIDE for side in shape):
        _refuse(path, f"{key} has an impossible shape; needed are at most 4 dimensions of sensible size")
    declared = beginning.tell() + header.num_bytes
    if info.file_size != declared:
        _refuse(
            path,
            f"{key} would be {declared:,} bytes by its header ({_described(header)}), but the file holds "
            f"{info.file_size:,} bytes of it; make or fetch it again",
        )
    if info.file_size > max(info.compress_size, 1) * BEST_DEFLATION:
        _refuse(path, f"{key} cannot unpack to {declared:,} bytes from {info.compress_size:,}; make or fetch it again")
    return header


def _parse_header(stream: IO[bytes]) -> ArrayHeader:
    """The header of the array that begins here; NumPy raises almost anything where they are malformed."""
    version = np.lib.format.read_magic(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote: they are read all the same
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_HEADER_BYTES)
        elif version == (2, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=MAX_HEADER_BYTES)
        else:
            raise ValueError(f"array format {version[0]}.{version[1]}, needed is 1.0 or 2.0")
    return ArrayHeader(tuple(int(side) for side in shape), dtype, by_columns)


def _check_images(path: Path, key: str, headers: Mapping[str, ArrayHeader]) -> None:
    header, first = headers[key], headers["train_images"]
    shape = header.shape
    if header.dtype != np.uint8:
        _refuse(path, f"{key} has dtype {header.dtype}; needed is uint8 (0 to 255)")
    if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)):
        _refuse(path, f"{key} has shape {shape}; needed is (N, H, W) for grey images or (N, H, W, 3) for RGB")
    if 0 in shape:
        _refuse(path, f"{key} has shape {shape}; needed is at least one image of at least one pixel")
    if shape[1:] != first.shape[1:]:
        _refuse(
            path, f"{key} has images of shape {shape[1:]}, train_images {first.shape[1:]}; needed is the same in all"
        )


def _check_labels(path: Path, key: str, headers: Mapping[str, ArrayHeader]) -> None:
    header, first = headers[key], headers["train_labels"]
    images_key = key.replace("labels", "images")
    num_images = headers[images_key].shape[0]
    if header.dtype.kind not in "iu":
        _refuse(path, f"{key} has dtype {header.dtype}; needed are integers")
    if len(header.shape) != 2 or header.shape[1] == 0:
        _refuse(path, f"{key} has shape {header.shape}; needed is (N, L), such as ({num_images}, 1)")
    if header.shape[0] != num_images:
        _refuse(
            path, f"{key} has {header.shape[0]:,} rows, {images_key} {num_images:,} images; needed is a row for each"
        )
    if header.shape[1] != first.shape[1]:
        _refuse(path, f"{key} has {header.shape[1]} columns, train_labels {first.shape[1]}; needed is the same in all")


def _check_class_names_header(path: Path, header: ArrayHeader) -> None:
    if header.dtype.kind != "U" or len(header.shape) != 1:
        _refuse(
            path, f"{CLASS_NAMES} is {_described(header)}; needed is a vector of text, such as shape (8,), dtype <U20"
        )
    if not 2 <= header.shape[0] <= MAX_CLASSES:
        _refuse(path, f"{CLASS_NAMES} has {header.shape[0]:,} names; needed are 2 to {MAX_CLASSES}")
    if header.dtype.itemsize > 4 * MAX_CLASS_NAME_LENGTH:  # NumPy keeps four bytes per character
        _refuse(
            path, f"{CLASS_NAMES} has dtype {header.dtype}; needed are at most {MAX_CLASS_NAME_LENGTH} characters each"
        )


def _channels(image_shape: tuple[int, ...]) -> int:
    return 1 if len(image_shape) == 3 else 3


def _described(header: ArrayHeader) -> str:
    return f"shape {header.shape}, dtype {header.dtype}"


def _listed(names: list[str] | tuple[str, ...] | Mapping[str, Any]) -> str:
    shown = [_shown(name) for name in list(names)[:MAX_SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "") or "none"


def _shown(name: str) -> str:
    """A name from a file, safe to print."""
    return name if name.isidentifier() and len(name) <= 40 else repr(name[:40])


def _brief(error: BaseException) -> str:
    """The beginning of a message that may quote the file."""
    text = "".join(character if character.isprintable() else " " for character in str(error)[:100])
    return text.strip() or type(error).__name__


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"Cannot use {path}: {reason}.")
