"""Store images in a temporary file, and write arrays that are larger than memory into an ``.npz``."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# the date of every member in a file by numpy.savez; fixed, so that equal content gives equal bytes
MEMBER_DATE = (1980, 1, 1, 0, 0, 0)


class RowStore:
    """Rows of equal size in a temporary file."""

    def __init__(self, stream: IO[bytes], row_bytes: int) -> None:
        self._stream = stream
        self._row_bytes = row_bytes
        self.num_rows = 0

    def append(self, row: NDArray[np.uint8]) -> int:
        """Write a row; return its number."""
        self._stream.write(row.tobytes())
        self.num_rows += 1
        return self.num_rows - 1

    def read(self, row: int) -> bytes:
        """Read the bytes of a row."""
        self._stream.flush()
        return os.pread(self._stream.fileno(), self._row_bytes, row * self._row_bytes)


@dataclass(frozen=True, slots=True)
class Member:
    """An array to be written, whose content comes in pieces."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Callable[[], Iterable[bytes]]

    @property
    def num_bytes(self) -> int:
        """Size of the content in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def whole(name: str, array: NDArray[Any]) -> Member:
    """Make the member of an array that is in memory."""
    return Member(name, array.shape, array.dtype, lambda: [array.tobytes()])


def write_npz(stream: BinaryIO, members: Iterable[Member]) -> None:
    """Write arrays as ``numpy.savez`` does: not compressed, so that they can be memory-mapped.

    The bytes depend only on the arrays, not on the time or on the version of a compressor.
    """
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for member in members:
            info = zipfile.ZipInfo(f"{member.name}.npy", MEMBER_DATE)
            with archive.open(info, "w", force_zip64=True) as content:
                description = {"descr": np.lib.format.dtype_to_descr(member.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(content, description | {"shape": member.shape})
                written = 0
                for piece in member.pieces():
                    content.write(piece)
                    written += len(piece)
            if written != member.num_bytes:
                raise ValueError(f"{member.name} must have {member.num_bytes} bytes, but got {written}.")
