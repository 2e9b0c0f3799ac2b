"""The values that a data set is made of: what is known of it, and its splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.memory import ImageSizes
from scripts.data_handler.unpacked import ImageFile

METHODS = ("load", "unpack")  # those fields of a Dataset that are no facts


@dataclass(frozen=True, slots=True)
class Split:
    """The images and labels of one split."""

    images: NDArray[np.uint8]  # (N, H, W) grey or (N, H, W, 3) RGB
    labels: NDArray[np.int64]  # (N,), class indices; for a multi-label set (N, L), 1 where an image has the label
    file: ImageFile | None = None  # where the images lie uncompressed; None where they are in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All that is known of a data set; its images are read when they are asked for."""

    key: str  # part of the run folder's name, such as "bloodmnist"
    title: str
    task: str  # as in DatasetInfo
    class_names: tuple[str, ...]  # of a multi-label set the names of its labels
    height: int  # pixels
    width: int  # pixels
    channels: int  # 1 for grey, 3 for RGB
    num_samples: Mapping[str, int]  # images in "train", "val" and "test"
    orientation_free: bool = True  # as in DatasetInfo; of own files nobody knows better than who sets the flags
    md5: str
    source: str  # absolute path of the file, or "generated"
    note: str | None  # what every report must say of the set
    load: Callable[[str], Split]  # of "train", "val" or "test"; reads the images anew at every call
    # into a data folder: the same set, whose load leaves images on the disk; None where they are in memory anyway
    unpack: Callable[[Path], Dataset] | None = None

    @property
    def image_sizes(self) -> ImageSizes:
        """What the images need, wherever they are."""
        return ImageSizes(num_samples=self.num_samples, height=self.height, width=self.width, channels=self.channels)

    def as_dict(self) -> dict[str, Any]:
        """What is known of the set, without its images, as values that JSON knows."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in METHODS}
        return values | {"class_names": list(self.class_names), "num_samples": dict(self.num_samples)}


def members(labels: NDArray[np.integer], index: int) -> NDArray[np.bool_]:
    """Which images are of class ``index``, or have that label, shape (N,).

    Args:
        labels: Class indices, shape (N,), or 0 and 1 for each of L labels, shape (N, L).
        index: A class, or a label.
    """
    return labels == index if labels.ndim == 1 else labels[:, index] == 1
