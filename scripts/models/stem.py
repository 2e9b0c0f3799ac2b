"""First layers for small images: smaller strides and kernels, with the weights of the published ones carried over."""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2

from scripts.models.backbones import Backbone, Init

MIN_FIRST_SIDE = 14  # what the first stage sees of small images, at least
Sides = tuple[int, int]  # height and width


def transfer_kernels(weight: Tensor, side: int) -> Tensor:
    """Resample square kernels of shape (out, in, k, k) to (out, in, side, side), of the same dtype.

    Bicubic with antialiasing, so that every tap of the source contributes; ``align_corners=True`` would only pick the
    rows and columns 0, 3 and 6 of 7. Resampling keeps a kernel's mean, so its sum, which is the response to a constant
    image, shrinks with the number of taps: the result is multiplied by k² / side².

    Raises:
        ValueError: The kernels are not square, or smaller than ``side``.
    """
    kernel = weight.shape[-1]
    if weight.ndim != 4 or weight.shape[2] != kernel or kernel < side:
        raise ValueError(f"Expected square kernels of at least {side} × {side}, got {tuple(weight.shape)}.")
    if kernel == side:
        return weight
    small = F.interpolate(weight.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return (small * (kernel * kernel / side**2)).to(weight.dtype)


def fit_to_images(model: nn.Module, backbone: Backbone, stem: str, sides: Sides, *, new: bool) -> None:
    """Change a model as published, in place, to one with the requested stem for images of ``sides``.

    ``new`` draws kernels of another size from the global generator, instead of resampling the published ones.
    """
    conv = model.get_submodule(backbone.conv)
    if backbone.resizes:
        _set_input_size(model, sides, is_adapted=stem == "adapted", new=new)
    elif stem == "adapted" and backbone.adapted and isinstance(conv, nn.Conv2d):
        side, stride = backbone.adapted
        conv.stride = (stride, stride)
        if side != conv.kernel_size[0]:
            _replace_kernels(conv, side, backbone.init, new=new)
        if backbone.pool:
            model.set_submodule(backbone.pool, nn.Identity())
        _adapt_windows(model, (sides[0] // stride, sides[1] // stride))


def _replace_kernels(conv: nn.Conv2d, side: int, init: Init | None, *, new: bool) -> None:
    published = conv.weight
    conv.kernel_size = (side, side)
    conv.padding = (side // 2, side // 2) if conv.padding != (0, 0) else (0, 0)
    if not new:
        conv.weight = nn.Parameter(transfer_kernels(published.detach(), side))
        return
    conv.weight = nn.Parameter(published.new_empty(*published.shape[:2], side, side))
    conv.reset_parameters()
    if init is not None:
        name, options = init
        getattr(nn.init, name)(conv.weight, **options)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def window_side(sides: Sides, published: int) -> int:
    """Choose the side of attention windows for a first stage of ``sides``: 7 where it fits and 8 does not."""
    fits_seven = all(side % 7 == 0 for side in sides) and any(side % 8 for side in sides)
    return 7 if published == 8 and fits_seven else published


def _adapt_windows(model: nn.Module, sides: Sides) -> None:
    """Give a Swin Transformer V2 the window that fits its first stage.

    Its authors (Liu et al., CVPR 2022) compute the log-spaced table of a smaller window from offsets divided by the
    largest offset of the window that was trained with. These are the middle of the published table.
    """
    for module in model.modules():
        if isinstance(module, ShiftedWindowAttentionV2):
            published = module.window_size[0]
            window = window_side(sides, published)
            if (cut := published - window) == 0:
                return
            table = module.get_buffer("relative_coords_table")
            module.relative_coords_table = table[:, cut:-cut, cut:-cut].clone()
            module.window_size = [window, window]
            module.shift_size = [window // 2 if shift else 0 for shift in module.shift_size]
            with table.device:
                module.define_relative_position_index()


def _set_input_size(model: Any, sides: Sides, *, is_adapted: bool, new: bool) -> None:
    """Let timm fit one of its transformers: patches of a size that leaves 14 × 14 of them, position tables, windows."""
    options: dict[str, Any] = {"img_size": sides}
    known = inspect.signature(model.set_input_size).parameters
    patches = tuple(model.patch_embed.patch_size)
    if is_adapted and "patch_size" in known:
        patches = tuple(min(patch, max(side // MIN_FIRST_SIDE, 1)) for patch, side in zip(patches, sides, strict=True))
        options["patch_size"] = patches
    if "window_size" in known:
        published = next(module.window_size[0] for module in model.modules() if hasattr(module, "window_size"))
        first = tuple(side // patch for side, patch in zip(sides, patches, strict=True))
        options["window_size"] = window_side((first[0], first[1]), published)
    conv = model.patch_embed.proj
    model.set_input_size(**options)
    if new and model.patch_embed.proj is not conv:
        model.patch_embed.proj.reset_parameters()


def stem_layers(model: nn.Module, backbone: Backbone) -> str:
    """Describe the first layers of a model in words, as they are."""
    conv = model.get_submodule(backbone.conv)
    words = [type(conv).__name__]
    if isinstance(conv, nn.Conv2d):
        words = [f"{conv.kernel_size[0]}x{conv.kernel_size[1]}", f"stride {conv.stride[0]}"]
    if backbone.pool:
        pool = model.get_submodule(backbone.pool)
        side, stride = (pool.kernel_size, pool.stride) if isinstance(pool, nn.MaxPool2d) else (0, 0)
        words.append(f"max-pool {side}x{side}, stride {stride}" if side else "no max-pool")
    if window := window_of(model):
        words.append(f"window {window}x{window}")
    return ", ".join(words)


def window_of(model: nn.Module) -> int | None:
    """The side of the attention windows of a Swin Transformer; None for other models."""
    windows = (getattr(module, "window_size", None) for module in model.modules())
    return next((int(window[0]) for window in windows if isinstance(window, (list, tuple))), None)
