"""Make the file of a listing, step by step: read, compare, split, write, check."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.errors import DataError, storage_errors
from scripts.core.files import file_digest, replace_atomically, require_free
from scripts.core.log import log
from scripts.data_handler import npz
from scripts.data_handler.npz import CLASS_NAMES, PREPARATION, SPLITS, read_labels, validate_npz_keys
from tools.dataset_builder.archive import Member, RowStore, whole, write_npz
from tools.dataset_builder.decode import DecodedImage, Recipe, UnusableImageError, decode
from tools.dataset_builder.duplicates import Sample, across_splits, equal_images, make_units
from tools.dataset_builder.listing import Entry, Listing
from tools.dataset_builder.messages import count_are, count_of, join_names, join_some, printable
from tools.dataset_builder.reading import decoding, log_remarks, map_ahead, read_content
from tools.dataset_builder.request import Request
from tools.dataset_builder.splitting import NUM_SPLITS, assign, shortages, shuffling_key

DEFAULT_SPLIT = (0.7, 0.1, 0.2)  # as in MedMNIST, for sets without splits
BAR: dict[str, Any] = {"unit": "img", "leave": False, "disable": None}  # None: no bar where the screen is no terminal


@dataclass(frozen=True, slots=True)
class Built:
    """What was written."""

    num_bytes: int
    md5: str
    class_names: tuple[str, ...]
    counts: Mapping[str, Sequence[int]]  # by split: images of each class


def build(listing: Listing, request: Request) -> Built:
    """Make the ``.npz`` of a listing, atomically; log what was found.

    Raises:
        DataError: The images, labels, groups or splits do not make a data set; the message names what is wrong.
        StorageError: The file cannot be written, or there is not enough space.
    """
    out, recipe = request.out, Recipe(size=request.size, crop=request.crop, grey=request.grey)
    row_bytes, num_images = math.prod(recipe.shape), len(listing.entries)
    who = f"Cannot write {out}: the images, which are on the disk twice while the file is made, need"
    require_free(out.parent, 2 * row_bytes * num_images, who)
    with (
        storage_errors(out, "store the images in a temporary file", needed_bytes=row_bytes * num_images),
        tempfile.TemporaryFile(dir=out.parent) as stream,
    ):
        store = RowStore(stream, row_bytes)
        samples = _read_samples(listing.entries, store, recipe, request)
        rows = _assign_rows(_resolve_duplicates(samples, listing, request), samples, listing, request)
        _check_counts(rows, listing)
        numbers = {name: number for number, name in enumerate(listing.class_names)}
        dtype = np.uint8 if len(numbers) <= 256 else np.uint16
        labels = {split: np.array([numbers[s.entry.label] for s in kept], dtype) for split, kept in rows.items()}
        # the index appears after the file that it describes, or not at all
        with _index(request.index, rows, listing.source):
            num_bytes, md5 = _write(out, rows, labels, listing, store, recipe)
    counts = {split: np.bincount(found, minlength=len(numbers)).tolist() for split, found in labels.items()}
    return Built(num_bytes, md5, listing.class_names, counts)


def _read_samples(entries: Sequence[Entry], store: RowStore, recipe: Recipe, request: Request) -> list[Sample]:
    """Decode every file into the store.

    Raises:
        DataError: Some files are unusable and must not be skipped.
    """
    samples: list[Sample] = []
    unusable: list[str] = []
    remarks: Counter[str] = Counter()
    num_coloured = 0
    with decoding(), closing(map_ahead(partial(_read, recipe), entries, request.num_workers)) as readings:
        shown = tqdm(readings, total=len(entries), desc="reading", **BAR)
        for entry, reading in zip(entries, shown, strict=True):
            if isinstance(reading, UnusableImageError):
                unusable.append(f"{printable(entry.name)} ({reading})")
                continue
            image, *digests = reading
            samples.append(Sample(entry, store.append(image.pixels), *digests))
            num_coloured += image.is_coloured
            remarks.update(image.remarks)
    if unusable:
        _skip_or_refuse(
            f"{len(unusable):,} of {len(entries):,} images cannot be used: {join_some(unusable)}",
            "repair or remove them, or leave them out with --skip_unreadable",
            skip=request.skip_unreadable,
        )
    log_remarks(remarks, len(samples))
    if samples and not num_coloured and not recipe.grey:
        log.info("all images are grey: --grey makes a file of a third of the size with the same content")
    return samples


def _read(recipe: Recipe, entry: Entry) -> tuple[DecodedImage, bytes, bytes] | UnusableImageError:
    """Read a file; return the image and the digests of its pixels and of the file, or why it cannot be used."""
    try:
        content = read_content(entry.path)
        image = decode(content, recipe)
    except UnusableImageError as error:
        return error
    pixels, file = (hashlib.blake2b(part, digest_size=16).digest() for part in (image.pixels.tobytes(), content))
    return image, pixels, file


def _skip_or_refuse(found: str, remedy: str, *, skip: bool) -> None:
    if not skip:
        raise DataError(f"{found}; {remedy}.")
    log.warning(f"{found}; they are left out.")


def _resolve_duplicates(samples: Sequence[Sample], listing: Listing, request: Request) -> list[Sample]:
    """Return the samples that are kept where several have the same image.

    Raises:
        DataError: An image is in several classes or given splits, or a group is in several given splits.
    """
    duplicates = equal_images(samples)
    if wrong := [equal for equal in duplicates if len({sample.entry.label for sample in equal}) > 1]:
        equals = [" = ".join(printable(sample.entry.name) for sample in equal) for equal in wrong]
        _skip_or_refuse(
            f"{count_are(len(wrong), 'image')} in several classes at once: {join_some(equals)}",
            "correct the labels, or leave these images out with --skip_contradictions",
            skip=request.skip_contradictions,
        )
        contradictory = {equal[0].pixels_digest for equal in wrong}
        samples = [sample for sample in samples if sample.pixels_digest not in contradictory]
        duplicates = equal_images(samples)
    if listing.is_split:
        _check_given_splits(samples)
    if not duplicates:
        log.info("no image is there more than once")
        return list(samples)
    num_more = sum(map(len, duplicates)) - len(duplicates)
    num_equal_files = sum(len(equal) - len({sample.file_digest for sample in equal}) for equal in duplicates)
    kept = "only the first of each is kept" if request.drop_duplicates else "all are kept, equal ones in one split"
    log.info(
        f"{count_are(len(duplicates), 'image')} there more than once, in {count_of(num_more, 'file')} too many, of "
        f"which {num_equal_files:,} equal another to the byte; {kept}"
    )
    if not request.drop_duplicates:
        return list(samples)
    firsts = {sample.pixels_digest: sample for sample in reversed(samples)}
    return [sample for sample in samples if firsts[sample.pixels_digest] is sample]


def _check_given_splits(samples: Sequence[Sample]) -> None:
    """Refuse splits that share images or groups: a test on training images is worthless."""

    def described(sample: Sample) -> str:
        return f"{printable(sample.entry.name)} ({sample.entry.split})"

    images = across_splits(samples, lambda sample: sample.pixels_digest)
    groups = across_splits(samples, lambda sample: sample.entry.group)
    texts = {
        "image": [f"{described(one)} = {described(other)}" for one, other in images],
        "group": [f"{printable(one.entry.group)} has {described(one)} and {described(other)}" for one, other in groups],
    }
    problems = [
        f"{count_are(len(found), noun)} in several splits: {join_some(found)}; correct the column split."
        for noun, found in texts.items()
        if found
    ]
    if problems:
        raise DataError("\n".join(problems))


def _assign_rows(
    samples: Sequence[Sample], found: Sequence[Sample], listing: Listing, request: Request
) -> dict[str, list[Sample]]:
    """Assign the samples that are kept to splits, in the order that they will have in the file.

    Of the samples that were found, those that are not kept may still join groups.
    """
    if listing.is_split:
        return {split: [sample for sample in samples if sample.entry.split == split] for split in SPLITS}
    labels = {name: number for number, name in enumerate(listing.class_names)}
    kept = {sample.row for sample in samples}
    dropped = [sample for sample in found if sample.row not in kept]
    units, unit_of = make_units(samples, [labels[sample.entry.label] for sample in samples], dropped)
    split_of = assign(units, request.split or DEFAULT_SPLIT, seed=request.seed)
    groups = Counter(sample.entry.group for sample in samples)
    num_without = groups.pop("", 0)
    if groups:
        without = f"; {count_of(num_without, 'image')} without a group" if num_without else ""
        log.info(f"{count_of(len(groups), 'group')}, none of them divided{without}")
    for shortage in shortages(units, split_of):
        log.warning(
            f"class {listing.class_names[shortage.label]} has no image in {' and '.join(shortage.missing)}: it has "
            f"only {count_of(shortage.num_units, 'group' if groups else 'different image')}"
        )
    # shuffled, so that the first images of a split are not all of one class
    order = sorted(zip(samples, unit_of, strict=True), key=lambda pair: shuffling_key(request.seed, pair[0].entry.name))
    return {name: [sample for sample, unit in order if split_of[unit] == split] for split, name in enumerate(SPLITS)}


def _check_counts(rows: Mapping[str, Sequence[Sample]], listing: Listing) -> None:
    """Refuse an empty split, and a class without images; warn if a given split lacks a class."""
    found = {split: {sample.entry.label for sample in of_split} for split, of_split in rows.items()}
    if lost := [name for name in listing.class_names if not any(name in labels for labels in found.values())]:
        raise DataError(
            f"No image is left of the class {join_names(lost)}: repair the images named above, or remove the class."
        )
    if empty := [split for split, labels in found.items() if not labels]:
        raise DataError(
            f"There is no image for {' and '.join(empty)}: every split needs one, so at least {NUM_SPLITS} images are "
            "needed that do not belong together."
        )
    if listing.is_split:
        for split, labels in found.items():
            if missing := [name for name in listing.class_names if name not in labels]:
                log.warning(f"{split} has no image of the class {join_names(missing)}")


@contextmanager
def _index(path: Path | None, rows: Mapping[str, Sequence[Sample]], source: Path) -> Iterator[None]:
    """Write the table of images and rows, as a CSV from which the same file can be made again."""
    if path is None:
        yield
        return
    folder, origin = path.parent.resolve(), source if source.is_dir() else source.parent
    table = [
        (os.path.relpath(_resolve_links(s.entry.path, origin), folder), s.entry.label, split, s.entry.group, row)
        for split, of_split in rows.items()
        for row, s in enumerate(of_split)
    ]
    frame = pd.DataFrame(table, columns=["path", "label", "split", "group", "row"])
    content = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogateescape")
    with replace_atomically(path, needed_bytes=len(content)) as stream:
        stream.write(content)
        yield


def _resolve_links(path: Path, origin: Path) -> Path:
    """Resolve the links of ``path`` as far as ``origin`` and the last ``..`` reach.

    Behind a link, ``..`` does not lead to where its text says. The parts that follow keep their names.
    """
    parts = path.parts
    num_resolved = len(origin.parts) if path.is_relative_to(origin) else 0
    if ".." in parts:
        num_resolved = max(num_resolved, len(parts) - parts[::-1].index(".."))
    return Path(*parts[:num_resolved]).resolve().joinpath(*parts[num_resolved:])


def _write(
    out: Path,
    rows: Mapping[str, Sequence[Sample]],
    labels: Mapping[str, NDArray[np.integer[Any]]],
    listing: Listing,
    store: RowStore,
    recipe: Recipe,
) -> tuple[int, str]:
    """Write the file, which appears once ``main.py`` would accept it; return its size and MD5."""
    members = []
    for split, of_split in rows.items():
        shape = (len(of_split), *recipe.shape)
        members.append(Member(f"{split}_images", shape, np.dtype(np.uint8), partial(_pieces, store, of_split, split)))
        members.append(whole(f"{split}_labels", labels[split].reshape(-1, 1)))
    members.append(whole(CLASS_NAMES, np.array(listing.class_names)))
    members.append(whole(PREPARATION, np.array(json.dumps(recipe.as_dict()))))
    with replace_atomically(out, needed_bytes=sum(member.num_bytes for member in members)) as stream:
        write_npz(stream, members)
        stream.flush()
        temporary = Path(stream.name)
        _require_readable(temporary, labels, listing, recipe)
        return temporary.stat().st_size, file_digest(temporary, "md5")


def _pieces(store: RowStore, samples: Sequence[Sample], title: str) -> Iterator[bytes]:
    for sample in tqdm(samples, desc=f"writing {title}", **BAR):
        yield store.read(sample.row)


def _require_readable(
    path: Path, labels: Mapping[str, NDArray[np.integer[Any]]], listing: Listing, recipe: Recipe
) -> None:
    """Read everything but the images back, as a training would."""
    layout = validate_npz_keys(path)
    found = {split: read_labels(layout, split, len(listing.class_names)) for split in SPLITS}
    facts = npz.read_class_names(layout), npz.read_preparation(layout)
    if facts != (listing.class_names, recipe.as_dict()) or not all(
        np.array_equal(found[split], labels[split]) for split in SPLITS
    ):
        raise ValueError(f"The content of {path} is not what was to be written.")
