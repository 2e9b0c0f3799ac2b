"""A whole training: what it keeps, when it stops, and that its bits follow from the seed."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scripts.core.errors import DataError, DivergedError, Interrupted, StorageError
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.trainer import checkpoint
from scripts.trainer.checkpoint import delete_previous_checkpoint, is_sealed, load_checkpoint, require_space, seal
from scripts.trainer.fit import epoch_line
from scripts.trainer.step import validate
from tests.trainer.toys import CONFIG, NEVER, Disk, KilledError, StopAfter, examples, outcome, small_network, train


def test_it_leaves_the_best_weights_their_card_the_state_and_the_history(tmp_path):
    model = small_network()
    paths, result = train(tmp_path, model=model)

    best = torch.load(paths.best_model, weights_only=True)
    assert list(best) == list(model.state_dict())
    assert all(tensor.is_contiguous() for tensor in best.values())
    card = json.loads(paths.best_model_card.read_text())
    assert card["class_names"] == ["dark", "bright"]
    assert card["validation"] == {
        "epoch": result.best.epoch,
        "accuracy": result.best.val_accuracy,
        "auc": result.best.val_auc,
        "loss": result.best.val_loss,
    }
    state = torch.load(paths.last_checkpoint, weights_only=True)
    assert all(torch.equal(state["model"][name], value) for name, value in model.state_dict().items())
    assert state["provenance"]["settings"]["lr"] == 0.02
    assert len(state["optimizer"]["state"]) == len(list(model.parameters()))
    lines = [json.loads(line) for line in paths.history.read_text().splitlines()]
    assert [EpochRecord(**line) for line in lines] == list(result.history)
    assert [record.epoch for record in result.history] == [1, 2, 3]


def test_the_best_file_is_of_the_best_epoch_not_the_last(tmp_path):
    paths, result = train(tmp_path, replace(CONFIG, epochs=6, lr=2.0, momentum=0.0))  # unstable on purpose
    assert result.best.epoch < 6

    model = small_network()
    model.load_state_dict(torch.load(paths.best_model, weights_only=True))
    found = validate(model, examples(10), precision="fp32")
    assert (found.loss, found.accuracy) == (result.best.val_loss, result.best.val_accuracy)
    assert [record.epoch for record in result.history if record.is_best][-1] == result.best.epoch


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    files = [train(tmp_path / str(number))[0].best_model.read_bytes() for number in range(2)]
    other = train(tmp_path / "other", replace(CONFIG, seed=43))[0].best_model.read_bytes()

    assert files[0] == files[1]
    assert files[0] != other


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_the_feed_and_its_workers_change_no_bit(tmp_path, num_workers):
    resident, _ = train(tmp_path / "resident")
    splits = examples(20, "streamed", num_workers), examples(10, "streamed", num_workers)
    streamed, _ = train(tmp_path / "streamed", splits=splits)

    assert resident.best_model.read_bytes() == streamed.best_model.read_bytes()


def test_an_observer_gets_the_history_at_the_beginning_and_after_each_epoch(tmp_path):
    seen: list[list[int]] = []

    def observe(history: Sequence[EpochRecord]) -> None:
        seen.append([record.epoch for record in history])

    with pytest.raises(Interrupted):
        train(tmp_path, stop=StopAfter(8), observe=observe)
    assert seen == [[], [1]]
    train(tmp_path, resume=True, observe=observe)
    assert seen == [[], [1], [1], [1, 2], [1, 2, 3]]


def test_patience_ends_the_training(tmp_path):
    _, result = train(tmp_path, replace(CONFIG, epochs=50, lr=1e-12, patience=2, mixup_alpha=0.0))

    assert result.stopped_early
    assert len(result.history) < 50
    assert len(result.history) - result.best.epoch == 2


def test_patience_that_ends_with_the_last_epoch_stopped_nothing_early(tmp_path, caplog):
    with caplog.at_level("INFO"):
        _, result = train(tmp_path, replace(CONFIG, epochs=2, lr=1e-12, patience=1, mixup_alpha=0.0))

    assert len(result.history) == 2
    assert not result.stopped_early
    assert "stopped early" not in caplog.text


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(tmp_path):
    with pytest.raises(DivergedError) as caught:
        train(tmp_path, replace(CONFIG, lr=1e30))

    assert str(caught.value).startswith("Training diverged in epoch 1: train_loss nan")
    assert str(caught.value).endswith("Try a smaller --lr than 1e+30.")

    class Breaks(nn.Module):
        """Valid in the first epoch (three steps), then NaN."""

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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A training that nothing interrupted."""
    return train(tmp_path_factory.mktemp("uninterrupted"))[0]


