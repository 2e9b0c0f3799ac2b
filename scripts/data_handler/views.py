"""The views of test-time augmentation: only those that the training augmentation produces too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scripts.core.config import Config
from scripts.data_handler.augmentation import FLIPPED, TRANSPOSED, UPSIDE_DOWN, resample


@dataclass(frozen=True, slots=True)
class View:
    """A symmetry of the square and a rotation under which an image is evaluated."""

    name: str
    symmetry: int = 0  # as ``augmentation.move`` takes it
    angle: float = 0.0  # degrees, counter-clockwise


PLAIN, FLIP = View("plain"), View("flipped", FLIPPED)
SQUARE = (
    PLAIN,
    FLIP,
    View("upside down", UPSIDE_DOWN),
    View("rotated 180°", FLIPPED | UPSIDE_DOWN),
    View("transposed", TRANSPOSED),
    View("rotated -90°", TRANSPOSED | FLIPPED),
    View("rotated +90°", TRANSPOSED | UPSIDE_DOWN),
    View("transposed and rotated 180°", TRANSPOSED | FLIPPED | UPSIDE_DOWN),
)


def tta_views(config: Config) -> tuple[View, ...]:
    """The views of test-time augmentation: only those that training with these settings produces too.

    With ``symmetries`` "all" they are the eight of the square. Otherwise the image is flipped if training flips some,
    and rotated by half of the largest angle.
    """
    if config.symmetries == "all":
        return SQUARE
    hflip = config.hflip if config.symmetries == "flip" else 0
    views = [PLAIN] if hflip < 1 else [FLIP]
    if 0 < hflip < 1:
        views.append(FLIP)
    if config.rotation_angle > 0 and config.rotation_prob > 0:
        usual, half = views[0], config.rotation_angle / 2
        prefix = "" if usual is PLAIN else f"{usual.name}, "
        views += [View(f"{prefix}rotated {angle:+g}°", usual.symmetry, angle) for angle in (half, -half)]
    return tuple(views)


def apply_view(images: Tensor, view: View) -> Tensor:
    """Show a batch of images (B, C, H, W) as the view says; without a rotation, pixels are only moved."""
    if view.symmetry & TRANSPOSED:
        images = images.transpose(2, 3)
    axes = [axis for axis, part in ((2, UPSIDE_DOWN), (3, FLIPPED)) if view.symmetry & part]
    images = images.flip(axes) if axes else images
    return resample(images, None, images.new_full((len(images),), view.angle), None) if view.angle else images
