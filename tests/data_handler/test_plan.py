"""Randomness is a pure function of (seed, epoch, index)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scripts.data_handler.plan import ANGLE, FLIP, EpochPlan, draw_plan, uniform

CPU = torch.device("cpu")


def plan(num_images: int = 1000, **changes) -> EpochPlan:
    settings: dict[str, Any] = {
        "seed": 7,
        "epoch": 3,
        "batch_size": 128,
        "hflip": 0.5,
        "rotation_angle": 10,
        "jitter": 0.2,
        "mixup_alpha": 0.4,
        "device": CPU,
    }
    return draw_plan(num_images, **(settings | changes))


def splitmix64(state: int) -> int:
    """The published algorithm in Python's own whole numbers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


def test_the_hash_is_splitmix64():
    # the generator seeded with 0 is known to begin with this number
    assert splitmix64(0) == 0xE220A8397B1DCDAF

    state = 0
    for word in (7, 3, FLIP):
        state = splitmix64((state + word) % 2**64)
    slow = [(splitmix64((state + index * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for index in (0, 1, 99_999)]

    assert uniform(7, 3, FLIP, np.array([0, 1, 99_999])).tolist() == slow


def test_the_numbers_are_uniform_and_streams_are_independent():
    indices = np.arange(100_000)
    flips, angles = uniform(1, 1, FLIP, indices), uniform(1, 1, ANGLE, indices)
    next_epoch, next_seed = uniform(1, 2, FLIP, indices), uniform(2, 1, FLIP, indices)

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
    small, large = plan(batch_size=10), plan(batch_size=500, mixup_alpha=0)
    by_sample = np.empty(1000, dtype=np.float32)
    by_sample[small.order] = small.augmentation.angle.numpy()

    assert np.array_equal(by_sample[large.order], large.augmentation.angle.numpy())
    expected = (-10 + 20 * uniform(7, 3, ANGLE, np.array([5]))).astype(np.float32)
    assert by_sample[5] == expected[0]


def test_parameters_keep_to_their_ranges_and_use_them():
    drawn = plan(20_000).augmentation

    assert drawn.angle.min() >= -10
    assert drawn.angle.max() <= 10
    assert drawn.angle.min() < -9.9
    assert drawn.angle.max() > 9.9
    for factor in (drawn.brightness, drawn.contrast):
        assert 0.8 <= float(factor.min()) < 0.801
        assert 1.199 < float(factor.max()) <= 1.2 + 1e-6
    assert abs(float(drawn.flip.float().mean()) - 0.5) < 0.02


@pytest.mark.parametrize(("hflip", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_certain_flip_is_certain(hflip, share):
    assert float(plan(hflip=hflip).augmentation.flip.float().mean()) == share


def test_partners_permute_each_batch():
    partner = plan().partner

    for start in range(0, 1000, 128):
        batch = partner[start : start + 128]
        assert sorted(batch.tolist()) == list(range(len(batch)))


def test_mix_weights_follow_the_beta_distribution():
    weights = np.array(plan(40_000, batch_size=1, mixup_alpha=0.4).mix)

    assert len(weights) == 40_000
    assert 0 <= weights.min() <= weights.max() <= 1
    assert abs(weights.mean() - 0.5) < 0.01
    # the variance of Beta(a, a) is 1 / (4 (2a + 1))
    assert abs(weights.var() - 1 / (4 * 1.8)) < 0.003


def test_the_default_alpha_hardly_ever_mixes():
    weights = np.array(plan(20_000, batch_size=1, mixup_alpha=0.002).mix)

    assert np.isfinite(weights).all()
    assert 0.003 < np.mean((weights > 0.05) & (weights < 0.95)) < 0.009


def test_without_mixup_there_are_no_weights():
    assert plan(mixup_alpha=0).mix == ()
