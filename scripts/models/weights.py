"""The weights that training starts from: ImageNet's, a file's, or none."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from scripts.core.download import fetch
from scripts.core.errors import DataError
from scripts.models.backbones import BACKBONES, TIMM, Backbone, build_published, find_backbone
from scripts.models.stem import Sides, fit_to_images

StateDict = dict[str, Tensor]

ALTERNATIVES = "start without them (--weights none) or from a file of your own (--weights PATH)"
# buffers that a model computes from its windows; a file's are of the windows that it was trained with
COMPUTED_BUFFERS = ("relative_coords_table", "relative_position_index")


def imagenet_entry(name: str) -> Any:
    """Torchvision's description of a backbone's ImageNet weights: ``url``, ``meta``, ``transforms``."""
    return get_model_weights(name)[BACKBONES[name].weights]


def imagenet_weights_file(url: str, data_dir: Path) -> Path:
    """Name the cached file: in ``TORCH_HOME`` where the user set it, else below the data folder."""
    name = url.rsplit("/", 1)[-1]
    if torch_home := os.environ.get("TORCH_HOME"):
        return Path(torch_home).expanduser() / "hub" / "checkpoints" / name
    return data_dir / "weights" / name


def fetch_imagenet_weights(name: str, data_dir: Path, *, url: str | None = None) -> Path:
    """Download torchvision's weights of a backbone, or find them in the cache; their digest is checked in any case.

    Like torchvision's names, ``url`` ends in ``-<first 8 digits of the SHA-256>.pth``.

    Raises:
        DataError: They can neither be found nor downloaded, or are damaged.
        StorageError: They cannot be written.
    """
    url = url or imagenet_entry(name).url
    path = imagenet_weights_file(url, data_dir)
    digest_start = Path(url).stem.rsplit("-", 1)[-1]
    what = f"the ImageNet weights of {find_backbone(name).title}"
    fetch(url, path, digest=digest_start, algorithm="sha256", what=what, offline=ALTERNATIVES)
    return path


def load_timm_weights(name: str, num_classes: int, data_dir: Path) -> nn.Module:
    """Build one of timm's models with the weights that timm downloads for it, below the data folder, and a new head.

    Raises:
        DataError: There are none, or they cannot be downloaded.
    """
    import timm

    folder = str(data_dir / "weights")
    try:
        return timm.create_model(name.removeprefix(TIMM), pretrained=True, num_classes=num_classes, cache_dir=folder)
    except Exception as error:  # of many kinds: timm's, its hub's, the network's
        reason = " ".join(str(error).split())
        raise DataError(
            f"--weights imagenet: timm cannot load the weights of {name} ({type(error).__name__}: {reason}). Check the "
            f"network, or {ALTERNATIVES}."
        ) from error


def read_class_names(weights: Path) -> list[str] | None:
    """Read the class names of an earlier run's weights from the ``best_model.json`` beside them; None where unknown."""
    try:
        names = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))["class_names"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return names if isinstance(names, list) else None


def read_state_dict(path: Path, *, origin: str | None = None, title: str = "the model") -> StateDict:
    """Read the tensors of a state dict file, and unpickle nothing else; messages call it ``origin``.

    Raises:
        DataError: The file is missing, or not a state dict of finite numbers.
    """
    name = origin or f"--weights {path}"
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"{name} must be the file of a state dict of {title}, found {found} there.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below replaces PyTorch's warnings about unexpected files
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, since PyTorch parses arbitrary bytes
        raise DataError(
            f"{name} cannot be read: {_file_problem(path)}. It must be a file that torch.save(model.state_dict(), "
            "path) wrote."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{name} must hold a state dict, that is tensors by name, got {_kind(loaded)}.")
    for key, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise DataError(f"{name} holds {key!r} as a tensor without plain numbers. Take another file.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{name} holds values in {key!r} that are not finite. Take another file.")
    return dict(loaded)


def _file_problem(path: Path) -> str:
    """Why PyTorch could not read a file, from how the file begins."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if start == b"PK":
        return "it is cut short, damaged, or holds other Python objects than tensors, which are not loaded"
    if start[:1] == b"\x80":
        return "it is damaged, or holds other Python objects than tensors, which are not loaded"
    return "it is not a PyTorch file" if start else "it is empty"


def load_weights(
    model: nn.Module, path: Path, name: str, *, origin: str, class_names: Sequence[str], stem: str, sides: Sides
) -> str:
    """Copy a state dict file into a backbone as published, which then gets its stem; return what was done, in words.

    A file with the published stem is copied before the stem is adapted, which carries its kernels over; one with the
    adapted stem is copied afterwards. The head is kept if ``class_names``, of the model's outputs in their order, equal
    those of the file: ImageNet's, or those in the ``best_model.json`` beside it. If they are unknown, the same number
    of classes is enough. ``origin`` is the value of ``--weights``, for messages.

    Raises:
        DataError: The file cannot be read, is of another architecture, or has an adapted stem and the model a stock
            one.
    """
    backbone = find_backbone(name)
    earlier_names = imagenet_entry(name).meta["categories"] if origin == "imagenet" else read_class_names(path)
    read = read_state_dict(path, title=backbone.title)
    if backbone.renamed:
        read = {re.sub(*backbone.renamed, key): tensor for key, tensor in read.items()}
    state, head_summary = _fit_head(read, model.state_dict(), backbone.head, class_names, earlier_names)
    published = model.state_dict()
    completed = _complete(state, published)
    kernels = f"{backbone.conv}.weight"
    given = state.get(kernels, torch.zeros(0))
    if is_published := not (problems := _differences(published, completed)):
        model.load_state_dict(completed)
    _require_large_stem(given, published[kernels], backbone, stem, origin)
    fit_to_images(model, backbone, stem, sides, new=not is_published)
    own = model.state_dict()
    if not is_published:
        completed = _complete(state, own)
        if given.shape != published[kernels].shape:
            problems = _differences(own, completed)
        if _differences(own, completed):
            raise DataError(_other_architecture(name, origin, problems, read))
        model.load_state_dict(completed)
    before, after = given.shape[-1], own[kernels].shape[-1]
    change = "taken as it is" if before == after else f"transferred to {after}×{after}"
    return f"{before}×{before} stem {change}, {head_summary}"


def _fit_head(
    state: StateDict, own: StateDict, head: str, class_names: Sequence[str], earlier_names: Sequence[str] | None
) -> tuple[StateDict, str]:
    """Replace the head of a state by the model's ``own`` unless it is of the same classes; and what was done."""
    tensors = [key for key in own if key.startswith(f"{head}.")]
    fits = all(key in state and state[key].shape == own[key].shape for key in tensors)
    if fits and earlier_names is None:
        return state, f"{head} kept (class names unknown)"
    if fits and list(earlier_names or ()) == list(class_names):
        return state, f"{head} kept (same class names)"
    others = " with other names" if fits else ""
    return state | {key: own[key] for key in tensors}, f"{head} new, for {len(class_names)} classes{others}"


def _complete(state: StateDict, own: StateDict) -> StateDict:
    """Add what a model computes itself, and counters that files older than PyTorch 0.4.1 lack; both are not learned."""
    computed = {key for key in own if key.endswith(COMPUTED_BUFFERS)}
    counters = {key for key in own.keys() - state.keys() if key.endswith("num_batches_tracked")}
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(COMPUTED_BUFFERS)}
    return kept | {key: own[key] for key in computed | counters}


def _require_large_stem(given: Tensor, published: Tensor, backbone: Backbone, stem: str, origin: str) -> None:
    side = backbone.adapted[0] if backbone.adapted else 0
    if stem == "stock" and given.shape == (*published.shape[:2], side, side) != published.shape:
        # 9 taps do not determine 49: enlarged kernels would respond to an equally enlarged image
        own, large = f"{side}×{side}", f"{published.shape[-1]}×{published.shape[-1]}"
        raise DataError(
            f"--weights {origin} have the {own} stem of --stem adapted, which does not make the {large} one of --stem "
            f"stock. Add --stem adapted, or take weights with a {large} stem."
        )


def _other_architecture(name: str, origin: str, problems: Sequence[str], state: StateDict) -> str:
    library, _, model = name.rpartition("/")
    advice = f"They must be {library or 'torchvision'}'s {model} or the best_model.pth of an earlier run with it."
    if find_backbone(name).resizes and not any("tensors are missing" in problem for problem in problems):
        advice = "They fit images of one size and one --stem: those that they were trained with."
    elif owner := _owner(state):
        advice = f"They are those of {owner}: add --backbone {owner}, or take others."
    title = find_backbone(name).title
    article = "an" if title[0] in "AEIOU" else "a"
    return f"--weights {origin} are not those of {article} {title}: {'; '.join(problems)}. {advice}"


def _owner(state: StateDict) -> str | None:
    """Name the backbone of torchvision whose tensors have the names in a state; None if there is none."""
    names = {key for key in state if not key.endswith("num_batches_tracked")}
    with torch.device("meta"):
        for name in BACKBONES:
            own = build_published(name, 2).state_dict()
            if names == {key for key in own if not key.endswith("num_batches_tracked")}:
                return name
    return None


def load_best_weights(model: nn.Module, path: Path) -> None:
    """Load the run's own best weights into the model that they were saved from; every tensor must fit.

    Raises:
        DataError: The file is missing, damaged, or of another model.
    """
    state = read_state_dict(path, origin=f"The best weights {path}")
    differences = _differences(model.state_dict(), state)
    if differences:
        raise DataError(f"The best weights {path} are not of this run's model: {'; '.join(differences)}.")
    model.load_state_dict(state)


def _differences(own: StateDict, given: StateDict) -> list[str]:
    found = []
    if missing := sorted(own.keys() - given.keys()):
        found.append(f"{len(missing)} tensors are missing, such as {missing[0]!r}")
    if unexpected := sorted(given.keys() - own.keys()):
        found.append(f"{len(unexpected)} are not part of one, such as {unexpected[0]!r}")
    shared = sorted(own.keys() & given.keys())
    if reshaped := [name for name in shared if given[name].shape != own[name].shape]:
        shapes = [tuple(state[reshaped[0]].shape) for state in (given, own)]
        found.append(f"{reshaped[0]!r} has shape {shapes[0]} instead of {shapes[1]}")
    return found


def _kind(loaded: object) -> str:
    if isinstance(loaded, dict):
        odd = next(name for name, value in loaded.items() if not isinstance(value, Tensor))
        return f"a dictionary whose {odd!r} is {type(loaded[odd]).__name__}"
    return type(loaded).__name__
