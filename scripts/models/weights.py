"""The weights that training starts from: ImageNet's, a file's, or none."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from scripts.core.download import fetch
from scripts.core.errors import DataError
from scripts.models.resnet import STEMS, transfer_stem

StateDict = dict[str, Tensor]

IMAGENET_URL: str = ResNet18_Weights.IMAGENET1K_V1.url
IMAGENET_CLASSES: Sequence[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
ALTERNATIVES = "start without them (--weights none) or from a file of your own (--weights PATH)"


def imagenet_weights_file(data_dir: Path) -> Path:
    """Name the cached file: in ``TORCH_HOME`` where the user set it, else below the data folder."""
    name = IMAGENET_URL.rsplit("/", 1)[-1]
    if torch_home := os.environ.get("TORCH_HOME"):
        return Path(torch_home).expanduser() / "hub" / "checkpoints" / name
    return data_dir / "weights" / name


def fetch_imagenet_weights(data_dir: Path, *, url: str = IMAGENET_URL) -> Path:
    """Download torchvision's ResNet-18 weights, or find them in the cache; their digest is checked in any case.

    Like torchvision's names, ``url`` ends in ``-<first 8 digits of the SHA-256>.pth``.

    Raises:
        DataError: They can neither be found nor downloaded, or are damaged.
        StorageError: They cannot be written.
    """
    path = imagenet_weights_file(data_dir)
    digest_start = Path(url).stem.rsplit("-", 1)[-1]
    fetch(url, path, digest=digest_start, algorithm="sha256", what="the ImageNet weights", offline=ALTERNATIVES)
    return path


def read_class_names(weights: Path) -> list[str] | None:
    """Read the class names of an earlier run's weights from the ``best_model.json`` beside them; None where unknown."""
    try:
        names = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))["class_names"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return names if isinstance(names, list) else None


def read_state_dict(path: Path, *, origin: str | None = None) -> StateDict:
    """Read the tensors of a state dict file, and unpickle nothing else; messages call it ``origin``.

    Raises:
        DataError: The file is missing, or not a state dict of finite numbers.
    """
    name = origin or f"--weights {path}"
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"{name} must be the file of a ResNet-18 state dict, found {found} there.")
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
    model: nn.Module, state: StateDict, *, class_names: Sequence[str], earlier_names: Sequence[str] | None, origin: str
) -> str:
    """Copy a ResNet-18 state dict into a ResNet-18 with either stem; return what became of stem and ``fc``, in words.

    A stem of the model's kind is copied; a 7×7 one is transferred to 3×3. ``fc`` is kept if ``class_names``, of the
    model's outputs in their order, equal ``earlier_names``, of the state's outputs. If the earlier names are unknown,
    which is None, the same number of classes is enough. ``origin`` is where the state came from, for messages.

    Raises:
        DataError: The state is of another architecture, or has a 3×3 stem and the model a 7×7 one.
    """
    own, fitted = model.state_dict(), dict(state)
    # files older than PyTorch 0.4.1, such as torchvision's, lack these counters, which are not used here
    fitted |= {name: own[name] for name in own.keys() - state.keys() if name.endswith("num_batches_tracked")}
    given = state.get("conv1.weight", torch.zeros(0))
    fitted["conv1.weight"], summary = _fit_stem(own["conv1.weight"], given, origin)
    head = ("fc.weight", "fc.bias")
    fits = all(name in state and state[name].shape == own[name].shape for name in head)
    if fits and earlier_names is None:
        summary += ", fc kept (class names unknown)"
    elif fits and list(earlier_names or ()) == list(class_names):
        summary += ", fc kept (same class names)"
    else:
        fitted |= {name: own[name] for name in head}
        summary += f", fc new, for {len(class_names)} classes{' with other names' if fits else ''}"

    differences = _differences(own, fitted)
    if differences:
        raise DataError(
            f"--weights {origin} are not those of a ResNet-18: {'; '.join(differences)}. They must be torchvision's "
            "resnet18 (7×7 stem) or the best_model.pth of an earlier run (of either stem)."
        )
    model.load_state_dict(fitted)
    return summary


def _fit_stem(own: Tensor, given: Tensor, origin: str) -> tuple[Tensor, str]:
    """Convert given kernels of ``conv1`` to the shape of the model's ``own``; return them and what was done."""
    adapted, stock = ((64, 3, STEMS[name].kernel, STEMS[name].kernel) for name in ("adapted", "stock"))
    if (own.shape, given.shape) == (adapted, stock):
        return transfer_stem(given), "7×7 stem transferred to 3×3"
    if (own.shape, given.shape) == (stock, adapted):
        # 9 taps do not determine 49: enlarged kernels would respond to an equally enlarged image
        raise DataError(
            f"--weights {origin} have the 3×3 stem of --stem adapted, which does not make the 7×7 one of --stem stock. "
            "Add --stem adapted, or take weights with a 7×7 stem."
        )
    return given, f"{own.shape[-1]}×{own.shape[-1]} stem taken as it is"


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
