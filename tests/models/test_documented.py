"""The page about backbones is true: its lines load a run's weights into torchvision, and its table is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.backbones import counts
from scripts.models.backbones import BACKBONES
from scripts.models.factory import new_model
from tests.conftest import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "docs/backbones.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(# .*?)```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| (.*?) \| \d+ \| [\d.]+ \|$", PAGE, re.MULTILINE)
# backbone, side of the images, and what else the heading of its lines says
CASES = [(name, 28, "window 7" if name == "swin_v2_t" else "") for name in BACKBONES] + [("swin_v2_t", 64, "window 8")]


@pytest.mark.parametrize(("name", "side", "condition"), CASES)
def test_the_weights_load_into_torchvisions_model_as_documented(tmp_path: Path, monkeypatch, name, side, condition):
    (snippet,) = [one for one in SNIPPETS if name in (first := one.partition("\n")[0]) and condition in first]
    own_name = re.search(r'get_model\("(\w+)"', snippet)
    if own_name:  # the first of those that the lines are for
        snippet = snippet.replace(f'"{own_name[1]}"', f'"{name}"')
    trained = new_model(name, 8, seed=1, sides=(side, side)).eval()
    torch.save(trained.state_dict(), tmp_path / "best_model.pth")
    monkeypatch.chdir(tmp_path)

    names: dict[str, torch.nn.Module] = {}
    exec(snippet, names)  # type: ignore[arg-type]

    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(names["model"].eval()(images), trained(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_counts_of_the_table_are_right(name):
    rows = [row for row in ROWS if row[0] == name]
    assert [int(row[1]) for row in rows] == [28, 64, 224]
    for _, side, stem, cells in rows:
        assert cells == " | ".join(counts(name, stem, int(side)))


def test_every_backbone_is_on_the_page():
    stems, _, _ = PAGE.partition("Pretrained kernels")
    assert [name for name in BACKBONES if f"`{name}`" not in stems] == []
    for name, backbone in BACKBONES.items():
        (row,) = [line for line in stems.splitlines() if line.startswith("|") and f"`{name}`" in line]
        assert row.endswith(f"| {backbone.min_side} | {backbone.weights.removeprefix('IMAGENET1K_')} |")
