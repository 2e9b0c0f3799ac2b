"""What a data set decides of the settings: the stem that serves it, the views that make sense, the smallest batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.core.config import Config
from scripts.core.errors import ConfigError
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.plan import draw_plan
from scripts.data_handler.views import tta_views
from scripts.evaluation.metrics import Estimate
from scripts.evaluation.reports import _figure_in_words
from scripts.provenance import describe_model, describe_run
from scripts.resolve import resolve_settings

CPU = torch.device("cpu")


def pictures_of(side: int, *, num_train: int = 33, width: int | None = None, orientation_free: bool = True) -> Dataset:
    """What is known of a set of RGB pictures; nothing of it is read here."""
    return Dataset(
        key="toy",
        title="ToyMNIST",
        task="multi-class",
        class_names=("kidney-left", "kidney-right"),
        height=side,
        width=side if width is None else width,
        channels=3,
        num_samples={"train": num_train, "val": 8, "test": 8},
        orientation_free=orientation_free,
        md5="0" * 32,
        source="/data/toymnist.npz",
        note=None,
        load=lambda _: Split(np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int64)),
    )


def views(config: Config) -> list[str]:
    return [view.name for view in tta_views(hflip=config.hflip, rotation_angle=config.rotation_angle)]


def mirrored(config: Config) -> float:
    """The share of the training images that an epoch mirrors."""
    plan = draw_plan(
        1000,
        seed=0,
        epoch=1,
        batch_size=100,
        hflip=config.hflip,
        rotation_angle=config.rotation_angle,
        jitter=config.jitter_val,
        mixup_alpha=0,
        device=CPU,
    )
    return float(plan.augmentation.flip.float().mean())


@pytest.mark.parametrize(
    ("asked", "side", "applied"),
    [
        ("auto", 28, "adapted"),
        ("auto", 64, "adapted"),
        ("auto", 72, "stock"),
        ("auto", 128, "stock"),
        ("auto", 224, "stock"),
        ("stock", 28, "stock"),
        ("adapted", 224, "adapted"),
    ],
)
def test_the_stem_that_is_recorded_is_the_one_that_is_applied(asked, side, applied):
    dataset = pictures_of(side)
    config = resolve_settings(Config(stem=asked), dataset, CPU)

    assert config.stem == applied
    assert describe_run(config, dataset)["settings"]["stem"] == applied
    card = describe_model(config, dataset)
    assert card["stem"] == applied
    assert (
        card["stem_layers"]
        == {
            "adapted": "3x3, stride 1, no max-pool",
            "stock": "7x7, stride 2, max-pool 3x3, stride 2",
        }[applied]
    )


def test_the_choice_of_the_stem_is_logged_with_its_reason(caplog):
    with caplog.at_level("INFO"):
        resolve_settings(Config(), pictures_of(72, width=60), CPU)
        resolve_settings(Config(stem="stock"), pictures_of(28), CPU)
        resolve_settings(Config(stem="adapted", resume="outputs/a_run"), pictures_of(28), CPU)

    assert [message for message in caplog.messages if message.startswith("stem ")] == [
        "stem stock (7x7, stride 2, max-pool 3x3, stride 2): images of 72 × 60 pixels, which are large (above 64): a "
        "quarter of each side is enough",
        "stem stock (7x7, stride 2, max-pool 3x3, stride 2): as requested",
        "stem adapted (3x3, stride 1, no max-pool): as the run began",
    ]


def test_nothing_is_called_adapted_that_is_not(caplog):
    with caplog.at_level("INFO"):
        assert resolve_settings(Config(), pictures_of(28), CPU).model_name == "ResNet-18 Adapted"
        assert not [message for message in caplog.messages if "is called" in message]
        assert resolve_settings(Config(), pictures_of(224), CPU).model_name == "ResNet-18"
        assert resolve_settings(Config(model_name="Mine"), pictures_of(224), CPU).model_name == "Mine"

    assert [message for message in caplog.messages if "is called" in message] == [
        "the model is called ResNet-18, since nothing of it is adapted"
    ]


@pytest.mark.parametrize(("stem", "largest"), [("adapted", 8), ("stock", 32)])
def test_a_batch_of_one_image_is_refused_where_its_last_stage_is_a_single_point(stem, largest):
    config = Config(batch_size=16, stem=stem)  # 33 images: the last batch has one

    with pytest.raises(ConfigError) as caught:
        resolve_settings(config, pictures_of(largest), CPU)
    assert str(caught.value) == (
        "--batch_size 16 leaves one of the 33 training images in a batch of its own, which batch normalisation cannot "
        f"train on with pictures of {largest} × {largest} pixels and the {stem} stem. Take another --batch_size."
    )
    resolve_settings(config, pictures_of(largest + 1), CPU)
    resolve_settings(config, pictures_of(1, width=largest + 1), CPU)
    resolve_settings(replace(config, batch_size=11), pictures_of(largest), CPU)


@pytest.mark.parametrize("hflip", [0.5, 1.0])
def test_where_left_and_right_differ_no_picture_is_mirrored_in_training_nor_in_tta(hflip, caplog):
    asked, organs = Config(hflip=hflip), pictures_of(28, orientation_free=False)
    assert mirrored(asked) > 0.4
    with caplog.at_level("INFO"):
        config = resolve_settings(asked, organs, CPU)

    assert config.hflip == 0
    assert mirrored(config) == 0
    assert views(config) == ["plain", "rotated +5°", "rotated -5°"]
    assert describe_run(config, organs)["settings"]["hflip"] == 0
    assert describe_model(config, organs)["tta_views"] == views(config)
    assert (
        "no picture is mirrored, whatever --hflip says: left and right are not interchangeable in ToyMNIST (given by "
        "its path, /data/toymnist.npz is taken as a file of your own, for which --hflip alone decides)"
    ) in caplog.messages


def test_where_there_is_no_left_and_right_the_flag_decides(caplog):
    with caplog.at_level("INFO"):
        config = resolve_settings(Config(hflip=0.25), pictures_of(28), CPU)

    assert config.hflip == 0.25
    assert views(config) == ["plain", "flipped", "rotated +5°", "rotated -5°"]
    assert not [message for message in caplog.messages if "mirrored" in message]


def test_without_mirrored_and_turned_views_there_is_no_tta():
    config = Config(rotation_angle=0)
    assert resolve_settings(config, pictures_of(28), CPU).no_tta is False
    assert resolve_settings(config, pictures_of(28, orientation_free=False), CPU).no_tta is True
    assert resolve_settings(Config(no_tta=True), pictures_of(28), CPU).no_tta is True


def test_what_was_settled_once_is_settled_the_same_again():
    for dataset in (pictures_of(224, orientation_free=False), pictures_of(28)):
        once = resolve_settings(Config(), dataset, CPU)
        assert resolve_settings(once, dataset, CPU) == once


def test_a_figure_in_the_log_is_undefined_rather_than_nan():
    assert _figure_in_words("AUC", Estimate(math.nan, math.nan, math.nan)) == "AUC undefined"
    assert _figure_in_words("AUC", Estimate(0.5, 0.25, 0.75)) == "AUC 0.5000 [0.2500, 0.7500]"
