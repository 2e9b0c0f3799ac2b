"""A backbone by name, with the requested weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import nn

from scripts.core.log import log
from scripts.models.resnet import build_resnet18
from scripts.models.weights import (
    IMAGENET_CLASSES,
    fetch_imagenet_weights,
    load_weights,
    read_class_names,
    read_state_dict,
)

# each builds a model from its number of classes, stem and seed; another backbone is one file and one line here
BACKBONES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"resnet18": build_resnet18})


def build_model(
    backbone: str = "resnet18",
    *,
    class_names: Sequence[str],
    weights: str,
    data_dir: Path,
    seed: int,
    stem: str = "adapted",
) -> nn.Module:
    """Build the model that training starts with, on the CPU, with one output for each of ``class_names``.

    ``backbone`` and ``stem`` are keys of ``BACKBONES`` and ``STEMS``. ``weights`` is ``"imagenet"``, ``"none"`` or the
    path of a state dict. ImageNet's weights are cached below ``data_dir``; ``seed`` seeds the new weights.

    Raises:
        DataError: The weights are missing, unreachable, corrupt, or of another architecture or a smaller stem.
        StorageError: Downloaded weights cannot be written.
    """
    model = BACKBONES[backbone](len(class_names), stem=stem, seed=seed)
    if weights == "none":
        summary = "new weights throughout"
    else:
        is_imagenet = weights == "imagenet"
        path = fetch_imagenet_weights(data_dir) if is_imagenet else Path(weights).expanduser()
        earlier_names = IMAGENET_CLASSES if is_imagenet else read_class_names(path)
        summary = load_weights(
            model, read_state_dict(path), class_names=class_names, earlier_names=earlier_names, origin=weights
        )
    num_parameters = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    log.info("model %s: %s parameters, %s stem, weights %s (%s)", backbone, num_parameters, stem, weights, summary)
    return model
