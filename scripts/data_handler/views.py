"""The views of test-time augmentation: only flips and rotations that the training augmentation produces too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.data_handler.augmentation import flip_and_rotate


@dataclass(frozen=True, slots=True)
class View:
    """A flip and a rotation under which an image is evaluated."""

    name: str
    flip: bool = False
    angle: float = 0.0  # degrees, counter-clockwise


PLAIN = View("plain")


def tta_views(*, hflip: float, rotation_angle: float) -> tuple[View, ...]:
    """The views of test-time augmentation: only those that training produces too.

    Args:
        hflip: Probability of a flip in training; with 0 no view is flipped, with 1 all are.
        rotation_angle: Largest rotation in training, in degrees; views are rotated by half of it.
    """
    flipped = View("flipped", flip=True)
    views = [PLAIN] if hflip < 1 else [flipped]
    if 0 < hflip < 1:
        views.append(flipped)
    if rotation_angle > 0:
        usual, half = views[0], rotation_angle / 2
        prefix = "flipped, " if usual.flip else ""
        views += [View(f"{prefix}rotated {angle:+g}°", usual.flip, angle) for angle in (half, -half)]
    return tuple(views)


def apply_view(images: Tensor, view: View) -> Tensor:
    """Flip and rotate a batch of images, float32 of shape (B, C, H, W), as the view says."""
    if not view.flip and view.angle == 0:
        return images
    flip = torch.full((len(images),), view.flip, device=images.device)
    return flip_and_rotate(images, flip, torch.full((len(images),), view.angle, device=images.device))
