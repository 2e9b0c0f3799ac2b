"""Resolve the settings that depend on the data and the machine: image source, stem, views, monitored figure."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from scripts.core.config import DEFAULT_MODEL_NAME, SETTINGS, Config
from scripts.core.errors import ConfigError
from scripts.core.log import log
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.memory import free_shared_memory, plan_memory, workers_that_fit
from scripts.data_handler.registry import MULTI_LABEL
from scripts.data_handler.views import PLAIN, View, tta_views
from scripts.models.backbones import choose_stem, default_model_name, find_backbone
from scripts.models.factory import outline, refusal
from scripts.models.stem import stem_layers


def resolve_settings(config: Config, dataset: Dataset, device: torch.device) -> Config:
    """The settings as applied to this data set; each choice is logged with its reason.

    Raises:
        ConfigError: The network cannot train on images of this size, or on a batch as small as the last one.
        DataError: All images were requested to be in memory, which cannot hold them.
    """
    config = _resolve_feed(config, dataset, device)
    config = _resolve_stem(config, dataset)
    config = _resolve_views(config, dataset)
    if config.optimizer == "adamw":
        config = replace(config, nesterov=False)  # only SGD has it
    return _resolve_monitor(config, dataset)


def applied_views(config: Config) -> tuple[View, ...]:
    """The views of test-time augmentation that follow from the settings; none without it."""
    return () if config.no_tta else tta_views(config)


def _resolve_feed(config: Config, dataset: Dataset, device: torch.device) -> Config:
    """The feed and the number of worker processes, by the memory that is needed and free."""
    plan = plan_memory(config.feed, dataset, device)
    log.info("memory: %s", plan.figures)
    if plan.feed == "resident":
        num_workers, consequence = 0, "--num_workers has no effect"
    elif config.reproducible:
        num_workers, consequence = 0, "no worker processes in reproducibility mode"
    else:
        size, free = config.batch_size, free_shared_memory()
        num_workers, why_fewer = workers_that_fit(config.num_workers, dataset, batch_size=size, shared=free)
        if why_fewer:
            log.warning(why_fewer)
        consequence = f"{num_workers} worker processes"
    log.info("feed %s: %s; %s", plan.feed, plan.reason, consequence)
    return replace(config, feed=plan.feed, num_workers=num_workers)


def _resolve_stem(config: Config, dataset: Dataset) -> Config:
    """The stem that suits the image size, and a model name that agrees with it."""
    sides, backbone = (dataset.height, dataset.width), find_backbone(config.backbone)
    stem, reason = choose_stem(config.stem, *sides)
    reason = _reason(config, config.stem, reason)
    if stem == "adapted" and not backbone.is_adaptable:
        stem, reason = "stock", f"the first layers of {backbone.title} cannot be adapted, so they stay as published"
    model = outline(config.backbone, stem=stem, sides=sides)
    log.info("stem %s (%s): %s", stem, stem_layers(model, backbone), reason)
    _require_trainable(replace(config, stem=stem), dataset, model)
    if max(sides) < backbone.min_side:
        log.warning(
            "%s reduces %d pixels of a side to one, which these images do not have", backbone.title, backbone.min_side
        )
    model_name = config.model_name
    if model_name == DEFAULT_MODEL_NAME != (own := default_model_name(backbone, stem)):
        model_name = own
        adapted = "since nothing in it is adapted" if stem == "stock" else "after its backbone"
        log.info("the model is named %s, %s", model_name, adapted)
    return replace(config, stem=stem, model_name=model_name)


def _require_trainable(config: Config, dataset: Dataset, model: nn.Module) -> None:
    """Require that the outline of a model can train on the images, and on the last batch of an epoch."""
    sides, num_images = (dataset.height, dataset.width), dataset.num_samples["train"]
    where = f"images of {dataset.width} × {dataset.height} pixels and the {config.stem} stem"
    if reason := refusal(model, 2, sides):
        raise ConfigError(
            f"--backbone {config.backbone} cannot be trained on {where} ({reason}). Take another --backbone or --stem."
        )
    smallest_batch = num_images % config.batch_size or config.batch_size
    if smallest_batch == 1 and refusal(model, 1, sides):
        raise ConfigError(
            f"--batch_size {config.batch_size} leaves one of the {num_images} training images in a batch of its own, "
            f"which batch normalisation cannot train on with {where}. Take another --batch_size."
        )


def _resolve_views(config: Config, dataset: Dataset) -> Config:
    """The views that make sense for the images, in training and so in TTA."""
    config = _resolve_symmetries(config, dataset)
    if config.symmetries == "none":
        config = replace(config, hflip=0.0)
    if not dataset.orientation_free and config.hflip > 0:
        log.info(
            "no image is mirrored, whatever --hflip is: left and right are not interchangeable in %s (given by its "
            "path, %s is taken as a file of your own, for which --hflip alone decides)",
            dataset.title,
            dataset.source,
        )
        config = replace(config, hflip=0.0)
    if applied_views(config) == (PLAIN,):
        log.info("no test-time augmentation: training shows every image in one view only")
        config = replace(config, no_tta=True)
    return config


def _resolve_symmetries(config: Config, dataset: Dataset) -> Config:
    """Only flips where the eight symmetries of the square make no sense, if it was the recipe that asked for them."""
    if config.symmetries != "all":
        return config
    if not dataset.orientation_free:
        reason = f"the orientation of the images of {dataset.title} has a meaning"
    elif dataset.height != dataset.width:
        reason = f"images of {dataset.width} × {dataset.height} pixels are not square"
    else:
        return config
    own, usual = config.recipe_settings, SETTINGS["rotation_angle"].default
    if own["symmetries"] != "all":
        raise ConfigError(f"--symmetries all cannot be used here: {reason}. Take --symmetries flip or none.")
    # the recipe does without rotations because of the symmetries
    angle = usual if config.rotation_angle == own["rotation_angle"] else config.rotation_angle
    log.info("symmetries flip and rotations up to %d° instead of all symmetries: %s", angle, reason)
    return replace(config, symmetries="flip", rotation_angle=angle)


def _resolve_monitor(config: Config, dataset: Dataset) -> Config:
    """The validation figure that selects the best epoch."""
    suitable = "auc" if dataset.task == MULTI_LABEL else "accuracy"
    monitor = suitable if config.monitor == "auto" else config.monitor
    reason = _reason(config, config.monitor, f"the default for {dataset.task} sets")
    log.info("monitor %s, which selects the best epoch: %s", monitor, reason)
    return replace(config, monitor=monitor)


def _reason(config: Config, requested: str, choice: str) -> str:
    """Why a setting has its value: ``choice`` where the program chose it."""
    if requested == "auto":
        return choice
    return "as the run began" if config.resume else "as requested"
