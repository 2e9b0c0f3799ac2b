"""How much memory a set's images need, how much is free, and which image source follows from both.

No image is read, and torch is imported for GPUs only, for the sake of ``tools/check_memory.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scripts.core.errors import DataError

if TYPE_CHECKING:
    import torch

# of free memory, on the host and on a GPU alike: the rest is for the network, whose activations need most of it
RESIDENT_SHARE = 0.5

# the fastest on a CPU, by an eighth in fp32: the activations of more images leave its caches; a GPU is fast anyway
MAX_EVAL_BATCH_SIZE = 128
MAX_EVAL_PIXELS = 64 * 224 * 224  # bounds the activations of large images

PREFETCH = 2  # batches that each worker process gathers ahead
BATCHES_IN_HAND = 3  # beside those: the batch in use, the next one, and one to spare
# files with the limit and the usage, and a prefix of the statistics, in both versions of control groups
GROUP_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
GROUP_FILES_V2 = ("memory.max", "memory.current", "")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where PyTorch passes tensors from process to process)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """Number and size of a set's images, at one byte per pixel and channel."""

    num_samples: Mapping[str, int]  # images in "train", "val" and "test"
    height: int  # pixels
    width: int  # pixels
    channels: int  # 1 for grey, 3 for RGB

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        return self.height * self.width * self.channels

    @property
    def total_bytes(self) -> int:
        """Size of all images of all splits."""
        return sum(self.num_samples.values()) * self.image_bytes

    def in_flight_bytes(self, batch_size: int, num_workers: int) -> int:
        """Size of the batches that worker processes hold at once, in training or evaluation."""
        limits = {split: eval_batch_size(self.height, self.width) for split in ("val", "test")} | {"train": batch_size}
        largest_batch = max(min(limit, self.num_samples[split]) for split, limit in limits.items())
        return largest_batch * self.image_bytes * (PREFETCH * num_workers + BATCHES_IN_HAND) if num_workers else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """Free memory in bytes."""

    host: int
    bound: str  # what limits it on the host, in words
    device: int | None = None  # of a GPU with memory of its own; None where the network computes in the host's


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The image source that was chosen, and the figures it was chosen by."""

    feed: str  # "resident" or "streamed"
    reason: str
    host_needed: int  # bytes of all images in the host's memory, if resident
    device_needed: int  # bytes of all images in a GPU's own memory, if resident; 0 without one
    free: FreeMemory

    @property
    def figures(self) -> str:
        """Needed and free memory in words."""
        text = f"the images need {megabytes(self.host_needed)}, {megabytes(self.free.host)} are free {self.free.bound}"
        if self.free.device is not None:
            text += f"; on the GPU they need {megabytes(self.device_needed)}, {megabytes(self.free.device)} are free"
        return text


def eval_batch_size(height: int, width: int) -> int:
    """Images in a batch of validation and test: the same for every image source, as it may change the last bits."""
    return max(1, min(MAX_EVAL_BATCH_SIZE, MAX_EVAL_PIXELS // (height * width)))


def plan_memory(requested: str, images: ImageSizes, device: torch.device) -> MemoryPlan:
    """Choose the image source by the memory that is free now; see ``choose_feed``."""
    return choose_feed(requested, images, free_memory(device), shares_host_memory=device.type == "mps")


def choose_feed(
    requested: str, images: ImageSizes, free: FreeMemory, *, shares_host_memory: bool = False
) -> MemoryPlan:
    """Choose the image source for a request of ``"resident"``, ``"streamed"`` or ``"auto"``.

    ``shares_host_memory``: the device keeps a copy of its own in the host's memory, as Apple's GPUs do.
    ``DataError`` if ``"resident"`` was requested, and the images do not fit.
    """
    host_needed = images.total_bytes * (2 if shares_host_memory else 1)
    device_needed = 0 if free.device is None else images.total_bytes
    size = f"{megabytes(images.total_bytes)} of images"
    feed, reason = requested, f"{size}, as requested"
    if requested == "auto":
        feed, reason = "resident", f"{size} fit into half of the memory that is free"
    for needed, available, where in ((host_needed, free.host, free.bound), (device_needed, free.device, "on the GPU")):
        if available is None:
            continue
        if requested == "resident" and needed > available:
            raise DataError(
                f"--feed resident was requested, but the images need {needed:,} bytes of memory, and {available:,} are "
                f"free {where}. Use --feed streamed, which reads them from the disk batch by batch."
            )
        if feed == "resident" != requested and needed > RESIDENT_SHARE * available:
            feed = "streamed"
            reason = f"{size} do not fit into half of the {megabytes(available)} that are free {where}"
    return MemoryPlan(feed=feed, reason=reason, host_needed=host_needed, device_needed=device_needed, free=free)


def free_memory(device: torch.device) -> FreeMemory:
    """Measure the free memory of the host, and of a GPU with memory of its own."""
    host, bound = free_on_host()
    if device.type != "cuda":
        return FreeMemory(host=host, bound=bound)
    import torch

    return FreeMemory(host=host, bound=bound, device=torch.cuda.mem_get_info(device)[0])


def free_on_host() -> tuple[int, str]:
    """Free bytes of the host's memory, and what limits them, in words."""
    import psutil

    free = int(psutil.virtual_memory().available)
    if (in_group := free_in_control_group()) is not None and in_group < free:
        return in_group, "within the limit of this container or job"
    return free, "on this machine"


