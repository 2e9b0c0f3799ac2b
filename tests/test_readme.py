"""README's commands do what it says: they are run, in a copy of the project, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT_ROOT

# not run here, each for its reason
EXCEPTED = {
    "make test": "it is what runs this test",
    ".venv/bin/python main.py": "needs a network",
    ".venv/bin/python main.py --dataset chestmnist": "needs a network",
    ".venv/bin/python main.py --dataset pathmnist --resolution 224": "needs a network",
    "docker build --tag medmnist .": "needs Docker",
    'docker run --rm --gpus all --env DOCKER_REPRODUCIBILITY_MODE=TRUE --volume "$PWD/dataset:/app/dataset" '
    '--volume "$PWD/outputs:/app/outputs" medmnist --epochs 60': "needs Docker",
}


def commands() -> Iterator[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (PROJECT_ROOT / "README.md").read_text(), re.DOTALL)
    for line in "".join(blocks).splitlines():
        if command := line.split("  #")[0].strip():
            yield command


@pytest.fixture(scope="module")
def project_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files in another folder, with the virtual environment that is already there."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT_ROOT / name, folder / name)  # with its date: make must not install anew
    (folder / ".venv").symlink_to(PROJECT_ROOT / ".venv")
    return folder


def test_readme_opens_with_the_two_commands():
    assert list(commands())[:2] == ["make demo", "make test"]


def test_every_exception_still_stands_in_readme():
    assert set(EXCEPTED) <= set(commands())


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [command for command in commands() if command not in EXCEPTED])
def test_the_command_works(project_copy: Path, tmp_path: Path, command: str):
    unwanted = ("DOCKER_REPRODUCIBILITY_MODE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=project_copy,
        env=environment | {"TMPDIR": str(tmp_path)},  # a lock of its own, whatever else runs on this machine
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    if command == "make demo":
        accuracies = re.findall(r"^test, with.*?: accuracy (\d\.\d+)", done.stdout, re.MULTILINE)
        assert len(accuracies) == 2
        assert min(map(float, accuracies)) > 0.9
