"""Every random decision of one epoch, drawn before it starts.

Each number is a pure function of (seed, epoch, sample index) or (seed, epoch, step): the same whatever feeds the
images, however many workers there are, and after any interruption. A counter-based hash gives them all at once and
needs no state; unlike a library's generator it cannot change with a version.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.core.system.device import to_device

# one independent stream of numbers per decision
ORDER, FLIP, ANGLE, BRIGHTNESS, CONTRAST, PARTNER, MIX = range(7)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationPlan:
    """Augmentation parameters of N images, as tensors of shape (N,) on one device."""

    flip: torch.Tensor  # bool: mirrored left to right
    angle: torch.Tensor  # float32, degrees, positive is counter-clockwise
    brightness: torch.Tensor  # float32 factor, 1 changes nothing
    contrast: torch.Tensor  # float32 factor, 1 changes nothing

    def part(self, window: slice) -> AugmentationPlan:
        """The parameters of the images in ``window``."""
        return AugmentationPlan(**{entry.name: getattr(self, entry.name)[window] for entry in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The order of an epoch's images, and what happens to each; position p is the p-th image seen."""

    order: NDArray[np.int64]  # (N,) sample indices, on the host
    order_on_device: torch.Tensor  # the same on the device
    augmentation: AugmentationPlan  # by position
    partner: torch.Tensor  # (N,) int64, by position: the place, within its own batch, of the image mixed in
    mix: tuple[float, ...]  # lambda of each step, in [0, 1]; empty without MixUp


def uniform(seed: int, epoch: int, stream: int, indices: NDArray[np.integer]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one per index, that depend on nothing else than the arguments.

    The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014),
    chained over the four values; the upper 53 bits make the number.

    Args:
        seed: Seed of the run, in [0, 2**64).
        epoch: Number of the epoch, at least 0.
        stream: Which decision the numbers are for.
        indices: Sample indices or steps, any shape, at least 0.
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in (seed, epoch, stream):
        state = _scramble(state + np.array([word], dtype=np.uint64))
    bits = _scramble(state + indices.astype(np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_plan(
    num_images: int,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    hflip: float,
    rotation_angle: float,
    jitter: float,
    mixup_alpha: float,
    device: torch.device,
) -> EpochPlan:
    """The plan of one epoch.

    Args:
        num_images: Size N of the training split.
        seed: Seed of the run.
        epoch: Number of the epoch.
        batch_size: Images per step; the last batch may be smaller.
        hflip: Probability of a horizontal flip, in [0, 1].
        rotation_angle: Largest rotation in degrees; angles are uniform in [-rotation_angle, rotation_angle).
        jitter: Brightness and contrast factors are uniform in [1 - jitter, 1 + jitter).
        mixup_alpha: Alpha of MixUp's Beta distribution; 0 draws none.
        device: Where the tensors go, in one transfer per epoch.
    """
    indices = np.arange(num_images)
    order = np.argsort(uniform(seed, epoch, ORDER, indices), kind="stable")

    def of_images(stream: int, low: float, high: float) -> torch.Tensor:
        drawn = low + (high - low) * uniform(seed, epoch, stream, order)
        return to_device(drawn.astype(np.float32), device)

    augmentation = AugmentationPlan(
        flip=to_device(uniform(seed, epoch, FLIP, order) < hflip, device),
        angle=of_images(ANGLE, -rotation_angle, rotation_angle),
        brightness=of_images(BRIGHTNESS, 1 - jitter, 1 + jitter),
        contrast=of_images(CONTRAST, 1 - jitter, 1 + jitter),
    )
    return EpochPlan(
        order=order,
        order_on_device=to_device(order, device),
        augmentation=augmentation,
        partner=to_device(_partners(num_images, seed, epoch, batch_size), device),
        mix=_mix_weights(-(-num_images // batch_size), seed, epoch, mixup_alpha),
    )


def _partners(num_images: int, seed: int, epoch: int, batch_size: int) -> NDArray[np.int64]:
    """A permutation of every batch, drawn per position so that it follows from (seed, epoch, step) alone."""
    drawn = uniform(seed, epoch, PARTNER, np.arange(num_images))
    batches = (drawn[start : start + batch_size] for start in range(0, num_images, batch_size))
    return np.concatenate([np.argsort(batch, kind="stable") for batch in batches])


def _mix_weights(num_steps: int, seed: int, epoch: int, alpha: float) -> tuple[float, ...]:
    """Lambda ~ Beta(alpha, alpha) of every step (Zhang et al., "mixup", ICLR 2018)."""
    if alpha == 0:
        return ()
    generators = (np.random.default_rng([seed, epoch, MIX, step]) for step in range(num_steps))
    return tuple(float(generator.beta(alpha, alpha)) for generator in generators)


def _scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step; arithmetic on unsigned arrays wraps around, as it must here."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
