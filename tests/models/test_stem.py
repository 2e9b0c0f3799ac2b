"""The stem is chosen by image size; transferred kernels respond to an image as the published ones to a larger one."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model

from benchmarks.backbones import stage_sides
from scripts.models.backbones import BACKBONES, STEMS, build_published, choose_stem, find_backbone
from scripts.models.factory import outline
from scripts.models.stem import fit_to_images, stem_layers, transfer_kernels, window_of, window_side

# sides of the published and of the adapted kernels, padding of both
RESNET, PATCHES = (7, 3, 3, 1), (4, 2, 0, 0)
TRANSFERS = pytest.mark.parametrize("kind", [RESNET, PATCHES], ids=["7x7 to 3x3", "4x4 to 2x2"])


def oriented_kernels(side: int) -> torch.Tensor:
    """Blobs, edges and bars as ImageNet's first layer has them: smooth windows times waves; shape (18, 1, n, n)."""
    axis = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * 1.8**2))
    kernels = []
    for turn in torch.arange(6) * math.pi / 6:
        along = x * torch.cos(turn) + y * torch.sin(turn)
        kernels += [window * torch.cos(0.9 * along), window * torch.sin(0.9 * along), window * along]
    return torch.stack(kernels).unsqueeze(1)


def smooth_image(side: int, seed: int, enlargement: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A sum of long waves, sampled with ``side`` pixels and with ``enlargement`` as many; shapes (1, 1, n, n)."""
    random = np.random.default_rng(seed)
    waves = random.normal(0, 1, (12, 4))

    def sample(pixels_per_unit: float, count: int) -> torch.Tensor:
        axis = (torch.arange(count, dtype=torch.float64) + 0.5) / pixels_per_unit
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        terms = [size * torch.sin(0.35 * (u * x + v * y) + 3 * phase) for u, v, size, phase in waves.tolist()]
        return torch.stack(terms).sum(0)[None, None]

    return sample(1, side), sample(enlargement, round(side * enlargement))


def responses(seed: int, kind: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses of the published kernels to the enlarged image and of ours to the small one, at the same places."""
    large_side, small_side, large_padding, small_padding = kind
    kernels = oriented_kernels(large_side)
    small, large = smooth_image(30, seed, large_side / small_side)
    ours = F.conv2d(small, transfer_kernels(kernels, small_side), padding=small_padding)
    ideal = F.conv2d(large, kernels, padding=large_padding)
    if kind == PATCHES:  # patches of both sizes begin at the same places
        return ideal[0, :, ::4, ::4].flatten(1), ours[0, :, ::2, ::2].flatten(1)
    # the large response at the centres of the small pixels; 7/3 n + 2/3 is an integer for every third pixel
    places, ideal_places = torch.arange(1, 30, 3), torch.arange(1, 30, 3) * 7 // 3 + 1
    inside = slice(1, -1)  # away from the border, where padding has an effect
    return (
        ideal[0][:, ideal_places][:, :, ideal_places][:, inside, inside].flatten(1),
        ours[0][:, places][:, :, places][:, inside, inside].flatten(1),
    )


@TRANSFERS
def test_the_responses_to_smooth_images_agree_in_shape_and_size(kind):
    pairs = [responses(seed, kind) for seed in range(8)]
    ideal, ours = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))

    correlation = float(torch.corrcoef(torch.stack((ideal.flatten(), ours.flatten())))[0, 1])
    gain = float((ideal * ours).sum() / (ideal * ideal).sum())

    # measured for 7×7: correlation 0.9994, gain 1.07; without antialiasing 0.9989 and 0.98, with align_corners 0.988
    # and 0.64; for 4×4: 0.9961 and 1.10
    assert correlation > {RESNET: 0.999, PATCHES: 0.995}[kind]
    assert 0.95 < gain < 1.15


