"""The stem is chosen by image size; the transferred 3×3 kernels respond to an image as the 7×7 ones to a larger one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.models.resnet import STEMS, build_resnet18, choose_stem, transfer_stem

KERNEL, ENLARGEMENT = 7, 7 / 3


def oriented_kernels() -> torch.Tensor:
    """Blobs, edges and bars as ImageNet's first layer has them: smooth windows times waves; shape (18, 1, 7, 7)."""
    axis = torch.arange(KERNEL, dtype=torch.float64) - KERNEL // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * 1.8**2))
    kernels = []
    for turn in torch.arange(6) * math.pi / 6:
        along = x * torch.cos(turn) + y * torch.sin(turn)
        kernels += [window * torch.cos(0.9 * along), window * torch.sin(0.9 * along), window * along]
    return torch.stack(kernels).unsqueeze(1)


def smooth_image(side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A sum of long waves, sampled with ``side`` pixels and with 7/3 as many; shapes (1, 1, n, n)."""
    random = np.random.default_rng(seed)
    waves = random.normal(0, 1, (12, 4))

    def sample(pixels_per_unit: float, count: int) -> torch.Tensor:
        axis = (torch.arange(count, dtype=torch.float64) + 0.5) / pixels_per_unit
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        terms = [size * torch.sin(0.35 * (u * x + v * y) + 3 * phase) for u, v, size, phase in waves.tolist()]
        return torch.stack(terms).sum(0)[None, None]

    return sample(1, side), sample(ENLARGEMENT, round(side * ENLARGEMENT))


def responses(seed: int, transfer=transfer_stem) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses of the 7×7 kernels to the enlarged image and of the 3×3 ones to the small image, at the same places."""
    kernels = oriented_kernels()
    small, large = smooth_image(30, seed)
    ours = F.conv2d(small, transfer(kernels), padding=1)
    # ideal: the large response at the centres of the small pixels; 7/3 n + 2/3 is an integer for every third pixel
    ideal = F.conv2d(large, kernels, padding=3)
    places, ideal_places = torch.arange(1, 30, 3), torch.arange(1, 30, 3) * 7 // 3 + 1
    inside = slice(1, -1)  # away from the border, where padding has an effect
    return (
        ideal[0][:, ideal_places][:, :, ideal_places][:, inside, inside].flatten(1),
        ours[0][:, places][:, :, places][:, inside, inside].flatten(1),
    )


def test_the_responses_to_smooth_images_agree_in_shape_and_size():
    pairs = [responses(seed) for seed in range(8)]
    ideal, ours = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))

    correlation = float(torch.corrcoef(torch.stack((ideal.flatten(), ours.flatten())))[0, 1])
    gain = float((ideal * ours).sum() / (ideal * ideal).sum())

    # measured: correlation 0.9994, gain 1.07; without antialiasing 0.9989 and 0.98, with align_corners 0.988 and 0.64
    assert correlation > 0.999
    assert 0.95 < gain < 1.15


def test_the_response_to_a_constant_image_stays_the_same():
    kernels = torch.rand(64, 3, 7, 7, generator=torch.Generator().manual_seed(0))

    small = transfer_stem(kernels)

    assert small.shape == (64, 3, 3, 3)
    # antialiasing weighs the outermost taps a little less, so uneven kernels are off by some per cent
    torch.testing.assert_close(small.sum(dim=(2, 3)), kernels.sum(dim=(2, 3)), rtol=0.05, atol=0)
    torch.testing.assert_close(transfer_stem(torch.ones(1, 1, 7, 7)), torch.full((1, 1, 3, 3), 49 / 9))


def test_every_tap_of_the_source_counts():
    for row in range(7):
        for column in range(7):
            kernel = torch.zeros(1, 1, 7, 7)
            kernel[0, 0, row, column] = 1
            assert transfer_stem(kernel).abs().max() > 0


def test_orientation_is_kept():
    kernel = torch.zeros(1, 1, 7, 7)
    kernel[0, 0, :, 4:] = 1
    small = transfer_stem(kernel)[0, 0]

    assert (small[:, 2] > small[:, 0] + 1).all()
    torch.testing.assert_close(transfer_stem(kernel.mT)[0, 0], small.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    assert transfer_stem(torch.ones(2, 3, 7, 7, dtype=dtype)).dtype == dtype


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match=r"Expected kernels of shape \(out, in, 7, 7\), got \(64, 3, 3, 3\)\."):
        transfer_stem(torch.ones(64, 3, 3, 3))


@pytest.mark.parametrize(
    ("height", "width", "stem"),
    [
        (28, 28, "adapted"),
        (64, 64, "adapted"),
        (65, 65, "stock"),
        (64, 65, "stock"),
        (65, 64, "stock"),
        (128, 128, "stock"),
        (224, 224, "stock"),
        (1, 1, "adapted"),
    ],
)
def test_the_larger_side_decides_by_default(height, width, stem):
    assert choose_stem("auto", height, width)[0] == stem


def test_the_reason_names_the_size():
    assert choose_stem("auto", 28, 30)[1] == "images of 28 × 30 pixels, which are small (up to 64): every pixel is kept"
    assert choose_stem("auto", 224, 200)[1] == (
        "images of 224 × 200 pixels, which are large (above 64): a quarter of each side is enough"
    )


@pytest.mark.parametrize("requested", STEMS)
@pytest.mark.parametrize("side", [28, 224])
def test_a_requested_stem_is_used_at_any_size(requested, side):
    assert choose_stem(requested, side, side) == (requested, "as requested")


@pytest.mark.parametrize("name", STEMS)
def test_the_description_of_a_stem_is_true(name):
    model = build_resnet18(8, stem=name, seed=0)
    layers, kernel = STEMS[name].layers, STEMS[name].kernel
    assert model.conv1.kernel_size == (kernel, kernel)
    assert layers.startswith(f"{kernel}x{kernel}, stride {model.conv1.stride[0]}, ")
    assert ("no max-pool" in layers) == isinstance(model.maxpool, torch.nn.Identity)
    assert model.conv1.weight.shape == (64, 3, kernel, kernel)


# as the comment beside MAX_ADAPTED_SIDE and the documentation state them
@pytest.mark.parametrize(
    ("stem", "side", "giga"),
    [("adapted", 28, 0.46), ("adapted", 64, 2.2), ("stock", 28, 0.034), ("stock", 128, 0.59), ("stock", 224, 1.8)],
)
def test_the_costs_are_those_that_are_documented(stem, side, giga):
    model, products = build_resnet18(8, stem=stem, seed=0).eval(), []

    def count(module: torch.nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(module.weight, torch.Tensor)
        products.append(module.weight.numel() * math.prod(out.shape[2:]))

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))

    assert float(f"{sum(products) / 1e9:.2g}") == giga
