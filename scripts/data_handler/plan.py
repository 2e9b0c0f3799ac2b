"""Draw every random decision of one epoch before it starts.

Augmentation parameters are a pure function of (seed, epoch, sample index), the order of (seed, epoch), MixUp, CutMix
and the seeds of dropout of (seed, epoch, step): the same with any image source and number of workers, and after any
interruption. Each decision has its own stream of NumPy's Philox bit generator, so that no setting changes the numbers
of another. NumPy promises not to change its raw numbers, nor those of its frozen ``RandomState``
(https://numpy.org/doc/stable/reference/random/compatibility.html).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.core.config import Config
from scripts.core.system.device import to_device

# one independent stream of numbers per decision; the order is fixed, new ones are appended
ORDER, FLIP, ANGLE, BRIGHTNESS, CONTRAST, PARTNER, MIX, STEP_SEED = range(8)
SYMMETRY, ROTATED, SCALE, SHIFT_X, SHIFT_Y, ERASED, AREA, ASPECT, TOP, LEFT, CUTMIX, BOX_X, BOX_Y, IS_CUTMIX = range(
    8, 22
)
MAX_STREAMS = 256

NUM_SYMMETRIES = 8  # of the square
# of an erased rectangle: its share of the image, and height / width (Zhong et al., "Random Erasing", AAAI 2020)
ERASED_SHARES, ERASED_ASPECTS = (0.02, 0.33), (0.3, 1 / 0.3)

Floats = NDArray[np.float64]
Box = tuple[int, int, int, int]  # first row, row after the last, first column, column after the last


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationPlan:
    """Augmentation parameters of N images, as tensors of shape (N,) on one device; None where nothing is done."""

    flip: torch.Tensor | None = None  # bool: mirrored left to right
    symmetry: torch.Tensor | None = None  # uint8 below 8: a symmetry of the square, see ``augmentation.move``
    shift_x: torch.Tensor | None = None  # int64, pixels to the right
    shift_y: torch.Tensor | None = None  # int64, pixels down
    angle: torch.Tensor | None = None  # float32, degrees, positive is counter-clockwise
    scale: torch.Tensor | None = None  # float32 factor, above 1 enlarges
    is_resampled: torch.Tensor | None = None  # bool: rotated or scaled; None with an angle or a scale: all are
    brightness: torch.Tensor | None = None  # float32 factor, 1 changes nothing
    contrast: torch.Tensor | None = None  # float32 factor, 1 changes nothing
    erased: torch.Tensor | None = None  # int64, shape (N, 4): the erased ``Box``, which may be empty

    def part(self, window: slice) -> AugmentationPlan:
        """The parameters of the images in ``window``."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return AugmentationPlan(**{name: None if value is None else value[window] for name, value in values.items()})


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of one step are mixed with their partners."""

    weight: float  # share of the own image and target, in [0, 1]
    box: Box | None = None  # CutMix: where the partner's pixels are; None: MixUp


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The order of an epoch's images, and what happens to each; position p is the p-th image seen."""

    order: NDArray[np.int64]  # (N,) sample indices, on the host
    order_on_device: torch.Tensor  # the same on the device
    augmentation: AugmentationPlan  # by position
    partner: torch.Tensor  # (N,) int64, by position: the place, within its own batch, of the image mixed in
    mix: tuple[Mix, ...]  # of each step; empty without MixUp and CutMix
    step_seeds: tuple[int, ...]  # of each step, 63 bits: for dropout and stochastic depth


