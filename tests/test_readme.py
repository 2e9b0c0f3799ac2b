"""README's commands work: they are run as they stand there, in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT_ROOT, tracked_files

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
# commands that are not run here, by the reason
NOT_RUN = {
    "they run this test": r"make test(-all)?",
    ".ci/run does": r"\.venv/bin/python smoke_test\.py",
    "needs a network": r"\.venv/bin/python main\.py( --(dataset \w+mnist|recipe|backbone).*)?",
    "needs Docker": r"docker .*",
}


def commands() -> Iterator[str]:
    for line in "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).splitlines():
        if command := re.split(r"\s+# ", line)[0].strip():
            yield command


def commands_to_run() -> Iterator[Any]:
    """Commands as test parameters; those that train are slow."""
    for command in commands():
        if not any(re.fullmatch(pattern, command) for pattern in NOT_RUN.values()):
            trains = command.startswith("make") or "main.py --dataset" in command
            yield pytest.param(command, marks=[pytest.mark.slow] if trains else [])


@pytest.fixture(scope="module")
def project_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tracked files into another folder, and link the virtual environment."""
    folder = tmp_path_factory.mktemp("clone")
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT_ROOT / name, folder / name)  # with its date, or make would install again
    (folder / ".venv").symlink_to(PROJECT_ROOT / ".venv")
    return folder


def test_readme_opens_with_the_two_commands():
    assert list(commands())[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("reason", NOT_RUN)
def test_every_exception_is_still_needed(reason):
    assert any(re.fullmatch(NOT_RUN[reason], command) for command in commands())


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", list(commands_to_run()))
def test_the_command_works(project_copy: Path, tmp_path: Path, command: str):
    make_variables = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in make_variables}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=project_copy,
        env=environment | {"TMPDIR": str(tmp_path)},  # where the lock is
        capture_output=True,
        encoding="utf-8",
        timeout=1100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    if command == "make demo":
        accuracies = re.findall(r"^test, with.*?: accuracy (\d\.\d+)", done.stdout, re.MULTILINE)
        assert len(accuracies) == 2
        assert min(map(float, accuracies)) > 0.9
