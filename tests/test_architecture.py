"""Which package may import which, and what a reader may expect of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT_ROOT, tracked_files

MAY_IMPORT = {
    "core": set(),
    "data_handler": {"core"},
    "models": {"core"},
    "trainer": {"core", "data_handler", "models"},
    "evaluation": {"core", "data_handler", "models"},
}
SOURCES = sorted((PROJECT_ROOT / "scripts").rglob("*.py"))
PROGRAMS = [PROJECT_ROOT / "main.py", PROJECT_ROOT / "smoke_test.py", *sorted((PROJECT_ROOT / "tools").rglob("*.py"))]
# what is outside of the packages; it may import everything and no package imports it
OUTSIDE = {"main", "smoke_test", "tools", "tests", "benchmarks"}
MAX_MAIN_LINES = 75
MAX_FUNCTION_LINES = 70  # including its docstring
# what takes long to import; --help and a refused command line need none of it
SLOW_MODULES = {"torch", "numpy", "pandas", "matplotlib", "seaborn", "sklearn", "psutil", "requests"}
# imported where a user asks for it, and only there
OPTIONAL = {"captum", "gradio", "mlflow", "onnx", "onnxruntime", "onnxscript", "tensorboard", "timm"}
TEXT_SUFFIXES = {"", ".cfg", ".ini", ".json", ".md", ".py", ".sh", ".svg", ".toml", ".txt", ".yaml", ".yml"}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def relative(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT))


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that a reader sees which package they mean"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(package: str, source: str) -> list[str]:
    """Names that a module of ``package`` imports and must not."""
    allowed = {package, *MAY_IMPORT[package]}
    slow = {"pandas", "seaborn"} if package == "core" else set()
    found = [[*name.split("."), ""] for name in imported(source)]
    wrong = [
        parts for parts in found if parts[0] in OUTSIDE | slow or (parts[0] == "scripts" and parts[1] not in allowed)
    ]
    return [".".join(parts[:-1]) for parts in wrong]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package):
    modules = (PROJECT_ROOT / "scripts" / package).rglob("*.py")
    assert not {relative(path): names for path in modules if (names := forbidden_imports(package, read(path)))}


@pytest.mark.parametrize(
    ("package", "source", "names"),
    [
        ("core", "def f():\n    from scripts.models import stem", ["scripts.models.stem"]),
        ("core", "import json\nimport pandas as pd", ["pandas"]),
        ("models", "import scripts.trainer.fit", ["scripts.trainer.fit"]),
        ("evaluation", "from scripts import pipeline, run", ["scripts.pipeline", "scripts.run"]),
        ("evaluation", "from scripts.trainer.state import TrainingState", ["scripts.trainer.state.TrainingState"]),
        ("data_handler", "import main", ["main"]),
        ("trainer", "from scripts.core import log\nimport torch\nimport pandas", []),
    ],
)
def test_a_wrong_import_is_found(package, source, names):
    assert forbidden_imports(package, source) == names


def test_the_top_of_scripts_imports_nothing_from_outside():
    top = (PROJECT_ROOT / "scripts").glob("*.py")
    assert not [relative(path) for path in top for name in imported(read(path)) if name.split(".")[0] in OUTSIDE]


def test_every_package_is_listed():
    packages = {path.name for path in (PROJECT_ROOT / "scripts").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert packages == set(MAY_IMPORT)


def num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS], ids=relative)
def test_no_function_needs_scrolling(path):
    functions = [node for node in ast.walk(ast.parse(read(path))) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if num_lines(node) > MAX_FUNCTION_LINES]


def test_main_fits_on_one_screen_beside_its_docstring():
    _, *code = ast.parse(read(PROJECT_ROOT / "main.py")).body

    assert code[-1].lineno + num_lines(code[-1]) - code[0].lineno <= MAX_MAIN_LINES


@pytest.mark.parametrize(
    "program",
    [
        "import main\ntry: main.main(['--help'])\nexcept SystemExit as end: assert end.code == 0",
        "import main; assert main.main(['--epochs', '0']) == 2",
        "import scripts.core",
    ],
)
def test_help_and_a_refused_command_line_import_nothing_slow(program):
    report = f"\nimport sys; print('slow:', *{SLOW_MODULES} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program + report], cwd=PROJECT_ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert found.stdout.splitlines()[-1] == "slow:", found.stderr


def test_names_that_users_may_import():
    from scripts.core import Config, RunPaths, ensure_single_instance
    from scripts.core import system as system_package
    from scripts.data_handler import DATASET_REGISTRY, validate_npz_keys, worker_init_fn

    assert all(callable(name) for name in (Config, RunPaths, ensure_single_instance, validate_npz_keys, worker_init_fn))
    assert "bloodmnist" in DATASET_REGISTRY
    assert callable(system_package.select_device)


def test_every_imported_library_is_in_the_requirements():
    lines = read(PROJECT_ROOT / "requirements.txt").splitlines()
    required = {re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")}
    libraries = {name.split(".")[0] for path in [*SOURCES, *PROGRAMS] for name in imported(read(path))}
    distributions = {"sklearn": "scikit-learn", "PIL": "pillow"}
    others = libraries - set(sys.stdlib_module_names) - OUTSIDE - {"scripts"} - OPTIONAL

    assert {distributions.get(name, name) for name in others} <= required


def test_optional_libraries_have_their_reason_in_requirements_extra():
    lines = [line for line in read(PROJECT_ROOT / "requirements-extra.txt").splitlines() if not line.startswith("#")]
    assert {re.split("[<>=]", line)[0] for line in lines} == OPTIONAL
    assert all(line.partition("  # ")[2] for line in lines)


def test_optional_libraries_are_imported_inside_functions_only():
    top_level = {
        name.split(".")[0]
        for path in [*SOURCES, *PROGRAMS]
        for node in ast.parse(read(path)).body
        for name in imported(ast.unparse(node))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert not OPTIONAL & top_level


def tracked_texts() -> Iterator[tuple[Path, str]]:
    for path in (PROJECT_ROOT / name for name in tracked_files()):
        if path.suffix in TEXT_SUFFIXES:
            yield path, read(path)


def test_no_unfinished_marks():
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))
    assert not [relative(path) for path, text in tracked_texts() if marks.search(text)]


def test_the_messages_on_the_troubleshooting_page_are_in_the_source():
    rows = re.findall(r"^\| (`.+?) \|", read(PROJECT_ROOT / "docs/troubleshooting.md"), re.MULTILINE)
    quoted = [piece for row in rows for piece in re.findall(r"`([^`]+)`", row)]
    # a message may continue on the next line of source, and {…} stands for a value
    source = re.sub(r'"\s*\n\s*f?"', "", "".join(map(read, SOURCES)))
    source = re.sub(r"\{[^{}\n]*\}", "", source.replace("{known.kind}", ""))

    assert len(quoted) > 10
    assert [piece for piece in quoted if re.sub(r" +", " ", piece) not in re.sub(r" +", " ", source)] == []


def test_links_between_the_pages_have_targets():
    broken = [
        f"{path.name}: {target}"
        for path, text in tracked_texts()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        if "://" not in target and not ((path.parent / target).exists() and (path.parent / target).stat().st_size)
    ]
    assert not broken