def uniform(seed: int, epoch: int, stream: int, count: int) -> Floats:
    """Draw the first ``count`` numbers of a stream, uniform in [0, 1); number n does not depend on ``count``.

    The upper 53 of each 64 random bits make the number: NumPy fixes the bits, but not its own conversion to floats.
    ``seed`` is in [0, 2**64), ``epoch`` in [0, 2**56), ``stream`` (one per decision) in [0, ``MAX_STREAMS``).
    """
    bits = _bit_generator(seed, epoch, stream).random_raw(count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_plan(
    config: Config, num_images: int, *, epoch: int, image_size: tuple[int, int], device: torch.device
) -> EpochPlan:
    """Draw the plan of one epoch for ``num_images`` training images of (height, width), on ``device``.

    The last batch may be smaller than ``config.batch_size``.
    """
    seed, num_steps = config.seed, -(-num_images // config.batch_size)
    order = np.argsort(uniform(seed, epoch, ORDER, num_images), kind="stable")
    return EpochPlan(
        order=order,
        order_on_device=to_device(order, device),
        augmentation=_draw_augmentation(config, order, epoch, image_size, device),
        partner=to_device(_partners(num_images, seed, epoch, config.batch_size), device),
        mix=tuple(_draw_mixes(config, epoch, num_steps, image_size)),
        step_seeds=tuple((_bit_generator(seed, epoch, STEP_SEED).random_raw(num_steps) >> np.uint64(1)).tolist()),
    )


def _draw_augmentation(
    config: Config, order: NDArray[np.int64], epoch: int, image_size: tuple[int, int], device: torch.device
) -> AugmentationPlan:
    def by_position(stream: int) -> Floats:
        return uniform(config.seed, epoch, stream, len(order))[order]  # drawn by sample index

    def between(stream: int, low: float, high: float) -> NDArray[np.float32]:
        return (low + (high - low) * by_position(stream)).astype(np.float32)

    found: dict[str, NDArray[np.generic]] = {}
    if config.symmetries == "all":
        found["symmetry"] = np.floor(NUM_SYMMETRIES * by_position(SYMMETRY)).astype(np.uint8)
    elif config.symmetries == "flip" and config.hflip > 0:
        found["flip"] = by_position(FLIP) < config.hflip
    if config.translate > 0:
        for name, stream in (("shift_x", SHIFT_X), ("shift_y", SHIFT_Y)):
            steps = np.floor((2 * config.translate + 1) * by_position(stream)).astype(np.int64)
            found[name] = steps - config.translate
    if config.rotation_angle > 0 and config.rotation_prob > 0:
        found["angle"] = between(ANGLE, -config.rotation_angle, config.rotation_angle)
        if config.rotation_prob < 1:
            is_rotated = by_position(ROTATED) < config.rotation_prob
            found["angle"] = np.where(is_rotated, found["angle"], np.float32(0))
            found |= {"is_resampled": is_rotated} if config.scale == 0 else {}
    if config.scale > 0:
        found["scale"] = between(SCALE, 1 - config.scale, 1 + config.scale)
    if config.jitter_val > 0:
        found["brightness"] = between(BRIGHTNESS, 1 - config.jitter_val, 1 + config.jitter_val)
        found["contrast"] = between(CONTRAST, 1 - config.jitter_val, 1 + config.jitter_val)
    if config.erasing > 0:
        sizes = (by_position(stream) for stream in (AREA, ASPECT, TOP, LEFT))
        boxes = _boxes(*sizes, image_size=image_size)
        found["erased"] = np.where((by_position(ERASED) < config.erasing)[:, np.newaxis], boxes, 0)
    return AugmentationPlan(**{name: to_device(value, device) for name, value in found.items()})


def _boxes(
    area: Floats, aspect: Floats, top: Floats, left: Floats, *, image_size: tuple[int, int]
) -> NDArray[np.int64]:
    """Turn numbers in [0, 1) into rectangles inside the image, shape (N, 4), with logarithmically uniform aspects."""
    height, width = image_size
    (smallest, largest), (flat, tall) = ERASED_SHARES, np.log(ERASED_ASPECTS)
    pixels = (smallest + (largest - smallest) * area) * height * width
    ratio = np.exp(flat + (tall - flat) * aspect)
    rows = np.clip(np.rint(np.sqrt(pixels * ratio)), 1, height)
    columns = np.clip(np.rint(np.sqrt(pixels / ratio)), 1, width)
    first_row, first_column = np.floor(top * (height - rows + 1)), np.floor(left * (width - columns + 1))
    corners = (first_row, first_row + rows, first_column, first_column + columns)
    return np.stack(corners, axis=1).astype(np.int64)


def _partners(num_images: int, seed: int, epoch: int, batch_size: int) -> NDArray[np.int64]:
    """A permutation of every batch, drawn by position, so that it follows from (seed, epoch, step) alone."""
    drawn = uniform(seed, epoch, PARTNER, num_images)
    batches = (drawn[start : start + batch_size] for start in range(0, num_images, batch_size))
    return np.concatenate([np.argsort(batch, kind="stable") for batch in batches])


def _draw_mixes(config: Config, epoch: int, num_steps: int, image_size: tuple[int, int]) -> list[Mix]:
    """Draw MixUp or CutMix of every step; with both, each step is one or the other with probability 1/2.

    Sources: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    mixups = [Mix(weight) for weight in _beta(config, epoch, MIX, config.mixup_alpha, num_steps)]
    shares = _beta(config, epoch, CUTMIX, config.cutmix_alpha, num_steps)
    if not shares:
        return mixups
    across, down, choice = (uniform(config.seed, epoch, stream, num_steps) for stream in (BOX_X, BOX_Y, IS_CUTMIX))
    cutmixes = [_cutmix(*numbers, image_size) for numbers in zip(shares, down, across, strict=True)]
    if not mixups:
        return cutmixes
    pairs = zip(choice < 0.5, cutmixes, mixups, strict=True)
    return [cutmix if is_cutmix else mixup for is_cutmix, cutmix, mixup in pairs]


def _cutmix(share: float, down: float, across: float, image_size: tuple[int, int]) -> Mix:
    """Place a box of about 1 - ``share`` of the image; outside the image it is cut off, which raises the weight."""
    corners: list[int] = []
    for position, side in zip((down, across), image_size, strict=True):
        middle, half = int(position * side), int(side * np.sqrt(1 - share)) // 2
        corners += [max(middle - half, 0), min(middle + half, side)]
    top, bottom, left, right = corners
    area = (bottom - top) * (right - left) / (image_size[0] * image_size[1])
    return Mix(1 - area, (top, bottom, left, right))


def _beta(config: Config, epoch: int, stream: int, alpha: float, count: int) -> list[float]:
    """Draw lambda ~ Beta(alpha, alpha) of every step; none with an ``alpha`` of 0.

    By ``RandomState``, whose numbers are the same in every version of NumPy up to the rounding of the last digits.
    """
    if alpha == 0:
        return []
    drawn: list[float] = (
        np.random.RandomState(_bit_generator(config.seed, epoch, stream)).beta(alpha, alpha, count).tolist()
    )
    return drawn


def _bit_generator(seed: int, epoch: int, stream: int) -> np.random.Philox:
    """A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    return np.random.Philox(key=np.array([seed, epoch * MAX_STREAMS + stream], dtype=np.uint64))
