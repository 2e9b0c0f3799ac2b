"""Which images are the same picture, and what therefore belongs together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tools.dataset_builder.listing import Entry
from tools.dataset_builder.splitting import Unit


@dataclass(frozen=True, slots=True)
class Sample:
    """A usable image: what is said of it, and what it looks like."""

    entry: Entry
    row: int  # of its pixels in the store
    pixels_digest: bytes  # of the picture that will be stored
    file_digest: bytes  # of the file's bytes


def same_pictures(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The pictures that are there more than once, each as its samples, in the samples' order.

    Equal files are equal pictures; so are different files that become the same array.
    """
    found: dict[bytes, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.pixels_digest, []).append(sample)
    return [equal for equal in found.values() if len(equal) > 1]


def contradictions(doubles: Sequence[Sequence[Sample]]) -> list[Sequence[Sample]]:
    """The pictures that are in several classes."""
    return [equal for equal in doubles if len({sample.entry.label for sample in equal}) > 1]


def across_splits(doubles: Sequence[Sequence[Sample]]) -> list[tuple[Sample, Sample]]:
    """Of each picture that is in several given splits, two samples that show it."""
    return [
        (equal[0], next(other for other in equal if other.entry.split != equal[0].entry.split))
        for equal in doubles
        if len({sample.entry.split for sample in equal}) > 1
    ]


def parted_groups(samples: Sequence[Sample]) -> list[tuple[str, Sample, Sample]]:
    """The groups that are in several given splits, each with two samples that show it."""
    first: dict[str, Sample] = {}
    parted: dict[str, tuple[str, Sample, Sample]] = {}
    for sample in samples:
        group = sample.entry.group
        if group and first.setdefault(group, sample).entry.split != sample.entry.split:
            parted.setdefault(group, (group, first[group], sample))
    return list(parted.values())


def units(
    samples: Sequence[Sample], labels: Sequence[int], dropped: Sequence[Sample] = ()
) -> tuple[list[Unit], list[int]]:
    """What belongs together: images of one group, equal pictures, and, through these, groups that share a picture.

    Args:
        samples: Those that stay, without contradictions.
        labels: The class index of each.
        dropped: Further ones, which are in no unit but tie what belongs together: patients who shared a picture are
            perhaps one patient, whether or not the picture stays.

    Returns:
        The units, and for each sample the index of its unit.
    """
    parent = list(range(len(samples) + len(dropped)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, sample in enumerate((*samples, *dropped)):
        for key in (("picture", sample.pixels_digest), ("group", sample.entry.group)):
            if key[1]:
                # the smaller index stays the root, so that a unit is named after its first image that stays
                one, other = sorted((root(first.setdefault(key, index)), root(index)))
                parent[other] = one
    number: dict[int, int] = {}
    counts: list[dict[int, int]] = []
    unit_of = []
    for index, label in enumerate(labels):
        unit = number.setdefault(root(index), len(number))
        if unit == len(counts):
            counts.append({})
        counts[unit][label] = counts[unit].get(label, 0) + 1
        unit_of.append(unit)
    return [Unit(samples[first_one].entry.name, counts[unit]) for first_one, unit in number.items()], unit_of
