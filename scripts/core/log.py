"""One logger for screen and file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from scripts.core.errors import Interrupted, PipelineError, StorageError, UnexpectedError, storage_errors

log = logging.getLogger("medmnist")


class _ScreenHandler(logging.StreamHandler):  # type: ignore[type-arg]  # only Python 3.11 can name the stream
    """Bare messages in any encoding; each line of a warning or an error begins with its level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno > logging.INFO:
            text = "\n".join(f"{record.levelname.lower()}: {line}" for line in text.splitlines())
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return text.encode(encoding, errors="backslashreplace").decode(encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        # a closed terminal, or a full disk behind it, stops no run: the run's own log has every line too
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _RunLogHandler(logging.FileHandler):
    """A log file; if it cannot be written, the run fails with a ``StorageError``."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            with storage_errors(Path(self.baseFilename), "write the log", needed_bytes=len(self.format(record)) + 1):
                raise error
        super().handleError(record)


@contextmanager
def screen_log(messages_to: TextIO | None = None) -> Iterator[None]:
    """Show the log on the screen while inside: messages on standard output, warnings and errors on standard error.

    ``messages_to`` replaces standard output, for a program that prints its result there.
    """
    messages, complaints = _ScreenHandler(messages_to or sys.stdout), _ScreenHandler(sys.stderr)
    messages.addFilter(lambda record: record.levelno <= logging.INFO)
    complaints.setLevel(logging.WARNING)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(messages)
    log.addHandler(complaints)
    try:
        yield
    finally:
        log.removeHandler(messages)
        log.removeHandler(complaints)
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def file_log(path: Path) -> Iterator[None]:
    """Write the log to ``path`` too while inside, with times and levels.

    An exception is logged, too: a ``PipelineError`` or a signal as its message, any other with its traceback.

    Raises:
        UnexpectedError: An exception other than ``PipelineError`` was raised inside; it is the cause.
        StorageError: The file cannot be created or written.
    """
    with storage_errors(path, "open the log"):
        handler = _RunLogHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        expected = isinstance(error, (PipelineError, Interrupted))
        message, traceback = (str(error), None) if expected else ("Unexpected error", sys.exc_info())
        with suppress(StorageError):  # too full a disk must not hide the error itself
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, message, (), traceback))
        with suppress(OSError):
            handler.close()
        if isinstance(error, Exception) and not expected:
            raise UnexpectedError(
                f"Unexpected error: {type(error).__name__}: {error}. The traceback is in {path}; please report it."
            ) from error
        raise
    finally:
        log.removeHandler(handler)
        with storage_errors(path, "close the log"):
            handler.close()
