"""The learning rate and the choice of the best epoch, by tables that were computed explicitly."""

from __future__ import annotations

import pytest

from scripts.trainer.optimisation import cosine_lr
from scripts.trainer.state import EarlyStopping


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


def improvements(stopping: EarlyStopping, *epochs: tuple[float | None, float]) -> list[tuple[bool, int]]:
    """Whether each epoch, of a figure and a loss, is the best so far, and the patience used after it."""
    return [
        (stopping.update(number, figure=figure, loss=loss), stopping.epochs_without_improvement)
        for number, (figure, loss) in enumerate(epochs, start=1)
    ]


@pytest.mark.parametrize("figure", [0.0, None, -99.0])
def test_the_first_epoch_is_always_an_improvement(figure):
    stopping = EarlyStopping(patience=1)

    assert improvements(stopping, (figure, 99.0)) == [(True, 0)]
    assert (stopping.best_epoch, stopping.best_loss) == (1, 99.0)


def test_the_figure_decides_and_a_lower_loss_breaks_ties():
    stopping = EarlyStopping(patience=10)
    epochs = [(0.5, 1.0), (0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.6, 3.0), (0.5, 0.1)]

    assert [is_best for is_best, _ in improvements(stopping, *epochs)] == [True, False, True, False, True, False]
    assert stopping.best_epoch == 5


def test_an_undefined_figure_is_worse_than_any_defined_one():
    epochs = [(None, 2.0), (None, 1.0), (0.0, 9.0), (None, 0.1)]
    assert improvements(EarlyStopping(9), *epochs) == [(True, 0), (True, 1), (True, 0), (False, 1)]


def test_patience_counts_the_epochs_since_the_best_figure():
    stopping = EarlyStopping(patience=2)

    stopped = []
    for number, accuracy in enumerate([0.5, 0.4, 0.6, 0.6, 0.5], start=1):
        stopping.update(number, figure=accuracy, loss=1.0)
        stopped.append(stopping.should_stop)

    assert stopped == [False, False, False, False, True]


def test_a_loss_that_shrinks_for_ever_at_the_best_figure_does_not_reset_the_patience():
    stopping = EarlyStopping(patience=3)

    assert improvements(stopping, *((1.0, 1 / number) for number in range(1, 5))) == [
        (True, 0),
        (True, 1),
        (True, 2),
        (True, 3),
    ]
    assert stopping.should_stop
    assert stopping.best_epoch == 4