# three epochs of three steps and a validation of one batch are twelve places to be stopped at
@pytest.mark.parametrize("checkpoint_every", [0, NEVER])
@pytest.mark.parametrize("tick", range(1, 13))
def test_a_training_stopped_at_any_place_and_resumed_ends_with_the_same_bytes(
    tmp_path, uninterrupted, tick, checkpoint_every
):
    with pytest.raises(Interrupted) as caught:
        train(tmp_path / "cut", replace(CONFIG, checkpoint_every=checkpoint_every), stop=StopAfter(tick))
    assert caught.value.exit_code == 143
    assert str(caught.value).startswith("Stopped by SIGTERM. Everything up to ")

    resumed, result = train(tmp_path / "cut", resume=True, model=small_network(seed=99))

    assert outcome(resumed) == outcome(uninterrupted)
    assert len(result.history) == 3


def test_a_training_stopped_again_and_again_ends_with_the_same_bytes(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=StopAfter(1))
    for _ in range(9):
        with pytest.raises(Interrupted):
            train(tmp_path / "cut", stop=StopAfter(1), resume=True)
    resumed, _ = train(tmp_path / "cut", resume=True)

    assert outcome(resumed) == outcome(uninterrupted)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_replaced_by_the_previous_one(tmp_path, uninterrupted, caplog, damage):
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=StopAfter(10))
    (path,) = (tmp_path / "cut").rglob("last_checkpoint.pth")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b""}.get(damage, content))

    resumed, _ = train(tmp_path / "cut", resume=True)

    assert f"the checkpoint {path} is damaged" in caplog.text
    assert outcome(resumed) == outcome(uninterrupted)


def test_a_kill_after_resuming_from_the_previous_checkpoint_does_not_lose_both(tmp_path, uninterrupted, monkeypatch):
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=StopAfter(10))
    (path,) = (tmp_path / "cut").rglob("last_checkpoint.pth")
    path.write_bytes(path.read_bytes()[:-1])
    with monkeypatch.context() as patched:
        Disk(patched, kill_after=0)
        with pytest.raises(KilledError):
            train(tmp_path / "cut", resume=True)

    resumed, _ = train(tmp_path / "cut", resume=True)

    assert outcome(resumed) == outcome(uninterrupted)


def test_a_kill_between_two_checkpoints_leaves_no_permanent_files(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=StopAfter(12))
    (newest,) = (tmp_path / "cut").rglob("last_checkpoint.pth")
    previous = newest.with_name("previous_checkpoint.pth")
    previous.unlink()
    os.link(newest, previous)  # as a kill leaves them before the next checkpoint is written

    resumed, _ = train(tmp_path / "cut", resume=True)

    assert sorted(path.name for path in newest.parent.iterdir()) == [
        "best_model.json",
        "best_model.pth",
        "last_checkpoint.pth",
        "previous_checkpoint.pth",
    ]
    assert outcome(resumed) == outcome(uninterrupted)


