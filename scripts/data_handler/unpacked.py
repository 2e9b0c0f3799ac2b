"""A set's images as uncompressed files, of which any batch can be read without the rest.

They are written once to ``<data_dir>/uncompressed/``, under the MD5 of their ``.npz``; the folder may be deleted.
"""

from __future__ import annotations

import errno
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import DataError, StorageError, storage_errors
from scripts.core.files import nearest_existing, remove_leftovers, replace_atomically, require_free
from scripts.core.log import log
from scripts.data_handler.memory import ImageSizes, megabytes
from scripts.data_handler.npz import NpzLayout, read_pieces

FOLDER = "uncompressed"
HEADER_BYTES = 128  # for every shape, so that the images begin at the same offset in every file


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The images of one split in a ``.npy`` file that this module wrote."""

    path: Path
    shape: tuple[int, ...]  # (N, H, W) or (N, H, W, 3)

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return HEADER_BYTES + math.prod(self.shape)

    @property
    def header(self) -> bytes:
        """The header in NumPy's format 1.0, padded with spaces."""
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {self.shape}, }}".encode()
        length = HEADER_BYTES - 10  # after the magic string and the length itself
        return np.lib.format.magic(1, 0) + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"

    def is_complete(self) -> bool:
        """Whether the file exists with this header and size."""
        try:
            if self.path.stat().st_size != self.num_bytes:
                return False
            with self.path.open("rb") as stream:
                return stream.read(HEADER_BYTES) == self.header
        except OSError:
            return False

    def map(self) -> NDArray[np.uint8]:
        """Map all images as an array; suited to reading a few of them."""
        with _reading(self.path):
            return np.memmap(self.path, dtype=np.uint8, mode="r", offset=HEADER_BYTES, shape=self.shape)


class ImageReader:
    """Reads any rows of a file's images by their indices, without keeping them.

    They are read rather than mapped: pages of a mapping count as the process's memory, a new mapping for each batch
    took twice as long, and reading a mapping of a truncated file kills the process. The open file outlives its name.
    A process that receives a pickled reader opens the file itself. ``DataError`` if it cannot be read, now or later.
    """

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        with _reading(file.path):
            self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[type[ImageReader], tuple[ImageFile]]:
        return ImageReader, (self._file,)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the images of ``indices`` (B,), in this order."""
        shape = self._file.shape[1:]
        rows = np.empty((len(indices), math.prod(shape)), dtype=np.uint8)
        with _reading(self._file.path):
            for position in np.argsort(indices, kind="stable"):  # in the order of the file
                self._read(memoryview(rows[position]), int(indices[position]))
        return rows.reshape(-1, *shape)

    def _read(self, row: memoryview, index: int) -> None:
        offset = HEADER_BYTES + index * len(row)
        while row:
            # pread takes an offset, so that processes that share the open file do not move each other's position
            num_read = os.preadv(self._descriptor, [row], offset)
            if num_read == 0:
                raise OSError(errno.EIO, "it has been cut short")
            row, offset = row[num_read:], offset + num_read


def image_files(images: ImageSizes, md5: str, data_dir: Path) -> dict[str, ImageFile]:
    """The uncompressed files of each split of the ``.npz`` with this MD5, whether they exist or not."""
    folder = data_dir.absolute() / FOLDER
    image_shape = (images.height, images.width, images.channels)[: 2 if images.channels == 1 else 3]
    counts = images.num_samples
    return {split: ImageFile(folder / f"{md5}_{split}_images.npy", (counts[split], *image_shape)) for split in counts}


def unpack_images(layout: NpzLayout, files: Mapping[str, ImageFile], *, verify: Callable[[], None]) -> None:
    """Make sure that the images of all splits are in their uncompressed files; complete files are kept.

    The test split is copied too, so that a full disk or a damaged file is noticed before training; it is not evaluated.
    ``verify`` is called before a file gets its name, and raises ``DataError`` if the data set has changed.

    Raises:
        DataError: The file is damaged, or has changed.
        StorageError: The images cannot be written.
    """
    from tqdm import tqdm

    missing = {split: file for split, file in files.items() if not file.is_complete()}
    folder = files["train"].path.parent
    for split in missing:
        if layout.headers[f"{split}_images"].by_columns:
            raise DataError(
                f"Cannot use {layout.path}: {split}_images is stored by columns (Fortran order), from which no single "
                "image can be read; save it again as numpy.ascontiguousarray gives it, or use --feed resident."
            )
    if not missing:
        log.info("images are read from %s, where they lie uncompressed", folder)
        return
    with storage_errors(folder, "make the folder for the uncompressed images"):
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    needed = bytes_to_write(files)
    require_space(folder, needed)
    hint = "once; the folder may be deleted when no run uses it"
    log.info("unpacking %s of images into %s, %s", megabytes(needed), folder, hint)
    # disable=None: a bar on a terminal, nothing elsewhere
    with tqdm(desc="unpacking", total=needed, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for split, file in missing.items():
            with replace_atomically(file.path, needed_bytes=file.num_bytes) as stream:
                stream.write(file.header)
                for piece in read_pieces(layout, f"{split}_images"):
                    stream.write(piece)
                    bar.update(len(piece))
                verify()


def bytes_to_write(files: Mapping[str, ImageFile]) -> int:
    """Size of the files that are still to be written."""
    return sum(file.num_bytes for file in files.values() if not file.is_complete())


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise ``StorageError`` if ``folder``, which need not exist yet, cannot be written to or has too little space."""
    if needed_bytes:
        require_writable(folder)
    require_free(folder, needed_bytes, "To be streamed, the images need", " with --data_dir")


def require_writable(folder: Path) -> None:
    """Raise ``StorageError`` if no file can be created in ``folder``, or not the folder itself if it does not exist."""
    nearest = nearest_existing(folder)
    is_folder = os.path.isdir(nearest)  # noqa: PTH112 (never raises)
    if not is_folder or not os.access(nearest, os.W_OK | os.X_OK):
        problem = "is read-only for this user" if is_folder else "is not a folder"
        raise StorageError(
            f"Cannot write to {folder}: {nearest} {problem}. Make it a folder that can be written to, or choose "
            "another place with --data_dir."
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a failure to read ``path`` into a ``DataError``."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: NumPy's, for a mapping longer than its file
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(
            f"Cannot read the uncompressed images {path}: {reason.rstrip('.')}. Delete the file, if it is there: it is "
            "made again from the data set's own."
        ) from error
