"""Print the table of docs/backbones.md: what each backbone costs, and what its stages see of an image.

python -m benchmarks.backbones                            every backbone at 28, 64 and 224 pixels, some minutes
python -m benchmarks.backbones --sides 28 --steps 10      one size, with a longer measurement

The speed is that of a training step in fp32 (forward pass, backward pass, SGD), measured on the CPU after one step that
is not counted. Parameters and products (GMAC) are counted, not measured; they are for 8 classes.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.models.backbones import BACKBONES, choose_stem
from scripts.models.factory import new_model, outline

NUM_CLASSES = 8
# the modules that end the stem and the last stage; their inputs and outputs show what is left of an image
STAGES = {
    "resnet18": ("layer1", "layer4"),
    "resnet34": ("layer1", "layer4"),
    "resnet50": ("layer1", "layer4"),
    "densenet121": ("features.denseblock1", "features.denseblock4"),
    "mobilenet_v3_large": ("features.1", "features.15"),
    "efficientnet_b0": ("features.1", "features.7"),
    "efficientnet_v2_s": ("features.1", "features.6"),
    "convnext_tiny": ("features.1", "features.7"),
    "swin_v2_t": ("features.1", "features.7"),
}


def stage_sides(model: nn.Module, name: str, side: int) -> tuple[int, int]:
    """Sides of what the first and the last stage of a backbone see of square images; ``model`` may be on meta."""
    sides: list[int] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shown = output if sides else inputs[0]
        sides.append(shown.shape[-2])  # of (N, C, H, W), and of the (N, H, W, C) of Swin Transformers

    hooks = [model.get_submodule(stage).register_forward_hook(note) for stage in STAGES[name]]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    first, last = sides
    return first, last


def giga_products(model: nn.Module, side: int) -> float:
    """Billions of multiplications in the convolutions and matrix products of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    return counter.get_total_flops() / 2e9


def images_per_second(name: str, stem: str, side: int, *, batch_size: int, steps: int) -> float:
    """Measure training steps on the CPU."""
    model = new_model(name, NUM_CLASSES, stem=stem, seed=0, sides=(side, side))
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % NUM_CLASSES
    started = 0.0
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return steps * batch_size / (time.perf_counter() - started)


def counts(name: str, stem: str, side: int) -> tuple[str, str, str, str]:
    """Parameters, GMAC, and the sides that the first and the last stage see, as they are printed."""
    model = outline(name, stem=stem, sides=(side, side), num_classes=NUM_CLASSES)
    first, last = stage_sides(model, name, side)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters:,}", f"{giga_products(model, side):.2g}", str(first), str(last)


def main() -> None:
    """Print one row per backbone and size."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=(28, 64, 224))
    parser.add_argument("--steps", type=int, default=2, help="steps that are measured")
    parser.add_argument("--pixels", type=int, default=32 * 28 * 28, help="pixels of a batch, so at 28 pixels 32 images")
    given = parser.parse_args()
    print("| backbone | side | stem | parameters | GMAC | first stage | last stage | batch | img/s |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for name in BACKBONES:
        for side in given.sides:
            stem, _ = choose_stem("auto", side, side)
            batch_size = max(given.pixels // side**2, 4)
            speed = images_per_second(name, stem, side, batch_size=batch_size, steps=given.steps)
            cells = (f"`{name}`", side, stem, *counts(name, stem, side), batch_size, f"{speed:.3g}")
            print("|", *(f"{cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
