"""Image sources: two ways to bring uint8 images to the device, with the same bits in the same order."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from scripts.core.errors import DataError, ResourceError
from scripts.core.system.device import to_device
from scripts.core.system.machine import worker_init_fn
from scripts.core.system.signals import leave_signals_to_parent
from scripts.data_handler.augmentation import MEAN, STD
from scripts.data_handler.dataset import Split
from scripts.data_handler.memory import MAX_EVAL_BATCH_SIZE, PREFETCH, eval_batch_size
from scripts.data_handler.tasks import Task, task_of
from scripts.data_handler.unpacked import ImageReader

Indices = NDArray[np.int64]


class ImageSource(Protocol):
    """The images of one split, in any order."""

    def batches(self, order: Indices, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the images of ``order`` (N,) as uint8 batches (B, H, W) or (B, H, W, 3) on the device.

        The last batch may be smaller.
        """


class ResidentSource:
    """All images as one tensor on the device, where batches are gathered without a copy from the host."""

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
    of workers nor their timing can change a result. With ``num_workers`` 0 this process gathers.
    """

    def __init__(self, images: NDArray[np.uint8] | ImageReader, device: torch.device, num_workers: int) -> None:
        self._device = device
        # of the current epoch; replaced in place, so that workers persist between epochs
        self._index_batches: list[Indices] = []
        with _loader_surroundings():
            self._loader = DataLoader(
                _Gather(images),
                sampler=self._index_batches,
                batch_size=None,  # the items are whole batches already
                num_workers=num_workers,
                prefetch_factor=PREFETCH if num_workers else None,
                persistent_workers=num_workers > 0,
                worker_init_fn=_begin_worker,
                pin_memory=device.type == "cuda",
                generator=torch.Generator().manual_seed(0),  # else the workers' base seed comes from global state
            )

    def batches(self, order: Indices, batch_size: int) -> Iterator[torch.Tensor]:
        """See ``ImageSource``; ``DataError`` if the file cannot be read, ``ResourceError`` if a worker was killed."""
        self._index_batches[:] = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        try:
            with _loader_surroundings():
                loaded = iter(self._loader)
            _kill_workers_at_exit()  # registered after PyTorch's own clean-up, so that it comes before it
            for images in loaded:
                if isinstance(images, DataError):
                    # a new one: this frame holds the old one, and in such a cycle the workers would outlive the source
                    raise DataError(str(images))
                yield images.to(self._device, non_blocking=True)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ResourceError(
                "A worker process that reads images was killed, probably because memory ran out. Use fewer "
                "--num_workers or a smaller --batch_size, or give the run more memory (in a container also more shared "
                "memory: docker run --shm-size 2g)."
            ) from error


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
def _kill_workers_at_exit() -> None:
    """Make sure that no worker keeps this process from ending.

    Workers end with the iterator that started them. Where a reference cycle has kept it alive, as an exception may,
    PyTorch sends them SIGTERM, which they ignore, and Python would wait for them forever.
    """

    @atexit.register
    def kill_workers() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()


@contextmanager
def _loader_surroundings() -> Iterator[None]:
    """Let PyTorch start workers without two of its habits.

    It warns of more workers than cores, but these only copy bytes, and mostly wait. Its SIGCHLD handler raises wherever
    the program happens to be when a worker ends: without it the loader notices within 5 s of waiting for a batch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler)


@dataclass(frozen=True, slots=True)
class DeviceSplit:
    """One split, ready for the network."""

    source: ImageSource
    targets: torch.Tensor  # float32 on the device, shape (N, C): one-hot rows or rows of 0 and 1, which MixUp can mix
    task: Task  # how logits are read and compared with the targets
    image_size: tuple[int, int]  # height and width
    eval_batch_size: int = MAX_EVAL_BATCH_SIZE  # in validation and test
    mean: tuple[float, ...] = MEAN  # of the channels of images in [0, 1], as the network expects them normalised
    std: tuple[float, ...] = STD

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.targets)


def make_device_split(
    split: Split,
    num_classes: int,
    *,
    feed: str,
    device: torch.device,
    num_workers: int,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> DeviceSplit:
    """Make the image source of a split by ``feed``, and its labels rows of ``num_classes`` targets on the device."""
    task = task_of(split.labels)
    targets = task.targets(torch.from_numpy(split.labels), num_classes).to(device)
    height, width = split.images.shape[1:3]
    source: ImageSource
    if feed == "resident":
        source = ResidentSource(split.images, device)
    else:
        source = StreamedSource(ImageReader(split.file) if split.file else split.images, device, num_workers)
    return DeviceSplit(source, targets, task, (height, width), eval_batch_size(height, width), mean, std)
