from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.core import errors
from scripts.core.environment import PROJECT_ROOT
from scripts.core.errors import ConfigError, Interrupted, PipelineError, StorageError, storage_errors
from scripts.core.files import file_digest, remove_leftovers, replace_atomically, write_bytes, write_json, write_text
from tests.core.conftest import line_of, tell


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run_python(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("PipelineError", 1),
        ("UnexpectedError", 1),
        ("ConfigError", 2),
        ("DataError", 3),
        ("LockHeldError", 4),
        ("DivergedError", 5),
        ("StorageError", 6),
    ],
)
def test_every_error_has_the_exit_code_of_the_contract(name, code):
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, PipelineError)


@pytest.mark.parametrize(("signal_number", "code"), [(2, 130), (15, 143)])
def test_a_signal_gives_the_exit_code_of_the_shell_and_no_handler_of_exceptions_swallows_it(signal_number, code):
    assert Interrupted(signal_number, "Stopped.").exit_code == code
    assert not issubclass(Interrupted, Exception)


def test_a_config_error_has_one_line_per_problem():
    assert str(ConfigError("One.", "Two.")) == "One.\nTwo."
    assert ConfigError("One.", "Two.").problems == ("One.", "Two.")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "Cannot save at x. The disk is full: free some space, or choose another place."),
        (errno.EROFS, "Cannot save at x. The file system is read-only: mount it writable, or choose another place."),
        (
            errno.EACCES,
            "Cannot save at x. Permission is denied: change the folder's permissions, or choose another place.",
        ),
        (errno.EIO, "Cannot save at x. Input/output error: check the path, or choose another place."),
    ],
)
def test_an_operating_system_error_becomes_a_remedy(number, message):
    with pytest.raises(StorageError) as caught, storage_errors(Path("x"), "save"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, OSError)


def test_a_lack_of_space_is_reported_with_the_needed_and_the_free_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1234 if folder == tmp_path else 0))

    def message(number: int) -> str:
        with pytest.raises(StorageError) as caught, storage_errors(tmp_path / "x", "save", needed_bytes=5_000_000):
            raise OSError(number, os.strerror(number))
        return str(caught.value)

    assert message(errno.ENOSPC) == (
        f"Cannot save at {tmp_path}/x: it needs 5,000,000 bytes, and 1,234 are free. The disk is full: "
        "free some space, or choose another place."
    )
    assert message(errno.EDQUOT).startswith(f"Cannot save at {tmp_path}/x: it needs 5,000,000 bytes. The disk quota")
    assert message(errno.EACCES).startswith(f"Cannot save at {tmp_path}/x. Permission is denied")


def test_errors_of_other_kinds_pass_through_storage_errors():
    with pytest.raises(KeyError), storage_errors(Path("x"), "save"):
        raise KeyError("a programmer's mistake")


def test_a_file_appears_with_its_whole_content(tmp_path):
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "é\n")
    write_json(tmp_path / "c.json", {"name": "é", "paths": ["x"], "value": 0.1})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "c.json").read_text(encoding="utf-8").startswith('{\n  "name": "é",\n')
    assert json.loads((tmp_path / "c.json").read_bytes()) == {"name": "é", "paths": ["x"], "value": 0.1}
    assert names_in(tmp_path) == ["a", "b", "c.json"]


def test_the_file_has_its_old_content_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with replace_atomically(path) as stream:
        stream.write(b"new, but not yet all of it")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new, but not yet all of it"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_content_and_no_temporary_file(tmp_path, failure):
    path = tmp_path / "weights"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replace_atomically(path) as stream:
            stream.write(b"half of the n")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights"]


