"""From uint8 images to the network's input, as batched tensor operations on the device; the views of TTA.

Shapes: B images of a batch, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.data_handler.plan import AugmentationPlan

# ImageNet's statistics, for every data set: the pretrained stem was trained on inputs normalised with them
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# weights of the colours in an image's brightness (ITU-R BT.601), as in torchvision's contrast jitter
LUMA = (0.299, 0.587, 0.114)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images (B, H, W) or (B, H, W, C) to float32 in [0, 1] of shape (B, C, H, W).

    The result for colour images is in channels_last memory format.
    """
    images_bchw = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images_bchw.float().div_(255)


def augment(images: Tensor, plan: AugmentationPlan, *, rotates: bool) -> Tensor:
    """Flip, rotate and jitter each image by its own parameters.

    Flip and rotation are one bilinear resampling, so pixels are interpolated once; outside the image is its reflection.
    Brightness comes before contrast, each clamped to [0, 1].

    Args:
        images: float32 in [0, 1], shape (B, C, H, W).
        plan: Parameters of shape (B,).
        rotates: Whether any angle may differ from 0; if none does, the flip moves whole pixels exactly.

    Returns:
        float32 in [0, 1], shape (B, C, H, W).
    """
    if rotates:
        images = flip_and_rotate(images, plan.flip, plan.angle)
    else:
        images = torch.where(_per_image(plan.flip), images.flip(3), images)
    return jitter(images, plan.brightness, plan.contrast)


def flip_and_rotate(images: Tensor, flip: Tensor, angle: Tensor) -> Tensor:
    """Mirror the images of ``flip`` left to right, then rotate all about their centre, in one resampling.

    Args:
        images: float32, shape (B, C, H, W), as the result.
        flip: bool, shape (B,).
        angle: Degrees, shape (B,); positive is counter-clockwise.
    """
    height, width = images.shape[-2:]
    radians = torch.deg2rad(angle)
    cosine, sine = torch.cos(radians), torch.sin(radians)
    sign = 1 - 2 * flip.to(images.dtype)
    # coordinates run over [-1, 1] on both axes, hence the aspect ratio
    by_x = torch.stack((sign * cosine, sine * (width / height)))
    by_y = torch.stack((-sign * sine * (height / width), cosine))
    x, y = _centres(width, images.device), _centres(height, images.device).unsqueeze(1)
    # where in the source each pixel comes from, shape (2, B, H, W). Written out, because the matrix product of two
    # columns in F.affine_grid takes ten times as long on a CPU, and on a GPU loses half of its digits to TF32.
    source = by_x[..., None, None] * x + by_y[..., None, None] * y
    grid = source.permute(1, 2, 3, 0)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Scale each image's brightness, then its contrast about its own mean luma.

    Images are float32 in [0, 1] of shape (B, C, H, W), before and after; the factors have shape (B,).
    """
    bright = (images * _per_image(brightness)).clamp_(0, 1)
    if images.shape[1] == 3:
        mean = bright.mean(dim=(2, 3)) @ _constant(LUMA, images.device)
    else:
        mean = bright.mean(dim=(1, 2, 3))
    # not torch.lerp, which takes twice as long where the weight is broadcast
    return (bright * _per_image(contrast)).add_(_per_image(mean * (1 - contrast))).clamp_(0, 1)


def normalise(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation; grey images become three equal channels.

    From float32 in [0, 1] of shape (B, C, H, W) to float32 of shape (B, 3, H, W).
    """
    mean, std = (_constant(values, images.device).view(1, -1, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@cache
def _centres(count: int, device: torch.device) -> Tensor:
    """The centres of ``count`` pixels side by side that fill [-1, 1], shape (count,)."""
    return (torch.arange(count, device=device) * 2 + 1) / count - 1


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values on the device; cached, because sending them in each step would make the host wait for the device."""
    return torch.tensor(values, device=device)


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
