"""Find equal images, and the images that must stay together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tools.dataset_builder.listing import Entry
from tools.dataset_builder.splitting import Unit

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sample:
    """A usable image: its entry, and what identifies its content."""

    entry: Entry
    row: int  # of its pixels in the store
    pixels_digest: bytes  # of the image that is stored
    file_digest: bytes  # of the file's bytes


def equal_images(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Group the samples whose stored images are equal; images without an equal are left out.

    Equal files have equal images; so have different files that become the same array.
    """
    found: dict[bytes, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.pixels_digest, []).append(sample)
    return [equal for equal in found.values() if len(equal) > 1]


def across_splits(samples: Sequence[Sample], key: Callable[[Sample], Key]) -> list[tuple[Sample, Sample]]:
    """Two samples in different given splits for each key, such as an image or a group, that is in several of them."""
    first: dict[Key, Sample] = {}
    pairs: dict[Key, tuple[Sample, Sample]] = {}
    for sample in samples:
        value = key(sample)
        if value and first.setdefault(value, sample).entry.split != sample.entry.split:
            pairs.setdefault(value, (first[value], sample))
    return list(pairs.values())


def make_units(
    samples: Sequence[Sample], labels: Sequence[int], dropped: Sequence[Sample] = ()
) -> tuple[list[Unit], list[int]]:
    """Join what belongs together: images of one group, equal images, and so groups that share an image.

    The dropped samples are in no unit, but join groups: patients who share an image may be one patient, whether or not
    the image is kept. ``labels`` has the class index of each of the other samples.

    Returns:
        The units, each with the name of its first sample, and the index of its unit for each sample.
    """
    num_samples = len(samples) + len(dropped)
    nodes: dict[Hashable, int] = {}  # of a graph that connects each sample with its image and its group
    edges = [
        (index, nodes.setdefault(key, num_samples + len(nodes)))
        for index, sample in enumerate((*samples, *dropped))
        for key in (("image", sample.pixels_digest), ("group", sample.entry.group))
        if key[1]
    ]
    size = num_samples + len(nodes)
    graph = coo_array((np.ones(len(edges)), np.array(edges, dtype=int).reshape(-1, 2).T), shape=(size, size))
    unit_of, different = pd.factorize(connected_components(graph, directed=False)[1][: len(samples)])
    names: dict[int, str] = {}
    counts = [Counter[int]() for _ in different]
    for unit, sample, label in zip(unit_of.tolist(), samples, labels, strict=True):
        names.setdefault(unit, sample.entry.name)
        counts[unit][label] += 1
    return [Unit(names[unit], of_unit) for unit, of_unit in enumerate(counts)], unit_of.tolist()