WRITE_SLOWLY = """
import sys
from pathlib import Path
from scripts.core.files import replace_atomically
with replace_atomically(Path(sys.argv[1])) as stream:
    stream.write(b"new")
    stream.flush()
    print("half way", flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_one(processes, tmp_path):
    path = tmp_path / "weights"
    writer = processes.python("-c", WRITE_SLOWLY, path)
    assert line_of(writer) == "half way"
    writer.kill()
    writer.wait()
    assert len(names_in(tmp_path)) == 1
    (tmp_path / ".weights.2.other.part").mkdir()  # no file of ours
    (tmp_path / ".other.abc.part").write_bytes(b"of another name")

    write_bytes(path, b"whole")

    assert names_in(tmp_path) == [".other.abc.part", ".weights.2.other.part", "weights"]
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == [".weights.2.other.part", "weights"]


def test_what_a_living_writer_writes_stays(processes, tmp_path):
    path = tmp_path / "weights"
    writer = processes.python("-c", WRITE_SLOWLY, path)
    assert line_of(writer) == "half way"

    write_bytes(path, b"old")
    remove_leftovers(tmp_path)
    assert len(names_in(tmp_path)) == 2
    tell(writer)
    assert writer.wait(30) == 0

    assert names_in(tmp_path) == ["weights"]
    assert path.read_bytes() == b"new"


def test_a_file_taken_for_a_leftover_in_its_first_moment_is_made_again(tmp_path, monkeypatch):
    make, made = tempfile.mkstemp, list[str]()

    def make_and_lose(**where: object) -> tuple[int, str]:
        descriptor, name = make(**where)  # type: ignore[call-overload]
        if not made:
            os.unlink(name)
        made.append(name)
        return descriptor, name

    monkeypatch.setattr(tempfile, "mkstemp", make_and_lose)
    write_bytes(tmp_path / "weights", b"whole")

    assert len(made) == 2
    assert names_in(tmp_path) == ["weights"]
    assert (tmp_path / "weights").read_bytes() == b"whole"


def test_a_file_system_without_locks_is_good_enough(tmp_path, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".weights.abc.part").write_bytes(b"perhaps of a living writer")
    write_bytes(tmp_path / "weights", b"whole")

    assert names_in(tmp_path) == [".weights.abc.part", "weights"]


def test_nan_is_refused_as_json_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "summary.json", {"auc": float("nan")})
    assert names_in(tmp_path) == []


def test_a_path_that_is_no_text_survives_json(tmp_path):
    write_json(tmp_path / "config.json", {"output_dir": "runs_\udcff"})
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {"output_dir": "runs_\udcff"}


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path, folder):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        write_text(tmp_path / folder / "summary.json", "{}")
    reason = {"missing": "No such file or directory", "file": "Not a directory"}[folder]
    assert str(caught.value) == (
        f"Cannot write the file at {tmp_path / folder / 'summary.json'}. {reason}: check the path, "
        "or choose another place."
    )
    assert names_in(tmp_path) == ["file"]


def test_a_target_that_is_a_folder_is_a_storage_error_and_leaves_no_temporary_file(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(StorageError, match="Is a directory: check the path"):
        write_text(tmp_path / "summary.json", "{}")
    assert names_in(tmp_path) == ["summary.json"]


def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    # a size limit stands for a full disk: the kernel refuses the write in the same place
    program = """
import resource, sys
from pathlib import Path
from scripts.core.errors import StorageError
from scripts.core.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), bytes(5000))
except StorageError as error:
    print(error)
"""
    assert run_python(program, path) == (
        f"Cannot write the file at {path}: it needs 5,000 bytes. The file would exceed the size limit that is set: "
        "raise it (ulimit -f), or choose another place."
    )
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights"]


def fail_to_sync_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    fail_to_sync_folders(monkeypatch, errno.EINVAL)
    write_text(tmp_path / "result", "whole")
    assert (tmp_path / "result").read_text() == "whole"


def test_a_disk_that_fails_to_sync_a_folder_is_a_storage_error(tmp_path, monkeypatch):
    fail_to_sync_folders(monkeypatch, errno.EIO)
    with pytest.raises(StorageError, match="Input/output error: check the path"):
        write_text(tmp_path / "result", "whole")


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("007", 0o660), ("077", 0o600)])
def test_a_file_is_as_readable_as_the_umask_allows(tmp_path, umask, mode):
    program = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from scripts.core.files import write_bytes
write_bytes(Path(sys.argv[1]), b"")
print(oct(os.umask(0)))
"""
    assert run_python(program, tmp_path / "result", umask) == oct(int(umask, 8))
    assert (tmp_path / "result").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_the_digest_of_a_file_longer_than_one_piece_is_that_of_its_content(tmp_path, algorithm):
    content = bytes(range(256)) * 8192 + b"end"
    (tmp_path / "data").write_bytes(content)
    assert file_digest(tmp_path / "data", algorithm) == hashlib.new(algorithm, content).hexdigest()


def test_the_digest_of_an_empty_file_is_the_known_one(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert file_digest(tmp_path / "empty", "md5") == "d41d8cd98f00b204e9800998ecf8427e"


def test_what_is_written_can_be_checked_by_its_path_before_it_takes_its_place(tmp_path):
    path = tmp_path / "result"
    with replace_atomically(path) as stream:
        stream.write(b"checked")
        stream.flush()
        assert Path(stream.name).read_bytes() == b"checked"
        assert Path(stream.name).parent == tmp_path
        assert not path.exists()
    assert path.read_bytes() == b"checked"
