"""A backbone by name, with the weights that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn

from scripts.core.config import BACKBONE
from scripts.core.log import log
from scripts.models.resnet import adapted_resnet18
from scripts.models.weights import fetch_imagenet_weights, load_weights, read_state_dict

# what builds a model from its number of classes and its seed; another backbone is one file and one line here
BACKBONES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({BACKBONE: adapted_resnet18})


def build_model(backbone: str = BACKBONE, *, num_classes: int, weights: str, data_dir: Path, seed: int) -> nn.Module:
    """The model as training starts with it, on the CPU.

    Args:
        backbone: A key of ``BACKBONES``.
        num_classes: Outputs of the model.
        weights: ``"imagenet"``, ``"none"`` or the path of a state dict.
        data_dir: Where ImageNet's weights are cached.
        seed: Seeds whatever is new in the model.

    Raises:
        DataError: The weights are missing, unreachable, corrupt, or of another architecture.
        StorageError: Downloaded weights cannot be written.
    """
    model = BACKBONES[backbone](num_classes, seed=seed)
    if weights == "none":
        happened = "new weights throughout"
    else:
        path = fetch_imagenet_weights(data_dir) if weights == "imagenet" else Path(weights).expanduser()
        happened = load_weights(model, read_state_dict(path), origin=weights)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("model %s: %s parameters, weights %s (%s)", backbone, f"{num_parameters:,}", weights, happened)
    return model
