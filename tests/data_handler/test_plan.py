"""Randomness is a pure function of (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from scripts.core.config import Config
from scripts.data_handler.plan import ANGLE, FLIP, MIX, ORDER, EpochPlan, draw_plan, uniform

CPU = torch.device("cpu")
FLIP_NUMBERS = [0.8169515477502323, 0.23212999342682084, 0.33515335525580614]
MIX_WEIGHTS = (0.019328393667179134, 0.4924196762781838, 0.008369062346324622)


def plan(num_images: int = 1000, *, epoch: int = 3, image_size: tuple[int, int] = (28, 28), **changes) -> EpochPlan:
    settings: dict[str, Any] = {"seed": 7, "mixup_alpha": 0.4}
    return draw_plan(Config(**(settings | changes)), num_images, epoch=epoch, image_size=image_size, device=CPU)


def parameter(name: str, drawn: EpochPlan) -> torch.Tensor:
    """One of the augmentation's parameters, which must be there."""
    value = getattr(drawn.augmentation, name)
    assert value is not None
    return value


def weights_of(drawn: EpochPlan) -> tuple[float, ...]:
    return tuple(mix.weight for mix in drawn.mix)


def test_the_bits_are_those_published_for_philox():
    """Known answers of Random123's philox4x64 with 10 rounds: counter and key of zeros, and of ones."""
    published = {
        0: (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
        2**64 - 1: (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    }
    for word, expected in published.items():
        # NumPy adds 1 to the counter before each block
        before = (word * (1 + 2**64 + 2**128 + 2**192) - 1) % 2**256
        assert tuple(np.random.Philox(key=[word, word], counter=before).random_raw(4)) == expected


def test_the_numbers_are_the_same_with_every_version():
    assert uniform(7, 3, FLIP, 3).tolist() == FLIP_NUMBERS
    assert_allclose(weights_of(plan(300)), MIX_WEIGHTS, rtol=1e-12)


def test_a_number_depends_on_its_index_and_not_on_how_many_are_drawn():
    for stream in (ORDER, FLIP, MIX):
        assert np.array_equal(uniform(7, 3, stream, 1000)[:10], uniform(7, 3, stream, 10))
    angles = {count: by_sample(plan(count)) for count in (100, 1000)}
    assert np.array_equal(angles[100], angles[1000][:100])
    assert plan(1000, cutmix_alpha=0.5).mix[:3] == plan(300, cutmix_alpha=0.5).mix
    assert np.array_equal(plan(1000).partner[:256], plan(300).partner[:256])


def by_sample(drawn: EpochPlan) -> np.ndarray:
    """The angle of every sample, by its index."""
    angles = np.empty(len(drawn.order), dtype=np.float32)
    angles[drawn.order] = parameter("angle", drawn).numpy()
    return angles


def test_the_numbers_are_uniform_and_streams_are_independent():
    flips, angles = uniform(1, 1, FLIP, 100_000), uniform(1, 1, ANGLE, 100_000)
    next_epoch, next_seed = uniform(1, 2, FLIP, 100_000), uniform(2, 1, FLIP, 100_000)

    counts, _ = np.histogram(flips, bins=10, range=(0, 1))
    assert flips.min() >= 0
    assert flips.max() < 1
    # each bin holds 10,000 ± 95 (one standard deviation); five of them are never left by chance
    assert np.abs(counts - 10_000).max() < 5 * 95
    for other in (angles, next_epoch, next_seed, np.roll(flips, 1)):
        assert abs(np.corrcoef(flips, other)[0, 1]) < 5 / np.sqrt(100_000)


def test_the_order_is_a_permutation_that_changes_with_epoch_and_seed():
    order = plan().order

    assert sorted(order) == list(range(1000))
    assert np.array_equal(order, plan().order)
    assert not np.array_equal(order, plan(epoch=4).order)
    assert not np.array_equal(order, plan(seed=8).order)


def test_augmentation_belongs_to_the_sample_not_to_its_place():
    small, large = plan(batch_size=10), plan(batch_size=500, mixup_alpha=0.0)

    assert np.array_equal(by_sample(small), by_sample(large))
    assert by_sample(small)[5] == np.float32(-10 + 20 * uniform(7, 3, ANGLE, 6)[5])


def test_parameters_keep_to_their_ranges_and_use_them():
    drawn = plan(20_000, scale=0.25, translate=3)
    ranges = {"angle": (-10, 10), "brightness": (0.8, 1.2), "contrast": (0.8, 1.2), "scale": (0.75, 1.25)}
    for name, (low, high) in ranges.items():
        values, margin = parameter(name, drawn), (high - low) / 200
        assert low <= float(values.min()) < low + margin, name
        assert high - margin < float(values.max()) <= high + 1e-6, name
    assert abs(float(parameter("flip", drawn).float().mean()) - 0.5) < 0.02
    for name in ("shift_x", "shift_y"):  # whole pixels, each as often
        counts = torch.bincount(parameter(name, drawn) + 3)
        assert len(counts) == 7
        assert (counts.float() / 20_000 - 1 / 7).abs().max() < 0.015


def test_a_certain_flip_is_certain_and_one_that_cannot_be_is_not_drawn():
    assert bool(parameter("flip", plan(hflip=1.0)).all())
    assert plan(hflip=0.0).augmentation.flip is None


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"flip", "angle", "brightness", "contrast"}),
        ({"symmetries": "none"}, {"angle", "brightness", "contrast"}),
        ({"symmetries": "all", "rotation_angle": 0, "jitter_val": 0.0}, {"symmetry"}),
        ({"rotation_prob": 0.0, "jitter_val": 0.0, "hflip": 0.0}, set()),
        ({"rotation_prob": 0.3, "jitter_val": 0.0}, {"flip", "angle", "is_resampled"}),
        ({"rotation_prob": 0.3, "jitter_val": 0.0, "scale": 0.1}, {"flip", "angle", "scale"}),
        (
            {"translate": 1, "erasing": 0.5, "rotation_angle": 0, "jitter_val": 0.0},
            {"flip", "shift_x", "shift_y", "erased"},
        ),
    ],
    ids=range(7),
)
def test_only_what_the_settings_ask_for_is_drawn(settings, names):
    drawn = plan(10, **settings).augmentation
    assert {entry.name for entry in fields(drawn) if getattr(drawn, entry.name) is not None} == names
    part = drawn.part(slice(2, 5))
    assert all(len(getattr(part, name)) == 3 for name in names)


