"""The values that a data set consists of: its facts and its splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.memory import ImageSizes
from scripts.data_handler.unpacked import ImageFile

LOADERS = ("load", "load_unpacked")  # the fields of a Dataset that are not facts


@dataclass(frozen=True, slots=True)
class Split:
    """The images and labels of one split."""

    images: NDArray[np.uint8]  # (N, H, W) grey or (N, H, W, 3) RGB
    labels: NDArray[np.int64]  # (N,), class indices; for a multi-label set (N, L), 1 where an image has the label
    file: ImageFile | None = None  # the uncompressed images; None where they are in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset(ImageSizes):
    """All facts about a data set; images are read when a split is loaded."""

    key: str  # part of the run folder's name, such as "bloodmnist"
    title: str
    task: str  # as in DatasetInfo
    class_names: tuple[str, ...]  # of a multi-label set the names of its labels
    orientation_free: bool = True  # as in DatasetInfo; for own files the flags alone decide
    md5: str
    source: str  # absolute path of the file, or "generated"
    note: str | None  # what every report must say of the set
    # how the images were made from image files, as tools/make_dataset.py records it; None where it is not known
    preparation: Mapping[str, Any] | None = None
    load: Callable[[str], Split]  # of "train", "val" or "test"; reads the images at every call
    # unpacks the images into a data folder and returns a load that leaves them on the disk; None for generated sets
    load_unpacked: Callable[[Path], Callable[[str], Split]] | None = None

    def unpack(self, data_dir: Path) -> Dataset:
        """The same set with its images uncompressed in a data folder; a generated set stays in memory.

        Raises:
            DataError: The data are damaged, or have changed.
            StorageError: The uncompressed images cannot be written.
        """
        return self if self.load_unpacked is None else replace(self, load=self.load_unpacked(data_dir))

    def as_dict(self) -> dict[str, Any]:
        """The facts as values for JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in LOADERS}
        return values | {"class_names": list(self.class_names), "num_samples": dict(self.num_samples)}


def members(labels: NDArray[np.integer], index: int) -> NDArray[np.bool_]:
    """Which images are of class ``index`` (labels are class indices (N,)) or have that label (0 and 1 (N, L)), (N,)."""
    return labels == index if labels.ndim == 1 else labels[:, index] == 1
