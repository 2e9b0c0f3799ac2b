"""A backbone by name, with the requested first layers, weights and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.core.log import log
from scripts.models.backbones import TIMM, Backbone, build_published, find_backbone
from scripts.models.stem import Sides, fit_to_images
from scripts.models.weights import fetch_imagenet_weights, imagenet_entry, load_timm_weights, load_weights

SMALL_SIDES = (28, 28)


def new_model(
    name: str, num_classes: int, *, stem: str = "adapted", seed: int, sides: Sides = SMALL_SIDES
) -> nn.Module:
    """Build a backbone with new weights, on the CPU in fp32, without touching PyTorch's global generator.

    It maps images (N, 3, H, W), of ``sides`` or for most backbones of any size, to logits (N, num_classes).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_published(name, num_classes)
        fit_to_images(model, find_backbone(name), stem, sides, new=True)
    return model


def outline(name: str, *, stem: str, sides: Sides, num_classes: int = 2) -> nn.Module:
    """Build a backbone on the meta device, which has shapes and no numbers: for questions about a model."""
    with torch.device("meta"):
        return new_model(name, num_classes, stem=stem, seed=0, sides=sides)


def build_model(
    backbone: str,
    *,
    class_names: Sequence[str],
    weights: str,
    data_dir: Path,
    seed: int,
    stem: str = "adapted",
    sides: Sides = SMALL_SIDES,
    dropout: float = 0.0,
) -> nn.Module:
    """Build the model that training starts with, on the CPU, with one output for each of ``class_names``.

    ``stem`` is one of ``STEMS``, and ``weights`` is ``"imagenet"``, ``"none"`` or the path of a state dict. ImageNet's
    weights are cached below ``data_dir``; ``seed`` seeds the new weights.

    Raises:
        DataError: The weights are missing, unreachable, corrupt, or of another architecture or a smaller stem.
        StorageError: Downloaded weights cannot be written.
    """
    record, num_classes = find_backbone(backbone), len(class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_published(backbone, num_classes)
        if weights == "none":
            fit_to_images(model, record, stem, sides, new=True)
            summary = "new weights throughout"
        elif weights == "imagenet" and backbone.startswith(TIMM):
            model = load_timm_weights(backbone, num_classes, data_dir)
            fit_to_images(model, record, stem, sides, new=False)
            summary = f"{record.head} new, for {num_classes} classes"
        else:
            path = fetch_imagenet_weights(backbone, data_dir) if weights == "imagenet" else Path(weights).expanduser()
            summary = load_weights(
                model, path, backbone, origin=weights, class_names=class_names, stem=stem, sides=sides
            )
    set_dropout(model, record, dropout)
    num_parameters = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    log.info("model %s: %s parameters, %s stem, weights %s (%s)", backbone, num_parameters, stem, weights, summary)
    return model


def refusal(model: nn.Module, batch_size: int, sides: Sides) -> str | None:
    """Why an outline of a model cannot train on such a batch, in the words of its layers; None if it can."""
    try:
        with torch.no_grad():
            model.train()(torch.zeros(batch_size, 3, *sides, device="meta"))
    except NotImplementedError:  # an operation without shapes on the meta device, which is no reason
        return None
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the images that the published weights of a backbone expect."""
    backbone = find_backbone(name)
    if backbone.mean is not None and backbone.std is not None:
        return backbone.mean, backbone.std
    preparation = imagenet_entry(name).transforms()
    return tuple(preparation.mean), tuple(preparation.std)


def head_name(name: str) -> str:
    """Dotted name of the last layer of a backbone, the one that depends on the classes."""
    return find_backbone(name).head


@dataclass(frozen=True, slots=True)
class _InputDropout:
    """A hook that drops a part of a layer's input in training; unlike a layer, it leaves the state dict alone."""

    probability: float

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.dropout(inputs[0], self.probability, layer.training), *inputs[1:])


def set_dropout(model: nn.Module, backbone: Backbone, probability: float) -> None:
    """Drop inputs of the last layer in training; 0 leaves the dropout that the backbone's authors have there."""
    if probability == 0:
        return
    classifier = model.get_submodule(backbone.head.rpartition(".")[0])
    own = [layer for layer in classifier.children() if isinstance(layer, nn.Dropout)]
    if own and isinstance(classifier, nn.Sequential):
        own[-1].p = probability
    else:
        model.get_submodule(backbone.head).register_forward_pre_hook(_InputDropout(probability))
