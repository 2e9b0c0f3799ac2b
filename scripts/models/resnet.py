"""ResNet-18 (He et al., CVPR 2016) for small and for large images, with torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import ResNet, resnet18


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
