"""Draw every random decision of one epoch before it starts.

Augmentation parameters are a pure function of (seed, epoch, sample index), the order of (seed, epoch) and MixUp of
(seed, epoch, step): the same with any image source and number of workers, and after any interruption. Each decision
has its own stream of NumPy's Philox bit generator, whose raw numbers NumPy promises not to change, as those of its
frozen ``RandomState`` (https://numpy.org/doc/stable/reference/random/compatibility.html).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.core.system.device import to_device

# one independent stream of numbers per decision
ORDER, FLIP, ANGLE, BRIGHTNESS, CONTRAST, PARTNER, MIX, STEP_SEED = range(8)
MAX_STREAMS = 256


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
    step_seeds: tuple[int, ...]  # of each step, 63 bits: for dropout and stochastic depth


def uniform(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.float64]:
    """Draw the first ``count`` numbers of a stream, uniform in [0, 1); number n does not depend on ``count``.

    The upper 53 of each 64 random bits make the number: NumPy fixes the bits, but not its own conversion to floats.
    ``seed`` is in [0, 2**64), ``epoch`` in [0, 2**56), ``stream`` (one per decision) in [0, ``MAX_STREAMS``).
    """
    bits = _bit_generator(seed, epoch, stream).random_raw(count)
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
    """Draw the plan of one epoch for ``num_images`` training images, on ``device`` in one transfer.

    ``hflip`` is the probability of a horizontal flip. Angles are uniform in [-``rotation_angle``, ``rotation_angle``)
    degrees, brightness and contrast factors in [1 - ``jitter``, 1 + ``jitter``). ``mixup_alpha`` is the alpha of the
    Beta distribution of MixUp; 0 draws none. The last batch may be smaller than ``batch_size``.
    """
    order = np.argsort(uniform(seed, epoch, ORDER, num_images), kind="stable")

    def by_position(stream: int) -> NDArray[np.float64]:
        return uniform(seed, epoch, stream, num_images)[order]  # drawn by sample index

    def of_images(stream: int, low: float, high: float) -> torch.Tensor:
        return to_device((low + (high - low) * by_position(stream)).astype(np.float32), device)

    augmentation = AugmentationPlan(
        flip=to_device(by_position(FLIP) < hflip, device),
        angle=of_images(ANGLE, -rotation_angle, rotation_angle),
        brightness=of_images(BRIGHTNESS, 1 - jitter, 1 + jitter),
        contrast=of_images(CONTRAST, 1 - jitter, 1 + jitter),
    )
    num_steps = -(-num_images // batch_size)
    return EpochPlan(
        order=order,
        order_on_device=to_device(order, device),
        augmentation=augmentation,
        partner=to_device(_partners(num_images, seed, epoch, batch_size), device),
        mix=_mix_weights(num_steps, seed, epoch, mixup_alpha),
        step_seeds=tuple((_bit_generator(seed, epoch, STEP_SEED).random_raw(num_steps) >> np.uint64(1)).tolist()),
    )


def _partners(num_images: int, seed: int, epoch: int, batch_size: int) -> NDArray[np.int64]:
    """A permutation of every batch, drawn by position, so that it follows from (seed, epoch, step) alone."""
    drawn = uniform(seed, epoch, PARTNER, num_images)
    batches = (drawn[start : start + batch_size] for start in range(0, num_images, batch_size))
    return np.concatenate([np.argsort(batch, kind="stable") for batch in batches])


def _mix_weights(num_steps: int, seed: int, epoch: int, alpha: float) -> tuple[float, ...]:
    """Draw lambda ~ Beta(alpha, alpha) of every step (Zhang et al., "mixup", ICLR 2018).

    By ``RandomState``, whose numbers are the same in every version of NumPy up to the rounding of the last digits.
    """
    if alpha == 0:
        return ()
    return tuple(np.random.RandomState(_bit_generator(seed, epoch, MIX)).beta(alpha, alpha, num_steps).tolist())


def _bit_generator(seed: int, epoch: int, stream: int) -> np.random.Philox:
    """A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    return np.random.Philox(key=np.array([seed, epoch * MAX_STREAMS + stream], dtype=np.uint64))
