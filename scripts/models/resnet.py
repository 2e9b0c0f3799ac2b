"""ResNet-18 for small and for large images."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import ResNet, resnet18


def build_resnet18(num_classes: int, *, stem: str, seed: int) -> ResNet:
    """Build a ResNet-18 with either stem.

    Args:
        num_classes: Outputs, at least 2.
        stem: ``"adapted"`` or ``"stock"``.
        seed: Seeds the initial weights, without touching PyTorch's global generator.

    Returns:
        The model on the CPU in fp32; it takes inputs of shape (N, 3, H, W).
    """
    builders = {"adapted": adapted_resnet18, "stock": stock_resnet18}
    return builders[stem](num_classes, seed=seed)


def stock_resnet18(num_classes: int, *, seed: int) -> ResNet:
    """Build torchvision's ResNet-18 (He et al., CVPR 2016), for images of about 100 pixels and more.

    ``conv1`` is 7×7 with stride 2, and a max-pool follows, so the first stage sees a 224 × 224 image at 56 × 56.
    11,180,616 parameters for 8 classes. Arguments and result are those of ``build_resnet18``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(weights=None, num_classes=num_classes)


def adapted_resnet18(num_classes: int, *, seed: int) -> ResNet:
    """Build torchvision's ResNet-18 (He et al., CVPR 2016) with a stem that keeps a 28 × 28 image at 28 × 28.

    ``conv1`` is 3×3 with stride 1 and padding 1 instead of 7×7 with stride 2, ``maxpool`` is the identity, ``fc`` has
    ``num_classes`` outputs; all parameter names are torchvision's. 11,172,936 parameters for 8 classes. Arguments and
    result are those of ``build_resnet18``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet18(weights=None, num_classes=num_classes)
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
