"""MixUp (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)."""

from __future__ import annotations

from torch import Tensor


def mix(images: Tensor, targets: Tensor, partner: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Blend every image and its target with those of its partner: weight·own + (1 - weight)·partner's.

    Args:
        images: float32, shape (B, C, H, W).
        targets: float32, shape (B, K).
        partner: For each image the place of its partner in the batch, int64, shape (B,).
        weight: Lambda, in [0, 1].

    Returns:
        Mixed images and targets, of the same shapes.
    """
    return images[partner].lerp_(images, weight), targets[partner].lerp_(targets, weight)
