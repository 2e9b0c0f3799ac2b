"""Open a data set by the name that the user typed: find, download and check it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.config import STANDARD_RESOLUTION
from scripts.core.download import fetch
from scripts.core.errors import DataError
from scripts.core.files import file_digest
from scripts.core.log import log
from scripts.core.paths import slug
from scripts.data_handler import npz
from scripts.data_handler.dataset import Dataset, Split, members
from scripts.data_handler.memory import free_on_host
from scripts.data_handler.npz import MAX_CLASSES, MAX_SHOWN, SPLITS, NpzLayout, read_errors, refuse
from scripts.data_handler.registry import BINARY, DATASET_REGISTRY, MULTI_CLASS, MULTI_LABEL, SYNTHBLOOD, DatasetInfo
from scripts.data_handler.synthetic import open_synthblood
from scripts.data_handler.unpacked import bytes_to_write, image_files, unpack_images

Labels = dict[str, NDArray[np.int64]]  # by split
Stamp = tuple[int, int, int]  # of a file: inode, size and time of the last change

OFFLINE = f"use --dataset {SYNTHBLOOD}, which needs no network"


def open_dataset(name: str, data_dir: Path, resolution: int = STANDARD_RESOLUTION) -> Dataset:
    """Find, download if necessary, and check a data set; no image is kept in memory.

    Args:
        name: A key of ``DATASET_REGISTRY``, ``"synthblood"``, or the path of an ``.npz`` in MedMNIST's schema.
        data_dir: Folder of the registry's files and of the uncompressed images of any set.
        resolution: Pixels per side, one of the published sizes of a registry's set; other sets have one size.

    Raises:
        DataError: The data are missing, unreachable, corrupt, or of a kind that cannot be trained on.
        StorageError: A downloaded file cannot be written.
    """
    if name == SYNTHBLOOD:
        return open_synthblood()
    if name in DATASET_REGISTRY:
        return _open_registered(DATASET_REGISTRY[name], data_dir, resolution)
    return _open_own(Path(name), data_dir)


def _open_registered(info: DatasetInfo, data_dir: Path, resolution: int) -> Dataset:
    path, md5 = (data_dir / info.file_name(resolution)).absolute(), info.md5s[resolution]
    what = info.title if resolution == STANDARD_RESOLUTION else f"{info.title} at {resolution} × {resolution} pixels"
    # before the MD5 is compared, so that a file that is replaced meanwhile is noticed
    stamp = _stamp(path) if os.path.isfile(path) else None  # noqa: PTH113 (never raises)
    fetch(info.url(resolution), path, digest=md5, what=what, offline=OFFLINE)
    stamp = stamp or _stamp(path)
    layout = npz.validate_npz_keys(path)
    if (layout.height, layout.width) != (resolution, resolution):
        expected = f"at --resolution {resolution} {info.title} has images of {resolution} × {resolution} pixels"
        refuse(path, f"{expected}, but the file has {layout.height} × {layout.width}")
    num_classes = len(info.class_names)
    found = {"channels": layout.channels, "images": layout.num_samples, "label columns": layout.label_columns}
    label_columns = num_classes if info.task == MULTI_LABEL else 1
    facts = {"channels": info.channels, "images": dict(info.num_samples), "label columns": label_columns}
    if found != facts:
        refuse(path, f"{info.title} has {facts}, but the file has {found}")
    npz.require_memory(layout, free_on_host()[0])
    labels = {split: npz.read_labels(layout, split, num_classes) for split in SPLITS}
    same = ("key", "title", "task", "class_names", "orientation_free")
    return _dataset(layout, labels, md5, stamp, **{name: getattr(info, name) for name in same})


def _open_own(given: Path, data_dir: Path) -> Dataset:
    path = existing_file(given)
    stamp = _stamp(path)  # before the MD5, so that a file that is replaced meanwhile is noticed
    layout = npz.validate_npz_keys(path)
    npz.require_memory(layout, free_on_host()[0])
    md5 = md5_of(path)
    if bytes_to_write(image_files(layout, md5, data_dir)):  # unpacking compared the checksums already
        npz.verify_checksums(layout)  # now, rather than when the test split is read after a night of training
    task, names, labels = (_own_label_rows if layout.label_columns > 1 else _own_classes)(layout)
    _warn_of_unseen_classes(path, names, labels["train"])
    title = given.stem  # as typed: a link may have another name
    facts = {"key": slug(title), "title": title, "task": task, "class_names": names}
    return _dataset(layout, labels, md5, stamp, **facts, preparation=npz.read_preparation(layout))


def _own_classes(layout: NpzLayout) -> tuple[str, tuple[str, ...], Labels]:
    """Task, class names and labels of an own file with one label per image."""
    names = npz.read_class_names(layout)
    train = npz.read_labels(layout, "train", len(names or range(MAX_CLASSES)))
    names = names or tuple(f"class {index}" for index in range(int(train.max()) + 1))
    if len(names) < 2:
        refuse(layout.path, "all of train_labels are 0; expected at least two classes")
    others = {split: npz.read_labels(layout, split, len(names)) for split in ("val", "test")}
    return BINARY if len(names) == 2 else MULTI_CLASS, names, {"train": train, **others}


def _own_label_rows(layout: NpzLayout) -> tuple[str, tuple[str, ...], Labels]:
    """Task, label names and labels of an own file with several labels per image."""
    count = layout.label_columns
    if count > MAX_CLASSES:
        refuse(layout.path, f"train_labels has {count:,} columns; expected at most {MAX_CLASSES} labels")
    names = npz.read_class_names(layout) or tuple(f"label {index}" for index in range(count))
    if len(names) != count:
        found = f"class_names has {len(names)} names, train_labels {count} columns"
        refuse(layout.path, f"{found}; expected a name for each label")
    return MULTI_LABEL, names, {split: npz.read_labels(layout, split) for split in SPLITS}


def _dataset(layout: NpzLayout, labels: Labels, md5: str, stamp: Stamp, **facts: Any) -> Dataset:
    """The set of a checked file; ``stamp`` was taken before ``md5``, and that before anything was read."""

    def verify() -> None:
        # labels were read at the start, images perhaps hours later: both must be of one file
        if _stamp(layout.path) != stamp and md5_of(layout.path) != md5:
            raise DataError(f"{layout.path} has changed since the run began: start again with the file as it is now.")

    def load(split: str) -> Split:
        verify()
        return Split(npz.read_array(layout, f"{split}_images"), labels[split])

    def unpack(data_dir: Path) -> Callable[[str], Split]:
        verify()  # even if everything is unpacked already: the labels must be of the same file as the images
        files = image_files(layout, md5, data_dir)
        unpack_images(layout, files, verify=verify)
        return lambda split: Split(files[split].map(), labels[split], files[split])

    return Dataset(
        **facts,
        height=layout.height,
        width=layout.width,
        channels=layout.channels,
        num_samples=layout.num_samples,
        md5=md5,
        source=str(layout.path),
        note=None,
        load=load,
        load_unpacked=unpack,
    )


def existing_file(given: Path) -> Path:
    """The absolute path of a regular file, or ``DataError`` with a suggestion."""
    try:
        path = given.expanduser().resolve()
        if path.is_file():
            return path
        if path.is_dir():
            inside = sorted(entry.name for entry in path.glob("*.npz"))
            hint = f" Did you mean {path / inside[0]}?" if inside else ""
            raise DataError(f"--dataset {given} is a folder; expected the path of an .npz file.{hint}")
        if path.exists():
            raise DataError(f"--dataset {given} is not a regular file; expected the path of an .npz file.")
        beside = [entry.name for entry in path.parent.glob("*.npz")] if path.parent.is_dir() else []
    except OSError as error:
        raise DataError(f"--dataset {given} cannot be read: {error.strerror or error}.") from error
    except (RuntimeError, ValueError) as error:  # a loop of links, ~ of an unknown user, a null character
        raise DataError(f"--dataset {str(given)!r} is not a usable path: {str(error).rstrip('.')}.") from error
    close = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"Did you mean {path.parent / close[0]}?" if close else "Give the path of an .npz file in MedMNIST's schema."
    raise DataError(f"--dataset {given}: there is no file {path}. {hint}")


def _warn_of_unseen_classes(path: Path, names: tuple[str, ...], labels: NDArray[np.int64]) -> None:
    unseen = [name for index, name in enumerate(names) if not members(labels, index).any()]
    if unseen:
        shown = ", ".join(unseen[:MAX_SHOWN]) + (", …" if len(unseen) > MAX_SHOWN else "")
        kind = "classes" if labels.ndim == 1 else "labels"
        log.warning("%s has no training image of %d of its %d %s: %s.", path, len(unseen), len(names), kind, shown)


def md5_of(path: Path) -> str:
    """The MD5 of a file; ``DataError`` if it cannot be read."""
    with read_errors(path):
        return file_digest(path, "md5")


def _stamp(path: Path) -> Stamp:
    """A value that changes when the file is replaced, grows or is written to."""
    with read_errors(path):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
