"""A backbone by name, with the weights that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn

from scripts.core.config import BACKBONE
from scripts.core.log import log
from scripts.models.resnet import build_resnet18
from scripts.models.weights import fetch_imagenet_weights, load_weights, read_state_dict

# what builds a model from its number of classes, stem and seed; another backbone is one file and one line here
BACKBONES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({BACKBONE: build_resnet18})


def build_model(
    backbone: str = BACKBONE,
    *,
    num_classes: int,
    weights: str,
    data_dir: Path,
    seed: int,
    stem: str = "adapted",
) -> nn.Module:
    """The model as training starts with it, on the CPU.

    Args:
        backbone: A key of ``BACKBONES``.
        num_classes: Outputs of the model.
        weights: ``"imagenet"``, ``"none"`` or the path of a state dict.
        data_dir: Where ImageNet's weights are cached.
        seed: Seeds whatever is new in the model.
        stem: A key of ``STEMS``.

    Raises:
        DataError: The weights are missing, unreachable, corrupt, or of another architecture or a smaller stem.
        StorageError: Downloaded weights cannot be written.
    """
    model = BACKBONES[backbone](num_classes, stem=stem, seed=seed)
    if weights == "none":
        summary = "new weights throughout"
    else:
        path = fetch_imagenet_weights(data_dir) if weights == "imagenet" else Path(weights).expanduser()
        summary = load_weights(model, read_state_dict(path), origin=weights)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    about = f"{num_parameters:,} parameters, {stem} stem"
    log.info("model %s: %s, weights %s (%s)", backbone, about, weights, summary)
    return model
