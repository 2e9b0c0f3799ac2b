"""Batched augmentation does to each image what its parameters say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from scripts.data_handler.augmentation import (
    FLIPPED,
    MEAN,
    STD,
    TRANSPOSED,
    UPSIDE_DOWN,
    augment,
    erase,
    jitter,
    move,
    normalise,
    resample,
    to_float,
)
from scripts.data_handler.plan import AugmentationPlan


def random_images(count: int = 4, height: int = 9, width: int = 9, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, height, width, generator=generator)


def rotate_slowly(image: np.ndarray, flip: bool, degrees: float) -> np.ndarray:
    """One channel (H, W), pixel by pixel: mirror, rotate counter-clockwise, bilinear, reflect at the edges."""
    height, width = image.shape
    source = image[:, ::-1] if flip else image
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def reflect(place: float, size: int) -> float:
        while not -0.5 <= place <= size - 0.5:
            place = -1 - place if place < -0.5 else 2 * size - 1 - place
        return min(max(place, 0), size - 1)

    rotated = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            x, y = column - (width - 1) / 2, row - (height - 1) / 2
            source_x = reflect(cosine * x - sine * y + (width - 1) / 2, width)
            source_y = reflect(sine * x + cosine * y + (height - 1) / 2, height)
            left, top = math.floor(source_x), math.floor(source_y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            across, down = source_x - left, source_y - top
            rotated[row, column] = (1 - down) * ((1 - across) * source[top, left] + across * source[top, right]) + (
                down * ((1 - across) * source[bottom, left] + across * source[bottom, right])
            )
    return rotated


def test_stored_bytes_become_fractions_in_channel_order():
    rgb = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    grey = torch.tensor([[[0, 255]]], dtype=torch.uint8)

    assert_close(to_float(rgb), torch.tensor([0.0, 0.2, 1.0]).view(1, 3, 1, 1))
    assert_close(to_float(grey), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))


@pytest.mark.parametrize(("height", "width"), [(9, 9), (6, 11)])
def test_flip_and_rotation_match_a_per_image_reference(height, width):
    images = random_images(6, height, width)
    flip = torch.tensor([False, True, False, True, False, True])
    angle = torch.tensor([0.0, 0.0, 30.0, -45.0, 90.0, 7.5])

    rotated = resample(images, flip, angle, None)

    for number in range(6):
        for channel in range(3):
            expected = rotate_slowly(images[number, channel].numpy(), bool(flip[number]), float(angle[number]))
            assert_close(rotated[number, channel].numpy(), expected, atol=2e-5, rtol=0)


def jitter_slowly(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Apply to one image (C, H, W): brightness, then contrast about its own mean luma, each kept in [0, 1]."""
    bright = np.clip(image * brightness, 0, 1)
    weights = (0.299, 0.587, 0.114) if len(bright) == 3 else (1.0,)
    mean = sum(weight * channel.mean() for weight, channel in zip(weights, bright, strict=True))
    return np.clip(mean + contrast * (bright - mean), 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (6, 11)])
def test_the_whole_augmentation_matches_a_per_image_reference(height, width, channels):
    images = random_images(5, height, width, channels)
    flip, angle = [True, False, True, False, True], [0.0, 10.0, -7.0, 33.0, 2.5]
    brightness, contrast = [0.8, 1.2, 1.1, 0.95, 1.6], [1.15, 0.85, 0.9, 1.2, 0.4]
    plan = AugmentationPlan(
        flip=torch.tensor(flip),
        angle=torch.tensor(angle),
        brightness=torch.tensor(brightness),
        contrast=torch.tensor(contrast),
    )

    found = augment(images, plan)

    for number, parameters in enumerate(zip(flip, angle, brightness, contrast, strict=True)):
        rotated = np.stack([rotate_slowly(channel.numpy(), *parameters[:2]) for channel in images[number]])
        expected = jitter_slowly(rotated, *parameters[2:])
        assert_close(found[number].numpy(), expected.astype(np.float32), atol=5e-5, rtol=0)


def test_a_quarter_turn_is_counter_clockwise():
    images = random_images()
    rotated = resample(images, None, torch.full((4,), 90.0), None)

    assert_close(rotated, torch.rot90(images, 1, (2, 3)), atol=1e-5, rtol=0)


def test_augment_rotates_by_the_angles_of_the_plan():
    images = random_images()
    assert_close(augment(images, AugmentationPlan(angle=torch.full((4,), 180.0))), images.flip(2, 3), atol=1e-5, rtol=0)


def test_images_that_are_neither_rotated_nor_scaled_keep_their_pixels_exactly():
    images = random_images(6)
    flip = torch.tensor([True, False, True, False, True, False])
    rotated = torch.tensor([False, False, True, True, False, False])
    plan = AugmentationPlan(flip=flip, angle=torch.where(rotated, 7.0, 0.0), is_resampled=rotated)

    found = augment(images, plan)

    assert torch.equal(found[[0, 4]], images[[0, 4]].flip(3))
    assert torch.equal(found[[1, 5]], images[[1, 5]])
    assert torch.equal(found[[2, 3]], resample(images, flip, torch.full((6,), 7.0), None)[[2, 3]])
    assert sharpness(found[[2, 3]]) < 0.8 * sharpness(images)  # what a resampling costs
    assert torch.equal(augment(images, AugmentationPlan(flip=flip))[1], images[1])
    assert augment(images, AugmentationPlan()) is images


