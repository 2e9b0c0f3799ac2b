"""Grad-CAM: which places of an image raise the score of a class, by the last feature maps of any network.

Reference: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017,
https://arxiv.org/abs/1610.02391
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor, nn

from scripts.core.errors import ConfigError
from scripts.data_handler.augmentation import normalise, to_float
from scripts.evaluation.inference import Predictor

MAX_STRETCH = 2.0  # by which the aspect ratios of feature maps and images differ, from rounding odd sides

Size = tuple[int, int]  # height and width


class GradCam:
    """Makes the heat maps of a trained model, in fp32 whatever precision it was trained in."""

    def __init__(self, predictor: Predictor, size: Size) -> None:
        """Find the layer that is explained.

        Raises:
            ConfigError: The network has no feature maps.
        """
        self._predictor = replace(predictor, views=(), precision="fp32")
        self._size = size
        self.device = next(predictor.model.parameters()).device
        inputs = self._inputs(torch.zeros(1, *size, 3, dtype=torch.uint8, device=self.device))
        self.layer, self.shape = find_layer(predictor.model, inputs)

    @property
    def description(self) -> str:
        """The layer that is explained, in words."""
        channels, height, width = self.shape
        return f"layer {self.layer}, {channels} maps of {width} × {height}"

    def probabilities(self, stored: Tensor) -> Tensor:
        """Predict uint8 images (B, H, W) or (B, H, W, 3) as they are explained: float32 (B, K)."""
        return self._predictor(stored)[0]

    def __call__(self, stored: Tensor, classes: Tensor) -> Tensor:
        """Make one heat map for each image.

        Args:
            stored: uint8 images (B, H, W) or (B, H, W, 3), on the device of the model.
            classes: Index of the class, or label, that is explained for each image, int64 (B,).

        Returns:
            float32 (B, H, W) in [0, 1]: where the class is supported, relative to the place that supports it most.
            All zero where no place does.
        """
        from captum.attr import LayerAttribution, LayerGradCam

        with torch.enable_grad(), _tap(self._predictor.model, self.layer, self._size) as tap:
            method = LayerGradCam(self._predictor.model, tap)
            maps = method.attribute(self._inputs(stored), target=classes, relu_attributions=True)
        heat = LayerAttribution.interpolate(maps, self._size, interpolate_mode="bilinear")[:, 0].detach()
        peak = heat.amax(dim=(1, 2), keepdim=True)
        return torch.where(peak > 0, heat / peak, 0.0)

    def _inputs(self, stored: Tensor) -> Tensor:
        images = normalise(to_float(stored), self._predictor.mean, self._predictor.std)
        return images.contiguous(memory_format=torch.channels_last).requires_grad_()


def find_layer(model: nn.Module, inputs: Tensor) -> tuple[str, tuple[int, int, int]]:
    """Find the last layer whose output is feature maps of more than one place, and has an effect on the scores.

    ``inputs`` are normalised images (1, 3, H, W). Returns the layer's name and the shape of its maps (C, h, w).

    Raises:
        ConfigError: No layer is of this kind.
    """
    outputs: list[tuple[str, Tensor]] = []

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                outputs.append((name, output))

        return record

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    try:
        with torch.enable_grad():
            score = model(inputs).sum()
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in reversed(outputs):
        # of a transformer that reads a class token, the last layers' other tokens have no effect
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
        maps = None if gradient is None else _maps_of(gradient, (inputs.shape[2], inputs.shape[3]))
        if maps is not None and maps.any():
            return name, (maps.shape[1], maps.shape[2], maps.shape[3])
    raise ConfigError("Grad-CAM needs a layer of feature maps, and this network has none.")


@contextmanager
def _tap(model: nn.Module, name: str, size: Size) -> Iterator[nn.Module]:
    """A module through which the feature maps of a layer pass while inside, as (B, C, h, w) whatever their order."""
    tap = nn.Identity()

    def redirect(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return _through(tap, output, size)

    hook = model.get_submodule(name).register_forward_hook(redirect)
    try:
        yield tap
    finally:
        hook.remove()


def _maps_of(output: Tensor, size: Size) -> Tensor | None:
    """The feature maps (B, C, h, w) in the output of a layer; None if there are none."""
    seen: list[Tensor] = []

    def see(maps: Tensor) -> Tensor:
        seen.append(maps)
        return maps

    _through(see, output, size)
    return seen[0] if seen else None


def _through(tap: Callable[[Tensor], Tensor], output: Tensor, size: Size) -> Tensor:
    """Pass the feature maps in ``output`` through ``tap``, which takes and returns (B, C, h, w).

    They are (B, C, h, w), (B, h, w, C), or tokens (B, L, C), some of which may precede those of a square image. Any
    other output is returned as it is.
    """
    if output.ndim == 4 and _is_map(output.shape[2:], size):
        return tap(output)
    if output.ndim == 4 and _is_map(output.shape[1:3], size):
        return tap(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    if output.ndim == 3 and _is_map((side := isqrt(output.shape[1]), side), size):
        first, places = output.tensor_split([output.shape[1] - side * side], dim=1)
        maps = tap(places.transpose(1, 2).unflatten(2, (side, side)))
        return torch.cat((first, maps.flatten(2).transpose(1, 2)), dim=1)
    return output


def _is_map(sides: tuple[int, ...], size: Size) -> bool:
    """Whether ``sides`` can be height and width of feature maps of more than one place of an image."""
    (height, width), (image_height, image_width) = sides, size
    if not (height <= image_height and width <= image_width and height * width > 1):
        return False
    stretch = (height / width) / (image_height / image_width)
    return 1 / MAX_STRETCH <= stretch <= MAX_STRETCH
