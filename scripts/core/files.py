"""Atomic files: a path holds its earlier content or the complete new one, never anything between."""

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

from scripts.core.errors import StorageError, storage_errors

CHUNK_BYTES = 1 << 20
PART = ".part"  # ends the name of a file that is being written; the name begins with a dot and the final name
_UMASK = os.umask(0o077)  # it can only be read by setting it, which affects other threads: so once, at import
os.umask(_UMASK)


@contextmanager
def replace_atomically(
    path: Path, *, needed_bytes: int | None = None, previous: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that is renamed to it once its content is on the disk.

    Until then the stream's ``name`` is the temporary file's path. If anything fails inside, ``path`` keeps its earlier
    content, and the temporary file is removed. Leftovers of killed processes are removed first. The ``StorageError`` of
    a full disk names ``needed_bytes``, the size of the file. The earlier content is kept as ``previous``, if given.
    """
    with storage_errors(path, "write the file", needed_bytes=needed_bytes):
        remove_leftovers(path.parent, of=path.name)
        descriptor, temporary = _make_temporary(path)
        try:
            # not os.fdopen, whose stream has a number as its name: callers may check the file before it is renamed
            with open(temporary, "wb", opener=lambda _name, _flags: descriptor) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes files private
                if previous is not None and path.exists():
                    _keep_as(path, previous)
                os.replace(temporary, path)  # before it is closed and so looks like a leftover
        finally:
            with suppress(FileNotFoundError):  # it has been renamed
                os.unlink(temporary)
        _sync_folder(path.parent)


def remove_leftovers(folder: Path, *, of: str = "") -> None:
    """Remove the temporary files of killed writers in ``folder``; with ``of``, only those of this final name."""
    with suppress(OSError):  # the next writer reports what is wrong with the folder
        for temporary in folder.iterdir():
            if temporary.name.startswith(f".{of}." if of else ".") and temporary.name.endswith(PART):
                # this fails if the writer is alive or has just finished, or if the file is another user's
                with suppress(OSError), open(temporary, "r+b", opener=_open_without_waiting) as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    temporary.unlink()


def write_bytes(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write ``content`` to ``path`` atomically; see ``replace_atomically`` for ``previous``."""
    with replace_atomically(path, needed_bytes=len(content), previous=previous) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically; ``ValueError`` for NaN, which is not JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """``value`` as indented JSON; ``ValueError`` for NaN, which is not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # of bytes in paths, as JSON escapes them


def require_free(folder: Path, needed_bytes: int, who: str, where: str = "") -> None:
    """Raise ``StorageError`` if fewer bytes are free where ``folder`` is, or would be made.

    The message begins with ``who``, such as "The images need"; ``where`` says how to choose another place.
    """
    free = free_space(folder)
    if needed_bytes > free:
        raise StorageError(
            f"{who} {needed_bytes:,} bytes of disk space, and {free:,} are free at {folder}. Free some space, or "
            f"choose another place{where}."
        )


def free_space(folder: Path) -> int:
    """Free bytes where ``folder`` is, or would be made."""
    with storage_errors(nearest := nearest_existing(folder), "measure the free space"):
        return shutil.disk_usage(nearest).free


def nearest_existing(folder: Path) -> Path:
    """``folder``, or its nearest parent that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))  # noqa: PTH110 (never raises)


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content; ``algorithm`` is a name that ``hashlib.new`` knows."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _keep_as(path: Path, name: Path) -> None:
    """Give a file a second name atomically, replacing the file that had it."""
    spare = name.with_name(f".{name.name}{PART}")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, spare)
    os.replace(spare, name)
    spare.unlink(missing_ok=True)  # it is still there if, after a kill, both were names of the same file already


def _make_temporary(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, locked while it is open, which shows that its writer is alive."""
    while True:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        with suppress(OSError):  # a file system without locks, where leftovers are never removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor, temporary
        os.close(descriptor)  # another process removed it as a leftover before it was locked


def _open_without_waiting(name: str, flags: int) -> int:
    """Open a file, but neither follow a link nor wait for the other end of a pipe."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _sync_folder(folder: Path) -> None:
    """Write the rename itself to the disk, so that it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and shared file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
