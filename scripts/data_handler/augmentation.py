"""From uint8 images to the network's input, as batched tensor operations on the device.

Shapes: B images of a batch, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.data_handler.plan import AugmentationPlan

# ImageNet's statistics, for every data set: most pretrained stems were trained on inputs normalised with them
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

FLIPPED, UPSIDE_DOWN, TRANSPOSED = 1, 2, 4  # parts of a symmetry of the square, of which there are eight

# weights of the colours in an image's brightness (ITU-R BT.601), as in torchvision's contrast jitter
LUMA = (0.299, 0.587, 0.114)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images (B, H, W) or (B, H, W, C) to float32 in [0, 1] of shape (B, C, H, W).

    The result for colour images is in channels_last memory format.
    """
    images_bchw = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images_bchw.float().div_(255)


def augment(images: Tensor, plan: AugmentationPlan) -> Tensor:
    """Move, flip, rotate, scale and jitter each image by its own parameters; see ``erase`` for the last step.

    Symmetries and shifts only move pixels. Flip, rotation and scale are one bilinear resampling, so pixels are
    interpolated once; an image that is neither rotated nor scaled is not resampled at all. Outside the image is its
    reflection. Brightness comes before contrast, each clamped to [0, 1].

    Args:
        images: float32 in [0, 1], shape (B, C, H, W).
        plan: Parameters of shape (B,).

    Returns:
        float32 in [0, 1], shape (B, C, H, W).
    """
    if plan.symmetry is not None or plan.shift_x is not None:
        images = move(images, plan.symmetry, plan.shift_x, plan.shift_y)
    if plan.angle is None and plan.scale is None:
        images = _flipped(images, plan.flip)
    else:
        resampled = resample(images, plan.flip, plan.angle, plan.scale)
        if plan.is_resampled is not None:
            resampled = torch.where(_per_image(plan.is_resampled), resampled, _flipped(images, plan.flip))
        images = resampled
    if plan.brightness is None or plan.contrast is None:
        return images
    return jitter(images, plan.brightness, plan.contrast)


def _flipped(images: Tensor, flip: Tensor | None) -> Tensor:
    """Mirror the images of ``flip`` left to right, exactly."""
    return images if flip is None else torch.where(_per_image(flip), images.flip(3), images)


def move(images: Tensor, symmetry: Tensor | None, shift_x: Tensor | None, shift_y: Tensor | None) -> Tensor:
    """Apply a symmetry of the square and then a shift to each image, by moving whole pixels once.

    Args:
        images: Any type, shape (B, C, H, W), as the result; symmetries above 3 need H = W.
        symmetry: Integers, shape (B,): the sum of ``TRANSPOSED`` (first), ``UPSIDE_DOWN`` and ``FLIPPED``; None is 0.
        shift_x: Pixels to the right, int64, shape (B,); None is 0.
        shift_y: Pixels down.
    """
    count, _, height, width = images.shape
    device = images.device
    row, column = (torch.arange(side, device=device).expand(count, side) for side in (height, width))
    row = row if shift_y is None else _reflected(row - shift_y.unsqueeze(1), height)
    column = column if shift_x is None else _reflected(column - shift_x.unsqueeze(1), width)
    if symmetry is not None:
        symmetry = symmetry.unsqueeze(1)
        row = torch.where((symmetry & UPSIDE_DOWN) > 0, height - 1 - row, row)
        column = torch.where((symmetry & FLIPPED) > 0, width - 1 - column, column)
        is_transposed = ((symmetry & TRANSPOSED) > 0).unsqueeze(2)
        row, column = row.unsqueeze(2), column.unsqueeze(1)
        row, column = torch.where(is_transposed, column, row), torch.where(is_transposed, row, column)
    else:
        row, column = row.unsqueeze(2), column.unsqueeze(1)
    number = torch.arange(count, device=device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[number, row, column].permute(0, 3, 1, 2)


def _reflected(places: Tensor, side: int) -> Tensor:
    """The pixels that an image of ``side`` pixels shows beyond its border, where it is continued by reflection."""
    places = places % (2 * side)
    return torch.where(places < side, places, 2 * side - 1 - places)


def resample(images: Tensor, flip: Tensor | None, angle: Tensor | None, scale: Tensor | None) -> Tensor:
    """Mirror the images of ``flip`` left to right, then rotate and scale all about their centre, in one resampling.

    Args:
        images: float32, shape (B, C, H, W), as the result.
        flip: bool, shape (B,); None flips none.
        angle: Degrees, shape (B,); positive is counter-clockwise; None is 0.
        scale: Factors, shape (B,); above 1 enlarges; None is 1.
    """
    height, width = images.shape[-2:]
    radians = torch.deg2rad(images.new_zeros(len(images)) if angle is None else angle)
    cosine, sine = torch.cos(radians), torch.sin(radians)
    if scale is not None:
        cosine, sine = cosine / scale, sine / scale
    sign = 1 if flip is None else 1 - 2 * flip.to(images.dtype)
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


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation; grey images become three equal channels.

    From float32 in [0, 1] of shape (B, C, H, W) to float32 of shape (B, 3, H, W); ImageNet's statistics by default.
    """
    on_device = (_constant(tuple(values), images.device).view(1, -1, 1, 1) for values in (mean, std))
    subtracted, divisor = on_device
    return (images - subtracted) / divisor


def erase(inputs: Tensor, plan: AugmentationPlan) -> Tensor:
    """Set the erased box of each image to 0, which is the mean of normalised images, float32 (B, 3, H, W).

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """
    if plan.erased is None:
        return inputs
    top, bottom, left, right = plan.erased.unsqueeze(2).unbind(1)
    rows, columns = (torch.arange(side, device=inputs.device) for side in inputs.shape[-2:])
    is_row, is_column = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return inputs.masked_fill((is_row.unsqueeze(2) & is_column.unsqueeze(1)).unsqueeze(1), 0)


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
