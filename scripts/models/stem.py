"""ImageNet's 7×7 stem carried over to a 3×3 one, for pictures of 28 pixels instead of 224."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SIDE = 3


def transfer_stem(weight: Tensor) -> Tensor:
    """Resample the kernels of a 7×7 convolution to 3×3.

    Bicubic with antialiasing, so that every tap of the source counts; ``align_corners=True`` would only pick the rows
    and columns 0, 3 and 6. Resampling keeps a kernel's mean, so its sum, which is the answer to a constant picture,
    shrinks with the number of taps, by 9/49: the result is multiplied by 49/9.

    Args:
        weight: Kernels, shape (out, in, 7, 7).

    Returns:
        Kernels, shape (out, in, 3, 3), of the same dtype.

    Raises:
        ValueError: The kernels are not 7×7.
    """
    if weight.ndim != 4 or tuple(weight.shape[2:]) != (7, 7):
        raise ValueError(f"Expected kernels of shape (out, in, 7, 7), got {tuple(weight.shape)}.")
    gain = weight.shape[2] * weight.shape[3] / SIDE**2
    small = F.interpolate(weight.float(), size=(SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
    return (small * gain).to(weight.dtype)
