"""Backbones by name, one record each; importing this module imports neither PyTorch nor timm."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scripts.core.config import Config
from scripts.core.errors import ConfigError
from scripts.core.optional import missing_packages

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm/"  # beginning of the names of timm's models
Init = tuple[str, Mapping[str, Any]]  # a function of torch.nn.init and its options
STEMS = ("adapted", "stock")
# Pixels of the larger side up to which the adapted stem is chosen. It keeps more pixels, so its cost grows with the
# image: a ResNet-18 takes 0.46 GMAC at 28 pixels, 2.2 at 64, 8.9 at 128 and 27 at 224. With the stock stem it takes 1.8
# GMAC at 224, but of 28 pixels the first residual stage sees 7, and the last one a single pixel.
MAX_ADAPTED_SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One architecture: how it is built, and what the adapted stem changes."""

    title: str
    conv: str  # dotted name of the first convolution
    adapted: tuple[int, int] | None  # kernel side and stride of the adapted first convolution; None: it stays as it is
    head: str  # dotted name of the last layer
    pool: str | None = None  # dotted name of the max-pool that the adapted stem does without
    init: Init | None = None  # of a new first convolution; None: PyTorch's own
    min_side: int = 1  # pixels that the adapted network reduces to one; smaller images make its last stage pointless
    weights: str = "IMAGENET1K_V1"  # entry of torchvision's get_model_weights
    renamed: tuple[str, str] | None = None  # pattern and replacement for tensor names of torchvision's own file
    resizes: bool = False  # whether the model has timm's set_input_size for images and patches
    mean: tuple[float, ...] | None = None  # of timm's models; torchvision's come with its weights
    std: tuple[float, ...] | None = None

    @property
    def is_adaptable(self) -> bool:
        """Whether the adapted stem differs from the stock one."""
        return self.adapted is not None or self.resizes


_KAIMING = ("kaiming_normal_", MappingProxyType({"mode": "fan_out", "nonlinearity": "relu"}))
_DENSENET_NAMES = (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2")


def _resnet(title: str, weights: str = "IMAGENET1K_V1") -> Backbone:
    return Backbone(
        title=title, conv="conv1", pool="maxpool", adapted=(3, 1), head="fc", init=_KAIMING, min_side=8, weights=weights
    )


BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "resnet18": _resnet("ResNet-18"),
        "resnet34": _resnet("ResNet-34"),
        "resnet50": _resnet("ResNet-50", weights="IMAGENET1K_V2"),
        "densenet121": Backbone(
            title="DenseNet-121",
            conv="features.conv0",
            pool="features.pool0",
            adapted=(3, 1),
            head="classifier",
            init=("kaiming_normal_", MappingProxyType({})),
            min_side=8,
            renamed=_DENSENET_NAMES,
        ),
        "mobilenet_v3_large": Backbone(
            title="MobileNetV3-Large",
            conv="features.0.0",
            adapted=(3, 1),
            head="classifier.3",
            min_side=16,
            weights="IMAGENET1K_V2",
        ),
        "efficientnet_b0": Backbone(
            title="EfficientNet-B0", conv="features.0.0", adapted=(3, 1), head="classifier.1", min_side=16
        ),
        "efficientnet_v2_s": Backbone(
            title="EfficientNetV2-S", conv="features.0.0", adapted=(3, 1), head="classifier.1", min_side=16
        ),
        "convnext_tiny": Backbone(
            title="ConvNeXt-Tiny",
            conv="features.0.0",
            adapted=(2, 2),
            head="classifier.2",
            init=("trunc_normal_", MappingProxyType({"std": 0.02})),
            min_side=16,
        ),
        "swin_v2_t": Backbone(title="SwinV2-T", conv="features.0.0", adapted=(2, 2), head="head", min_side=16),
    }
)

# what the first convolutions of timm's models become: (kernel side, stride) by (kernel side, stride)
_ADAPTED_CONVOLUTIONS = {(7, 2): (3, 1), (7, 4): (3, 2), (4, 4): (2, 2), (3, 2): (3, 1)}


