"""Images for a trained model: listed, read and prepared exactly as the images of its training were.

``recipe_of(run)`` is how an image file is prepared for a run, for ``decode`` of ``tools.dataset_builder``;
``open_inputs`` opens what a command line names, and its ``batches`` yield the images.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import ConfigError, DataError
from scripts.core.log import log
from scripts.data_handler import npz
from scripts.data_handler.memory import free_on_host
from scripts.data_handler.registry import MULTI_LABEL
from scripts.trained_run import TrainedRun
from tools.dataset_builder.decode import DecodedImage, Recipe, UnusableImageError, decode
from tools.dataset_builder.listing import CIRCULAR, HIDDEN, OTHER, Entry, describe_skipped, images_below, normalized
from tools.dataset_builder.listing import read_table as read_csv
from tools.dataset_builder.messages import join_names, join_some, printable
from tools.dataset_builder.reading import decoding, log_remarks, map_ahead, read_content

NUM_THREADS = min(4, os.cpu_count() or 1)  # that read and decode image files
DEFAULT_SPLIT = "test"  # of an .npz

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Decoded = Mapping[Recipe, DecodedImage]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A few images, prepared for each run."""

    names: Sequence[str | int]  # paths as given, or the indices in the split of an .npz
    images: tuple[Images, ...]  # for each run, (B, H, W) or (B, H, W, 3)
    labels: Labels | None  # true class indices (B,), or 0 and 1 (B, K) for a multi-label task; None where unknown


