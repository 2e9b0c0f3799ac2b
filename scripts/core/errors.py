"""The errors of a run, one class per exit code.

The message of a ``PipelineError`` is for the user: what was requested, what is allowed, what to do. ``main.py`` prints
it without a traceback. A mistake in the program stays a ``ValueError`` or an assertion, and its traceback is logged.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class PipelineError(Exception):
    """A failure that its message explains in full."""

    exit_code = 1


class UnexpectedError(PipelineError):
    """A mistake in the program, not by its user; the cause carries the traceback."""


class ResourceError(PipelineError):
    """Memory ran out, or the system killed a process of the run; nothing is wrong with the run, so it can go on."""


class ConfigError(PipelineError):
    """The command line or the configuration is wrong; the message has one line per problem."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(PipelineError):
    """Data or weights are missing, corrupt, unverifiable or unreachable."""

    exit_code = 3


class LockHeldError(PipelineError):
    """Another instance holds the lock."""

    exit_code = 4


class DivergedError(PipelineError):
    """A loss is not finite."""

    exit_code = 5


class StorageError(PipelineError):
    """A file cannot be written: disk full, no permission, read-only."""

    exit_code = 6


class Interrupted(BaseException):
    """A signal requested a stop; like ``KeyboardInterrupt``, it is not caught by ``except Exception``."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # the shell's convention: 129 SIGHUP, 130 SIGINT, 143 SIGTERM


SPACE_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space",
    errno.EDQUOT: "The disk quota is used up: free some space",
    errno.EFBIG: "The file would exceed the size limit that is set: raise it (ulimit -f)",
}
REMEDIES = SPACE_REMEDIES | {
    errno.EACCES: "Permission is denied: change the folder's permissions",
    errno.EPERM: "Permission is denied: change the folder's permissions",
    errno.EROFS: "The file system is read-only: mount it writable",
    errno.ELOOP: "The path is a loop of symbolic links: remove them",
}


@contextmanager
def storage_errors(path: Path, purpose: str, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an ``OSError`` raised inside into a ``StorageError`` that begins with "Cannot {purpose} at {path}"."""
    try:
        yield
    except OSError as error:
        number = errno.ELOOP if error.errno == errno.EEXIST and _is_loop(path) else error.errno
        remedy = REMEDIES.get(number or 0, f"{error.strerror or error}: check the path")
        space = "" if needed_bytes is None or number not in SPACE_REMEDIES else f": it needs {needed_bytes:,} bytes"
        if space and number == errno.ENOSPC:  # a quota or a limit leaves less than the disk has
            with suppress(OSError):
                space += f", and {shutil.disk_usage(path.parent).free:,} are free"
        raise StorageError(f"Cannot {purpose} at {path}{space}. {remedy}, or choose another place.") from error


def _is_loop(path: Path) -> bool:
    """Whether ``path`` is a loop of symbolic links, which ``mkdir`` reports as an existing file."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
