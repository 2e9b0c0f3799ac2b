"""Turn a 2D network into one for volumes, with its weights: planar kernels in three views, inflated, or in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, LayerNorm2d
from torchvision.models.densenet import DenseNet
from torchvision.ops.misc import Permute

CONVOLUTIONS = ("acs", "3d", "2.5d")
DEPTH, HEIGHT, WIDTH = 2, 3, 4  # axes of a batch of volumes (B, C, D, H, W)


def thirds(count: int) -> tuple[int, int, int]:
    """Divide output channels among the axial, coronal and sagittal view; the first views get the remainder.

    >>> thirds(64), thirds(8)
    ((22, 21, 21), (3, 3, 2))
    """
    quotient, remainder = divmod(count, 3)
    return quotient + (remainder >= 1), quotient + (remainder == 2), quotient


class VolumeConv(nn.Module):
    """A 2D convolution applied to volumes (B, C, D, H, W), with stride, padding and dilation along all three axes.

    ``acs``: a third of the output channels each sees the axial (H × W), coronal (D × W) and sagittal (D × H) planes;
    ``2.5d``: all see the axial planes. In both, the kernels keep their 2D shape (out, in, k, k).
    ``3d``: kernels of shape (out, in, k, k, k), the 2D ones repeated along the depth and divided by k.
    A grey volume (C = 1) gives what three equal channels would give.

    Sources: Yang et al., "Reinventing 2D Convolutions for 3D Images", IEEE JBHI 2021 (acs, 2.5d); Carreira and
    Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017 (inflated kernels).
    """

    def __init__(self, conv: nn.Conv2d, kind: str) -> None:
        """Take over the parameters of ``conv``; ``kind`` is one of ``CONVOLUTIONS``.

        Raises:
            ValueError: The convolution is not of the plain kind: square, zeros as padding, PyTorch's own class.
        """
        super().__init__()
        given: tuple[Any, ...] = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or any(pair[0] != pair[1] for pair in given):
            raise ValueError(f"{type(conv).__name__}({conv.extra_repr()}) has no counterpart for volumes")
        self.kernel, self.stride, self.padding, self.dilation = (int(pair[0]) for pair in given)
        self.kind = "2.5d" if self.kernel == 1 else kind  # one tap is the same in every plane
        self.groups = conv.groups
        self.weight = nn.Parameter(conv.weight.detach())  # the same memory
        if self.kind == "3d":
            inflated = conv.weight.detach().unsqueeze(DEPTH).repeat(1, 1, self.kernel, 1, 1) / self.kernel
            self.weight = nn.Parameter(inflated)
        self.bias = conv.bias

    def extra_repr(self) -> str:
        """The settings, for the text of a model."""
        return f"{self.kind}, {tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}"

    def forward(self, volumes: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W) to (B, K, D', H', W'), sides as those of a convolution with k × k × k taps."""
        weight: Tensor = self.weight
        if volumes.shape[1] == 1 < weight.shape[1] and self.groups == 1:
            weight = weight.sum(dim=1, keepdim=True)
        if self.kind == "3d":
            return F.conv3d(volumes, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.kind == "2.5d":
            return self._in_plane(volumes, weight, self.bias, DEPTH, self.groups)
        # channels of a group stay together, so that each view has its own inputs where there are groups
        sizes = thirds(self.groups if self.groups > 1 else len(weight))
        per_part = len(weight) // sum(sizes)
        channels = [per_part * size for size in sizes]
        biases = (None, None, None) if self.bias is None else self.bias.split(channels)
        inputs = (volumes, volumes, volumes)
        if self.groups > 1:
            inputs = volumes.split([volumes.shape[1] // self.groups * size for size in sizes], dim=1)
        parts = zip(inputs, weight.split(channels), biases, (DEPTH, HEIGHT, WIDTH), sizes, strict=True)
        found = [
            self._in_plane(part, kernels, bias, axis, size if self.groups > 1 else 1)
            for part, kernels, bias, axis, size in parts
            if size
        ]
        return torch.cat(found, dim=1)

    def _in_plane(self, volumes: Tensor, weight: Tensor, bias: Tensor | None, axis: int, groups: int) -> Tensor:
        """Convolve the planes across ``axis``, which loses as many places as the other axes do."""
        side, reach = volumes.shape[axis], self.dilation * (self.kernel - 1)
        count = (side + 2 * self.padding - reach - 1) // self.stride + 1
        # the tap of k along this axis that is not zero: the middle one, which "same" padding puts on the own plane
        first = self.dilation * ((self.kernel - 1) // 2) - self.padding
        after = first + (count - 1) * self.stride + 1 - side
        if first < 0 or after > 0:
            pads = [0, 0] * (WIDTH - axis) + [max(-first, 0), max(after, 0)]
            volumes, first = F.pad(volumes, pads), max(first, 0)
        planes = volumes.narrow(axis, first, (count - 1) * self.stride + 1)
        padding = [self.padding] * 3
        padding[axis - DEPTH] = 0
        return F.conv3d(planes, weight.unsqueeze(axis), bias, self.stride, padding, self.dilation, groups)


class LayerNorm3d(nn.LayerNorm):
    """Layer normalisation over the channels of volumes (B, C, D, H, W)."""

    def forward(self, volumes: Tensor) -> Tensor:
        """Normalise each place of a volume."""
        return super().forward(volumes.movedim(1, -1)).movedim(-1, 1)


class _DenseNet3d(DenseNet):
    """The published network, whose forward pass calls a 2D pool by name."""

    def forward(self, volumes: Tensor) -> Tensor:
        features = F.relu(self.features(volumes), inplace=True)
        logits: Tensor = self.classifier(features.mean(dim=(DEPTH, HEIGHT, WIDTH)))
        return logits


# the counterparts have the same attributes, so that changing the class of a layer is enough
_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: nn.BatchNorm3d,
    nn.MaxPool2d: nn.MaxPool3d,
    nn.AvgPool2d: nn.AvgPool3d,
    nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool3d,
    nn.Dropout2d: nn.Dropout3d,
    LayerNorm2d: LayerNorm3d,
    DenseNet: _DenseNet3d,
}


def to_volumes(model: nn.Module, kind: str) -> None:
    """Change a convolutional network, in place, into one for volumes (B, 1 or 3, D, H, W), with all its weights.

    ``kind`` is one of ``CONVOLUTIONS``. The parameters of ``acs`` and ``2.5d`` keep their names and shapes, but for the
    layer scales of a ConvNeXt, which get one axis more; so a 2D state dict fits.

    Raises:
        ValueError: A layer has no counterpart for volumes.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d):
            model.set_submodule(name, VolumeConv(layer, kind))
        elif counterpart := _COUNTERPARTS.get(type(layer)):
            layer.__class__ = counterpart
            if isinstance(layer, nn.AdaptiveAvgPool3d):
                layer.output_size = 1  # as in all backbones
        elif isinstance(layer, Permute):
            layer.dims = [0, 2, 3, 4, 1] if layer.dims == [0, 2, 3, 1] else [0, 4, 1, 2, 3]
        elif isinstance(layer, CNBlock):
            layer.layer_scale = nn.Parameter(layer.layer_scale.detach().unsqueeze(-1))
        elif isinstance(layer, nn.MultiheadAttention) or "Attention" in type(layer).__name__:
            raise ValueError(f"{type(layer).__name__} attends to the places of an image, and has no convolutions")