def test_no_setting_changes_the_numbers_of_another():
    everything: dict[str, Any] = {
        "scale": 0.2,
        "translate": 2,
        "erasing": 0.4,
        "cutmix_alpha": 1.0,
        "rotation_prob": 0.5,
    }
    usual, full = plan(), plan(**everything)
    for name in ("flip", "brightness", "contrast"):
        assert torch.equal(parameter(name, usual), parameter(name, full))
    rotated = parameter("angle", full) != 0
    assert torch.equal(parameter("angle", full)[rotated], parameter("angle", usual)[rotated])
    assert np.array_equal(usual.order, full.order)
    assert usual.step_seeds == full.step_seeds


# written out: the order of the streams is part of the promise that a seed keeps its numbers
STREAMS = {"flip": 1, "angle": 2, "brightness": 3, "contrast": 4, "symmetry": 8, "scale": 10, "shift_x": 11}
STREAMS |= {"shift_y": 12}


@pytest.mark.parametrize("name", STREAMS)
def test_every_parameter_comes_from_its_own_stream(name):
    symmetries = "all" if name == "symmetry" else "flip"
    drawn = plan(500, symmetries=symmetries, scale=0.25, translate=3)
    numbers = uniform(7, 3, STREAMS[name], 500)[drawn.order]
    of_numbers = {
        "flip": numbers < 0.5,
        "angle": -10 + 20 * numbers,
        "brightness": 0.8 + 0.4 * numbers,
        "contrast": 0.8 + 0.4 * numbers,
        "symmetry": np.floor(8 * numbers),
        "scale": 0.75 + 0.5 * numbers,
        "shift_x": np.floor(7 * numbers) - 3,
        "shift_y": np.floor(7 * numbers) - 3,
    }
    assert_allclose(parameter(name, drawn).numpy(), of_numbers[name], rtol=1e-6, atol=1e-6)


