"""What the evaluation shows the network follows from what training shows it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from scripts.data_handler.augmentation import PLAIN, View, apply_view, tta_views


@pytest.mark.parametrize(
    ("hflip", "angle", "names"),
    [
        (0.5, 10, ["plain", "flipped", "rotated +5°", "rotated -5°"]),
        (0.5, 0, ["plain", "flipped"]),
        (0.0, 7, ["plain", "rotated +3.5°", "rotated -3.5°"]),
        (0.0, 0, ["plain"]),
        (1.0, 10, ["flipped", "flipped, rotated +5°", "flipped, rotated -5°"]),
    ],
)
def test_views_are_those_that_training_produces(hflip, angle, names):
    views = tta_views(hflip=hflip, rotation_angle=angle)

    assert [view.name for view in views] == names
    assert all(abs(view.angle) <= angle for view in views)
    assert all(view.flip for view in views) or hflip < 1


def test_looking_turns_and_flips():
    images = torch.arange(9.0).view(1, 1, 3, 3)

    assert apply_view(images, PLAIN) is images
    assert_close(apply_view(images, View("flipped", flip=True)), images.flip(3), atol=1e-5, rtol=0)
    assert_close(apply_view(images, View("quarter", angle=90.0)), torch.rot90(images, 1, (2, 3)), atol=1e-4, rtol=0)
