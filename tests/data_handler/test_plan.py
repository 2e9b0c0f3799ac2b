"""Randomness is a pure function of (seed, epoch, index)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from scripts.data_handler.plan import ANGLE, FLIP, MIX, ORDER, EpochPlan, draw_plan, uniform

CPU = torch.device("cpu")
FLIP_NUMBERS = [0.8169515477502323, 0.23212999342682084, 0.33515335525580614]
MIX_WEIGHTS = (0.019328393667179134, 0.4924196762781838, 0.008369062346324622)


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
    assert_allclose(plan(300, mixup_alpha=0.4).mix, MIX_WEIGHTS, rtol=1e-12)


def test_a_number_depends_on_its_index_and_not_on_how_many_are_drawn():
    for stream in (ORDER, FLIP, MIX):
        assert np.array_equal(uniform(7, 3, stream, 1000)[:10], uniform(7, 3, stream, 10))
    angles = {count: by_sample(plan(count)) for count in (100, 1000)}
    assert np.array_equal(angles[100], angles[1000][:100])
    assert plan(1000).mix[:3] == plan(300).mix
    assert np.array_equal(plan(1000).partner[:256], plan(300).partner[:256])


def by_sample(drawn: EpochPlan) -> np.ndarray:
    """The angle of every sample, by its index."""
    angles = np.empty(len(drawn.order), dtype=np.float32)
    angles[drawn.order] = drawn.augmentation.angle.numpy()
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
    small, large = plan(batch_size=10), plan(batch_size=500, mixup_alpha=0)

    assert np.array_equal(by_sample(small), by_sample(large))
    assert by_sample(small)[5] == np.float32(-10 + 20 * uniform(7, 3, ANGLE, 6)[5])


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
