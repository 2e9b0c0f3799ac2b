"""Read and decode image files in threads, a little ahead of the consumer."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image

from scripts.core.log import log
from tools.dataset_builder.decode import DARK, UnusableImageError

MAX_FILE_BYTES = 1 << 30  # of an image file, which is read at once
AHEAD_PER_WORKER = 4  # images that may be decoded before they are needed

Item = TypeVar("Item")
Made = TypeVar("Made")


def read_content(path: Path) -> bytes:
    """Read an image file; ``UnusableImageError`` if it is not a regular file, too large, or cannot be read."""
    try:
        # not blocked by a named pipe
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnusableImageError("it is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise UnusableImageError(f"it has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise UnusableImageError(f"it cannot be read: {error.strerror or error}") from error


def map_ahead(
    make: Callable[[Item], Made], items: Iterable[Item], num_workers: int, *, num_ahead: int | None = None
) -> Generator[Made, None, None]:
    """Like ``map``, in threads that are only a little ahead of the consumer; Pillow releases Python's lock.

    ``num_ahead`` is the number of results that may wait for the consumer, ``AHEAD_PER_WORKER`` for each thread if it is
    not given.
    """
    executor = ThreadPoolExecutor(num_workers)
    ahead: deque[Future[Made]] = deque()
    try:
        for item in items:
            ahead.append(executor.submit(make, item))
            if len(ahead) >= (num_ahead or AHEAD_PER_WORKER * num_workers):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def decoding() -> Iterator[None]:
    """Prepare Pillow for ``decode`` in several threads."""
    Image.init()  # loads Pillow's readers, before there are threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decode handles what Pillow warns of; the filter holds for all threads
        yield


def log_remarks(remarks: Mapping[str, int], num_images: int) -> None:
    """Log how many images were converted in which way."""
    for remark, count in sorted(remarks.items()):
        log.log(logging.WARNING if remark == DARK else logging.INFO, f"{remark}: {count:,} of {num_images:,} images")
