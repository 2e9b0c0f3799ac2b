"""One training at a time: a lock that ends with its process, and records which process that is."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from io import FileIO
from pathlib import Path

from scripts.core.errors import LockHeldError, StorageError, storage_errors

RECORD_START = b'{"pid"'
MAX_RECORD_BYTES = 1 << 15  # a path of 4096 bytes, each of them escaped, and some more
RECORD_ATTEMPTS, RECORD_PAUSE_S = 5, 0.02
_open_locks: set[InstanceLock] = set()


@dataclass(frozen=True, slots=True)
class LockRecord:
    """What the holder of a lock writes in its file."""

    pid: int
    started: str  # ISO 8601, local time
    run_folder: str | None = None  # absolute; None until the folder is made

    def as_bytes(self) -> bytes:
        """The content of the file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> LockRecord | None:
        """The record in ``content``; None if it is anything else."""
        try:
            record = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        is_valid = isinstance(record.started, str) and isinstance(record.run_folder, (str, type(None)))
        return record if is_valid and type(record.pid) is int else None


class InstanceLock:
    """The lock of one run: an open file, locked by this process and by none of its children."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = LockRecord(os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds"))
        with storage_errors(path, "open the lock file (--lock_file)"):
            if os.path.lexists(path):
                _refuse_unsafe(path, path.lstat())  # open's own error would not say what is wrong
            # O_CLOEXEC: programs that are started from here do not inherit the descriptor
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = FileIO(os.open(path, flags, 0o600), "r+")
        _open_locks.add(self)

    def acquire(self) -> None:
        """Take the lock and write the record; see ``ensure_single_instance`` for the errors."""
        _refuse_unsafe(self.path, os.fstat(self.descriptor))
        with storage_errors(self.path, "lock the file"):
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockHeldError(_refusal(self.path, self.descriptor)) from None
        content = os.pread(self.descriptor, MAX_RECORD_BYTES, 0).strip(b"\0 \r\n")  # a power cut can leave zeros
        # a record, even an incomplete one, a bare pid, or nothing
        if not (content.isdigit() or content.startswith(RECORD_START) or RECORD_START.startswith(content)):
            raise StorageError(
                f"The lock file {self.path} has content that no run wrote, which would be lost. "
                "Move it away, or choose another --lock_file."
            )
        self._write(self._record.as_bytes())

    def note(self, run_folder: Path) -> None:
        """Add the run's folder to the record; ``StorageError`` if the file cannot be written."""
        self._write(replace(self._record, run_folder=str(run_folder.absolute())).as_bytes())

    def release(self) -> None:
        """Empty the record and free the lock; do nothing in a forked child, since they are its parent's."""
        if not self._file.closed:
            self._write(b"")
            # closing is not enough: a child between fork and exec still has a copy of the descriptor
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which frees the lock unless another process has a copy of the descriptor."""
        _open_locks.discard(self)
        self._file.close()

    @property
    def descriptor(self) -> int:
        """Of the open file; ``ValueError`` in a forked child."""
        if self._file.closed:
            raise ValueError(f"The lock {self.path} is closed here: only the process that opened it can use it.")
        return self._file.fileno()

    def _write(self, content: bytes) -> None:
        # in place, never by renaming: the lock belongs to this inode, and a new one would be free
        with storage_errors(self.path, "write the lock file", needed_bytes=len(content)):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, content, 0)


def _close_in_child() -> None:
    # a lock lasts as long as any copy of its descriptor: a worker that outlives its killed parent would keep it
    for lock in tuple(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)  # once for all locks, since it cannot be undone


@contextmanager
def ensure_single_instance(lock_file: Path) -> Iterator[InstanceLock]:
    """Hold the lock while inside; it ends with this process, however that ends.

    The file is made with its folder if missing, and never removed: two processes could lock a removed one at once.

    Raises:
        LockHeldError: Another process has the lock; the message says which.
        StorageError: The file is a link, not a regular file, another user's, not a lock's, or cannot be written.
    """
    with storage_errors(lock_file.parent, "make the folder of the lock file (--lock_file)"):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
    with closing(InstanceLock(lock_file)) as lock:
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()


def holds_lock(pid: int) -> bool:
    """Whether process ``pid`` has its own lock file open; raises psutil's ``NoSuchProcess`` and ``AccessDenied``."""
    import psutil

    if sys.platform != "linux":
        return any(_has_record(Path(entry.path), pid) for entry in psutil.Process(pid).open_files())
    # psutil's list lacks removed files, but a lock still holds after its file was removed from the temp folder
    try:
        return any(_has_record(path, pid) for path in Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError as error:
        raise psutil.AccessDenied(pid) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error


def _refuse_unsafe(path: Path, found: os.stat_result) -> None:
    """Raise ``StorageError`` unless ``found`` is a regular file of this user."""
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symbolic link, which could lead to any file"
    elif not stat.S_ISREG(found.st_mode):
        problem = "is not a regular file"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to another user (uid {found.st_uid})"
    else:
        return
    raise StorageError(f"The lock file {path} {problem}. Remove it, or choose another --lock_file.")


def _refusal(path: Path, descriptor: int) -> str:
    """The message that the lock is held, and by which process."""
    for _ in range(RECORD_ATTEMPTS):
        if record := LockRecord.parse(os.pread(descriptor, MAX_RECORD_BYTES, 0)):
            details = f"pid {record.pid}, started {record.started}, run folder {record.run_folder or 'not made yet'}"
            remedy = f"Wait for it to end, stop it (kill {record.pid}), or give this run another --lock_file."
            return f"Another training holds the lock {path}: {details}. {remedy}"
        time.sleep(RECORD_PAUSE_S)  # a holder that has just taken the lock may still be writing its record
    problem = f"Another process holds the lock {path} and has not recorded its pid"
    return f"{problem}. Wait for it to end, or give this run another --lock_file."


def _has_record(path: Path, pid: int) -> bool:
    with suppress(OSError):  # closed in the meantime, or not readable and so not a lock of this user
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and 0 < found.st_size <= MAX_RECORD_BYTES:
            record = LockRecord.parse(path.read_bytes())
            return record is not None and record.pid == pid
    return False
