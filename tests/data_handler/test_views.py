"""What the evaluation shows the network follows from what training shows it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from scripts.core.config import Config
from scripts.data_handler.augmentation import move
from scripts.data_handler.plan import draw_plan
from scripts.data_handler.views import FLIP, PLAIN, SQUARE, View, apply_view, tta_views


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
def test_the_views_of_flips_and_rotations(hflip, angle, names):
    assert [view.name for view in tta_views(Config(hflip=hflip, rotation_angle=angle))] == names


@settings(max_examples=60, deadline=None)
@given(
    symmetries=st.sampled_from(["none", "flip", "all"]),
    hflip=st.sampled_from([0.0, 0.3, 1.0]),
    angle=st.integers(0, 180),
    prob=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_views_are_those_that_training_produces(symmetries, hflip, angle, prob):
    config = Config(symmetries=symmetries, hflip=hflip, rotation_angle=angle, rotation_prob=prob)
    views = tta_views(config)

    assert len({view.name for view in views}) == len(views) == len({(view.symmetry, view.angle) for view in views})
    drawn = draw_plan(config, 200, epoch=1, image_size=(8, 8), device=torch.device("cpu")).augmentation
    shown = drawn.flip if drawn.symmetry is None else drawn.symmetry
    assert {view.symmetry for view in views} == ({0} if shown is None else set(map(int, shown)))
    largest = 0.0 if drawn.angle is None else float(drawn.angle.abs().max())
    assert all(abs(view.angle) <= largest for view in views)


def test_the_eight_of_the_square_are_exact_and_the_moves_of_training():
    images = torch.arange(75.0).view(1, 3, 5, 5)
    assert tta_views(Config(symmetries="all")) == SQUARE
    assert SQUARE[0] is PLAIN
    for view in SQUARE:
        assert torch.equal(apply_view(images, view), move(images, torch.tensor([view.symmetry]), None, None))
    shown = {view.name: apply_view(images, view) for view in SQUARE}
    for name, turns in (("rotated +90°", 1), ("rotated 180°", 2), ("rotated -90°", 3)):
        assert torch.equal(shown[name], torch.rot90(images, turns, (2, 3)))


def test_a_view_flips_and_rotates_counter_clockwise():
    images = torch.arange(9.0).view(1, 1, 3, 3)

    assert apply_view(images, PLAIN) is images
    assert torch.equal(apply_view(images, FLIP), images.flip(3))
    assert_close(apply_view(images, View("quarter", angle=90.0)), torch.rot90(images, 1, (2, 3)), atol=1e-4, rtol=0)
