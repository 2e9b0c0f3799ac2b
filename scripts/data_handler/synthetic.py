"""``synthblood``: images of eight kinds of blood cell, drawn by the program, so that everything works offline.

They imitate stained smears only as far as a demonstration needs: each kind has its own cell size, nucleus and granules.
Results on them say nothing about real blood.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.registry import MULTI_CLASS, SYNTHBLOOD

NOTE = "Synthetic images drawn by the program: no medical result."
SIDE = 28
NUM_SAMPLES = {"train": 2000, "val": 400, "test": 600}
DRAWING_SEED = 28  # the set is the same for every --seed

Colour = tuple[float, float, float]
Plane = NDArray[np.float32]  # (n, SIDE, SIDE)
Drawn = NDArray[np.float32]  # (n, SIDE, SIDE, 3), in [0, 1]


@dataclass(frozen=True, slots=True)
class CellKind:
    """How one kind of cell looks; lengths in pixels, colours as red, green, blue in [0, 1]."""

    name: str
    radius: float  # of the cell
    cytoplasm: Colour
    nucleus: Colour
    lobes: tuple[tuple[float, float, float], ...]  # x, y, radius of each lobe of the nucleus
    granules: int = 0
    granule: Colour = (0.0, 0.0, 0.0)


# fmt: off
CELL_KINDS = (  # name, radius, cytoplasm, nucleus; lobes, granules and their colour
    CellKind("basophil", 8.5, (0.76, 0.66, 0.82), (0.50, 0.36, 0.64),
             ((-2.0, 0.0, 4.0), (2.5, 1.0, 3.5)), 16, (0.26, 0.14, 0.44)),
    CellKind("eosinophil", 8.5, (0.90, 0.70, 0.68), (0.47, 0.30, 0.62),
             ((-3.2, -1.0, 3.2), (3.2, 1.0, 3.2)), 16, (0.86, 0.42, 0.34)),
    CellKind("erythroblast", 6.5, (0.72, 0.62, 0.74), (0.28, 0.16, 0.42),
             ((0.0, 0.0, 4.0),)),
    CellKind("ig", 9.5, (0.74, 0.68, 0.84), (0.52, 0.36, 0.68),
             ((-1.5, 0.5, 6.2), (0.5, -1.5, 5.4)), 8, (0.58, 0.34, 0.60)),
    CellKind("lymphocyte", 7.0, (0.66, 0.72, 0.90), (0.40, 0.26, 0.60),
             ((0.0, 0.0, 5.8),)),
    CellKind("monocyte", 9.8, (0.72, 0.72, 0.84), (0.46, 0.34, 0.66),
             ((-3.0, -2.5, 3.9), (-1.8, 1.8, 4.1), (2.4, 3.2, 3.6))),
    CellKind("neutrophil", 8.5, (0.90, 0.80, 0.84), (0.42, 0.26, 0.60),
             ((-3.8, -1.8, 2.5), (0.2, 2.0, 2.5), (3.8, -1.2, 2.5))),
    CellKind("platelet", 3.2, (0.70, 0.58, 0.78), (0.56, 0.38, 0.68),
             ((0.0, 0.0, 1.5),), 3, (0.46, 0.26, 0.60)),
)
# fmt: on


def open_synthblood() -> Dataset:
    """Draw the whole set: 2,000 / 400 / 600 RGB images of 28 × 28 pixels, the same at every call."""
    splits = {
        name: _draw_split(count, np.random.default_rng([DRAWING_SEED, number]))
        for number, (name, count) in enumerate(NUM_SAMPLES.items())
    }
    content = b"".join(array.tobytes() for split in splits.values() for array in (split.images, split.labels))
    return Dataset(
        key=SYNTHBLOOD,
        title=SYNTHBLOOD,
        task=MULTI_CLASS,
        class_names=tuple(kind.name for kind in CELL_KINDS),
        height=SIDE,
        width=SIDE,
        channels=3,
        num_samples=NUM_SAMPLES,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        source="generated",
        note=NOTE,
        load=splits.__getitem__,
    )


def _draw_split(count: int, random: np.random.Generator) -> Split:
    """Draw ``count`` images with the kinds in equal shares, in random order."""
    labels = random.permutation(np.arange(count) % len(CELL_KINDS))
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for label, kind in enumerate(CELL_KINDS):
        rows = np.flatnonzero(labels == label)
        images[rows] = np.rint(_draw_cells(kind, len(rows), random) * 255).astype(np.uint8)
    return Split(images, labels.astype(np.int64))


def _draw_cells(kind: CellKind, count: int, random: np.random.Generator) -> Drawn:
    """Draw ``count`` images of one kind, each with its own position, rotation, size, stain and noise."""

    def each(low: float, high: float) -> NDArray[np.float32]:
        return random.uniform(low, high, (count, 1, 1)).astype(np.float32)

    image = np.ones((count, SIDE, SIDE, 3), np.float32) * np.array((0.94, 0.86, 0.86), np.float32)
    for _ in range(2):  # red cells at the edge of the image
        turn, distance = each(0, 2 * np.pi), each(12, 17)
        neighbour = _disc(distance * np.cos(turn), distance * np.sin(turn), each(5, 7))
        _paint(image, neighbour * 0.8, (0.88, 0.66, 0.66))

    shift_x, shift_y, size = each(-2, 2), each(-2, 2), each(0.82, 1.12)
    _paint(image, _disc(shift_x, shift_y, kind.radius * size, squash=each(0.85, 1.15)), kind.cytoplasm)
    turn = each(0, 2 * np.pi)
    cosine, sine = np.cos(turn) * size, np.sin(turn) * size
    nucleus = np.zeros((count, SIDE, SIDE), np.float32)
    for x, y, radius in kind.lobes:
        wobble_x, wobble_y = each(-0.6, 0.6), each(-0.6, 0.6)
        lobe = _disc(
            shift_x + cosine * x - sine * y + wobble_x,
            shift_y + sine * x + cosine * y + wobble_y,
            radius * size * each(0.88, 1.12),
        )
        np.maximum(nucleus, lobe, out=nucleus)
    _paint(image, nucleus, kind.nucleus)
    for _ in range(kind.granules):
        turn, distance = each(0, 2 * np.pi), kind.radius * size * np.sqrt(each(0.02, 0.85))
        granule = _disc(shift_x + distance * np.cos(turn), shift_y + distance * np.sin(turn), each(0.5, 1.0))
        _paint(image, granule * each(0.3, 0.9), kind.granule)

    stain = 1 + random.normal(0, 0.05, (count, 1, 1, 3)).astype(np.float32)
    noise = 0.04 * random.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image * stain * each(0.85, 1.1)[..., None] + noise, 0, 1)


def _disc(x: Plane, y: Plane, radius: Plane | float, squash: Plane | float = 1.0) -> Plane:
    """Coverage in [0, 1] of a soft-edged disc about (x, y), measured from the image's centre."""
    axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    distance = np.hypot((axis[None, None, :] - x) * squash, (axis[None, :, None] - y) / squash)
    return np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)


def _paint(image: Drawn, coverage: Plane, colour: Colour) -> None:
    image += coverage[..., None] * (np.array(colour, np.float32) - image)
