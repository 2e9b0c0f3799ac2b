"""Without the optional packages a whole run works, and what needs one names the pip command."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from scripts.core.environment import PROJECT_ROOT
from tests.conftest import InProcess, Npz

LINES = (PROJECT_ROOT / "requirements-extra.txt").read_text(encoding="utf-8").splitlines()
OPTIONAL = [re.split("[<>=]", line)[0] for line in LINES if not line.startswith("#")]


@pytest.fixture(autouse=True)
def _nothing_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every import of an optional package fail, as where it is not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in OPTIONAL:
            monkeypatch.delitem(sys.modules, name)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("tiny_network")
def test_a_whole_run_needs_none_of_them(in_process: InProcess, make_npz: Npz):
    done = in_process("--dataset", make_npz(), "--weights", "none", "--epochs", "1", "--batch_size", "16")

    assert (done.returncode, done.stderr) == (0, "")
    files = {path.name for path in in_process.run_folder().rglob("*")}
    assert {"report.html", "summary.json", "training_summary.xlsx", "reliability.png", "best_model.pth"} <= files


@pytest.mark.parametrize(
    ("argv", "package"),
    [
        (["--track", "tensorboard"], "tensorboard"),
        (["--track", "mlflow"], "mlflow"),
        (["--backbone", "timm/resnet10t"], "timm"),
    ],
)
def test_a_run_that_needs_one_names_the_pip_command(in_process: InProcess, argv: list[str], package: str):
    done = in_process("--dataset", "synthblood", *argv)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {' '.join(argv)} needs the package {package}, which is not installed here. Install it: pip install "
        f"{package}\n"
    )
    assert not in_process.outputs.exists()


@pytest.mark.parametrize("tool", ["explain", "export", "app"])
def test_a_tool_that_needs_one_names_the_pip_command(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = __import__(f"tools.{tool}", fromlist=["main"])
    inputs = [str(tmp_path / "image.png")] if tool == "explain" else []

    assert module.main([str(tmp_path), *inputs]) == 2
    message = rf"error: tools/{tool}\.py .*needs the packages? .*Install (it|them): pip install \w+"
    assert re.search(message, capsys.readouterr().err)
