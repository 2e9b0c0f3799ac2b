"""Assign units of images to train, val and test: each class in the requested proportions, no unit divided."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.data_handler.npz import SPLITS

NUM_SPLITS = len(SPLITS)
SEEDING_ORDER = (0, 2, 1)  # a class with too few units for three splits is in train first, then in test
MAX_ATTEMPTS = 16
MAX_ROUNDS = 20  # of improvement; each makes the assignment better, and three or four are typical
NONE = -1


@dataclass(frozen=True, slots=True)
class Unit:
    """Images that must stay together: one image, or those of a patient, or equal images."""

    name: str  # of its first image; decides the order together with the seed, so the file system's order has no effect
    counts: Mapping[int, int]  # number of its images by class index

    @property
    def size(self) -> int:
        """Number of images."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Shortage:
    """A class that is not in every split."""

    label: int
    num_units: int
    missing: tuple[str, ...]  # the splits without it


def assign(units: Sequence[Unit], proportions: Sequence[float], *, seed: int) -> list[int]:
    """Assign every unit to a split: 0, 1 or 2 for train, val and test.

    Every split first gets a unit of every class that has three; then the other units, larger ones first, each go to the
    split that lacks most of its classes; then single units move as long as that brings the classes' shares nearer to
    ``proportions``. With units of one image each, every class ends less than one image from them, wherever each share
    is at least one image. The best of several such attempts in different orders is used.

    Args:
        units: At least one; the result does not depend on their order as long as their names differ.
        proportions: Of train, val and test: above 0, with sum 1.
        seed: Decides between equally good assignments.
    """
    best: _Assignment | None = None
    for attempt in range(MAX_ATTEMPTS):
        order = sorted(
            range(len(units)),
            key=lambda index: (-units[index].size, shuffling_key(f"{seed}/{attempt}", units[index].name)),
        )
        found = _Assignment(units, proportions)
        found.seed_every_class(order, widest_first=attempt % 2 == 1)
        found.distribute(order)
        found.improve(order)
        if best is None or found.error() < best.error():
            best = found
        if best.is_optimal():
            break
    return best.split_of if best else []


