"""The stem (first layers) of the network: its choice by image size, and the transfer of ImageNet's 7×7 kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor

# Pixels of the larger side up to which the adapted stem is chosen. It keeps every pixel, so its cost grows with the
# image: 0.457 GMAC at 28 pixels, 2.2 at 64, 8.9 at 128 and 27 at 224. The stock stem keeps a quarter of each side: it
# takes 1.8 GMAC at 224, but of 28 pixels the first residual stage sees 7, and the last one a single pixel.
MAX_ADAPTED_SIDE = 64


@dataclass(frozen=True, slots=True)
class Stem:
    """One kind of first layers of a ResNet."""

    layers: str  # in words, for users of the weights
    kernel: int  # side of conv1's kernels
    reduction: int  # how many pixels of a side become one in the last stage, rounded up


STEMS: Mapping[str, Stem] = MappingProxyType(
    {
        "adapted": Stem("3x3, stride 1, no max-pool", kernel=3, reduction=8),
        "stock": Stem("7x7, stride 2, max-pool 3x3, stride 2", kernel=7, reduction=32),
    }
)


def choose_stem(requested: str, height: int, width: int) -> tuple[str, str]:
    """Choose the stem for images of ``height`` × ``width`` pixels: a key of ``STEMS``, and the reason in words.

    ``requested`` is a key of ``STEMS``, or ``"auto"``.
    """
    if requested != "auto":
        return requested, "as requested"
    size = f"images of {height} × {width} pixels"
    if max(height, width) <= MAX_ADAPTED_SIDE:
        return "adapted", f"{size}, which are small (up to {MAX_ADAPTED_SIDE}): every pixel is kept"
    return "stock", f"{size}, which are large (above {MAX_ADAPTED_SIDE}): a quarter of each side is enough"


def is_stem(weight: Tensor, name: str) -> bool:
    """Whether ``weight`` has the shape of ``conv1`` in the stem ``name``."""
    kernel = STEMS[name].kernel
    return tuple(weight.shape) == (64, 3, kernel, kernel)


def transfer_stem(weight: Tensor) -> Tensor:
    """Resample kernels of shape (out, in, 7, 7) to (out, in, 3, 3), of the same dtype.

    Bicubic with antialiasing, so that every tap of the source contributes; ``align_corners=True`` would only pick the
    rows and columns 0, 3 and 6. Resampling keeps a kernel's mean, so its sum, which is the response to a constant
    image, shrinks with the number of taps, by 9/49: the result is multiplied by 49/9.

    Raises:
        ValueError: The kernels are not 7×7.
    """
    if weight.ndim != 4 or tuple(weight.shape[2:]) != (7, 7):
        raise ValueError(f"Expected kernels of shape (out, in, 7, 7), got {tuple(weight.shape)}.")
    side = STEMS["adapted"].kernel
    small = F.interpolate(weight.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return (small * (7 * 7 / side**2)).to(weight.dtype)
