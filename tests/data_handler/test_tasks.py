"""What labels require of a network, with logits that are easy to check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from scripts.data_handler.tasks import MULTI_LABEL_TASK, SINGLE_LABEL_TASK, task_of

LOG3 = math.log(3.0)


def test_the_shape_of_the_labels_tells_how_images_are_labelled():
    assert task_of(np.array([0, 1])) is SINGLE_LABEL_TASK
    assert task_of(np.array([[0, 1]])) is MULTI_LABEL_TASK


def test_one_class_shares_the_probability_out_and_each_label_has_its_own():
    logits = torch.tensor([[LOG3, 0.0], [0.0, 0.0]])
    assert_close(SINGLE_LABEL_TASK.probabilities(logits), torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    assert_close(MULTI_LABEL_TASK.probabilities(logits), torch.tensor([[0.75, 0.5], [0.5, 0.5]]))


def test_the_loss_of_an_image_by_hand():
    logits = torch.tensor([[LOG3, 0.0]])
    assert_close(SINGLE_LABEL_TASK.losses(logits, torch.tensor([[1.0, 0.0]])), torch.tensor([-math.log(3 / 4)]))
    # the first label was given 3/4 and is there, the second was given 1/2 and is not
    expected = torch.tensor([-(math.log(3 / 4) + math.log(1 / 2)) / 2])
    assert_close(MULTI_LABEL_TASK.losses(logits, torch.tensor([[1.0, 0.0]])), expected)


def test_the_mean_of_the_losses_is_what_pytorch_calls_the_loss():
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(7, 5, generator=generator), torch.rand(7, 5, generator=generator)
    assert_close(MULTI_LABEL_TASK.losses(logits, targets).mean(), F.binary_cross_entropy_with_logits(logits, targets))
    rows = targets / targets.sum(dim=1, keepdim=True)
    assert_close(SINGLE_LABEL_TASK.losses(logits, rows).mean(), F.cross_entropy(logits, rows))


@pytest.mark.parametrize("task", [SINGLE_LABEL_TASK, MULTI_LABEL_TASK])
def test_a_mixed_target_costs_the_mixture_of_the_losses(task):
    logits = torch.tensor([[1.5, -0.5, 0.25]])
    first, second = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    mixed = task.losses(logits, 0.3 * first + 0.7 * second)
    assert_close(mixed, 0.3 * task.losses(logits, first) + 0.7 * task.losses(logits, second))


def test_every_label_is_an_answer_of_its_own_and_half_is_no():
    logits = torch.tensor([[2.0, -1.0, 0.0], [1e-9, 3.0, -2.0]])  # 1e-9 has a probability of 0.5 in single precision
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert MULTI_LABEL_TASK.is_right(logits, targets).tolist() == [[True, False, True], [True, True, False]]
    assert SINGLE_LABEL_TASK.is_right(logits, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])).tolist() == [True, False]
