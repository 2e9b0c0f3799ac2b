"""A whole training: what it keeps, when it stops, and that its bits follow from the seed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts.core.config import Config
from scripts.core.errors import DivergedError, Interrupted
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.core.system import StopRequest
from scripts.data_handler.dataset import Split
from scripts.data_handler.feed import Examples, make_examples
from scripts.trainer.fit import epoch_line, fit
from scripts.trainer.step import validate
from tests.conftest import coloured_squares

CPU = torch.device("cpu")
CONFIG = Config(epochs=3, batch_size=8, lr=0.02, precision="fp32", mixup_alpha=0.2)


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def examples(count: int, feed: str = "resident", num_workers: int = 0) -> Examples:
    images, labels = coloured_squares(count, side=8, seed=count)
    split = Split(images, labels[:, 0].astype(np.int64))
    return make_examples(split, 2, feed=feed, device=CPU, num_workers=num_workers)


def train(
    folder: Path, config: Config = CONFIG, *, model: nn.Module | None = None, stop: StopRequest | None = None, **feed
) -> tuple[RunPaths, TrainingResult]:
    paths = RunPaths.create(folder, "squares", "small", now=datetime(2026, 1, 31, 22, 15))
    result = fit(
        model or small_network(),
        examples(20, **feed),
        examples(10, **feed),
        config,
        paths=paths,
        provenance={"settings": config.as_dict()},
        model_card={"class_names": ["dark", "bright"]},
        stop=stop or StopRequest(),
    )
    return paths, result


def test_it_leaves_the_best_weights_their_card_the_state_and_the_history(tmp_path):
    model = small_network()
    paths, result = train(tmp_path, model=model)

    best = torch.load(paths.best_model, weights_only=True)
    assert list(best) == list(model.state_dict())
    assert all(tensor.is_contiguous() for tensor in best.values())
    card = json.loads(paths.best_model_card.read_text())
    assert card["class_names"] == ["dark", "bright"]
    assert card["validation"] == {
        "epoch": result.best_epoch,
        "accuracy": result.best_val_accuracy,
        "loss": result.best_val_loss,
    }
    state = torch.load(paths.last_checkpoint, weights_only=True)
    assert all(torch.equal(state["model"][name], value) for name, value in model.state_dict().items())
    assert state["provenance"]["settings"]["lr"] == 0.02
    assert len(state["optimizer"]["state"]) == len(list(model.parameters()))
    lines = [json.loads(line) for line in paths.history.read_text().splitlines()]
    assert [EpochRecord(**line) for line in lines] == list(result.history)
    assert [record.epoch for record in result.history] == [1, 2, 3]


def test_the_best_file_is_of_the_best_epoch_not_the_last(tmp_path):
    paths, result = train(tmp_path, replace(CONFIG, epochs=6, lr=2.0, momentum=0.0))  # restless on purpose
    assert result.best_epoch < 6

    model = small_network()
    model.load_state_dict(torch.load(paths.best_model, weights_only=True))
    assert validate(model, examples(10), precision="fp32") == (result.best_val_loss, result.best_val_accuracy)
    assert [record.epoch for record in result.history if record.is_best][-1] == result.best_epoch


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    files = [train(tmp_path / str(number))[0].best_model.read_bytes() for number in range(2)]
    other = train(tmp_path / "other", replace(CONFIG, seed=43))[0].best_model.read_bytes()

    assert files[0] == files[1]
    assert files[0] != other


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_the_feed_and_its_workers_change_no_bit(tmp_path, num_workers):
    resident, _ = train(tmp_path / "resident")
    streamed, _ = train(tmp_path / "streamed", feed="streamed", num_workers=num_workers)

    assert resident.best_model.read_bytes() == streamed.best_model.read_bytes()


def test_patience_ends_the_training(tmp_path):
    _, result = train(tmp_path, replace(CONFIG, epochs=50, lr=1e-12, patience=2, mixup_alpha=0.0))

    assert result.stopped_early
    assert len(result.history) < 50
    assert len(result.history) - result.best_epoch == 2


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_weights(tmp_path):
    with pytest.raises(DivergedError) as caught:
        train(tmp_path, replace(CONFIG, lr=1e30))

    assert str(caught.value).startswith("Training diverged in epoch 1: train_loss nan")
    assert str(caught.value).endswith("Try a smaller --lr than 1e+30.")

    class Breaks(nn.Module):
        """Sound in the first epoch (three steps), then NaN."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.steps = small_network(), 0

        def forward(self, images):
            self.steps += self.training
            return self.inner(images) * (1 if self.steps <= 3 else float("nan"))

    with pytest.raises(DivergedError, match=r"diverged in epoch 2: .* The best weights before it are kept: ") as caught:
        train(tmp_path / "later", model=Breaks())
    (kept,) = (tmp_path / "later").rglob("best_model.pth")
    assert str(kept) in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in torch.load(kept, weights_only=True).values())


def test_a_signal_stops_after_the_step_and_says_so(tmp_path):
    stop = StopRequest()
    with stop.deferred():
        stop.handle(15, None)
        with pytest.raises(Interrupted) as caught:
            train(tmp_path, stop=stop)

    assert caught.value.exit_code == 143
    assert str(caught.value).startswith("Stopped by SIGTERM. ")


def test_an_epoch_line_reads_as_documented():
    record = EpochRecord(
        epoch=12,
        train_loss=0.4123,
        val_loss=0.3877,
        val_accuracy=0.96131,
        learning_rate=0.0071,
        images_per_second=1240.4,
        seconds=4,
        is_best=True,
    )

    assert epoch_line(record, 60, 190) == (
        "epoch 12/60  train_loss 0.412  val_loss 0.388  val_acc 0.9613  lr 7.1e-03  1,240 img/s  eta 3m10s  best"
    )
    assert epoch_line(replace(record, epoch=3, is_best=False), 60, 7265).startswith("epoch  3/60  ")
    assert epoch_line(replace(record, is_best=False), 60, 7265).endswith("eta 2h01m05s")
