"""Batched augmentation does to each image what its parameters say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from scripts.data_handler.augmentation import MEAN, STD, augment, flip_and_rotate, jitter, normalise, to_float
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

    rotated = flip_and_rotate(images, flip, angle)

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

    found = augment(images, plan, rotates=True)

    for number, parameters in enumerate(zip(flip, angle, brightness, contrast, strict=True)):
        rotated = np.stack([rotate_slowly(channel.numpy(), *parameters[:2]) for channel in images[number]])
        expected = jitter_slowly(rotated, *parameters[2:])
        assert_close(found[number].numpy(), expected.astype(np.float32), atol=5e-5, rtol=0)


def test_a_quarter_turn_is_counter_clockwise():
    images = random_images()
    rotated = flip_and_rotate(images, torch.zeros(4, dtype=torch.bool), torch.full((4,), 90.0))

    assert_close(rotated, torch.rot90(images, 1, (2, 3)), atol=1e-5, rtol=0)


def test_without_rotation_the_flip_moves_whole_pixels():
    images = random_images()
    unchanged = torch.ones(4)
    plan = AugmentationPlan(
        flip=torch.tensor([True, False, True, False]), angle=unchanged * 0, brightness=unchanged, contrast=unchanged
    )

    augmented = augment(images, plan, rotates=False)

    assert_close(augmented[::2], images[::2].flip(3), atol=1e-6, rtol=0)
    assert_close(augmented[1::2], images[1::2], atol=1e-6, rtol=0)


def test_augment_rotates_by_the_angles_of_the_plan():
    images, unchanged = random_images(), torch.ones(4)
    plan = AugmentationPlan(
        flip=torch.zeros(4, dtype=torch.bool), angle=unchanged * 180, brightness=unchanged, contrast=unchanged
    )

    assert_close(augment(images, plan, rotates=True), images.flip(2, 3), atol=1e-5, rtol=0)


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