class Inputs(Protocol):
    """Images that are read batch by batch, so that their number is not limited by the memory."""

    num_images: int
    is_labelled: bool  # whether every image has its true class, or labels
    naming: str  # what the names of the images are: "path" or "index"

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield the images in order; the last batch may be smaller. ``DataError`` if some cannot be read."""

    def select(self, rows: Sequence[int]) -> Inputs:
        """The images of these rows only, which are in ascending order."""


def open_inputs(
    paths: Sequence[Path], runs: Sequence[TrainedRun], *, split: str | None = None, skip_unreadable: bool = False
) -> Inputs:
    """Open image files, folders, a CSV of paths, or an ``.npz`` in MedMNIST's schema.

    Args:
        paths: At least one, all of which exist; a CSV or an ``.npz`` stands alone.
        runs: At least one; all have the same classes.
        split: "train", "val" or "test", of an ``.npz`` or of a CSV with the column split; None for the test split of an
            ``.npz`` and all rows of a CSV.
        skip_unreadable: Whether unusable image files are left out, with a warning.

    Raises:
        ConfigError: Kinds of inputs are combined that make no sense together.
        DataError: There is no image, or the images or labels do not fit the runs.
    """
    first, run = paths[0], runs[0]
    if alone := [path for path in paths if path.suffix.lower() in (".npz", ".csv") and path.is_file()]:
        if len(paths) > 1:
            raise ConfigError(f"{alone[0]} cannot be combined with other inputs: give it alone.")
        if first.suffix.lower() == ".npz":
            return NpzInputs(first, runs, split or DEFAULT_SPLIT)
        entries = _entries_of_csv(first, run, split)
    elif split is not None:
        raise ConfigError(f"--split {split} is for an .npz, or a CSV with the column split, not for {first}.")
    else:
        found = (_entries_of_folder(path, run) if path.is_dir() else [Entry(str(path), path, "")] for path in paths)
        entries = [entry for of_path in found for entry in of_path]
    if not entries:
        raise DataError(f"There is no image in {join_names(paths)}.")
    return FileInputs(entries, runs, skip_unreadable=skip_unreadable)


def recipe_of(run: TrainedRun) -> Recipe:
    """How an image file is prepared for a run: as its training images were, where that is recorded.

    Otherwise the largest central square is scaled to the size of the training images, which is logged.

    Raises:
        ConfigError: The run takes images that are not square, which no recipe makes.
        DataError: The record is damaged, or of another version of the program.
    """
    (height, width), record = run.image_size, run.card.get("preparation")
    if record is None:
        if height != width:
            raise ConfigError(f"{run.name} takes images of {width} × {height} pixels, which only an .npz can hold.")
        log.info(
            f"{run.name} does not record how its images were prepared: the largest central square of each image is "
            f"scaled to {width} × {height} pixels{', in grey' if run.is_grey else ''}"
        )
        return Recipe(size=height, grey=run.is_grey)
    try:
        recipe = Recipe.from_dict(record)
        if recipe.shape != run.image_size + (() if run.is_grey else (3,)):
            raise ValueError(f"the model takes {width} × {height} pixels and {1 if run.is_grey else 3} channels")
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{run.paths.best_model_card} records a preparation of images that cannot be used: {error}. Restore the "
            "file, or predict on an .npz."
        ) from error
    return recipe


class FileInputs:
    """Image files, decoded in threads ahead of the consumer."""

    naming = "path"

    def __init__(self, entries: Sequence[Entry], runs: Sequence[TrainedRun], *, skip_unreadable: bool = False) -> None:
        self._entries = entries
        self._recipes = [recipe_of(run) for run in runs]
        self._numbers = {name: number for number, name in enumerate(runs[0].class_names)}
        self._skip_unreadable = skip_unreadable
        self.num_images = len(entries)
        self.is_labelled = all(entry.label for entry in entries)
        if not self.is_labelled and any(entry.label for entry in entries):
            log.info("some images have no label, so no figures are computed")

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """See ``Inputs``; after an unusable file the others are only checked, unless they are to be skipped."""
        unusable: list[str] = []
        remarks: Counter[str] = Counter()
        batch: list[tuple[Entry, Decoded]] = []
        prepare = partial(_prepare, dict.fromkeys(self._recipes))
        with decoding(), closing(map_ahead(prepare, self._entries, NUM_THREADS, num_ahead=2 * batch_size)) as readings:
            for entry, reading in zip(self._entries, readings, strict=True):
                if isinstance(reading, UnusableImageError):
                    unusable.append(f"{printable(entry.name)} ({reading})")
                    continue
                remarks.update({remark for image in reading.values() for remark in image.remarks})
                batch.append((entry, reading))
                if len(batch) == batch_size:
                    if self._skip_unreadable or not unusable:
                        yield self._stack(batch)
                    batch = []
        self._report(unusable)
        log_remarks(remarks, self.num_images - len(unusable))
        if batch:
            yield self._stack(batch)

    def select(self, rows: Sequence[int]) -> FileInputs:
        """See ``Inputs``; the other files are not read."""
        selected = copy(self)
        selected._entries, selected.num_images = [self._entries[row] for row in rows], len(rows)
        return selected

    def _report(self, unusable: Sequence[str]) -> None:
        if not unusable:
            return
        found = f"{len(unusable):,} of {self.num_images:,} images cannot be used: {join_some(unusable)}"
        if not self._skip_unreadable:
            raise DataError(f"{found}; repair or remove them, or leave them out with --skip_unreadable.")
        if len(unusable) == self.num_images:
            raise DataError(f"{found}; no image is left.")
        log.warning(f"{found}; they are left out.")

    def _stack(self, batch: Sequence[tuple[Entry, Decoded]]) -> Batch:
        stacked = {recipe: np.stack([images[recipe].pixels for _, images in batch]) for recipe in batch[0][1]}
        labels = np.array([self._numbers[entry.label] for entry, _ in batch]) if self.is_labelled else None
        return Batch([entry.name for entry, _ in batch], tuple(stacked[recipe] for recipe in self._recipes), labels)


def _prepare(recipes: Mapping[Recipe, None], entry: Entry) -> Decoded | UnusableImageError:
    """Read a file and decode it by each recipe; return why it cannot be used, if so."""
    try:
        content = read_content(entry.path)
        return {recipe: decode(content, recipe) for recipe in recipes}
    except UnusableImageError as error:
        return error


class NpzInputs:
    """One split of an ``.npz`` in MedMNIST's schema, whose images are prepared already."""

    naming, is_labelled = "index", True

    def __init__(self, path: Path, runs: Sequence[TrainedRun], split: str) -> None:
        self._layout = layout = npz.validate_npz_keys(path)
        self._key, self._num_runs = f"{split}_images", len(runs)
        self.num_images = layout.num_samples[split]
        self._rows = np.arange(self.num_images)
        for run in runs:
            found, expected = (layout.height, layout.width, layout.channels), (*run.image_size, 1 if run.is_grey else 3)
            if found != expected:
                sizes = ("{1} × {0} pixels and {2} channels".format(*sides) for sides in (found, expected))
                npz.refuse(path, f"it has images of {next(sizes)}, but {run.name} takes {next(sizes)}")
        run, num_classes = runs[0], len(runs[0].class_names)
        if (names := npz.read_class_names(layout)) and names != run.class_names:
            _refuse_classes(path, f"the classes {join_names(names)}", run, "Give a file of the same classes")
        columns = num_classes if run.task == MULTI_LABEL else 1
        if layout.label_columns != columns:
            npz.refuse(path, f"it has {layout.label_columns} label columns, but the task of {run.name} needs {columns}")
        npz.require_memory(layout, free_on_host()[0])
        self._labels = npz.read_labels(layout, split, num_classes)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """See ``Inputs``."""
        start = 0
        for images in self._images(batch_size):
            rows = self._rows[slice(*np.searchsorted(self._rows, (start, start + len(images))))]
            if len(rows):
                yield Batch(rows.tolist(), (images[rows - start],) * self._num_runs, self._labels[rows])
            start += len(images)

    def select(self, rows: Sequence[int]) -> NpzInputs:
        """See ``Inputs``; batches may be smaller."""
        selected = copy(self)
        selected._rows, selected.num_images = np.asarray(rows, dtype=np.int64), len(rows)
        return selected

    def _images(self, batch_size: int) -> Iterator[Images]:
        """Read the images in pieces, batch by batch."""
        header = self._layout.headers[self._key]
        if header.by_columns:  # the pixels of one image are spread over the whole array
            images = npz.read_array(self._layout, self._key)
            yield from (images[start : start + batch_size] for start in range(0, len(images), batch_size))
            return
        waiting, batch_bytes = bytearray(), batch_size * self._layout.image_bytes
        for piece in npz.read_pieces(self._layout, self._key):
            waiting += piece
            while len(waiting) >= batch_bytes:
                yield self._as_images(waiting[:batch_bytes])
                del waiting[:batch_bytes]
        if waiting:
            yield self._as_images(waiting)

    def _as_images(self, content: bytearray) -> Images:
        return np.frombuffer(content, np.uint8).reshape(-1, *self._layout.headers[self._key].shape[1:])