def shuffling_key(seed: object, name: str) -> bytes:
    """A sort key for a random order that depends only on the seed and the name."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest()


def shortages(units: Sequence[Unit], split_of: Sequence[int]) -> list[Shortage]:
    """The classes that are not in every split, in the order of their labels."""
    found: dict[int, list[int]] = {}
    for unit, split in zip(units, split_of, strict=True):
        for label in unit.counts:
            found.setdefault(label, []).append(split)
    return [
        Shortage(label, len(splits), tuple(name for split, name in enumerate(SPLITS) if split not in splits))
        for label, splits in sorted(found.items())
        if len(set(splits)) < NUM_SPLITS
    ]


class _Assignment:
    """A split for each unit, and the distance of the classes from their proportions."""

    def __init__(self, units: Sequence[Unit], proportions: Sequence[float]) -> None:
        self.units = units
        self.split_of = [NONE] * len(units)
        self.total, self.num_units = Counter[int](), Counter[int]()  # images and units by class
        for unit in units:
            self.total.update(unit.counts)
            self.num_units.update(unit.counts.keys())
        # images that each split still lacks, by class and in all; below 0 where it has too many
        self.need = {label: [total * share for share in proportions] for label, total in self.total.items()}
        self.need_in_all = [sum(self.total.values()) * share for share in proportions]
        self.units_in = {label: [0] * NUM_SPLITS for label in self.total}
        self.free = Counter(self.num_units)  # units by class that are in no split yet

    def put(self, index: int, split: int) -> None:
        """Move a unit to a split, from the one that it is in, if any."""
        unit, earlier = self.units[index], self.split_of[index]
        if earlier == NONE:
            self.free.subtract(unit.counts.keys())
        for place, sign in ((earlier, -1), (split, 1)):
            if place == NONE:
                continue
            self.need_in_all[place] -= sign * unit.size
            for label, count in unit.counts.items():
                self.need[label][place] -= sign * count
                self.units_in[label][place] += sign
        self.split_of[index] = split

    def gain(self, unit: Unit, split: int) -> float:
        """The decrease of the squared relative distances from the shares if the unit goes to the split."""
        items = unit.counts.items()
        return sum(n * (2 * self.need[label][split] - n) / self.total[label] ** 2 for label, n in items)

    def fits(self, label: int) -> bool:
        """Whether a class has at least one unit per split."""
        return self.num_units[label] >= NUM_SPLITS

    def spare(self, label: int) -> int:
        """Free units of a class minus the splits that lack it; negative if they are too few."""
        return self.free[label] - self.units_in[label].count(0)

    def seed_every_class(self, order: Sequence[int], *, widest_first: bool) -> None:
        """Give each split a unit of each class, starting with the classes that have the fewest spare units.

        With ``widest_first``, units with several missing classes are preferred to units of a fitting size.
        """
        having: dict[int, list[int]] = {}
        for index in order:
            for label in self.units[index].counts:
                having.setdefault(label, []).append(index)
        while lacking := [label for label in having if self.free[label] and 0 in self.units_in[label]]:
            scarcest = min(lacking, key=lambda label: (not self.fits(label), self.spare(label), label))
            split = next(split for split in SEEDING_ORDER if not self.units_in[scarcest][split])
            free = [index for index in having[scarcest] if self.split_of[index] == NONE]
            self.put(self._fittest(free, split, widest_first=widest_first), split)

    def _fittest(self, free: Iterable[int], split: int, *, widest_first: bool) -> int:
        def fitness(index: int) -> tuple[float, ...]:
            unit = self.units[index]
            new_classes = sum(not self.units_in[label][split] for label in unit.counts)
            # classes that this split has already, and that would then lack a unit for another split
            harmed = sum(
                self.fits(label) and self.units_in[label][split] > 0 and self.spare(label) <= 0 for label in unit.counts
            )
            gain = self.gain(unit, split)
            return (-harmed, new_classes, gain) if widest_first else (-harmed, gain, new_classes)

        return max(free, key=fitness)

    def distribute(self, order: Sequence[int]) -> None:
        """Put every other unit into the split that lacks most of it."""
        for index in order:
            if self.split_of[index] == NONE:
                unit = self.units[index]
                self.put(index, max(range(NUM_SPLITS), key=lambda split: self._lack(unit, split)))

    def _lack(self, unit: Unit, split: int) -> tuple[float, float]:
        # rounded, so that equal values are equal, and the split that lacks most in all is chosen
        return round(self.gain(unit, split), 12), self.need_in_all[split]

    def improve(self, order: Sequence[int]) -> None:
        """Move single units as long as that helps and removes no class from a split."""
        for _ in range(MAX_ROUNDS):
            if self.is_optimal():
                return
            moved = [self._move_if_better(index) for index in order]
            if not any(moved):
                return

    def _move_if_better(self, index: int) -> bool:
        unit, here = self.units[index], self.split_of[index]
        if any(self.units_in[label][here] == 1 for label in unit.counts):
            return False
        # the gain of staying is that of coming back to the split after the unit has left it
        shares = (count / self.total[label] for label, count in unit.counts.items())
        staying = self.gain(unit, here) + 2 * sum(share**2 for share in shares)
        there = max((split for split in range(NUM_SPLITS) if split != here), key=lambda split: self.gain(unit, split))
        if self.gain(unit, there) <= staying + 1e-12:
            return False
        self.put(index, there)
        return True

    def num_missing(self) -> int:
        """How often a split lacks a class that has units for all splits."""
        return sum(not number for label, numbers in self.units_in.items() if self.fits(label) for number in numbers)

    def error(self) -> tuple[int, int, float]:
        """Missing classes, then classes without training images, then squared relative distances from the shares."""
        untrained = sum(not numbers[0] for numbers in self.units_in.values())
        distance = sum((need / self.total[label]) ** 2 for label, needs in self.need.items() for need in needs)
        return self.num_missing(), untrained, round(distance, 12)

    def is_optimal(self) -> bool:
        """Whether no class is missing, and all are less than one image from their shares."""
        return not self.num_missing() and all(abs(need) < 1 for needs in self.need.values() for need in needs)