def test_the_previous_checkpoint_of_a_finished_training_can_be_deleted(tmp_path):
    paths, _ = train(tmp_path)
    assert paths.previous_checkpoint.exists()
    for _ in range(2):
        delete_previous_checkpoint(paths)
    assert not paths.previous_checkpoint.exists()
    assert load_checkpoint(paths) is not None


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_earlier_ones(tmp_path, uninterrupted, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=StopAfter(6))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError) as caught:
            train(tmp_path / "cut", resume=True)
    assert "it needs " in str(caught.value)
    assert not list(tmp_path.rglob("*.part"))

    resumed, _ = train(tmp_path / "cut", resume=True)

    assert outcome(resumed) == outcome(uninterrupted)


def test_resuming_restores_best_weights_that_are_not_those_of_the_checkpoint(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop=StopAfter(10))
    (path,) = (tmp_path / "cut").rglob("best_model.pth")
    path.write_bytes(b"of another epoch")

    resumed, _ = train(tmp_path / "cut", resume=True)

    assert outcome(resumed) == outcome(uninterrupted)


def test_a_training_killed_in_its_first_step_starts_again_with_its_first_weights(tmp_path, uninterrupted):
    class Killed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = small_network()

        def forward(self, images):
            raise KeyboardInterrupt

        def state_dict(self, **options):
            return self.layers.state_dict(**options)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", model=Killed())

    resumed, _ = train(tmp_path / "cut", resume=True, model=small_network(seed=99))

    assert outcome(resumed) == outcome(uninterrupted)


class Ticks:
    """A clock that is one second later each time it is read."""

    def __init__(self) -> None:
        self.seconds = 0

    def perf_counter(self) -> float:
        self.seconds += 1
        return float(self.seconds)


def test_images_per_second_of_a_resumed_epoch_leave_out_the_empty_tail_of_its_last_batch(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=StopAfter(2))  # of 8 + 8 + 4 images, 4 are left
    monkeypatch.setattr("scripts.trainer.fit.time", Ticks())
    _, result = train(tmp_path, resume=True)

    first, second, _ = result.history
    assert first.images_per_second == 4 / 2  # a tick after the last step, another at the end of the training part
    assert second.images_per_second == 20 / 4


def test_an_epoch_of_which_only_the_validation_was_left_has_no_images_per_second(tmp_path, caplog):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=StopAfter(3))
    with caplog.at_level("INFO"):
        paths, result = train(tmp_path, resume=True)

    assert [record.images_per_second is None for record in result.history] == [True, False, False]
    assert json.loads(paths.history.read_text().splitlines()[0])["images_per_second"] is None
    assert ["img/s" in line for line in caplog.messages if line.startswith("epoch ")] == [False, True, True]


def scripted(*figures: float | None) -> Callable[..., float | None]:
    """An AUC function that returns the next figure at each call."""
    given = iter(figures)
    return lambda labels, scores: next(given)


@pytest.mark.parametrize(
    ("figures", "best", "num_epochs"),
    [
        ((0.5, 0.9, 0.8, 0.7), 2, 4),  # patience 2
        ((None, 0.1, None, None), 2, 4),
        ((0.1, 0.2, 0.3, 0.4, 0.5), 5, 5),
    ],
)
def test_the_auc_selects_the_epoch_and_ends_the_patience_where_it_is_monitored(
    tmp_path, caplog, figures, best, num_epochs
):
    with caplog.at_level("INFO"):
        paths, result = train(tmp_path, replace(CONFIG, epochs=5, patience=2, monitor="auc"), auc=scripted(*figures))

    assert (result.best.epoch, result.best.val_auc, result.monitor) == (best, figures[best - 1], "auc")
    assert [record.val_auc for record in result.history] == list(figures)
    assert len(result.history) == num_epochs
    assert json.loads(paths.best_model_card.read_text())["validation"]["auc"] == figures[best - 1]
    assert f"val_auc {figures[best - 1]:.4f}  " in caplog.messages[-1]


def test_the_loss_selects_the_epoch_where_it_is_monitored(tmp_path):
    _, result = train(tmp_path, replace(CONFIG, epochs=6, lr=2.0, momentum=0.0, monitor="loss"))

    assert result.best.val_loss == min(record.val_loss for record in result.history)
    assert result.monitor == "loss"


