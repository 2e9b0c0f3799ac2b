"""The arrows between the packages, and what a reader may expect of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT_ROOT

MAY_IMPORT = {
    "core": set(),
    "data_handler": {"core"},
    "models": {"core"},
    "trainer": {"core", "data_handler", "models"},
    "evaluation": {"core", "data_handler", "models"},
}
SOURCES = sorted((PROJECT_ROOT / "scripts").rglob("*.py"))
PROGRAMS = [PROJECT_ROOT / "main.py", PROJECT_ROOT / "smoke_test.py", *sorted((PROJECT_ROOT / "tools").rglob("*.py"))]
SCREEN = 75  # lines
LONGEST_FUNCTION = 70  # lines, its docstring among them


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that the arrows can be read"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def against_the_arrows(package: str, source: str) -> list[str]:
    allowed = {package, *MAY_IMPORT[package]}
    found = [name.split(".") for name in imported(ast.parse(source))]
    return [".".join(parts) for parts in found if parts[0] == "scripts" and parts[1] not in allowed]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package):
    wrong = {
        str(path): names
        for path in SOURCES
        if path.is_relative_to(PROJECT_ROOT / "scripts" / package)
        and (names := against_the_arrows(package, path.read_text()))
    }
    assert not wrong


def test_a_wrong_import_would_be_found():
    assert against_the_arrows("core", "def f():\n    from scripts.models import stem") == ["scripts.models.stem"]
    assert against_the_arrows("models", "import scripts.trainer.fit") == ["scripts.trainer.fit"]
    assert against_the_arrows("trainer", "from scripts.core import log\nimport torch") == []


def test_every_package_has_its_arrows():
    packages = {path.name for path in (PROJECT_ROOT / "scripts").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert packages == set(MAY_IMPORT)


def length(node: ast.stmt) -> int:
    """Lines of a statement."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS], ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_no_function_needs_scrolling(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    long = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and length(node) > LONGEST_FUNCTION]
    assert not long


def test_main_fits_on_one_screen_beside_its_docstring():
    _, *code = ast.parse((PROJECT_ROOT / "main.py").read_text()).body
    last_line = code[-1].lineno + length(code[-1])

    assert last_line - code[0].lineno <= SCREEN


def test_what_help_needs_imports_nothing_slow():
    program = (
        "import sys, main; main.parse_command_line(['--epochs', '3'], {}, checks=[main.dataset_problems]);"
        "print(*sorted({'torch', 'numpy', 'matplotlib', 'sklearn', 'psutil', 'requests'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == ""


def test_names_that_users_may_import():
    from scripts.core import Config, RunPaths, ensure_single_instance
    from scripts.core import system as system_package
    from scripts.data_handler import DATASET_REGISTRY, validate_npz_keys, worker_init_fn

    assert all(callable(name) for name in (Config, RunPaths, ensure_single_instance, validate_npz_keys, worker_init_fn))
    assert "bloodmnist" in DATASET_REGISTRY
    assert callable(system_package.select_device)


def tracked_texts() -> Iterator[tuple[Path, str]]:
    listed = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = PROJECT_ROOT / name
        if path.suffix not in {".png", ".xlsx"} and path.exists():
            yield path, path.read_text()


def test_no_unfinished_marks():
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))
    found = [str(path) for path, text in tracked_texts() if marks.search(text)]
    assert not found


def test_the_messages_on_the_troubleshooting_page_are_the_programs():
    rows = re.findall(r"^\| (`.+?) \|", (PROJECT_ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [piece for row in rows for piece in re.findall(r"`([^`]+)`", row)]
    # a message may be broken over two lines of source, and {…} stands for what is filled in
    source = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text() for path in SOURCES))
    source = re.sub(r"\{[^{}\n]*\}", "", source.replace("{known.kind}", ""))

    assert len(quoted) > 10
    assert [piece for piece in quoted if re.sub(r" +", " ", piece) not in re.sub(r" +", " ", source)] == []


def test_links_between_the_pages_lead_somewhere():
    broken = [
        f"{path.name}: {target}"
        for path, text in tracked_texts()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        if "://" not in target and not ((path.parent / target).exists() and (path.parent / target).stat().st_size)
    ]
    assert not broken
