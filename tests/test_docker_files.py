"""What the Dockerfile and .dockerignore promise, as far as it can be checked without Docker: see docs/docker.md."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import PurePosixPath

import pytest

from scripts.core import Config
from tests.conftest import PROJECT_ROOT, tracked_files

FOLDERS = ("dataset", "outputs")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, rest of its line), without comments, continued lines joined."""
    text = (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for line in joined.splitlines() if line for name, rest in [line.split(maxsplit=1)]]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def copied() -> list[str]:
    """Return the sources of every COPY."""
    return [source for rest in arguments("COPY") for source in rest.split()[:-1]]


def is_sent(path: str, patterns: list[str]) -> bool:
    """Return whether Docker sends ``path`` to the builder: the last pattern that matches it or a parent decides."""
    parents = [str(folder) for folder in PurePosixPath(path).parents if folder.name]
    sent = True
    for pattern in patterns:
        body = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(body, candidate) for candidate in (path, *parents)):
            sent = pattern.startswith("!")
    return sent


@pytest.fixture
def ignore_patterns() -> list[str]:
    lines = (PROJECT_ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_base_image_is_a_slim_python_that_the_project_supports():
    (base,) = arguments("FROM")
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', (PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    version = re.fullmatch(r"python:3\.(\d+)-slim", base)

    assert version is not None
    assert oldest is not None
    assert int(version[1]) >= int(oldest[1])


def test_the_entry_point_is_main_so_that_arguments_and_signals_reach_it():
    (entry_point,) = arguments("ENTRYPOINT")

    # a string instead of a list would start a shell, which does not pass on arguments and SIGTERM
    assert json.loads(entry_point) == ["python", "main.py"]
    assert not arguments("CMD")


def test_every_copied_source_is_tracked_and_sent_to_the_builder(ignore_patterns):
    tracked = tracked_files()

    assert {"requirements.txt", "main.py", "smoke_test.py", "scripts", "tools"} == set(copied())
    for source in copied():
        files = [file for file in tracked if file == source or file.startswith(f"{source}/")]
        assert files, f"{source} is not tracked"
        assert [file for file in files if not is_sent(file, ignore_patterns)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "dataset/bloodmnist.npz",
        "outputs/20260131_221500_bloodmnist_resnet18/config.json",
        "tests/conftest.py",
        "README.md",
        "scripts/__pycache__/pipeline.cpython-311.pyc",
        "scripts/core/__pycache__/config.cpython-311.pyc",
    ],
)
def test_nothing_else_is_sent(path, ignore_patterns):
    assert not is_sent(path, ignore_patterns)


def test_a_change_of_the_code_does_not_install_the_dependencies_again():
    steps = [f"{name} {rest}" for name, rest in instructions()]
    (install,) = [number for number, step in enumerate(steps) if "pip install" in step]
    code = [number for number, step in enumerate(steps) if re.search(r"main\.py|scripts|COMMIT", step)]

    assert steps[install - 1] == "COPY requirements.txt ./"
    assert min(code) > install


def test_any_user_may_read_the_code_and_write_data_and_results(tmp_path):
    files = [tmp_path / name for name in ("main.py", "smoke_test.py", "scripts/core/config.py")]
    files[-1].parent.mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    for path in files:
        path.touch(mode=0o600)
    for path in (tmp_path / "scripts", files[-1].parent):
        path.chmod(0o700)
    (last,) = [rest for rest in arguments("RUN") if "pip" not in rest]

    subprocess.run(["sh", "-c", f"umask 077; {last}"], cwd=tmp_path, check=True, timeout=30)

    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "scripts", files[-1].parent)} == {0o755}
    assert {stat.S_IMODE((tmp_path / folder).stat().st_mode) for folder in FOLDERS} == {0o1777}


def test_the_default_folders_are_the_mounted_ones():
    (workdir,) = arguments("WORKDIR")
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8") + (PROJECT_ROOT / "docs" / "docker.md").read_text(
        encoding="utf-8"
    )

    folders = {str(PurePosixPath(workdir) / folder) for folder in (Config().data_dir, Config().output_dir)}

    assert folders == {"/app/dataset", "/app/outputs"} == {f"/app/{folder}" for folder in FOLDERS}
    assert set(re.findall(r'--volume "\$PWD/[^:]*:(/[^":]*)"', text)) == folders