@TRANSFERS
def test_the_response_to_a_constant_image_stays_the_same(kind):
    side, small_side, *_ = kind
    kernels = torch.rand(64, 3, side, side, generator=torch.Generator().manual_seed(0))

    small = transfer_kernels(kernels, small_side)

    assert small.shape == (64, 3, small_side, small_side)
    # antialiasing weighs the outermost taps a little less, so uneven kernels are off by some per cent
    torch.testing.assert_close(small.sum(dim=(2, 3)), kernels.sum(dim=(2, 3)), rtol=0.12, atol=0)
    constant = torch.full((1, 1, small_side, small_side), (side / small_side) ** 2)
    torch.testing.assert_close(transfer_kernels(torch.ones(1, 1, side, side), small_side), constant)


@TRANSFERS
def test_every_tap_of_the_source_counts(kind):
    side, small_side, *_ = kind
    for row in range(side):
        for column in range(side):
            kernel = torch.zeros(1, 1, side, side)
            kernel[0, 0, row, column] = 1
            assert transfer_kernels(kernel, small_side).abs().max() > 0


def test_orientation_is_kept():
    kernel = torch.zeros(1, 1, 7, 7)
    kernel[0, 0, :, 4:] = 1
    small = transfer_kernels(kernel, 3)[0, 0]

    assert (small[:, 2] > small[:, 0] + 1).all()
    torch.testing.assert_close(transfer_kernels(kernel.mT, 3)[0, 0], small.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    assert transfer_kernels(torch.ones(2, 3, 7, 7, dtype=dtype), 3).dtype == dtype


@pytest.mark.parametrize("shape", [(64, 3, 2, 2), (64, 3, 7, 5), (64, 3, 7)])
def test_other_kernels_are_refused(shape):
    with pytest.raises(ValueError, match="Expected square kernels of at least 3 × 3, got"):
        transfer_kernels(torch.ones(shape), 3)


@cache
def published_and_adapted(name: str) -> tuple[nn.Module, nn.Module]:
    """A backbone of torchvision with some weights, and the same one with the adapted stem."""
    models = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            models.append(get_model(name, num_classes=4))
    fit_to_images(models[1], BACKBONES[name], "adapted", (28, 28), new=False)
    return models[0], models[1]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_adapted_stem_has_the_published_kernels_and_smaller_strides(name):
    backbone = BACKBONES[name]
    published, adapted = (model.get_submodule(backbone.conv) for model in published_and_adapted(name))
    assert isinstance(published, nn.Conv2d)
    assert isinstance(adapted, nn.Conv2d)
    assert (adapted.kernel_size[0], adapted.stride[0]) == backbone.adapted
    assert adapted.stride[0] < published.stride[0]

    assert torch.equal(adapted.weight, transfer_kernels(published.weight, adapted.kernel_size[0]))
    if adapted.kernel_size == published.kernel_size:
        assert torch.equal(adapted.weight, published.weight)
    if published.bias is not None:
        assert adapted.bias is not None
        assert torch.equal(adapted.bias, published.bias)


@pytest.mark.parametrize("name", BACKBONES)
def test_everything_behind_the_stem_stays_as_it_is_published(name):
    published, adapted = (model.state_dict() for model in published_and_adapted(name))
    changed = [key for key in published if not torch.equal(published[key], adapted[key])]

    stem = f"{BACKBONES[name].conv}.weight"
    tables = ("relative_coords_table", "relative_position_index")
    assert list(published) == list(adapted)
    assert [key for key in changed if key != stem and not key.endswith(tables)] == []


@pytest.mark.parametrize("name", BACKBONES)
def test_of_small_images_the_first_stage_sees_14_pixels_of_a_side_or_more(name):
    first, last = stage_sides(outline(name, stem="adapted", sides=(28, 28)), name, 28)
    assert first >= 14
    assert last >= 1
    at_64, _ = stage_sides(outline(name, stem="adapted", sides=(64, 64)), name, 64)
    assert at_64 >= 32


@pytest.mark.parametrize("name", BACKBONES)
def test_the_smallest_sensible_side_is_a_single_pixel_in_the_last_stage(name):
    side = BACKBONES[name].min_side
    assert stage_sides(outline(name, stem="adapted", sides=(side, side)), name, side)[1] == 1
    assert stage_sides(outline(name, stem="adapted", sides=(2 * side, 2 * side)), name, 2 * side)[1] == 2


@pytest.mark.parametrize(
    ("sides", "published", "window"),
    [
        ((14, 14), 8, 7),
        ((7, 7), 8, 7),
        ((28, 14), 8, 7),
        ((32, 32), 8, 8),
        ((56, 56), 8, 8),
        ((14, 16), 8, 8),
        ((12, 12), 8, 8),
        ((14, 14), 7, 7),
        ((16, 16), 7, 7),
    ],
)
def test_the_window_is_7_where_that_fits_and_8_does_not(sides, published, window):
    assert window_side(sides, published) == window


def test_the_tables_of_a_smaller_window_are_those_of_the_authors():
    """Liu et al., 2022: offsets over the largest one of the window trained with, times 8, on a logarithmic scale."""
    _, model = published_and_adapted("swin_v2_t")
    offsets = torch.arange(-6, 7) / 7 * 8
    axis = torch.sign(offsets) * torch.log2(offsets.abs() + 1) / math.log2(8)
    expected = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)[None]
    rows = torch.arange(7)[:, None].expand(7, 7).flatten()
    columns = torch.arange(7).repeat(7)
    indices = (rows[:, None] - rows + 6) * 13 + columns[:, None] - columns + 6
    state = model.state_dict()

    tables = [value for key, value in state.items() if key.endswith("relative_coords_table")]
    assert len(tables) == 12
    for table in tables:
        torch.testing.assert_close(table, expected)
    for key, value in state.items():
        if key.endswith("relative_position_index"):
            assert torch.equal(value, indices.flatten())


