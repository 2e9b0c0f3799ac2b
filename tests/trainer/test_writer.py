"""Files that are written beside the training: what is written when, in which order, and from which memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import Interrupted, StorageError
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.data_handler.sources import DeviceSplit
from scripts.trainer.checkpoint import save_checkpoint, write_history
from scripts.trainer.fit import begin_training
from scripts.trainer.state import HostBuffers, TrainingState
from scripts.trainer.writer import TrainingWriter
from tests.trainer.toys import (
    CONFIG,
    CPU,
    HEAD,
    NEVER,
    Disk,
    KilledError,
    StopAfter,
    examples,
    outcome,
    small_network,
    train,
)

CHECKPOINT, HISTORY, BEST = ["last_checkpoint.pth"], ["history.jsonl"], ["best_model.pth", "best_model.json"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A writer, and everything it works with."""

    state: TrainingState
    paths: RunPaths
    clock: Clock
    writer: TrainingWriter

    def finish_epoch(self, *, is_best: bool = False) -> None:
        """Finish an epoch whose only trace in the weights is its number."""
        number = self.state.epoch
        with torch.no_grad():
            for parameter in self.state.model.parameters():
                parameter.fill_(number)
        if is_best:
            self.state.stopping.best_epoch = number
        figures = dict.fromkeys(("train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds"), 0.5)
        record = EpochRecord(epoch=number, images_per_second=None, is_best=is_best, **figures)
        self.writer.finish_epoch(record)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    paths = RunPaths.create(tmp_path, "squares", "small", now=datetime(2026, 1, 31, 22, 15))
    config = replace(CONFIG, epochs=6, checkpoint_every=30)
    state, clock = begin_training(small_network(), config, CPU, head=HEAD), Clock()
    with TrainingWriter(state, paths, config, provenance={}, model_card={}, clock=clock) as writer:
        yield Bench(state, paths, clock, writer)


def test_checkpoints_keep_their_distance_and_history_and_best_weights_are_always_written(bench, monkeypatch):
    disk = Disk(monkeypatch)

    def written(seconds: float, *, is_best: bool = False) -> list[str]:
        disk.written.clear()
        bench.clock.now += seconds
        bench.finish_epoch(is_best=is_best)
        bench.writer.join()
        return disk.written.copy()

    # the clock starts with the training, and again with each checkpoint
    assert written(29, is_best=True) == HISTORY + BEST
    assert written(1) == CHECKPOINT + HISTORY
    assert written(29.5) == HISTORY
    # the checkpoint first: it holds the best weights, so that a kill after it loses nothing
    assert written(31, is_best=True) == CHECKPOINT + HISTORY + BEST
    assert written(0) == HISTORY
    assert written(0) == CHECKPOINT + HISTORY  # the last epoch


def test_a_checkpoint_that_was_requested_is_on_the_disk_afterwards(bench, monkeypatch):
    disk = Disk(monkeypatch)
    bench.writer.save()
    assert disk.written == CHECKPOINT

    bench.finish_epoch()
    bench.writer.save()
    assert disk.written == CHECKPOINT + HISTORY + CHECKPOINT


def test_a_new_training_begins_with_a_checkpoint(bench, monkeypatch):
    disk = Disk(monkeypatch)
    bench.writer.begin()
    assert disk.written == CHECKPOINT


