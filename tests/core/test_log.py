from __future__ import annotations

import io
import logging
import re
import subprocess
import sys

import pytest

from scripts.core.environment import PROJECT_ROOT
from scripts.core.errors import DataError, Interrupted, StorageError, UnexpectedError
from scripts.core.log import file_log, log, screen_log


def test_the_screen_shows_messages_bare_and_complaints_with_their_level(capsys):
    with screen_log():
        log.debug("too fine for the screen")
        log.info("epoch %d/%d", 1, 2)
        log.warning("--num_workers has no effect")
        log.error("first line\nsecond line")
    shown = capsys.readouterr()
    assert shown.out == "epoch 1/2\n"
    assert shown.err == "warning: --num_workers has no effect\nerror: first line\nerror: second line\n"


def test_nothing_is_shown_outside_and_the_logger_is_as_it_was(capsys):
    before = log.level, log.propagate, list(log.handlers)
    with screen_log():
        assert log.handlers != before[2]
    assert (log.level, log.propagate, log.handlers) == before
    log.info("nobody listens")
    assert capsys.readouterr().out == ""


def test_the_file_has_times_and_levels(tmp_path):
    path = tmp_path / "run.log"
    with screen_log(), file_log(path):
        log.info("one")
        log.warning("two, für sich")
    lines = path.read_text(encoding="utf-8").splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.fullmatch(rf"{time} INFO    one", lines[0])
    assert re.fullmatch(rf"{time} WARNING two, für sich", lines[1])
    assert len(lines) == 2


def test_a_later_run_adds_to_the_log_and_removes_nothing(tmp_path):
    for text in ("first", "second"):
        with screen_log(), file_log(tmp_path / "run.log"):
            log.info(text)
    assert [line.split()[-1] for line in (tmp_path / "run.log").read_text().splitlines()] == ["first", "second"]


def test_a_name_that_is_not_text_is_logged_with_its_escape(tmp_path, capsys):
    with screen_log(), file_log(tmp_path / "run.log"):
        log.handlers[-1].handle(logging.makeLogRecord({"msg": "runs_\udcff", "levelno": 20, "levelname": "INFO"}))
    assert (tmp_path / "run.log").read_text(encoding="utf-8").endswith("runs_\\udcff\n")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [DataError("The file is truncated."), Interrupted(15, "Stopped by SIGTERM.")])
def test_an_expected_failure_is_logged_as_its_message(tmp_path, error):
    with screen_log(), pytest.raises(type(error)), file_log(tmp_path / "run.log"):
        raise error
    logged = (tmp_path / "run.log").read_text()
    assert logged.endswith(f" ERROR   {error}\n")
    assert "Traceback" not in logged


def test_an_unexpected_failure_is_logged_with_its_traceback_and_reported_in_one_sentence(tmp_path):
    with screen_log(), pytest.raises(UnexpectedError) as caught, file_log(tmp_path / "run.log"):
        _ = 1 / 0
    assert str(caught.value) == (
        f"Unexpected error: ZeroDivisionError: division by zero. The traceback is in {tmp_path / 'run.log'}; "
        "please report it."
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    logged = (tmp_path / "run.log").read_text()
    assert " ERROR   Unexpected error\nTraceback (most recent call last):\n" in logged
    assert logged.endswith("ZeroDivisionError: division by zero\n")


def test_a_log_that_cannot_be_opened_is_a_storage_error(tmp_path):
    path = tmp_path / "missing" / "run.log"
    with pytest.raises(StorageError) as caught, file_log(path):
        pass
    assert str(caught.value) == (
        f"Cannot open the log at {path}. No such file or directory: check the path, or choose another place."
    )


def test_a_full_disk_stops_the_run_with_a_storage_error(tmp_path):
    # a size limit stands for a full disk: the kernel refuses the write in the same place
    program = """
import resource, sys
from pathlib import Path
from scripts.core.errors import StorageError
from scripts.core.log import file_log, log, screen_log
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with screen_log():
    try:
        with file_log(Path(sys.argv[1])):
            log.info("x" * 2000)
    except StorageError as error:
        print(error)
"""
    path = tmp_path / "run.log"
    command = [sys.executable, "-c", program, str(path)]
    found = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(
        f"Cannot write the log at {path}: it needs 2,0[0-9]{{2}} bytes. The file would exceed the size limit that is "
        r"set: raise it \(ulimit -f\), or choose another place\.",
        found.stdout.splitlines()[-1],
    )


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        ("DataError('The file is truncated.')", "DataError: The file is truncated."),
        ("Interrupted(15, 'Stopped by SIGTERM.')", "Interrupted: Stopped by SIGTERM."),
        ("KeyError('a mistake')", "UnexpectedError: Unexpected error: KeyError: 'a mistake'. The traceback is in"),
    ],
)
def test_a_log_that_cannot_be_written_does_not_hide_what_went_wrong(tmp_path, raised, caught):
    program = f"""
import resource, sys
from pathlib import Path
from scripts.core.errors import DataError, Interrupted
from scripts.core.log import file_log, log, screen_log
with screen_log():
    try:
        with file_log(Path(sys.argv[1])):
            log.info("a line that still fits")
            resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
            raise {raised}
    except BaseException as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "run.log")]
    found = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1].startswith(caught)
    assert found.stderr == ""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"7\xd77 \u65e5 \udcff"), ("latin-1", r"7×7 \u65e5 \udcff"), ("utf-8", r"7×7 日 \udcff")],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_screen_of_any_encoding_shows_every_line(monkeypatch, capsys, encoding, shown, name):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True))
    with screen_log():
        log.log({"stdout": logging.INFO, "stderr": logging.ERROR}[name], "7×7 日 \udcff")
    assert raw.getvalue().decode(encoding).removeprefix("error: ") == f"{shown}\n"
    assert "Traceback" not in "".join(capsys.readouterr())
