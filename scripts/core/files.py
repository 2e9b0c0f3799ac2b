"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from scripts.core.errors import storage_errors

CHUNK_BYTES = 1 << 20
PART = ".part"  # ends the name of a file that is being written; the name begins with a dot and the final name


@contextmanager
def replace_atomically(
    path: Path, *, needed_bytes: int | None = None, previous: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its name once it is written whole and on the disk.

    Until then the stream's ``name`` is the temporary file's path.

    Whatever goes wrong inside, ``path`` keeps its earlier content and the temporary file is removed. One that a killed
    process left there earlier is removed first.

    Args:
        path: Where the file goes, in an existing folder.
        needed_bytes: Size of the file, for the message when it does not fit; None where it is not known.
        previous: The name under which the file's earlier content stays, once the new one is on the disk; None if it
            need not.

    Raises:
        StorageError: The file cannot be written.
    """
    with storage_errors(path, "write the file", needed_bytes=needed_bytes):
        remove_leftovers(path.parent, of=path.name)
        descriptor, temporary = _make_temporary(path)
        try:
            # not os.fdopen, whose stream has a number for a name: a file may be checked before it takes its place
            with open(temporary, "wb", opener=lambda _name, _flags: descriptor) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                # mkstemp makes the file private; a result is as readable as the user's umask allows
                os.chmod(temporary, 0o666 & ~_UMASK)
                if previous is not None and path.exists():
                    _name_again(path, previous)
                os.replace(temporary, path)  # before it is closed, which would make it look like a leftover
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)


def remove_leftovers(folder: Path, *, of: str = "") -> None:
    """Remove the temporary files in ``folder`` whose writers were killed; those that are being written stay.

    Args:
        folder: Searched without its subfolders.
        of: Only temporary files of this final name; of any name where it is empty.
    """
    with suppress(OSError):  # whoever writes there next will say what is wrong with the folder
        for name in os.listdir(folder):  # noqa: PTH208 (names, not paths)
            if name.startswith(f".{of}." if of else ".") and name.endswith(PART):
                _remove_unless_written(folder / name)


def write_bytes(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write ``content`` to ``path`` whole or not at all; see ``replace_atomically`` for ``previous``."""
    with replace_atomically(path, needed_bytes=len(content), previous=previous) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON; NaN is refused, since it is not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # a path may hold bytes that are no text; their escapes here are what JSON itself would write
    write_bytes(path, text.encode(errors="backslashreplace"))


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content, read in pieces.

    Args:
        path: An existing file.
        algorithm: A name that ``hashlib.new`` knows, such as ``"md5"``.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _name_again(path: Path, name: Path) -> None:
    """Give a file a second name, in place of whatever had it; there is no moment without either."""
    spare = name.with_name(f".{name.name}{PART}")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, spare)
    os.replace(spare, name)
    # after a kill both may be names of one file already, and renaming one to the other does nothing then
    spare.unlink(missing_ok=True)


def _make_temporary(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, locked as long as it is open: the sign that its writer lives."""
    while True:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        with suppress(OSError):  # a file system without locks, where no leftover is ever removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, temporary
        os.close(descriptor)  # another process took it for a leftover in the moment before it was locked


def _remove_unless_written(temporary: Path) -> None:
    with suppress(OSError):  # its writer has just finished, or it is another user's
        descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(temporary)
        finally:
            os.close(descriptor)


def _read_umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


# Read once at import: os.umask can only be read by setting it, which other threads would notice.
_UMASK = _read_umask()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and shared file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