def test_a_failed_write_is_raised_in_the_main_thread_at_the_next_join(bench, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    for join in (bench.writer.join, bench.writer.save, bench.finish_epoch):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            bench.finish_epoch()
            bench.writer._in_flight.exception()
        with pytest.raises(StorageError, match=r"Cannot write the file at .*history.jsonl: it needs .* bytes"):
            join()
        bench.writer.join()  # it is raised once


def test_a_failure_is_noticed_without_waiting(bench, monkeypatch):
    may_fail = threading.Event()

    def fail(_name: str) -> None:
        may_fail.wait(60)
        raise StorageError("full")

    Disk(monkeypatch).before_write = fail
    bench.finish_epoch()
    bench.writer.raise_failure()  # in flight, not failed
    may_fail.set()
    bench.writer._in_flight.exception()
    with pytest.raises(StorageError, match="full"):
        bench.writer.raise_failure()


def test_a_training_ends_at_the_step_after_a_failed_write_rather_than_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.trainer.writer.write_history", raise_full)
    checks = 0
    real_raise = TrainingWriter.raise_failure

    def wait_and_raise(writer: TrainingWriter) -> None:
        nonlocal checks
        checks += 1
        if writer._in_flight is not None:
            writer._in_flight.exception()
        real_raise(writer)

    monkeypatch.setattr(TrainingWriter, "raise_failure", wait_and_raise)
    with pytest.raises(StorageError, match="full"):
        train(tmp_path)
    assert checks == 5  # three steps and a validation, and the first step of the second epoch


def raise_full(*_: object) -> None:
    raise StorageError("full")


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_whose_last_write_failed_ends_with_its_error(tmp_path, monkeypatch, epochs):
    monkeypatch.setattr("scripts.trainer.writer.write_history", raise_full)
    with pytest.raises(StorageError, match="full"):
        train(tmp_path, replace(CONFIG, epochs=epochs))


def test_the_error_that_ends_a_training_is_not_replaced_by_that_of_a_write(bench, monkeypatch):
    monkeypatch.setattr("scripts.trainer.writer.write_history", raise_full)
    bench.finish_epoch()
    with pytest.raises(ZeroDivisionError), bench.writer:
        _ = 1 / 0


class SlowThread:
    """Lets nothing be written in the background before it is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.was_awaited = True
        self._awaited = threading.Event()
        real_join, real_writing = TrainingWriter.join, TrainingWriter._writing

        def join(writer: TrainingWriter) -> None:
            self._awaited.set()
            real_join(writer)
            self._awaited.clear()

        def writing(writer: TrainingWriter, **options: Any) -> Callable[[], None]:
            write = real_writing(writer, **options)

            def wait_and_write() -> None:
                self._wait()
                write()

            return wait_and_write

        monkeypatch.setattr(TrainingWriter, "join", join)
        monkeypatch.setattr(TrainingWriter, "raise_failure", lambda writer: None)
        monkeypatch.setattr(TrainingWriter, "_writing", writing)

    def _wait(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.was_awaited &= self._awaited.wait(10)


def checkpoints_of(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The model, best weights and optimiser state of each checkpoint, as they are written."""
    saved: list[bytes] = []

    def save(paths: RunPaths, content: dict[str, Any]) -> None:
        parts = [content[name] or {} for name in ("model", "best_weights")]
        tensors = [tensor for part in parts for tensor in part.values()]
        momentum = [entry["momentum_buffer"] for entry in content["optimizer"]["state"].values()]
        saved.append(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors + momentum))
        save_checkpoint(paths, content)

    monkeypatch.setattr("scripts.trainer.writer.save_checkpoint", save)
    return saved


@pytest.mark.parametrize("checkpoint_every", [0, NEVER])
def test_the_slowest_thread_writes_what_was_there_when_the_epoch_ended(tmp_path, monkeypatch, checkpoint_every):
    config = replace(CONFIG, epochs=6, lr=2.0, momentum=0.1, checkpoint_every=checkpoint_every)  # best epochs vary
    with monkeypatch.context() as patched:
        expected = checkpoints_of(patched)
        real_finish = TrainingWriter.finish_epoch
        patched.setattr(
            TrainingWriter, "finish_epoch", lambda writer, record: (real_finish(writer, record), writer.join())
        )
        straight, _ = train(tmp_path / "straight", config)
    with monkeypatch.context() as patched:
        found = checkpoints_of(patched)
        slow = SlowThread(patched)
        paths, result = train(tmp_path / "slow", config)

    assert slow.was_awaited
    assert found == expected
    assert len(found) == (7 if checkpoint_every == 0 else 2)
    assert len({record.is_best for record in result.history}) == 2
    assert outcome(paths) == outcome(straight)


def test_there_is_at_most_one_write_in_flight(bench, monkeypatch):
    slow = SlowThread(monkeypatch)
    running, most = 0, 0

    def write(*given: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        write_history(*given)
        running -= 1

    monkeypatch.setattr("scripts.trainer.writer.write_history", write)
    for _ in range(4):
        bench.finish_epoch()
    bench.writer.join()
    assert most == 1
    assert slow.was_awaited


@pytest.mark.parametrize("tick", [4, 5, 8])
def test_a_signal_waits_for_the_write_in_flight(tmp_path, monkeypatch, tick):
    slow = SlowThread(monkeypatch)
    disk = Disk(monkeypatch)
    with pytest.raises(Interrupted):
        train(tmp_path, stop=StopAfter(tick))

    assert slow.was_awaited
    assert disk.written[-1:] == CHECKPOINT
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("training-writer")]


