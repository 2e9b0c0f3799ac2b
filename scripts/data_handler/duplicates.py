"""Count the exact duplicates among the images of a data set, within its splits and across them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.log import log
from scripts.data_handler.dataset import Split
from scripts.data_handler.unpacked import ImageReader

CHUNK_BYTES = 1 << 22  # of images that are read from a file at a time
DIGEST_BYTES = 16  # two different images have the same digest with a probability of about 10⁻³⁸


@dataclass(frozen=True, slots=True)
class Duplicates:
    """How many images of a data set are equal in every pixel."""

    within: dict[str, int]  # by split: images that are equal to an earlier one of the split
    across: dict[str, int]  # by two splits, such as "train_test": images of the second that are in the first as well
    contradictory: int  # different images that occur with different labels, whatever the splits

    def as_dict(self) -> dict[str, Any]:
        """The numbers as values for JSON."""
        return asdict(self)

    @property
    def leaks(self) -> list[str]:
        """The images in two splits, in words; empty if there are none."""
        pairs = ((count, *pair.split("_")) for pair, count in self.across.items() if count)
        return [f"{count:,} of {second} also in {first}" for count, first, second in pairs]

    def __str__(self) -> str:
        found = [f"{count:,} in {split} equal to an earlier one" for split, count in self.within.items() if count]
        found += self.leaks
        found += [f"{self.contradictory:,} with different labels"] if self.contradictory else []
        return f"exact duplicates among the images: {', '.join(found) or 'none'}"


def count_duplicates(splits: Mapping[str, Split]) -> Duplicates:
    """Count and log the exact duplicates; every image is read once, in bounded memory.

    Raises:
        DataError: The images cannot be read.
    """
    bar: dict[str, Any] = {"leave": False, "disable": None}  # on a terminal, nothing elsewhere
    digests = {
        name: list(tqdm(_digests(split), f"duplicates in {name}", len(split.labels), **bar))
        for name, split in splits.items()
    }
    different = {name: set(found) for name, found in digests.items()}
    labelled = {
        (digest, label.tobytes())
        for name, split in splits.items()
        for digest, label in zip(digests[name], split.labels, strict=True)
    }
    duplicates = Duplicates(
        within={name: len(found) - len(different[name]) for name, found in digests.items()},
        across={
            f"{first}_{second}": sum(digest in different[first] for digest in digests[second])
            for first, second in combinations(splits, 2)
        },
        contradictory=sum(count > 1 for count in Counter(digest for digest, _ in labelled).values()),
    )
    # images in two splits make the figures of the second too good
    (log.warning if any(duplicates.across.values()) else log.info)("%s", duplicates)
    return duplicates


def digest_pixels(pixels: NDArray[np.uint8]) -> bytes:
    """Digest the pixels of one image, in one axis; images of the same shape are equal if their digests are."""
    return hashlib.blake2b(pixels.data, digest_size=DIGEST_BYTES).digest()


def _digests(split: Split) -> Iterator[bytes]:
    chunks: Iterable[NDArray[np.uint8]] = [split.images]
    if split.file is not None:
        reader, indices = ImageReader(split.file), np.arange(len(split.images))
        size = max(1, CHUNK_BYTES // split.images[0].nbytes)
        chunks = (reader[indices[start : start + size]] for start in range(0, len(indices), size))
    for images in chunks:
        yield from map(digest_pixels, images.reshape(len(images), -1))
