"""The documents are true: snippets run, flags and files exist, every page is listed, README's figure can be drawn."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import torch
from PIL import Image

from scripts.core.config import SETTINGS
from scripts.models.factory import new_model
from tests.conftest import PROJECT_ROOT
from tools import readme_picture

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((PROJECT_ROOT / "docs").glob("*.md"))
LARGEST_FIGURE = 400_000  # bytes


def test_the_weights_load_into_torchvisions_resnet_as_readme_shows(tmp_path: Path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    trained = new_model("resnet18", 8, seed=1).eval()
    torch.save(trained.state_dict(), tmp_path / "best_model.pth")
    monkeypatch.chdir(tmp_path)

    names: dict[str, torch.nn.Module] = {}
    exec(snippet, names)  # type: ignore[arg-type]

    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(names["model"].eval()(images), trained(images))


def test_readmes_results_are_those_of_the_log_of_experiments():
    stated = re.findall(r"0\.\d{4} \[0\.\d{4}, 0\.\d{4}\]", README)
    experiments = (PROJECT_ROOT / "docs/experiments.md").read_text(encoding="utf-8")

    assert len(stated) == 8
    assert [value for value in stated if value not in experiments] == []


def test_the_index_lists_every_page_once():
    linked = re.findall(r"\]\((\w+\.md)\)", (PROJECT_ROOT / "docs/index.md").read_text(encoding="utf-8"))
    assert sorted(linked) == [page.name for page in PAGES if page.name != "index.md"]


def test_the_configuration_page_has_every_flag_with_its_default():
    text = (PROJECT_ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `--(\w+)[^`]*` \| (.*?) \|", text, re.MULTILINE)
    stated = {"resume": "–", "lock_file": "per user, in the temp folder"}
    defaults = {name: "off" if known.default is False else f"{known.default}" for name, known in SETTINGS.items()}
    defaults |= {name: f"{float(known.default):g}" for name, known in SETTINGS.items() if known.kind is float}
    assert sorted(documented) == sorted((defaults | stated).items())


@pytest.mark.parametrize("page", [PROJECT_ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_files_of_the_project_that_a_page_names_exist(page: Path):
    named = re.findall(r"\b(?:tests|tools|scripts|benchmarks)/[\w/]+\.py\b", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (PROJECT_ROOT / name).exists()] == []


def test_readmes_figure_is_small_enough():
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert figures
    assert all((PROJECT_ROOT / name).stat().st_size < LARGEST_FIGURE for name in figures)


def test_readmes_figure_is_drawn_from_a_run_folder(tmp_path: Path, monkeypatch):
    colours = {"training_curves": "red", "confusion_matrix": "lime", "sample_predictions": "blue"}
    (tmp_path / "figures").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (400, 200), colour).save(tmp_path / "figures" / f"{name}.png")
    workbook = openpyxl.Workbook()
    sheet = workbook.worksheets[0]
    for row in (["Summary"], ["Test split", "value", "low"], ["Accuracy", 0.9, 0.8], ["Test images", 3413]):
        sheet.append(row)
    sheet.merge_cells("B1:C1")
    (tmp_path / "reports").mkdir()
    workbook.save(tmp_path / "reports" / "training_summary.xlsx")
    output = tmp_path / "run.png"
    monkeypatch.setattr(sys, "argv", ["readme_picture.py", str(tmp_path), str(output)])

    readme_picture.main()

    pixels = np.asarray(Image.open(output).convert("RGB")).reshape(-1, 3)
    shares = [(pixels == colour).all(axis=1).mean() for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert min(shares) > 0.15


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [(0.90012, "0.00%", "90.01%"), (0.98975, "0.0000", "0.9898"), (3413, "#,##0", "3,413"), (None, "General", "")],
)
def test_a_cell_is_drawn_as_a_spreadsheet_shows_it(value, number_format, shown):
    assert readme_picture.format_value(value, number_format) == shown
