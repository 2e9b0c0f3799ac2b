"""One logger for screen and file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.core.errors import storage_errors

LOGGER_NAME = "medmnist"
log = logging.getLogger(LOGGER_NAME)


class _ScreenFormatter(logging.Formatter):
    """Bare messages; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class _RunLogHandler(logging.FileHandler):
    """A log file whose failure to be written is a failure of the run, not a traceback on the screen."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            with storage_errors(Path(self.baseFilename), "write the log"):
                raise error
        super().handleError(record)


@contextmanager
def screen_log() -> Iterator[None]:
    """Send the log to standard output while inside, one bare line per message."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_ScreenFormatter("%(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def file_log(path: Path) -> Iterator[None]:
    """Send the log to ``path`` too while inside, with times and levels.

    Raises:
        StorageError: The file cannot be made or written.
    """
    with storage_errors(path, "open the log"):
        handler = _RunLogHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with storage_errors(path, "close the log"):
            handler.close()


