"""Every backbone trains through ``main.py``, is killed, and resumes to the bits of a training that was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.trainings import Training, outcome_of, wait_until
from scripts.models.backbones import BACKBONES
from scripts.models.factory import new_model
from tests.conftest import write_npz


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_trains_and_survives_a_kill_to_the_same_bits(tmp_path: Path, name: str, side: int):
    data = write_npz(tmp_path / "squares.npz", sizes=(24, 8, 8), side=side)
    arguments = ["--dataset", str(data), "--backbone", name, "--weights", "none", "--epochs", "2", "--batch_size", "4"]
    arguments += ["--checkpoint_every", "0", "--device", "cpu", "--lock_file", "lock", "--no_process_guard", "--no_tta"]
    straight, killed = (Training(tmp_path / part, arguments) for part in ("straight", "killed"))
    straight.finish(straight.start())
    process = killed.start()
    wait_until(lambda: any(killed.outputs.glob("*/history.jsonl")), "the end of the first epoch")
    process.kill()  # in the second epoch, which begins anew from the checkpoint that the first one left
    process.wait()
    assert not killed.paths.summary.exists()
    killed.finish(killed.resume())

    killed.require_same(outcome_of(straight.paths))
    card = json.loads(straight.paths.best_model_card.read_text(encoding="utf-8"))
    assert (card["backbone"], card["stem"]) == (name, "adapted" if side == 28 else "stock")
    assert straight.paths.root.name.endswith(f"_squares_{name}")
    model = new_model(name, 2, stem=card["stem"], seed=0, sides=(side, side))
    model.load_state_dict(torch.load(straight.paths.best_model, weights_only=True))
