"""The learning rate and the choice of the best epoch, by hand-computed tables."""

from __future__ import annotations

import pytest

from scripts.trainer.early_stopping import EarlyStopping
from scripts.trainer.schedule import cosine_lr


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.008),  # starts at --lr
        (10, 0.008 * 0.8535533905932737),  # cos 45° = 0.7071
        (20, 0.004),  # half-way, half the rate
        (30, 0.008 * 0.1464466094067262),
        (40, 0.0),  # and ends at 0
    ],
)
def test_the_cosine_goes_from_the_initial_rate_to_zero(step, expected):
    assert cosine_lr(step, num_steps=40, initial=0.008) == pytest.approx(expected, abs=1e-12)


def test_the_first_epoch_is_an_improvement_over_nothing():
    stopping = EarlyStopping(patience=1)

    assert stopping.update(1, accuracy=0.0, loss=99.0)
    assert (stopping.best_epoch, stopping.best_accuracy, stopping.best_loss) == (1, 0.0, 99.0)


def test_accuracy_decides_and_a_lower_loss_breaks_ties():
    stopping = EarlyStopping(patience=10)
    epochs = [(0.5, 1.0), (0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.6, 3.0), (0.5, 0.1)]

    improved = [
        stopping.update(number, accuracy=accuracy, loss=loss) for number, (accuracy, loss) in enumerate(epochs, start=1)
    ]

    assert improved == [True, False, True, False, True, False]
    assert stopping.best_epoch == 5


def test_patience_counts_the_epochs_since_the_best():
    stopping = EarlyStopping(patience=2)

    stopped = []
    for number, accuracy in enumerate([0.5, 0.4, 0.6, 0.6, 0.5], start=1):
        stopping.update(number, accuracy=accuracy, loss=1.0)
        stopped.append(stopping.should_stop)

    assert stopped == [False, False, False, False, True]
