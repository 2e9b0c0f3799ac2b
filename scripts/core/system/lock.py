"""One training at a time: a lock that ends with its holder, and says who that is."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.core.errors import LockHeldError, StorageError, storage_errors

if TYPE_CHECKING:
    import psutil

LOCK_FILE_MODE = 0o600
RECORD_START = b'{"pid"'
MAX_RECORD_BYTES = 1 << 15  # a path of 4096 bytes, each of them escaped, and some more
RECORD_ATTEMPTS = 5
RECORD_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class LockRecord:
    """What the holder of a lock writes in it."""

    pid: int
    started: str  # ISO 8601, local time
    run_folder: str | None = None  # absolute; None until the folder is made

    def as_bytes(self) -> bytes:
        """The record as it stands in the file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> LockRecord | None:
        """The record that ``content`` is; None where it is anything else."""
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict) or values.keys() != {"pid", "started", "run_folder"}:
            return None
        pid, started, run_folder = values["pid"], values["started"], values["run_folder"]
        is_valid = type(pid) is int and isinstance(started, str) and isinstance(run_folder, (str, type(None)))
        return cls(pid, started, run_folder) if is_valid else None


class InstanceLock:
    """The lock of one run: an open file, ``flock``-ed by this process and by none of its children."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = LockRecord(os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds"))
        self._descriptor: int | None = _open(path)
        _open_locks.add(self)

    def acquire(self) -> None:
        """Take the lock and write who has it.

        Raises:
            LockHeldError: Another process has it.
            StorageError: The file is not a lock's, or cannot be locked or written.
        """
        descriptor = self._own_descriptor()
        with storage_errors(self.path, "lock the file"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockHeldError(_refusal(self.path, _patiently_read_record(descriptor))) from None
        if not _may_be_overwritten(os.pread(descriptor, MAX_RECORD_BYTES, 0)):
            raise StorageError(
                f"The lock file {self.path} holds something that no run wrote there, which would be lost. "
                "Move it away, or choose another --lock_file."
            )
        self._write(self._record.as_bytes())

    def note(self, run_folder: Path) -> None:
        """Write the run's folder into the lock, for whoever is refused.

        Raises:
            StorageError: The lock file cannot be written.
        """
        self._record = replace(self._record, run_folder=str(run_folder.absolute()))
        self._write(self._record.as_bytes())

    def release(self) -> None:
        """Empty the record and free the lock; in a forked child, whose parent's they are, do nothing."""
        if self._descriptor is not None:
            self._write(b"")
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing would not do while a child is between fork and exec

    def close(self) -> None:
        """Let go of the file, which frees the lock unless another process still has a copy of the descriptor."""
        _open_locks.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, content: bytes) -> None:
        descriptor = self._own_descriptor()
        # in place and never by renaming: the lock is on this inode, and another one would be free
        with storage_errors(self.path, "write the lock file", needed_bytes=len(content)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)

    def _own_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"The lock {self.path} is closed here: only the process that opened it can use it.")
        return self._descriptor


_open_locks: set[InstanceLock] = set()


def _close_in_child() -> None:
    # a lock lives as long as any copy of its descriptor: a worker that outlives its killed parent would keep it
    for lock in tuple(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)  # once for all locks, since it cannot be undone


@contextmanager
def ensure_single_instance(lock_file: Path) -> Iterator[InstanceLock]:
    """Hold the lock of ``lock_file`` while inside; it ends with this process, however that ends.

    Args:
        lock_file: A file of this user's in an existing folder; made if it is not there, and never removed, since a
            removed one could be locked by two processes at once.

    Raises:
        LockHeldError: Another process has the lock; the message says which.
        StorageError: The file is a link, no regular file, another user's, not a lock's, or cannot be written.
    """
    lock = InstanceLock(lock_file)
    try:
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()
    finally:
        lock.close()


def holds_lock(process: psutil.Process) -> bool:
    """Whether ``process`` holds any lock of this program: one of its open files is a record with its own pid.

    Raises:
        psutil.NoSuchProcess: It has ended.
        psutil.AccessDenied: Its open files are not for us to see.
    """
    return any(
        record is not None and record.pid == process.pid for record in map(_record_of_file, _open_files(process))
    )


def _open(path: Path) -> int:
    """A descriptor of the lock file, not inherited by programs that are started from here."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, LOCK_FILE_MODE)
    except OSError as error:
        if os.path.lexists(path):
            _refuse_unsafe(path, path.lstat())
        with storage_errors(path, "open the lock file (--lock_file)"):
            raise error
    try:
        _refuse_unsafe(path, os.fstat(descriptor))
    except StorageError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_unsafe(path: Path, found: os.stat_result) -> None:
    """Raise ``StorageError`` unless ``found`` is a regular file of this user's."""
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symbolic link, and what it leads to could be anything"
    elif not stat.S_ISREG(found.st_mode):
        problem = "is not a regular file"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to another user (uid {found.st_uid})"
    else:
        return
    raise StorageError(f"The lock file {path} {problem}. Remove it, or choose another --lock_file.")


def _may_be_overwritten(content: bytes) -> bool:
    """Whether nothing of value is lost with ``content``: a record, whole or torn, a bare pid, or nothing."""
    content = content.strip(b"\0 \r\n")  # a power cut can leave zeros
    return content.isdigit() or content.startswith(RECORD_START) or RECORD_START.startswith(content)


def _refusal(path: Path, record: LockRecord | None) -> str:
    if record is None:
        return (
            f"Another process holds the lock {path}, and has not written who it is. "
            "Wait for it to end, or give this run another --lock_file."
        )
    return (
        f"Another training holds the lock {path}: pid {record.pid}, started {record.started}, "
        f"run folder {record.run_folder or 'not made yet'}. "
        f"Wait for it to end, stop it (kill {record.pid}), or give this run another --lock_file."
    )


def _patiently_read_record(descriptor: int) -> LockRecord | None:
    """The holder's record; one that has only just taken the lock may still be writing it."""
    for _ in range(RECORD_ATTEMPTS):
        if record := LockRecord.parse(os.pread(descriptor, MAX_RECORD_BYTES, 0)):
            return record
        time.sleep(RECORD_PAUSE_S)
    return None


def _open_files(process: psutil.Process) -> Iterator[Path]:
    import psutil

    if sys.platform != "linux":
        yield from (Path(entry.path) for entry in process.open_files())
        return
    # not psutil's list: it has no removed files, and a lock whose file a cleaner of the temp folder removed still holds
    try:
        yield from Path(f"/proc/{process.pid}/fd").iterdir()
    except PermissionError as error:
        raise psutil.AccessDenied(process.pid) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error


def _record_of_file(path: Path) -> LockRecord | None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= MAX_RECORD_BYTES:
            return None
        return LockRecord.parse(path.read_bytes())
    except OSError:  # closed in the meantime, or not for us to read and so not made by us
        return None
