from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest

from scripts.core.errors import LockHeldError, StorageError
from scripts.core.system import lock as lock_module
from scripts.core.system.lock import LockRecord, ensure_single_instance, holds_lock
from tests.core.conftest import Processes, line_of, tell

START = """
import os, sys
from pathlib import Path
from scripts.core.errors import PipelineError
from scripts.core.system import lock
from scripts.core.system.lock import ensure_single_instance
"""
HOLD = (
    START
    + """
lock.RECORD_ATTEMPTS = 3000  # a winner that has to wait for the processor may write its record late
print("ready", flush=True)
sys.stdin.readline()
try:
    with ensure_single_instance(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except PipelineError as error:
    print(error.exit_code, error, flush=True)
"""
)


def start_holder(processes: Processes, lock_file: Path) -> subprocess.Popen[str]:
    holder = processes.python("-c", HOLD, lock_file)
    assert line_of(holder) == "ready"
    tell(holder)
    assert line_of(holder) == "held"
    return holder


def record_of(lock_file: Path) -> LockRecord | None:
    return LockRecord.parse(lock_file.read_bytes())


def take(lock_file: Path) -> None:
    with ensure_single_instance(lock_file):
        pass


def test_of_four_simultaneous_starts_exactly_one_wins_and_the_others_name_it(processes, tmp_path):
    contenders = [processes.python("-c", HOLD, tmp_path / "lock") for _ in range(4)]
    assert [line_of(contender) for contender in contenders] == ["ready"] * 4
    for contender in contenders:
        tell(contender)
    answers = {contender.pid: line_of(contender) for contender in contenders}
    winner = next(pid for pid, answer in answers.items() if answer == "held")
    refusals = [answer for pid, answer in answers.items() if pid != winner]
    assert all(
        refusal.startswith(f"4 Another training holds the lock {tmp_path / 'lock'}: pid {winner}, ")
        for refusal in refusals
    )


def test_a_refusal_names_the_holder_and_what_to_do(processes, tmp_path):
    lock_file, run_folder = tmp_path / "lock", tmp_path / "outputs" / "run"
    program = START + (
        "with ensure_single_instance(Path(sys.argv[1])) as lock:\n"
        "    lock.note(Path(sys.argv[2]))\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    holder = processes.python("-c", program, lock_file, os.path.relpath(run_folder, tmp_path), cwd=tmp_path)
    assert line_of(holder) == "held"
    before = lock_file.read_bytes()
    record = record_of(lock_file)
    assert record == LockRecord(holder.pid, record.started if record else "", str(run_folder))

    with pytest.raises(LockHeldError) as caught:
        take(lock_file)
    assert str(caught.value) == (
        f"Another training holds the lock {lock_file}: pid {holder.pid}, started {record.started}, "
        f"run folder {run_folder}. Wait for it to end, stop it (kill {holder.pid}), "
        "or give this run another --lock_file."
    )
    assert lock_file.read_bytes() == before


def test_before_the_run_folder_is_made_the_refusal_says_so(tmp_path):
    with (
        ensure_single_instance(tmp_path / "lock"),
        pytest.raises(LockHeldError, match=r"run folder not made yet\. Wait"),
    ):
        take(tmp_path / "lock")


def test_the_record_is_json_with_the_local_start_time(tmp_path):
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    with ensure_single_instance(tmp_path / "lock") as lock:
        lock.note(tmp_path / "a much longer name of a run folder")
        lock.note(tmp_path / "run")
        values = json.loads((tmp_path / "lock").read_bytes())
    assert values.keys() == {"pid", "started", "run_folder"}
    assert values["pid"] == os.getpid()
    assert values["run_folder"] == str(tmp_path / "run")
    assert before <= datetime.fromisoformat(values["started"]) <= datetime.now(timezone.utc)
    assert datetime.fromisoformat(values["started"]).utcoffset() == datetime.now().astimezone().utcoffset()


@pytest.mark.parametrize("content", [b"", b"\x93garbage"])
def test_a_holder_that_has_not_written_its_record_is_still_respected(tmp_path, content):
    lock_file = tmp_path / "lock"
    lock_file.write_bytes(content)
    with lock_file.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(LockHeldError) as caught:
            take(lock_file)
    assert str(caught.value) == (
        f"Another process holds the lock {lock_file} and has not recorded its pid. "
        "Wait for it to end, or give this run another --lock_file."
    )
    assert lock_file.read_bytes() == content


def test_a_record_written_a_moment_late_is_waited_for(tmp_path, monkeypatch):
    lock_file = tmp_path / "lock"
    lock_file.touch()
    record = LockRecord(4711, "2026-01-31T22:15:00+01:00")
    monkeypatch.setattr(time, "sleep", lambda seconds: lock_file.write_bytes(record.as_bytes()))
    with lock_file.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(LockHeldError, match="pid 4711, started 2026-01-31T22:15:00"):
            take(lock_file)


def test_a_released_lock_leaves_an_empty_private_file_that_can_be_taken_again(tmp_path):
    lock_file = tmp_path / "lock"
    take(lock_file)
    inode = lock_file.stat().st_ino
    assert lock_file.stat().st_mode & 0o777 == 0o600
    assert lock_file.read_bytes() == b""
    take(lock_file)
    assert lock_file.stat().st_ino == inode


def test_a_failure_inside_frees_the_lock_and_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError), ensure_single_instance(tmp_path / "lock"):
        _ = 1 / 0
    take(tmp_path / "lock")