def sharpness(images: torch.Tensor) -> float:
    """The mean energy of the Laplacian of inner pixels."""
    inner = images[:, :, 1:-1, 1:-1]
    around = images[:, :, :-2, 1:-1] + images[:, :, 2:, 1:-1] + images[:, :, 1:-1, :-2] + images[:, :, 1:-1, 2:]
    return float((4 * inner - around).square().mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_symmetries_are_eight_different_exact_moves(channels):
    image = random_images(1, 9, 9, channels)
    moved = move(image.expand(8, -1, -1, -1), torch.arange(8, dtype=torch.uint8), None, None)

    for symmetry in range(8):
        expected = image.transpose(2, 3) if symmetry & TRANSPOSED else image
        expected = expected.flip(2) if symmetry & UPSIDE_DOWN else expected
        expected = expected.flip(3) if symmetry & FLIPPED else expected
        assert torch.equal(moved[symmetry], expected[0])
    assert len({tuple(one.flatten().tolist()) for one in moved}) == 8


def test_every_symmetry_has_an_inverse_among_the_eight():
    image = random_images(1).expand(8, -1, -1, -1)
    all_of_them = torch.arange(8, dtype=torch.uint8)
    for symmetry in range(8):
        moved = move(image, torch.full((8,), symmetry, dtype=torch.uint8), None, None)
        assert sum(torch.equal(one, image[0]) for one in move(moved, all_of_them, None, None)) == 1


@pytest.mark.parametrize(("height", "width"), [(9, 9), (6, 11)])
@pytest.mark.parametrize(("shift_x", "shift_y"), [(0, 0), (2, 0), (-3, 1), (0, -4), (25, -40)])
def test_shifts_move_whole_pixels_and_reflect_at_the_border(height, width, shift_x, shift_y):
    images = random_images(2, height, width)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (60, 60), (60, 60)), mode="symmetric")

    moved = move(images, None, torch.tensor([shift_x] * 2), torch.tensor([shift_y] * 2))

    expected = padded[:, :, 60 - shift_y : 60 - shift_y + height, 60 - shift_x : 60 - shift_x + width]
    assert np.array_equal(moved.numpy(), expected)


def test_each_image_has_its_own_symmetry_and_shift():
    images = random_images(3)
    symmetry, shift_x, shift_y = torch.tensor([0, 5, 3]), torch.tensor([1, 0, -2]), torch.tensor([0, 3, 1])
    together = move(images, symmetry, shift_x, shift_y)
    for number in range(3):
        one = slice(number, number + 1)
        turned = move(images[one], symmetry[one], None, None)
        assert torch.equal(together[one], move(turned, None, shift_x[one], shift_y[one]))


def test_rotation_and_scale_agree_with_torchvision_inside_the_image():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import affine

    images = random_images(3, 21, 21)
    angle, scale = torch.tensor([12.0, -30.0, 0.0]), torch.tensor([1.1, 0.9, 1.25])
    found = resample(images, None, angle, scale)
    for number in range(3):
        expected = affine(
            images[number],
            angle=-float(angle[number]),  # torchvision turns clockwise
            translate=[0, 0],
            scale=float(scale[number]),
            shear=[0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert_close(found[number, :, 7:14, 7:14], expected[:, 7:14, 7:14], atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_erased_pixels_are_zero_after_normalisation_and_the_others_stay(channels):
    inputs = normalise(random_images(3, 8, 10, channels))
    erased = erase(inputs, AugmentationPlan(erased=torch.tensor([[0, 0, 0, 0], [1, 4, 2, 9], [0, 8, 0, 10]])))

    assert torch.equal(erased[0], inputs[0])
    box = torch.zeros(8, 10, dtype=torch.bool)
    box[1:4, 2:9] = True
    assert bool((erased[1][:, box] == 0).all())
    assert torch.equal(erased[1][:, ~box], inputs[1][:, ~box])
    assert bool((erased[2] == 0).all())
    assert erase(inputs, AugmentationPlan()) is inputs


def test_brightness_scales_and_is_clamped():
    images = torch.full((2, 3, 2, 2), 0.6)

    bright = jitter(images, torch.tensor([0.5, 2.0]), torch.ones(2))

    assert_close(bright[0], torch.full((3, 2, 2), 0.3))
    assert_close(bright[1], torch.ones(3, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_stretches_about_the_mean_luma(channels):
    images = torch.full((1, channels, 1, 2), 0.5)
    images[..., 0], images[..., 1] = 0.4, 0.6

    stretched = jitter(images, torch.ones(1), torch.tensor([2.0]))

    # the mean is 0.5: 0.4 moves to 0.3, 0.6 to 0.7
    assert_close(stretched[0, 0, 0], torch.tensor([0.3, 0.7]))


def test_luma_weighs_green_most():
    green = torch.zeros(1, 3, 1, 1)
    green[0, 1] = 1

    without_contrast = jitter(green, torch.ones(1), torch.zeros(1))

    assert_close(without_contrast, torch.full((1, 3, 1, 1), 0.587))


def test_jitter_agrees_with_torchvision():
    from torchvision.transforms.functional import adjust_brightness, adjust_contrast

    images = random_images()
    expected = [adjust_contrast(adjust_brightness(image, 1.15), 0.85) for image in images]

    # torchvision takes luma with three digits that sum to 0.9999
    assert_close(
        jitter(images, torch.full((4,), 1.15), torch.full((4,), 0.85)), torch.stack(expected), atol=1e-4, rtol=0
    )


def test_normalising_uses_imagenets_statistics_and_makes_grey_three_channels():
    images = torch.full((1, 1, 2, 2), 0.485)
    normal = normalise(images)

    assert normal.shape == (1, 3, 2, 2)
    expected = [(0.485 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    assert_close(normal[0, :, 0, 0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_network_can_expect_other_statistics():
    images = random_images(2)
    assert_close(normalise(images, (0.5,) * 3, (0.25,) * 3), (images - 0.5) * 4)
