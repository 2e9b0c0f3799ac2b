"""A set's images as uncompressed files, of which any batch can be read without the rest.

They lie in ``<data_dir>/uncompressed/`` under the MD5 of the ``.npz`` that they came from, so that they can never be
taken for those of another file, and they are made once. Whoever needs the space may delete the folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import DataError, StorageError, storage_errors
from scripts.core.files import remove_leftovers, replace_atomically
from scripts.core.log import log
from scripts.data_handler.memory import ImageSizes, megabytes
from scripts.data_handler.npz import NpzLayout, read_pieces

FOLDER = "uncompressed"
HEADER_BYTES = 128  # always, whatever the shape: so the images begin at the same place in every file


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The images of one split in a ``.npy`` file of this module's making."""

    path: Path
    shape: tuple[int, ...]  # (N, H, W) or (N, H, W, 3)

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return HEADER_BYTES + int(np.prod(self.shape, dtype=np.int64))

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def header(self) -> bytes:
        """The beginning of the file: NumPy's format 1.0, padded with spaces."""
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {self.shape}, }}".encode()
        magic = np.lib.format.magic(1, 0)
        length = HEADER_BYTES - len(magic) - 2
        return magic + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"

    def is_whole(self) -> bool:
        """Whether the file is there with this header and of this size."""
        try:
            if self.path.stat().st_size != self.num_bytes:
                return False
            with self.path.open("rb") as stream:
                return stream.read(HEADER_BYTES) == self.header
        except OSError:
            return False

    def map(self) -> NDArray[np.uint8]:
        """All images as an array that is read where it is looked at; for a few of them."""
        with _reading(self.path):
            return np.memmap(self.path, dtype=np.uint8, mode="r", offset=HEADER_BYTES, shape=self.shape)


class ImageReader:
    """Any rows of a file's images by their indices, as of an array, without keeping any.

    Rows are read rather than mapped: what a mapping has shown counts as the process's memory, mapping anew for each
    batch took twice as long, and over a file that was cut short it ends the process without a word. The open file
    outlives the deletion of its name. A process that it is sent to opens the file anew.

    Raises:
        DataError: The file cannot be read, at the beginning or later.
    """

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        with _reading(file.path):
            self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[type[ImageReader], tuple[ImageFile]]:
        return ImageReader, (self._file,)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of ``indices`` (B,), in this order, as an array of their own."""
        rows = np.empty((len(indices), self._file.image_bytes), dtype=np.uint8)
        with _reading(self._file.path):
            for position in np.argsort(indices, kind="stable"):  # in the order of the file, each to its own place
                self._read(memoryview(rows[position]), int(indices[position]))
        return rows.reshape(-1, *self._file.shape[1:])

    def _read(self, row: memoryview, index: int) -> None:
        place = HEADER_BYTES + index * len(row)
        while row:
            # with a place of its own in every call, processes that share the open file do not disturb each other
            num_read = os.preadv(self._descriptor, [row], place)
            if num_read == 0:
                raise OSError(errno.EIO, "it has been cut short")
            row, place = row[num_read:], place + num_read


def image_files(images: ImageSizes, md5: str, data_dir: Path) -> dict[str, ImageFile]:
    """Where the images of each split go, or are; they come from the file with this MD5."""
    folder = data_dir.absolute() / FOLDER
    one = (images.height, images.width) if images.channels == 1 else (images.height, images.width, images.channels)
    return {
        split: ImageFile(folder / f"{md5}_{split}_images.npy", (count, *one))
        for split, count in images.num_samples.items()
    }


def unpack_images(layout: NpzLayout, files: Mapping[str, ImageFile], *, verify: Callable[[], None]) -> None:
    """Make sure that the images of all splits lie uncompressed in their files; those that do already are kept.

    The test split is among them from the beginning, so that a full disk or a damaged file is noticed before a night of
    training rather than after it: its bytes are copied, not looked at.

    Args:
        layout: A checked data set.
        files: Where the images go, in one folder.
        verify: Raises ``DataError`` unless the data set is still the one of the files' names; called after each split
            has been read, before what was written takes its name.

    Raises:
        DataError: The file is damaged, or has changed.
        StorageError: The images cannot be written.
    """
    missing = {split: file for split, file in files.items() if not file.is_whole()}
    folder = files["train"].path.parent
    if not missing:
        log.info("images are read from %s, where they lie uncompressed", folder)
        return
    with storage_errors(folder, "make the folder for the uncompressed images"):
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    needed = bytes_to_write(files)
    require_space(folder, needed)
    log.info(
        "unpacking %s of images into %s, once; the folder may be deleted when no run uses it", megabytes(needed), folder
    )
    with _progress(needed) as advance:
        for split, file in missing.items():
            with replace_atomically(file.path, needed_bytes=file.num_bytes) as stream:
                stream.write(file.header)
                for piece in read_pieces(layout, f"{split}_images"):
                    stream.write(piece)
                    advance(len(piece))
                verify()


def bytes_to_write(files: Mapping[str, ImageFile]) -> int:
    """Space that those of the files will take which are not there yet."""
    return sum(file.num_bytes for file in files.values() if not file.is_whole())


def require_space(folder: Path, needed_bytes: int) -> None:
    """Make sure that uncompressed images can be put into ``folder``, which need not be there yet, and fit there.

    Raises:
        StorageError: They cannot, or do not.
    """
    if needed_bytes:
        require_writable(folder)
    free = free_space(folder)
    if needed_bytes > free:
        raise StorageError(
            f"The images need {needed_bytes:,} bytes of disk space to be streamed, and {free:,} are free at {folder}. "
            "Free some space, or choose another place with --data_dir."
        )


def require_writable(folder: Path) -> None:
    """Make sure that files can be made in ``folder``, or the folder itself where it is not there yet.

    Raises:
        StorageError: They cannot.
    """
    there = _nearest(folder)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):  # noqa: PTH112 (never raises)
        kind = "is read-only for this user" if os.path.isdir(there) else "is no folder"  # noqa: PTH112
        raise StorageError(
            f"Cannot write to {folder}: {there} {kind}. Make it a folder that can be written to, or choose another "
            "place with --data_dir."
        )


def free_space(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or where it would be made."""
    there = _nearest(folder)
    with storage_errors(there, "measure the free space"):
        return shutil.disk_usage(there).free


def _nearest(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))  # noqa: PTH110 (never raises)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a failure to read ``path`` into a letter to the user."""
    try:
        yield
    except (OSError, ValueError) as error:  # NumPy's, of a mapping longer than its file
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(
            f"Cannot read the uncompressed images {path}: {reason.rstrip('.')}. Delete the file, if it is there: it is "
            "made again from the data set's own."
        ) from error


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, nothing elsewhere; yields what to call with the number of bytes that were written."""
    from tqdm import tqdm

    shown = sys.stderr.isatty()
    with tqdm(desc="unpacking", total=total_bytes, unit="B", unit_scale=True, disable=not shown, leave=False) as bar:
        yield bar.update
