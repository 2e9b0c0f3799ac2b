"""Where training starts from: ImageNet's weights, a file's, or none."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from scripts.core.download import fetch
from scripts.core.errors import DataError
from scripts.models.stem import is_stem, transfer_stem

StateDict = dict[str, Tensor]

IMAGENET_URL: str = ResNet18_Weights.IMAGENET1K_V1.url
WAYS_OUT = "start without them (--weights none) or from a file of your own (--weights PATH)"


def imagenet_weights_file(data_dir: Path) -> Path:
    """Where torchvision's file is kept: in ``TORCH_HOME`` where the user set it, else below the data folder."""
    name = IMAGENET_URL.rsplit("/", 1)[-1]
    if torch_home := os.environ.get("TORCH_HOME"):
        return Path(torch_home).expanduser() / "hub" / "checkpoints" / name
    return data_dir / "weights" / name


def fetch_imagenet_weights(data_dir: Path, *, url: str = IMAGENET_URL) -> Path:
    """Torchvision's ResNet-18 weights as a file whose hash was checked, also when it was there before.

    Args:
        data_dir: The data folder, below which they are cached.
        url: Where they come from; as torchvision's names do, it ends in ``-<first 8 digits of the SHA-256>.pth``.

    Raises:
        DataError: They can neither be found nor downloaded, or are not what they should be.
        StorageError: They cannot be written.
    """
    path = imagenet_weights_file(data_dir)
    digest_start = Path(url).stem.rsplit("-", 1)[-1]
    fetch(url, path, digest=digest_start, algorithm="sha256", what="the ImageNet weights", offline=WAYS_OUT)
    return path


def read_state_dict(path: Path, *, origin: str | None = None) -> StateDict:
    """The tensors of a state dict file; nothing but tensors is ever unpickled.

    Args:
        path: The file.
        origin: What the file is in the user's words, for messages; otherwise ``--weights PATH``.

    Raises:
        DataError: There is no such file, or it is no state dict of finite numbers.
    """
    name = origin or f"--weights {path}"
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"{name} must be the file of a ResNet-18 state dict, found {found} there.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch says of unexpected files is said below in one sentence
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, since PyTorch parses whatever bytes it is given
        raise DataError(
            f"{name} cannot be read: {_what_it_is(path)}. It must be a file that torch.save(model.state_dict(), path) "
            "wrote."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{name} must hold a state dict, that is tensors by name, got {_kind(loaded)}.")
    for key, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise DataError(f"{name} holds {key!r} as a tensor without plain numbers. Take another file.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{name} holds values in {key!r} that are no finite numbers. Take another file.")
    return dict(loaded)


def _what_it_is(path: Path) -> str:
    """Why PyTorch could not read a file, from how the file begins."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if start == b"PK":
        return "it is cut short, damaged, or holds other Python objects than tensors, which are not loaded"
    if start[:1] == b"\x80":
        return "it is damaged, or holds other Python objects than tensors, which are not loaded"
    return "it is no PyTorch file" if start else "it is empty"


def load_weights(model: nn.Module, state: StateDict, *, origin: str) -> str:
    """Copy a ResNet-18 state dict into a ResNet-18 with either stem.

    The stem is taken as it is where it is of the model's kind; a 7×7 one is transferred to 3×3. ``fc`` is kept where it
    fits and stays new where it does not.

    Args:
        model: The model; it is changed in place.
        state: torchvision's state dict, or that of an earlier run; it is left as it is.
        origin: Where the state came from, for messages.

    Returns:
        What summary to the stem and to ``fc``, in words.

    Raises:
        DataError: The state is of another architecture, or has a 3×3 stem and the model a 7×7 one.
    """
    own, summary = model.state_dict(), []
    # files older than PyTorch 0.4.1, torchvision's own among them, lack these counters, which nothing here reads
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    fitted = counters | state
    own_stem, stem = own["conv1.weight"], fitted.get("conv1.weight", torch.zeros(0))
    if is_stem(own_stem, "adapted") and is_stem(stem, "stock"):
        fitted["conv1.weight"] = transfer_stem(stem)
        summary.append("7×7 stem transferred to 3×3")
    elif is_stem(own_stem, "stock") and is_stem(stem, "adapted"):
        # what nine taps do not say, nobody can add: enlarged kernels would answer to a picture enlarged likewise
        raise DataError(
            f"--weights {origin} have the 3×3 stem of --stem adapted, which does not make the 7×7 one of --stem stock. "
            "Add --stem adapted, or take weights with a 7×7 stem."
        )
    else:
        kernel = own_stem.shape[-1]
        summary.append(f"{kernel}×{kernel} stem taken as it is")

    head = ("fc.weight", "fc.bias")
    if all(name in fitted and fitted[name].shape == own[name].shape for name in head):
        summary.append("fc kept")
    else:
        fitted |= {name: own[name] for name in head}
        summary.append(f"fc new, for {own['fc.bias'].numel()} classes")

    differences = _differences(own, fitted)
    if differences:
        raise DataError(
            f"--weights {origin} are not those of a ResNet-18: {'; '.join(differences)}. They must be torchvision's "
            "resnet18 (7×7 stem) or the best_model.pth of an earlier run (of either stem)."
        )
    model.load_state_dict(fitted)
    return ", ".join(summary)


def load_best_weights(model: nn.Module, path: Path) -> None:
    """Read the run's own best weights back into the model that they were saved from; every tensor must fit.

    Raises:
        DataError: The file is missing, damaged, or of another model.
    """
    state = read_state_dict(path, origin=f"The best weights {path}")
    differences = _differences(model.state_dict(), state)
    if differences:
        raise DataError(f"The best weights {path} are not of this run's model: {'; '.join(differences)}.")
    model.load_state_dict(state)


def _differences(own: StateDict, given: StateDict) -> list[str]:
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [
        f"{name!r} has shape {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name].shape
    ]
    found = []
    if missing:
        found.append(f"{len(missing)} tensors are missing, such as {missing[0]!r}")
    if unexpected:
        found.append(f"{len(unexpected)} are not part of one, such as {unexpected[0]!r}")
    return found + sorted(shapes)[:1]


def _kind(loaded: object) -> str:
    if isinstance(loaded, dict):
        odd = next(name for name, value in loaded.items() if not isinstance(value, Tensor))
        return f"a dictionary whose {odd!r} is {type(loaded[odd]).__name__}"
    return type(loaded).__name__