def test_windows_are_shifted_by_half_in_every_second_block():
    _, model = published_and_adapted("swin_v2_t")
    shifts = [module.shift_size for module in model.modules() if hasattr(module, "shift_size")]
    assert shifts == [[0, 0], [3, 3]] * 6
    assert window_of(model) == 7
    assert window_of(published_and_adapted("swin_v2_t")[0]) == 8
    assert window_of(published_and_adapted("resnet18")[0]) is None


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
    assert (
        choose_stem("auto", 28, 30)[1]
        == "images of 30 × 28 pixels, which are small (up to 64): smaller strides keep more of them"
    )
    assert choose_stem("auto", 224, 200)[1] == (
        "images of 200 × 224 pixels, which are large (above 64): a quarter of each side is enough"
    )


@pytest.mark.parametrize("requested", STEMS)
@pytest.mark.parametrize("side", [28, 224])
def test_a_requested_stem_is_used_at_any_size(requested, side):
    assert choose_stem(requested, side, side) == (requested, "as requested")


@pytest.mark.parametrize(
    ("name", "stem", "words"),
    [
        ("resnet18", "adapted", "3x3, stride 1, no max-pool"),
        ("resnet18", "stock", "7x7, stride 2, max-pool 3x3, stride 2"),
        ("densenet121", "stock", "7x7, stride 2, max-pool 3x3, stride 2"),
        ("mobilenet_v3_large", "adapted", "3x3, stride 1"),
        ("efficientnet_b0", "stock", "3x3, stride 2"),
        ("convnext_tiny", "adapted", "2x2, stride 2"),
        ("swin_v2_t", "adapted", "2x2, stride 2, window 7x7"),
        ("swin_v2_t", "stock", "4x4, stride 4, window 8x8"),
    ],
)
def test_a_stem_is_described_as_it_is(name, stem, words):
    assert stem_layers(outline(name, stem=stem, sides=(28, 28)), find_backbone(name)) == words


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s"])
def test_a_smaller_stride_answers_as_the_published_one_does_and_between(name):
    torch.manual_seed(0)
    published, images = build_published(name, 2).get_submodule("features.0.0"), torch.rand(2, 3, 28, 28)
    model = build_published(name, 2)
    model.get_submodule("features.0.0").load_state_dict(published.state_dict())
    fit_to_images(model, BACKBONES[name], "adapted", (28, 28), new=False)

    with torch.no_grad():
        ours, theirs = model.get_submodule("features.0.0")(images), published(images)

    assert ours.shape[-1] == 2 * theirs.shape[-1] == 28
    # correlation 1 and gain 1 at the places that the published one sees
    torch.testing.assert_close(ours[:, :, ::2, ::2], theirs, atol=1e-6, rtol=1e-5)
