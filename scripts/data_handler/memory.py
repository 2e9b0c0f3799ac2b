"""What a set's images need of memory, what is free, and which feed follows; known before an array is allocated.

Nothing here reads an image, and torch is asked only where a GPU is: ``tools/check_memory.py`` answers by the same
functions as a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scripts.core.errors import DataError

if TYPE_CHECKING:
    import torch

# of what is free, on the host and on a GPU alike: the rest is for the network, whose activations are the larger part
RESIDENT_SHARE = 0.5

# what a CPU judges fastest, by an eighth in fp32: the activations of more leave its caches; a GPU is done soon anyway
MAX_EVAL_BATCH_SIZE = 128
MAX_EVAL_PIXELS = 64 * 224 * 224  # of larger images fewer at once, whose activations are bounded by this

PREFETCH = 2  # batches that each worker process gathers ahead
BATCHES_IN_HAND = 3  # on their way beside those: what is computed with, what comes next, and one to spare
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where PyTorch hands tensors from process to process)

_MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """How many images of which size a set has; one byte per pixel and channel."""

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
        """Size of the batches that worker processes have under way at once, in training or in judging."""
        largest_judged = max(self.num_samples["val"], self.num_samples["test"])
        largest_batch = max(
            min(batch_size, self.num_samples["train"]), min(eval_batch_size(self.height, self.width), largest_judged)
        )
        return largest_batch * self.image_bytes * (PREFETCH * num_workers + BATCHES_IN_HAND) if num_workers else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """Bytes that can be had now."""

    host: int
    bound: str  # what sets the bound on the host, in words
    device: int | None = None  # of a GPU with memory of its own; None where the network computes in the host's


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Which feed brings the images, and the figures that it was chosen by."""

    feed: str  # "resident" or "streamed"
    reason: str
    host_needed: int  # bytes of all images in the host's memory, if resident
    device_needed: int  # bytes of all images in a GPU's own memory, if resident; 0 without one
    free: FreeMemory

    @property
    def figures(self) -> str:
        """Needed and free memory in words."""
        text = f"the images need {megabytes(self.host_needed)}, free are {megabytes(self.free.host)} {self.free.bound}"
        if self.free.device is not None:
            text += f"; on the GPU they need {megabytes(self.device_needed)}, free are {megabytes(self.free.device)}"
        return text