def free_in_control_group(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Free bytes within a container's or a job's limit: the tightest of this process's group and its parents.

    None where there is no limit. Cached file content counts as used there, but is released when memory is needed, so it
    is free here. Reference: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base, names = (mount / "memory", GROUP_FILES_V1) if controllers else (mount, GROUP_FILES_V2)
        inner = PurePosixPath(path.lstrip("/"))
        # inside a container the path may exist on the host only: the mount itself is the container's group
        folders = [base / folder for folder in (inner, *inner.parents) if ".." not in folder.parts]
        found += [free for folder in folders if (free := _free_in_group(folder, *names)) is not None]
    return min(found, default=None)


def _free_in_group(folder: Path, limit_name: str, usage_name: str, prefix: str) -> int | None:
    try:
        names = (limit_name, usage_name, "memory.stat")
        limit, used, statistics = ((folder / name).read_text(encoding="utf-8") for name in names)
        sizes = dict(line.split() for line in statistics.splitlines())
        files = sum(int(sizes.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
        return max(0, int(limit) - int(used) + files)
    except (OSError, ValueError):  # ValueError: a limit of "max"
        return None


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int | None:
    """Bytes that worker processes can pass on at once; None where the system has no such folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def workers_that_fit(requested: int, images: ImageSizes, *, batch_size: int, shared: int | None) -> tuple[int, str]:
    """Choose as many worker processes as shared memory has room for: with too little they would wait forever.

    ``shared`` is its free bytes, None where they are not limited. The number is at most ``requested``, and the reason
    follows it in words where it is less.
    """
    if shared is None:
        return requested, ""
    fitting = next(n for n in range(requested, -1, -1) if images.in_flight_bytes(batch_size, n) <= shared)
    if fitting == requested:
        return requested, ""
    needed = megabytes(images.in_flight_bytes(batch_size, requested))
    return fitting, (
        f"--num_workers {requested} becomes {fitting}: workers hand batches over in {SHARED_MEMORY}, where {requested} "
        f"need {needed} and {megabytes(shared)} are free. Give a container more (docker run --shm-size 2g), or take a "
        "smaller --batch_size."
    )


def megabytes(num_bytes: int) -> str:
    """Format a size, such as ``8,192 MB`` or ``0.4 MB``."""
    return f"{num_bytes / 1e6:,.{0 if num_bytes >= 1e7 else 1}f} MB"
