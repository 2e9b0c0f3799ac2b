"""Every image source gives the same bytes in the same order."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scripts.core.errors import ResourceError
from scripts.core.system import worker_init_fn
from scripts.data_handler.dataset import Split
from scripts.data_handler.sources import ResidentSource, StreamedSource, make_device_split
from tests.conftest import PROJECT_ROOT

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
ORDER = np.array([9, 0, 3, 3, 7, 1, 2])


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_streamed_batches_equal_resident_ones(num_workers):
    streamed, resident = StreamedSource(IMAGES, CPU, num_workers), ResidentSource(IMAGES, CPU)

    for order in (ORDER, ORDER[::-1].copy()):  # twice: workers live on from epoch to epoch
        pairs = list(zip(streamed.batches(order, 3), resident.batches(order, 3), strict=True))
        assert [len(batch) for batch, _ in pairs] == [3, 3, 1]
        assert all(torch.equal(one, other) for one, other in pairs)
        assert np.array_equal(torch.cat([batch for batch, _ in pairs]).numpy(), IMAGES[order])


@pytest.mark.parametrize("feed", [ResidentSource(IMAGES, CPU), StreamedSource(IMAGES, CPU, 0)])
def test_no_images_are_no_batches(feed):
    assert list(feed.batches(ORDER[:0], 3)) == []


def test_a_worker_seeds_every_generator_and_each_worker_differently():
    def drawn_by(worker: int) -> tuple[float, float, float]:
        torch.manual_seed(100 + worker)  # what a DataLoader does before it calls worker_init_fn
        worker_init_fn(worker)
        return random.random(), np.random.random(), float(torch.rand(()))

    assert drawn_by(0) == drawn_by(0)
    assert len({*drawn_by(0), *drawn_by(1)}) == 6


def test_workers_outlive_the_signals_that_reach_the_process_group_and_end_with_the_source():
    images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
    feed = StreamedSource(images, torch.device("cpu"), num_workers=2)
    batches = feed.batches(np.arange(10), 2)
    found = [next(batches), next(batches)]  # one of each worker, which has begun by then
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
    found += list(batches)
    assert torch.equal(torch.cat(found), torch.from_numpy(images))

    del feed, batches
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("moment", ["within an epoch", "between epochs"])
def test_a_killed_worker_is_named_with_what_helps_against_lack_of_memory(monkeypatch, moment):
    # PyTorch checks every 5 s whether its workers live
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    handler = signal.getsignal(signal.SIGCHLD)
    source = StreamedSource(IMAGES, CPU, num_workers=1)
    batches = source.batches(np.arange(10).repeat(10), 1)
    next(batches)
    if moment == "between epochs":
        list(batches)
        batches = source.batches(ORDER, 1)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join(20)

    with pytest.raises(ResourceError) as caught:
        list(batches)
    assert str(caught.value) == (
        "A worker process that reads images was killed, probably because memory ran out. Use fewer --num_workers or a "
        "smaller --batch_size, or give the run more memory (in a container also more shared memory: docker run "
        "--shm-size 2g)."
    )
    assert caught.value.exit_code == 1
    assert signal.getsignal(signal.SIGCHLD) is handler  # else the error would come wherever the program happens to be


def test_other_errors_of_a_stream_pass_unchanged(monkeypatch):
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: unspecified")

    monkeypatch.setattr(torch.Tensor, "to", out_of_memory)
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(StreamedSource(IMAGES, CPU, 0).batches(ORDER, 3))


CIRCLE = """
import numpy as np
import torch
from scripts.data_handler.sources import StreamedSource

class Circle:
    pass

feed = StreamedSource(np.zeros((100, 4, 4), np.uint8), torch.device("cpu"), num_workers=2)
batches = feed.batches(np.arange(100), 4)
next(batches)
circle = Circle()
circle.itself, circle.held = circle, (feed, batches)
del feed, batches, circle
raise SystemExit(7)
"""


def test_a_source_left_in_a_reference_cycle_keeps_no_process_from_ending():
    done = subprocess.run([sys.executable, "-c", CIRCLE], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (7, "")


def test_targets_are_one_hot_rows():
    split = Split(IMAGES[:3], np.array([2, 0, 1]))
    examples = make_device_split(split, 4, feed="resident", device=CPU, num_workers=0)

    assert examples.size == 3
    assert examples.targets.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert examples.targets.dtype == torch.float32


def test_targets_of_a_multi_label_set_are_its_rows_of_0_and_1():
    split = Split(IMAGES[:2], np.array([[0, 1, 1], [0, 0, 0]]))
    examples = make_device_split(split, 3, feed="resident", device=CPU, num_workers=0)

    assert examples.size == 2
    assert examples.targets.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert examples.targets.dtype == torch.float32
    with pytest.raises(ValueError, match=r"Expected labels \(N, 4\), got \(2, 3\)."):
        make_device_split(split, 4, feed="resident", device=CPU, num_workers=0)


@pytest.mark.parametrize("feed", ["resident", "streamed"])
def test_the_requested_source_is_made(feed):
    split = Split(IMAGES, np.zeros(10, dtype=np.int64))
    kind = type(make_device_split(split, 2, feed=feed, device=CPU, num_workers=0).source)
    assert kind is {"resident": ResidentSource, "streamed": StreamedSource}[feed]
