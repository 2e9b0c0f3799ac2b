"""ResNet-18 (He et al., CVPR 2016) for small and for large images, with torchvision's parameter names.

The two differ in the stem (first layers); ImageNet's 7×7 kernels can be transferred to the smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18

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


def build_resnet18(num_classes: int, *, stem: str, seed: int) -> ResNet:
    """Build a ResNet-18 with the stem ``"adapted"`` or ``"stock"``, on the CPU in fp32.

    It maps images (N, 3, H, W) to logits (N, num_classes). ``seed`` seeds the initial weights, without touching
    PyTorch's global generator.
    """
    return {"adapted": adapted_resnet18, "stock": stock_resnet18}[stem](num_classes, seed=seed)


def stock_resnet18(num_classes: int, *, seed: int) -> ResNet:
    """Build torchvision's ResNet-18, for images of about 100 pixels and more.

    ``conv1`` is 7×7 with stride 2, and a max-pool follows, so the first stage sees a 224 × 224 image at 56 × 56.
    11,180,616 parameters for 8 classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(weights=None, num_classes=num_classes)


def adapted_resnet18(num_classes: int, *, seed: int) -> ResNet:
    """Build torchvision's ResNet-18 with a stem that keeps a 28 × 28 image at 28 × 28.

    ``conv1`` is 3×3 with stride 1 and padding 1 instead of 7×7 with stride 2, and ``maxpool`` is the identity.
    11,172,936 parameters for 8 classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet18(weights=None, num_classes=num_classes)
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


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