def test_the_auc_is_recorded_but_not_shown_where_it_is_not_monitored(tmp_path, caplog):
    with caplog.at_level("INFO"):
        _, result = train(tmp_path, auc=scripted(0.1, 0.2, None))

    assert [record.val_auc for record in result.history] == [0.1, 0.2, None]
    assert "val_auc" not in caplog.text


def test_an_accuracy_that_stays_at_its_maximum_ends_the_patience_while_the_loss_shrinks(tmp_path):
    _, result = train(tmp_path, replace(CONFIG, epochs=99, patience=3))

    assert result.best.val_accuracy == 1.0
    assert result.stopped_early
    losses = [record.val_loss for record in result.history if record.val_accuracy == 1.0]
    assert len(losses) == 4
    assert result.best.val_loss == min(losses)


def test_a_finished_training_is_not_trained_again(tmp_path):
    uninterrupted, first = train(tmp_path / "uninterrupted")
    before = outcome(uninterrupted)

    _, second = train(tmp_path / "uninterrupted", resume=True)

    assert second == first
    assert outcome(uninterrupted) == before


def test_a_sealed_archive_shows_every_flipped_bit_and_is_still_read():
    buffer = io.BytesIO()
    torch.save({"numbers": torch.arange(3)}, buffer)
    sealed = seal(buffer)

    assert is_sealed(sealed)
    assert torch.load(io.BytesIO(sealed), weights_only=True)["numbers"].tolist() == [0, 1, 2]
    for place in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[place] ^= 1 << (place % 8)
        assert not is_sealed(bytes(damaged))
    assert not any(is_sealed(sealed[:length]) for length in range(len(sealed)))


def test_a_checkpoint_of_another_version_is_refused_rather_than_discarded(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "FORMAT_VERSION", 2)
        paths, _ = train(tmp_path)

    with pytest.raises(DataError, match=r"is of format 2, and this version of the program reads 3: continue with"):
        load_checkpoint(paths)


def test_the_previous_checkpoint_stays_until_the_new_checkpoint_is_on_the_disk(tmp_path, monkeypatch):
    paths, _ = train(tmp_path)
    kept = paths.previous_checkpoint.read_bytes()

    def disk_full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError):
        checkpoint.save_checkpoint(paths, {"steps_done": 7})

    assert paths.previous_checkpoint.read_bytes() == kept
    assert paths.last_checkpoint.read_bytes() != kept


def test_too_little_space_is_found_before_training(tmp_path):
    with pytest.raises(StorageError) as caught:
        require_space(tmp_path, 10**15, CONFIG)

    assert str(caught.value).startswith("Checkpoints and reports need 10,000,000,020,000,000 bytes of disk space, and ")
    assert str(tmp_path) in str(caught.value)
    require_space(tmp_path, 0, CONFIG)


def test_space_that_a_resumed_run_already_uses_is_not_required_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=120_000_000))
    with pytest.raises(StorageError, match="reports need 220,000,000 bytes of disk space, and 120,000,000 are free"):
        require_space(tmp_path, 20_000_000, CONFIG)
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / "last_checkpoint.pth").open("wb") as stream:
        stream.truncate(100_000_000)
    require_space(tmp_path, 20_000_000, CONFIG)


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
    assert epoch_line(replace(record, images_per_second=None), 60, 190).endswith("  lr 7.1e-03  eta 3m10s  best")
    for auc, text in ((0.98765, "val_auc 0.9877"), (None, "val_auc undefined")):
        line = epoch_line(replace(record, val_auc=auc), 60, 190, monitor="auc")
        assert f"  val_acc 0.9613  {text}  lr 7.1e-03  " in line
    assert epoch_line(replace(record, is_best=False), 60, 7265).endswith("eta 2h01m05s")
