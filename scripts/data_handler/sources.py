"""Two ways to bring uint8 images to the device, with the same bits in the same order."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from scripts.core.errors import DataError
from scripts.core.system.device import to_device
from scripts.core.system.reproducibility import worker_init_fn
from scripts.core.system.signals import leave_signals_to_parent
from scripts.data_handler.dataset import Split
from scripts.data_handler.memory import MAX_EVAL_BATCH_SIZE, PREFETCH, eval_batch_size
from scripts.data_handler.tasks import Task, task_of
from scripts.data_handler.unpacked import ImageReader

Indices = NDArray[np.int64]


class ImageSource(Protocol):
    """The images of one split, in any order."""

    def batches(self, order: Indices, batch_size: int) -> Iterator[torch.Tensor]:
        """Batches of images on the device.

        Args:
            order: Sample indices, shape (N,).
            batch_size: Images per batch; the last batch may be smaller.

        Yields:
            uint8 images of shape (B, H, W) or (B, H, W, 3).
        """


class ResidentSource:
    """All images as one tensor on the device: a batch is a gather there, nothing is copied from the host."""

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        self._images = torch.from_numpy(images).to(device)

    def batches(self, order: Indices, batch_size: int) -> Iterator[torch.Tensor]:
        """See ``ImageSource``."""
        on_device = to_device(order, self._images.device)
        for start in range(0, len(order), batch_size):
            yield self._images.index_select(0, on_device[start : start + batch_size])


class StreamedSource:
    """Images stay on the host; worker processes gather batches while the device computes.

    A worker only copies bytes: everything random happens on the device, from the epoch's plan. So neither the number
    of workers nor their timing can change a result.

    Args:
        images: In memory, or in a file of which each batch is read by itself.
        device: Where batches go.
        num_workers: Worker processes; with 0 this process gathers.
    """

    def __init__(self, images: NDArray[np.uint8] | ImageReader, device: torch.device, num_workers: int) -> None:
        self._device = device
        self._sampler = _IndexBatches()
        with _any_number_of_workers():
            self._loader = DataLoader(
                _Gather(images),
                sampler=self._sampler,
                batch_size=None,  # the sampler's items are whole batches already
                num_workers=num_workers,
                prefetch_factor=PREFETCH if num_workers else None,
                persistent_workers=num_workers > 0,
                worker_init_fn=_begin_worker,
                pin_memory=device.type == "cuda",
                generator=torch.Generator().manual_seed(0),  # the workers' base seed comes from here, not from the air
            )

    def batches(self, order: Indices, batch_size: int) -> Iterator[torch.Tensor]:
        """See ``ImageSource``."""
        self._sampler.batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        with _any_number_of_workers():
            loaded = iter(self._loader)
        _end_forgotten_workers_at_exit()  # registered after PyTorch's own clean-up, so that it comes before it
        for images in loaded:
            if isinstance(images, DataError):
                # a new one: this frame holds the old one, and in such a circle the workers would not end with the feed
                raise DataError(str(images))
            yield images.to(self._device, non_blocking=True)


class _Gather(Dataset["torch.Tensor | DataError"]):
    def __init__(self, images: NDArray[np.uint8] | ImageReader) -> None:
        self._images = images

    def __getitem__(self, indices: Indices) -> torch.Tensor | DataError:
        try:
            return torch.from_numpy(self._images[indices])
        except DataError as error:  # raised in a worker, it would arrive with that process's traceback in its message
            return error


def _begin_worker(worker_id: int) -> None:
    leave_signals_to_parent()
    worker_init_fn(worker_id)


@cache
def _end_forgotten_workers_at_exit() -> None:
    """See to it that no worker keeps this process from ending.

    Workers end with the iterator that started them. Where a circle of references has kept that one, as an exception on
    its way out may, PyTorch ends them by SIGTERM, which they do not heed, and Python would wait for them for ever.
    """
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes the end of a worker for a failure
        for worker in workers:
            worker.kill()


class _IndexBatches(Sampler[Indices]):
    """The batches of the epoch at hand; a list that changes lets the workers live on from epoch to epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[Indices] = ()

    def __iter__(self) -> Iterator[Indices]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """Keep PyTorch from warning of more workers than cores: these only copy bytes, and mostly wait."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        yield


@dataclass(frozen=True, slots=True)
class DeviceSplit:
    """One split as the network meets it."""

    source: ImageSource
    targets: torch.Tensor  # float32 on the device, shape (N, C): one-hot rows or rows of 0 and 1, which MixUp can mix
    task: Task  # how logits answer to the targets
    eval_batch_size: int = MAX_EVAL_BATCH_SIZE  # at once, in validation and test

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.targets)


def make_device_split(
    split: Split, num_classes: int, *, feed: str, device: torch.device, num_workers: int
) -> DeviceSplit:
    """Images behind a feed, labels as rows of targets on the device.

    Args:
        split: Images and labels.
        num_classes: Number of classes or labels C.
        feed: ``"resident"`` or ``"streamed"``.
        device: Where the network runs.
        num_workers: Worker processes of a streamed feed.
    """
    task = task_of(split.labels)
    targets = task.targets(torch.from_numpy(split.labels), num_classes).to(device)
    height, width = split.images.shape[1:3]
    return DeviceSplit(make_source(split, feed, device, num_workers), targets, task, eval_batch_size(height, width))


def make_source(split: Split, feed: str, device: torch.device, num_workers: int) -> ImageSource:
    """The images of a split behind the feed that was chosen, ``"resident"`` or ``"streamed"``."""
    if feed == "resident":
        return ResidentSource(split.images, device)
    images = split.images if split.file is None else ImageReader(split.file)
    return StreamedSource(images, device, num_workers)
