"""Scores of the plain view and of the mean over views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from scripts.core.config import Config
from scripts.data_handler.augmentation import normalise, to_float
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.registry import BINARY
from scripts.data_handler.sources import DeviceSplit, make_device_split
from scripts.data_handler.views import FLIP, PLAIN, tta_views
from scripts.evaluation.calibration import Temperatures, fit_temperature
from scripts.evaluation.inference import evaluate, fit_temperatures, predict
from tests.conftest import coloured_squares

CPU = torch.device("cpu")


class LeftBrightness(nn.Module):
    """Logits (0, brightness of the left column): a mirrored image scores differently."""

    def forward(self, images):
        left = images[:, :, :, 0].mean(dim=(1, 2))
        return torch.stack((torch.zeros_like(left), left), dim=1)


def toy_splits(count: int = 600) -> tuple[Split, DeviceSplit]:
    images, labels = coloured_squares(count, side=4)
    split = Split(images, labels[:, 0].astype(np.int64))
    return split, make_device_split(split, 2, feed="resident", device=CPU, num_workers=0)


def test_tta_is_the_mean_of_the_views_probabilities():
    split, examples = toy_splits()
    mirrored = Split(split.images[:, :, ::-1].copy(), split.labels)
    other = make_device_split(mirrored, 2, feed="resident", device=CPU, num_workers=0)

    plain, mean = predict(LeftBrightness(), examples, (PLAIN, FLIP), precision="fp32")
    of_mirrored, nothing = predict(LeftBrightness(), other, (), precision="fp32")

    assert nothing is None
    assert mean is not None
    assert plain.dtype == np.float64
    np.testing.assert_allclose(plain.sum(axis=1), 1, atol=1e-6)
    assert np.abs(plain - of_mirrored).max() > 0.01
    np.testing.assert_allclose(mean, (plain + of_mirrored) / 2, atol=1e-5)


def test_the_scores_of_several_labels_are_sigmoids_and_tta_averages_them():
    images, labels = coloured_squares(300, side=4)
    rows = np.concatenate([labels, 1 - labels], axis=1).astype(np.int64)
    examples, mirrored = (
        make_device_split(Split(pixels.copy(), rows), 2, feed="resident", device=CPU, num_workers=0)
        for pixels in (images, images[:, :, ::-1])
    )

    plain, mean = predict(LeftBrightness(), examples, (PLAIN, FLIP), precision="fp32")
    of_mirrored, _ = predict(LeftBrightness(), mirrored, (), precision="fp32")

    left = normalise(to_float(torch.from_numpy(images)))[:, :, :, 0].mean(dim=(1, 2))
    assert plain[:, 0].tolist() == [0.5] * 300  # of a logit of 0, whatever the other label's
    np.testing.assert_allclose(plain[:, 1], 1 / (1 + np.exp(-left.double().numpy())), atol=1e-6)
    assert mean is not None
    np.testing.assert_allclose(mean, (plain + of_mirrored) / 2, atol=1e-5)


def test_scores_come_in_the_order_of_the_images_from_either_source():
    split, resident = toy_splits()
    streamed = make_device_split(split, 2, feed="streamed", device=CPU, num_workers=1)
    views = tta_views(Config())

    scores, streamed_scores = (predict(LeftBrightness(), it, views, precision="fp32") for it in (resident, streamed))

    assert np.array_equal(scores[0], streamed_scores[0])
    assert scores[1] is not None
    assert streamed_scores[1] is not None
    assert np.array_equal(scores[1], streamed_scores[1])
    left = split.images[:, :, 0].mean(axis=(1, 2))
    assert np.corrcoef(left, scores[0][:, 1])[0, 1] > 0.9


def test_images_are_normalised_as_the_split_says():
    _, examples = toy_splits(20)
    other = replace(examples, mean=(0.5,) * 3, std=(2.0,) * 3)
    seen: list[torch.Tensor] = []
    model = LeftBrightness()
    model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0].clone()))
    predict(model, examples, (), precision="fp32")
    predict(model, other, (), precision="fp32")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (examples.mean, examples.std))
    torch.testing.assert_close(seen[1] * 2 + 0.5, seen[0] * std + mean)


@pytest.mark.parametrize("with_tta", [True, False])
def test_evaluation_carries_both_variants(with_tta):
    split, examples = toy_splits(60)
    dataset = Dataset(
        key="squares",
        title="squares",
        task="binary-class",
        class_names=("dark", "bright"),
        height=4,
        width=4,
        channels=3,
        num_samples={"train": 1, "val": 1, "test": 60},
        md5="0",
        source="generated",
        note=None,
        load={"test": split}.__getitem__,
    )
    views = tta_views(Config()) if with_tta else ()

    temperatures = Temperatures(2.0, 3.0 if with_tta else None)
    result = evaluate(
        LeftBrightness(),
        examples,
        split.labels,
        dataset,
        views,
        precision="fp32",
        seed=0,
        temperatures=temperatures,
        train_labels=np.array([1, 1, 0]),
    )

    assert result.plain.auc.value == 1.0
    assert (result.tta is not None) == with_tta
    assert [one.trust.calibration.temperature for one in result.variants] == [2.0, 3.0][: 1 + with_tta]
    assert result.majority_class_accuracy == 0.5
    assert (result.tta_scores is not None) == with_tta
    assert len(result.views) == (4 if with_tta else 0)


@pytest.mark.parametrize("with_tta", [True, False])
def test_temperatures_are_those_of_the_scores_of_each_variant(with_tta):
    split, examples = toy_splits(200)
    labels = np.random.default_rng(0).permutation(split.labels)
    views = tta_views(Config()) if with_tta else ()

    found = fit_temperatures(LeftBrightness(), examples, labels, BINARY, views, precision="fp32")

    plain, tta = predict(LeftBrightness(), examples, views, precision="fp32")
    assert found.plain == fit_temperature(labels, plain, BINARY)
    assert found.tta == (None if tta is None else fit_temperature(labels, tta, BINARY))
    assert found.plain != found.tta