def eval_batch_size(height: int, width: int) -> int:
    """Images in a batch of validation and test: fewer of large ones, so that their activations stay bounded.

    The same for every feed, because the size of a batch may change the last bits of a result.
    """
    return max(1, min(MAX_EVAL_BATCH_SIZE, MAX_EVAL_PIXELS // (height * width)))


def plan_memory(asked: str, images: ImageSizes, device: torch.device) -> MemoryPlan:
    """Choose the feed by what is free now.

    Raises:
        DataError: ``"resident"`` was asked for, and the images cannot fit.
    """
    return choose_feed(asked, images, free_memory(device), shares_host_memory=device.type == "mps")


def choose_feed(asked: str, images: ImageSizes, free: FreeMemory, *, shares_host_memory: bool = False) -> MemoryPlan:
    """Choose the feed.

    Args:
        asked: ``"resident"``, ``"streamed"`` or ``"auto"``.
        images: What is to be fed.
        free: What can be had.
        shares_host_memory: Whether the device keeps a copy of its own in the host's memory, as Apple's GPUs do.

    Raises:
        DataError: ``"resident"`` was asked for, and the images cannot fit.
    """
    host_needed = images.total_bytes * (2 if shares_host_memory else 1)
    device_needed = 0 if free.device is None else images.total_bytes
    places = [(host_needed, free.host, free.bound)]
    if free.device is not None:
        places.append((device_needed, free.device, "on the GPU"))
    size = f"{megabytes(images.total_bytes)} of images"

    def plan(feed: str, reason: str) -> MemoryPlan:
        return MemoryPlan(feed=feed, reason=reason, host_needed=host_needed, device_needed=device_needed, free=free)

    if asked == "streamed":
        return plan("streamed", f"{size}, as asked")
    for needed, there, where in places:
        if asked == "resident" and needed > there:
            raise DataError(
                f"--feed resident was asked for, but the images need {needed:,} bytes of memory, and {there:,} are "
                f"free {where}. Use --feed streamed, which reads them from the disk batch by batch."
            )
        if asked == "auto" and needed > RESIDENT_SHARE * there:
            return plan("streamed", f"{size} do not fit into half of the {megabytes(there)} that are free {where}")
    if asked == "resident":
        return plan("resident", f"{size}, as asked")
    return plan("resident", f"{size} fit into half of the memory that is free")


def free_memory(device: torch.device) -> FreeMemory:
    """What the host, and a GPU with memory of its own, can give now."""
    host, bound = free_on_host()
    if device.type != "cuda":
        return FreeMemory(host=host, bound=bound)
    import torch

    return FreeMemory(host=host, bound=bound, device=torch.cuda.mem_get_info(device)[0])


def free_on_host() -> tuple[int, str]:
    """Bytes that the host can give now, and what sets that bound, in words."""
    import psutil

    free = int(psutil.virtual_memory().available)
    in_group = free_in_control_group()
    if in_group is not None and in_group < free:
        return in_group, "within the limit of this container or job"
    return free, "on this machine"


def free_in_control_group(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that a container's or a job's limit leaves: the tightest of this process's group and those around it.

    What a group holds of files counts as used, but is given back when it is needed, so it counts as free here.

    Args:
        membership: Which groups the process is in, as Linux tells it.
        mount: Where the groups are, of version 1 or 2.

    Returns:
        At least 0; None where there is no limit.

    Reference: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    found = [free for folder, version in _group_folders(lines, mount) if (free := version.free(folder)) is not None]
    return min(found, default=None)


@dataclass(frozen=True, slots=True)
class _GroupVersion:
    """The names that one version of control groups has for the same things."""

    limit: str
    used: str
    files: tuple[str, str]  # entries of memory.stat that are files' content

    def free(self, folder: Path) -> int | None:
        try:
            limit = (folder / self.limit).read_text().strip()
            if not limit.isdecimal():  # "max"
                return None
            used = int((folder / self.used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            return None
        return max(0, int(limit) - used + sum(int(stat.get(name, 0)) for name in self.files))


_V1 = _GroupVersion("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = _GroupVersion("memory.max", "memory.current", ("inactive_file", "active_file"))


def _group_folders(lines: list[str], mount: Path) -> Iterator[tuple[Path, _GroupVersion]]:
    """The folders of this process's memory groups, from the innermost to the mount itself."""
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base, version = (mount / "memory", _V1) if controllers else (mount, _V2)
        inner = PurePosixPath(path.lstrip("/"))
        # inside a container the path may be one that only the host can see: the mount itself is the container's group
        for folder in (inner, *inner.parents):
            if ".." not in folder.parts:
                yield base / folder, version


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int | None:
    """Bytes that worker processes can hand over at once; None where the system has no such folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def workers_that_fit(asked: int, images: ImageSizes, *, batch_size: int, shared: int | None) -> tuple[int, str]:
    """As many worker processes as shared memory has room for: with too little they would wait for ever.

    Args:
        asked: Wanted number of worker processes.
        images: What they bring.
        batch_size: Images per optimiser step.
        shared: Free bytes of shared memory; None where they are not limited.

    Returns:
        At most ``asked``, and the reason in words where it is less.
    """
    fitting = asked
    while shared is not None and images.in_flight_bytes(batch_size, fitting) > shared:
        fitting -= 1
    if shared is None or fitting == asked:
        return asked, ""
    return fitting, (
        f"--num_workers {asked} becomes {fitting}: workers hand batches over in {SHARED_MEMORY}, where {asked} need "
        f"{megabytes(images.in_flight_bytes(batch_size, asked))} and {megabytes(shared)} are free. Give a container "
        "more (docker run --shm-size 2g), or take a smaller --batch_size."
    )


def megabytes(num_bytes: int) -> str:
    """A size for a reader, such as ``8,192 MB`` or ``0.4 MB``."""
    return f"{num_bytes / _MILLION:,.{0 if num_bytes >= 10 * _MILLION else 1}f} MB"