def find_backbone(name: str) -> Backbone:
    """Return the record of a backbone that ``backbone_problems`` finds nothing wrong with."""
    return _timm_backbone(name.removeprefix(TIMM)) if name.startswith(TIMM) else BACKBONES[name]


def build_published(name: str, num_classes: int) -> nn.Module:
    """Build a backbone as its authors published it, with new weights from the global generator."""
    if name.startswith(TIMM):
        import timm

        return timm.create_model(name.removeprefix(TIMM), pretrained=False, num_classes=num_classes)
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=num_classes)


def backbone_problems(config: Config) -> Iterator[str]:
    """One sentence if ``config.backbone`` cannot be built here."""
    name = config.backbone
    if not name.startswith(TIMM):
        if name not in BACKBONES:
            suggestion = _suggestion(name, BACKBONES)
            yield f"--backbone must be one of {', '.join(BACKBONES)}, or {TIMM}NAME, got {name!r}.{suggestion}"
    elif missing := list(missing_packages(f"--backbone {name}", "timm")):
        yield from missing
    else:
        try:
            find_backbone(name)
        except ConfigError as error:
            yield from error.problems


def _suggestion(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


@cache
def _timm_backbone(name: str) -> Backbone:
    """Make the record of one of timm's models from what timm knows about it.

    Raises:
        ConfigError: timm has no such model, or it does not end in one layer for the classes.
    """
    import timm
    import torch
    from torch import nn

    if not timm.is_model(name):
        suggestion = _suggestion(TIMM + name, [TIMM + known for known in timm.list_models()])
        raise ConfigError(f"--backbone {TIMM}{name} is not a model of timm {timm.__version__}.{suggestion}")
    try:
        description = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(f"--backbone {TIMM}{name} cannot be used: {error}") from error
    if description is None or not isinstance(description.classifier, str):
        raise ConfigError(f"--backbone {TIMM}{name} cannot be used: it does not end in one layer for the classes.")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    conv = description.first_conv if isinstance(description.first_conv, str) else ""
    first = model.get_submodule(conv)
    adapted = None
    if isinstance(first, nn.Conv2d):
        adapted = _ADAPTED_CONVOLUTIONS.get((first.kernel_size[0], first.stride[0]))
    resizes = hasattr(model, "set_input_size") and hasattr(model, "patch_embed")
    return Backbone(
        title=name,
        conv=conv,
        adapted=None if resizes else adapted,
        head=description.classifier,
        pool=None if resizes or adapted is None else _stem_pool(model, conv),
        resizes=resizes,
        mean=tuple(description.mean),
        std=tuple(description.std),
    )


def _stem_pool(model: Any, conv: str) -> str | None:
    """Name the max-pool between the first convolution and the next one with a stride; None where there is none."""
    from torch import nn

    modules = iter(model.named_modules())
    next(name for name, _ in modules if name == conv)
    for name, module in modules:
        if isinstance(module, nn.MaxPool2d):
            return name
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1:
            return None
    return None


def choose_stem(requested: str, height: int, width: int) -> tuple[str, str]:
    """Choose the stem for images of ``height`` × ``width`` pixels: one of ``STEMS``, and the reason in words.

    ``requested`` is one of ``STEMS``, or ``"auto"``.
    """
    if requested != "auto":
        return requested, "as requested"
    size = f"images of {width} × {height} pixels"
    if max(height, width) <= MAX_ADAPTED_SIDE:
        return "adapted", f"{size}, which are small (up to {MAX_ADAPTED_SIDE}): smaller strides keep more of them"
    return "stock", f"{size}, which are large (above {MAX_ADAPTED_SIDE}): a quarter of each side is enough"


def default_model_name(backbone: Backbone, stem: str) -> str:
    """Name a model after its backbone, and after its stem if that is adapted."""
    return f"{backbone.title} Adapted" if stem == "adapted" else backbone.title