def test_the_eight_symmetries_are_equally_frequent():
    counts = torch.bincount(parameter("symmetry", plan(16_000, symmetries="all")).long())
    assert len(counts) == 8
    assert (counts.float() - 2000).abs().max() < 5 * 42  # one standard deviation is 42


def test_some_images_are_rotated_and_the_others_not_at_all():
    drawn = plan(10_000, rotation_prob=0.3)
    is_resampled = parameter("is_resampled", drawn)
    assert torch.equal(parameter("angle", drawn) != 0, is_resampled)
    assert abs(float(is_resampled.float().mean()) - 0.3) < 0.02


@pytest.mark.parametrize("image_size", [(28, 28), (20, 50)])
def test_erased_boxes_have_the_published_areas_and_aspects_and_lie_inside(image_size):
    boxes = parameter("erased", plan(20_000, erasing=0.25, image_size=image_size)).numpy()
    height, width = image_size
    top, bottom, left, right = boxes.T
    rows, columns = bottom - top, right - left
    is_erased = rows * columns > 0
    assert abs(is_erased.mean() - 0.25) < 0.02
    assert boxes.min() >= 0
    assert bottom.max() == height
    assert right.max() == width
    share = (rows * columns)[is_erased] / (height * width)
    assert 0.01 < share.min() < 0.03
    assert 0.28 < share.max() < 0.37
    # as often tall as wide; a box that does not fit is cut off
    ratio = np.log(rows[is_erased] / columns[is_erased])
    assert np.abs(ratio).max() < np.log(1 / 0.3) + 0.7
    if height == width:
        assert abs(ratio.mean()) < 0.05


def test_step_seeds_differ_and_do_not_depend_on_how_many_steps_there_are():
    seeds = plan(1000).step_seeds
    assert len(set(seeds)) == len(seeds) == 8
    assert seeds[:3] == plan(300).step_seeds
    assert not set(seeds) & set(plan(1000, epoch=4).step_seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_partners_permute_each_batch():
    partner = plan().partner

    for start in range(0, 1000, 128):
        batch = partner[start : start + 128]
        assert sorted(batch.tolist()) == list(range(len(batch)))


def test_mix_weights_follow_the_beta_distribution():
    weights = np.array(weights_of(plan(40_000, batch_size=1)))

    assert len(weights) == 40_000
    assert 0 <= weights.min() <= weights.max() <= 1
    assert abs(weights.mean() - 0.5) < 0.01
    # the variance of Beta(a, a) is 1 / (4 (2a + 1))
    assert abs(weights.var() - 1 / (4 * 1.8)) < 0.003


def test_the_default_alpha_hardly_ever_mixes():
    weights = np.array(weights_of(plan(20_000, batch_size=1, mixup_alpha=0.002)))

    assert np.isfinite(weights).all()
    assert 0.003 < np.mean((weights > 0.05) & (weights < 0.95)) < 0.009


def test_without_mixup_and_cutmix_nothing_is_mixed():
    assert plan(mixup_alpha=0.0).mix == ()


@pytest.mark.parametrize("image_size", [(28, 28), (20, 50)])
def test_cutmix_weights_are_the_share_of_the_image_outside_the_box(image_size):
    mixes = plan(20_000, batch_size=1, mixup_alpha=0.0, cutmix_alpha=1.0, image_size=image_size).mix
    height, width = image_size
    for mix in mixes:
        assert mix.box is not None
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        assert mix.weight == pytest.approx(1 - (bottom - top) * (right - left) / (height * width))
    # uniform shares, of which boxes at the border lose a part: E = 1 - E[area inside]
    assert 0.55 < np.mean([mix.weight for mix in mixes]) < 0.75


def test_with_mixup_and_cutmix_each_has_half_of_the_steps():
    both = plan(20_000, batch_size=1, cutmix_alpha=1.0).mix
    mixup, cutmix = plan(20_000, batch_size=1).mix, plan(20_000, batch_size=1, mixup_alpha=0.0, cutmix_alpha=1.0).mix
    assert abs(np.mean([mix.box is not None for mix in both]) - 0.5) < 0.02
    assert all(mix in pair for mix, *pair in zip(both, mixup, cutmix, strict=True))
