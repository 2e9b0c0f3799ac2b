"""The settings that follow from a data set: stem, views, monitored figure, smallest batch."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch

from scripts.core.config import Config
from scripts.core.errors import ConfigError
from scripts.core.paths import RunPaths
from scripts.core.recipes import RECIPES
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.plan import draw_plan
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.data_handler.views import tta_views
from scripts.evaluation.metrics import Estimate
from scripts.evaluation.reports import _figure_in_words
from scripts.provenance import describe_model, describe_run, record_provenance
from scripts.resolve import resolve_settings

CPU = torch.device("cpu")


def images_of(
    side: int,
    *,
    num_train: int = 33,
    width: int | None = None,
    orientation_free: bool = True,
    task: str = MULTI_CLASS,
) -> Dataset:
    """The description of a set of RGB images; none is read here."""
    return Dataset(
        key="toy",
        title="ToyMNIST",
        task=task,
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
    return [view.name for view in tta_views(config)]


def mirrored(config: Config) -> float:
    """The share of the training images that an epoch mirrors."""
    plan = draw_plan(config, 1000, epoch=1, image_size=(28, 28), device=CPU)
    return 0.0 if plan.augmentation.flip is None else float(plan.augmentation.flip.float().mean())


@pytest.mark.parametrize(
    ("requested", "side", "applied"),
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
def test_the_stem_that_is_recorded_is_the_one_that_is_applied(requested, side, applied):
    dataset = images_of(side)
    config = resolve_settings(Config(stem=requested), dataset, CPU)

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
        resolve_settings(Config(), images_of(72, width=60), CPU)
        resolve_settings(Config(stem="stock"), images_of(28), CPU)
        resolve_settings(Config(stem="adapted", resume="outputs/a_run"), images_of(28), CPU)

    assert [message for message in caplog.messages if message.startswith("stem ")] == [
        "stem stock (7x7, stride 2, max-pool 3x3, stride 2): images of 60 × 72 pixels, which are large (above 64): a "
        "quarter of each side is enough",
        "stem stock (7x7, stride 2, max-pool 3x3, stride 2): as requested",
        "stem adapted (3x3, stride 1, no max-pool): as the run began",
    ]


def test_a_model_is_named_adapted_only_if_it_is(caplog):
    with caplog.at_level("INFO"):
        assert resolve_settings(Config(), images_of(28), CPU).model_name == "ResNet-18 Adapted"
        assert not [message for message in caplog.messages if "is named" in message]
        assert resolve_settings(Config(), images_of(224), CPU).model_name == "ResNet-18"
        assert resolve_settings(Config(model_name="Mine"), images_of(224), CPU).model_name == "Mine"

    assert [message for message in caplog.messages if "is named" in message] == [
        "the model is named ResNet-18, since nothing in it is adapted"
    ]


@pytest.mark.parametrize(
    ("requested", "task", "applied", "reason"),
    [
        ("auto", MULTI_CLASS, "accuracy", f"the default for {MULTI_CLASS} sets"),
        ("auto", BINARY, "accuracy", f"the default for {BINARY} sets"),
        ("auto", ORDINAL, "accuracy", f"the default for {ORDINAL} sets"),
        ("auto", MULTI_LABEL, "auc", f"the default for {MULTI_LABEL} sets"),
        ("accuracy", MULTI_LABEL, "accuracy", "as requested"),
        ("auc", MULTI_CLASS, "auc", "as requested"),
        ("loss", BINARY, "loss", "as requested"),
    ],
)
def test_the_monitored_figure_is_the_requested_one_or_suits_the_task(caplog, requested, task, applied, reason):
    dataset = images_of(28, task=task)
    with caplog.at_level("INFO"):
        config = resolve_settings(Config(monitor=requested), dataset, CPU)

    assert config.monitor == applied
    assert describe_run(config, dataset)["settings"]["monitor"] == applied
    assert caplog.messages[-1] == f"monitor {applied}, which selects the best epoch: {reason}"


@pytest.mark.parametrize(("stem", "largest"), [("adapted", 8), ("stock", 32)])
def test_a_batch_of_one_image_is_refused_where_its_last_stage_is_a_single_point(stem, largest):
    config = Config(batch_size=16, stem=stem)  # 33 images: the last batch has one

    with pytest.raises(ConfigError) as caught:
        resolve_settings(config, images_of(largest), CPU)
    assert str(caught.value) == (
        "--batch_size 16 leaves one of the 33 training images in a batch of its own, which batch normalisation cannot "
        f"train on with images of {largest} × {largest} pixels and the {stem} stem. Take another --batch_size."
    )
    resolve_settings(config, images_of(largest + 1), CPU)
    resolve_settings(config, images_of(1, width=largest + 1), CPU)
    resolve_settings(replace(config, batch_size=11), images_of(largest), CPU)


@pytest.mark.parametrize("hflip", [0.5, 1.0])
def test_where_left_and_right_differ_no_image_is_mirrored_in_training_nor_in_tta(hflip, caplog):
    requested, organs = Config(hflip=hflip), images_of(28, orientation_free=False)
    assert mirrored(requested) > 0.4
    with caplog.at_level("INFO"):
        config = resolve_settings(requested, organs, CPU)

    assert config.hflip == 0
    assert mirrored(config) == 0
    assert views(config) == ["plain", "rotated +5°", "rotated -5°"]
    assert describe_run(config, organs)["settings"]["hflip"] == 0
    assert describe_model(config, organs)["tta_views"] == views(config)
    assert (
        "no image is mirrored, whatever --hflip is: left and right are not interchangeable in ToyMNIST (given by "
        "its path, /data/toymnist.npz is taken as a file of your own, for which --hflip alone decides)"
    ) in caplog.messages


def test_where_there_is_no_left_and_right_the_flag_decides(caplog):
    with caplog.at_level("INFO"):
        config = resolve_settings(Config(hflip=0.25), images_of(28), CPU)

    assert config.hflip == 0.25
    assert views(config) == ["plain", "flipped", "rotated +5°", "rotated -5°"]
    assert not [message for message in caplog.messages if "mirrored" in message]


def test_without_mirrored_and_rotated_views_there_is_no_tta():
    config = Config(rotation_angle=0)
    assert resolve_settings(config, images_of(28), CPU).no_tta is False
    assert resolve_settings(config, images_of(28, orientation_free=False), CPU).no_tta is True
    assert resolve_settings(Config(no_tta=True), images_of(28), CPU).no_tta is True


@pytest.mark.parametrize(
    ("backbone", "side", "model_name", "layers", "window"),
    [
        ("swin_v2_t", 28, "SwinV2-T Adapted", "2x2, stride 2, window 7x7", 7),
        ("swin_v2_t", 64, "SwinV2-T Adapted", "2x2, stride 2, window 8x8", 8),
        ("efficientnet_b0", 224, "EfficientNet-B0", "3x3, stride 2", None),
    ],
)
def test_the_model_and_its_card_are_named_after_the_backbone(caplog, backbone, side, model_name, layers, window):
    dataset = images_of(side)
    with caplog.at_level("INFO"):
        config = resolve_settings(Config(backbone=backbone), dataset, CPU)
        again = resolve_settings(config, dataset, CPU)
    card = describe_model(config, dataset)

    assert config.model_name == model_name
    assert again == config
    assert [card[name] for name in ("backbone", "model_name", "stem_layers", "recipe")] == [
        backbone,
        model_name,
        layers,
        "seed",
    ]
    assert card.get("window") == window
    assert next(message for message in caplog.messages if message.startswith("stem ")).startswith(
        f"stem {config.stem} ({layers}): images of {side} × {side} pixels"
    )
    assert sum(f"the model is named {model_name}, " in message for message in caplog.messages) == 1


def test_images_below_the_smallest_sensible_side_are_warned_about(caplog):
    resolve_settings(Config(backbone="mobilenet_v3_large"), images_of(16), CPU)
    assert caplog.messages == []
    resolve_settings(Config(backbone="mobilenet_v3_large"), images_of(15), CPU)
    assert caplog.messages == ["MobileNetV3-Large reduces 16 pixels of a side to one, which these images do not have"]


def test_resolved_settings_are_resolved_to_themselves():
    for dataset in (images_of(224, orientation_free=False), images_of(28)):
        once = resolve_settings(Config(), dataset, CPU)
        assert resolve_settings(once, dataset, CPU) == once


def test_a_figure_in_the_log_is_undefined_rather_than_nan():
    assert _figure_in_words("AUC", Estimate(math.nan, math.nan, math.nan)) == "AUC undefined"
    assert _figure_in_words("AUC", Estimate(0.5, 0.25, 0.75)) == "AUC 0.5000 [0.2500, 0.7500]"


STRONG = RECIPES["strong"].settings(Config().epochs)


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (images_of(28, orientation_free=False), "the orientation of the images of ToyMNIST has a meaning"),
        (images_of(28, width=20), "images of 20 × 28 pixels are not square"),
    ],
)
def test_all_symmetries_are_refused_with_the_reason_unless_a_recipe_set_them(dataset, reason, caplog):
    with pytest.raises(ConfigError) as caught:
        resolve_settings(Config(symmetries="all"), dataset, CPU)
    assert str(caught.value) == f"--symmetries all cannot be used here: {reason}. Take --symmetries flip or none."

    with caplog.at_level("INFO", logger="medmnist"):
        config = resolve_settings(Config(recipe="strong", **STRONG), dataset, CPU)
    assert config.symmetries == "flip"
    assert (config.hflip == 0) == (not dataset.orientation_free)
    assert config.rotation_angle == Config().rotation_angle  # which the recipe has not, because of the symmetries
    assert len(views(config)) > 1
    assert f"symmetries flip and rotations up to 10° instead of all symmetries: {reason}" in caplog.messages


def test_all_symmetries_are_applied_where_they_make_sense():
    config = resolve_settings(Config(symmetries="all", rotation_angle=0), images_of(28), CPU)
    assert config.symmetries == "all"
    assert len(views(config)) == 8


def test_settings_without_effect_are_not_recorded_as_applied():
    config = resolve_settings(Config(symmetries="none", optimizer="adamw", nesterov=True), images_of(28), CPU)
    assert (config.hflip, config.nesterov) == (0.0, False)


def test_a_flip_of_every_image_is_evaluated_as_it_is_trained():
    config = resolve_settings(Config(hflip=1.0, rotation_angle=0), images_of(28), CPU)
    assert views(config) == ["flipped"]
    assert not config.no_tta


def test_config_json_and_the_log_name_the_recipe_and_what_was_overridden(tmp_path, caplog):
    config = Config(**{"recipe": "strong", "device": "cpu", **STRONG, "lr": 0.5})
    paths = RunPaths.create(tmp_path, "toy", "resnet18", now=datetime(2026, 1, 31))
    with caplog.at_level("INFO", logger="medmnist"):
        recorded = record_provenance(config, images_of(28), paths)["recipe"]
    assert recorded["name"] == "strong"
    assert recorded["source"] == RECIPES["strong"].source
    assert recorded["overridden"] == {"lr": {"recipe": STRONG["lr"], "applied": 0.5}}
    assert f"recipe strong, overridden: lr 0.5 (not {STRONG['lr']})" in caplog.messages
    assert describe_run(Config(device="cpu"), images_of(28))["recipe"]["overridden"] == {}