def _entries_of_folder(folder: Path, run: TrainedRun) -> list[Entry]:
    """The images in a folder at any depth; those in a subfolder with the name of a class are labelled."""
    skipped: dict[str, list[str]] = defaultdict(list)
    images = images_below(folder, skipped)
    for line in describe_skipped(skipped, HIDDEN, OTHER, CIRCULAR):
        log.info(f"{folder}: {line}")
    tops = [normalized(name).rpartition("/")[0].partition("/")[0] for name, _ in images]  # "" of a loose file
    known, found = set(run.class_names), set(tops)
    is_labelled = bool(found & known) and run.task != MULTI_LABEL
    if is_labelled and (unknown := sorted(found - known - {""})):
        remedy = "Rename them, or give the subfolders one by one for predictions without labels"
        _refuse_classes(folder, f"subfolders that are not classes of {run.name}: {join_names(unknown)}", run, remedy)
    return [
        Entry(str(folder / name), path, label if is_labelled else "")
        for (name, path), label in zip(images, tops, strict=True)
    ]


def _entries_of_csv(path: Path, run: TrainedRun, split: str | None) -> list[Entry]:
    """The rows of a CSV in their order, or those of a split; labelled if it has the column label."""
    table, notes = read_csv(path, ("path",))
    for note in notes:
        log.info(note)
    if split is not None:
        if not table["split"].any():
            raise ConfigError(f"--split {split} needs the column split, which {path} does not have.")
        table = table[table["split"] == split]
    if run.task == MULTI_LABEL:
        table = table.assign(label="")
    elif unknown := sorted(set(table["label"]) - {"", *run.class_names}):
        remedy = "Correct them, or remove the column label"
        _refuse_classes(path, f"labels that are not classes of {run.name}: {join_names(unknown)}", run, remedy)
    return [Entry(name, path.parent / name, label) for name, label in zip(table["path"], table["label"], strict=True)]


def _refuse_classes(path: Path, found: str, run: TrainedRun, remedy: str) -> NoReturn:
    raise DataError(f"{printable(path)} has {found}; {run.name} predicts {join_names(run.class_names)}. {remedy}.")