def test_a_lock_leaves_no_descriptor_behind_whether_taken_or_refused(tmp_path):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (counted, not used as paths)
    take(tmp_path / "lock")
    with ensure_single_instance(tmp_path / "lock"), pytest.raises(LockHeldError):
        take(tmp_path / "lock")
    (tmp_path / "notes").write_text("not to be lost")
    make_pipe(tmp_path / "pipe")
    for name in ("notes", "pipe"):
        with pytest.raises(StorageError):
            take(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert lock_module._open_locks == set()


def test_a_released_lock_is_free_although_a_copy_of_its_descriptor_is_still_open(tmp_path):
    with ensure_single_instance(tmp_path / "lock") as lock:
        copy = os.dup(lock.descriptor)  # as a program that is being started has it for a moment
    try:
        take(tmp_path / "lock")
    finally:
        os.close(copy)


def test_a_killed_holder_frees_the_lock(processes, tmp_path):
    holder = start_holder(processes, tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert record_of(tmp_path / "lock") is not None  # it had no time to clear it
    take(tmp_path / "lock")


def test_a_killed_holder_frees_the_lock_although_its_forked_child_lives_on(processes, tmp_path):
    program = START + (
        "import time\n"
        "with ensure_single_instance(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = processes.python("-c", program, tmp_path / "lock")
    child = psutil.Process(processes.adopt(int(line_of(holder))))
    with pytest.raises(LockHeldError):
        take(tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    take(tmp_path / "lock")
    assert child.is_running()


def test_a_forked_child_that_ends_leaves_its_parent_the_lock_and_the_record(processes, tmp_path):
    program = START + (
        "with ensure_single_instance(Path(sys.argv[1])) as lock:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            lock.note(Path('elsewhere'))\n"
        "        except ValueError as error:\n"
        "            print(error, flush=True)\n"
        "        sys.exit()\n"  # leaves the block, as a worker does that ends by itself
        "    os.waitpid(child, 0)\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    holder = processes.python("-c", program, tmp_path / "lock")
    assert line_of(holder) == (
        f"The lock {tmp_path / 'lock'} is closed here: only the process that opened it can use it."
    )
    assert line_of(holder) == "held"
    with pytest.raises(LockHeldError, match=f"pid {holder.pid}, "):
        take(tmp_path / "lock")


def test_a_program_started_by_the_holder_does_not_inherit_the_lock(processes, tmp_path):
    program = START + (
        "import subprocess\n"
        "with ensure_single_instance(Path(sys.argv[1])):\n"
        "    print(subprocess.Popen(['sleep', '600'], close_fds=False, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    holder = processes.python("-c", program, tmp_path / "lock")
    processes.adopt(int(line_of(holder)))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    take(tmp_path / "lock")


@pytest.mark.parametrize(
    "content",
    [
        LockRecord(4711, "2026-01-31T22:15:00+01:00", "outputs/run").as_bytes(),
        LockRecord(4711, "2026-01-31T22:15:00+01:00", "outputs/run").as_bytes()[:20],
        b'{"p',
        b"",
        b"4711\n",
        bytes(64),
    ],
)
def test_what_an_earlier_run_left_in_the_file_does_not_matter(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with ensure_single_instance(tmp_path / "lock"):
        record = record_of(tmp_path / "lock")
        assert record is not None
        assert (record.pid, record.run_folder) == (os.getpid(), None)


def test_a_file_with_anything_else_in_it_is_kept(tmp_path):
    (tmp_path / "notes").write_text("not to be lost")
    with pytest.raises(StorageError) as caught:
        take(tmp_path / "notes")
    assert str(caught.value) == (
        f"The lock file {tmp_path / 'notes'} has content that no run wrote, which would be lost. "
        "Move it away, or choose another --lock_file."
    )
    assert (tmp_path / "notes").read_text() == "not to be lost"


@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_a_symbolic_link_is_refused_and_not_followed(tmp_path, target):
    (tmp_path / "file").write_text("")
    (tmp_path / "lock").symlink_to(tmp_path / target)
    with pytest.raises(StorageError) as caught:
        take(tmp_path / "lock")
    assert str(caught.value) == (
        f"The lock file {tmp_path / 'lock'} is a symbolic link, which could lead to any file. "
        "Remove it, or choose another --lock_file."
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "lock"]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_folder, make_pipe])
def test_a_file_that_is_not_regular_is_refused(tmp_path, make):
    make(tmp_path / "lock")
    with pytest.raises(StorageError) as caught:
        take(tmp_path / "lock")
    assert str(caught.value) == (
        f"The lock file {tmp_path / 'lock'} is not a regular file. Remove it, or choose another --lock_file."
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(tmp_path):
    (tmp_path / "lock").touch()
    os.chown(tmp_path / "lock", 12345, 12345)
    with pytest.raises(StorageError, match=r"belongs to another user \(uid 12345\)\. Remove it, or choose another"):
        take(tmp_path / "lock")


def test_a_missing_folder_is_made(tmp_path):
    lock_file = tmp_path / "not" / "yet" / "there" / "lock"
    with ensure_single_instance(lock_file):
        assert record_of(lock_file) is not None


def test_a_file_in_the_folders_place_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        take(tmp_path / "file" / "lock")
    assert str(caught.value) == (
        f"Cannot make the folder of the lock file (--lock_file) at {tmp_path}/file. File exists: check the path, "
        "or choose another place."
    )


@pytest.mark.parametrize("folder", [".", "deeper"])
def test_a_folder_that_is_a_loop_of_links_is_named_as_one(tmp_path, folder):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError) as caught:
        take(tmp_path / "loop" / folder / "lock")
    assert str(caught.value).endswith("The path is a loop of symbolic links: remove them, or choose another place.")


def test_a_folder_that_cannot_be_written_is_a_storage_error_that_names_the_flag(unwritable_folder):
    with pytest.raises(StorageError) as caught:
        take(unwritable_folder / "lock")
    assert str(caught.value) == (
        f"Cannot open the lock file (--lock_file) at {unwritable_folder}/lock. Permission is denied: change the "
        "folder's permissions, or choose another place."
    )
    assert list(unwritable_folder.iterdir()) == []


def test_a_full_disk_is_a_storage_error_and_frees_the_lock(processes, tmp_path):
    # a size limit stands for a full disk: the kernel refuses the write in the same place
    program = START + (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with ensure_single_instance(Path(sys.argv[1])):\n"
        "        print('held')\n"
        "except PipelineError as error:\n"
        "    print(error.exit_code, error, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    assert re.fullmatch(
        f"6 Cannot write the lock file at {tmp_path}/lock: it needs [0-9]{{2,3}} bytes. The file would exceed the size "
        r"limit that is set: raise it \(ulimit -f\), or choose another place\.",
        line_of(processes.python("-c", program, tmp_path / "lock")),
    )
    take(tmp_path / "lock")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"4711",
        b"[]",
        b"\xff",
        b'{"pid": 1}',
        b'{"pid": "1", "started": "now", "run_folder": null}',
        b'{"pid": true, "started": "now", "run_folder": null}',
        b'{"pid": 1, "started": null, "run_folder": null}',
        b'{"pid": 1, "started": "now", "run_folder": 3}',
        b'{"pid": 1, "started": "now", "run_folder": null, "epochs": 5}',
        b"[" * 100_000,
    ],
)
def test_only_a_complete_record_is_accepted(content):
    assert LockRecord.parse(content) is None


def test_a_record_round_trips_even_with_a_folder_name_that_is_not_utf_8():
    record = LockRecord(7, "2026-01-31T22:15:00+01:00", "runs_é_\udcff")
    assert LockRecord.parse(record.as_bytes()) == record


def test_a_process_holds_a_lock_from_taking_it_to_its_release(tmp_path):
    assert not holds_lock(os.getpid())
    with ensure_single_instance(tmp_path / "lock"):
        assert holds_lock(os.getpid())
    assert not holds_lock(os.getpid())


def test_a_lock_whose_file_was_removed_is_still_held(processes, tmp_path):
    holder = start_holder(processes, tmp_path / "lock")
    (tmp_path / "lock").unlink()
    assert holds_lock(holder.pid)


def test_a_process_that_only_reads_the_lock_file_does_not_hold_it(processes, tmp_path):
    start_holder(processes, tmp_path / "lock")
    reader = processes.python(
        "-c", "import sys; f = open(sys.argv[1]); print('open', flush=True); input()", tmp_path / "lock"
    )
    assert line_of(reader) == "open"
    assert not holds_lock(reader.pid)


def test_open_pipes_and_sockets_are_not_read_in_search_of_a_lock(processes, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    program = "import os, sys; os.open(sys.argv[1], os.O_RDWR); print('open', flush=True); input()"
    process = processes.python("-c", program, tmp_path / "pipe")
    assert line_of(process) == "open"
    assert not holds_lock(process.pid)  # reading the pipe would never end


def test_a_process_that_has_ended_raises_no_such_process(processes):
    process = processes.python("-c", "input()")
    process.kill()
    process.wait()
    with pytest.raises(psutil.NoSuchProcess):
        holds_lock(process.pid)


def test_the_start_time_is_iso_8601_with_its_offset(tmp_path):
    with ensure_single_instance(tmp_path / "lock"):
        record = record_of(tmp_path / "lock")
    assert record is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", record.started)