class FirstBatch:
    """A source that records whether a write was in flight when its workers would start."""

    def __init__(self, split: DeviceSplit, busy: list[bool]) -> None:
        self._source, self._busy, self._is_first = split.source, busy, True

    def batches(self, order: Any, batch_size: int) -> Iterator[torch.Tensor]:
        if self._is_first:
            self._busy.append(any(thread.name.startswith("training-writer") for thread in threading.enumerate()))
            self._is_first = False
        return self._source.batches(order, batch_size)


@pytest.mark.parametrize("tick", [0, 4, 6])
def test_no_thread_is_there_when_workers_are_forked(tmp_path, tick):
    busy: list[bool] = []
    training, validation = (replace(split, source=FirstBatch(split, busy)) for split in (examples(20), examples(10)))
    if tick:
        with pytest.raises(Interrupted):
            train(tmp_path, stop=StopAfter(tick))
    train(tmp_path, splits=(training, validation), resume=tick > 0)
    assert busy == [False, False]


# three epochs: the first checkpoint, then history and perhaps best weights; a checkpoint after each or only the last
@pytest.mark.parametrize("checkpoint_every", [0, NEVER])
@pytest.mark.parametrize("kill_after", range(1, 14))
def test_a_training_killed_between_any_two_writes_and_resumed_ends_with_the_same_bytes(
    tmp_path, uninterrupted, monkeypatch, kill_after, checkpoint_every
):
    config = replace(CONFIG, checkpoint_every=checkpoint_every)
    with monkeypatch.context() as patched, suppress(KilledError):  # some are done before
        Disk(patched, kill_after=kill_after)
        train(tmp_path, config)

    paths, _ = train(tmp_path, config, resume=True)

    assert outcome(paths) == uninterrupted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> object:
    return outcome(train(tmp_path_factory.mktemp("uninterrupted"))[0])


def test_files_that_are_ahead_of_the_first_checkpoint_are_removed_on_resuming(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        Disk(patched, kill_after=5)  # after the history of the second epoch
        with pytest.raises(KilledError):
            train(tmp_path, replace(CONFIG, checkpoint_every=NEVER))
    (root,) = tmp_path.iterdir()
    paths = RunPaths(root)
    assert all(path.exists() for path in (paths.history, paths.best_model, paths.best_model_card))

    with pytest.raises(Interrupted):
        train(tmp_path, resume=True, stop=StopAfter(1))

    assert not any(path.exists() for path in (paths.history, paths.best_model, paths.best_model_card))


def test_best_weights_later_than_the_checkpoint_are_replaced(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=StopAfter(6))
    (root,) = tmp_path.iterdir()
    paths = RunPaths(root)
    before = paths.best_model.read_bytes(), paths.best_model_card.read_bytes(), paths.history.read_bytes()
    for path in (paths.best_model, paths.best_model_card, paths.history):
        path.write_bytes(b"of a later epoch")

    with pytest.raises(Interrupted):
        train(tmp_path, resume=True, stop=StopAfter(1))

    assert (paths.best_model.read_bytes(), paths.best_model_card.read_bytes(), paths.history.read_bytes()) == before
    assert outcome(train(tmp_path, resume=True)[0]) == uninterrupted


def test_a_copy_keeps_values_and_layout_and_the_next_one_reuses_its_memory():
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    value = {"lr": 0.1, "state": [{"image": image, "count": torch.tensor(3)}]}
    buffers = HostBuffers()

    copy = buffers.copy(value, "all")
    assert torch.equal(copy["state"][0]["image"], image)
    assert copy["state"][0]["image"].stride() == image.stride()
    assert (copy["lr"], copy["state"][0]["count"].item()) == (0.1, 3)
    image.zero_()
    assert copy["state"][0]["image"].sum() == 276

    again, other = buffers.copy(value, "all"), buffers.copy(value, "other")
    assert again["state"][0]["image"].data_ptr() == copy["state"][0]["image"].data_ptr()
    assert other["state"][0]["image"].data_ptr() != copy["state"][0]["image"].data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_does_not_wait_for_a_snapshot_of_a_cuda_device(tmp_path):
    device = torch.device("cuda", 0)
    state = begin_training(small_network().to(device), CONFIG, device, head=HEAD)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.snapshot()  # makes the buffers
    torch.cuda.set_sync_debug_mode("error")
    try:
        snapshot = state.snapshot()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    for name, tensor in state.model.state_dict().items():
        assert snapshot["model"][name].is_pinned()
        assert torch.equal(snapshot["model"][name], tensor.cpu())
