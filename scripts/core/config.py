"""Every setting of a run, declared once: name, type, default, limits and help."""

from __future__ import annotations

import getpass
import operator
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from scripts.core.errors import ConfigError

BACKBONE = "resnet18"
DEFAULT_MODEL_NAME = "ResNet-18 Adapted"
STOCK_MODEL_NAME = "ResNet-18"  # replaces the default where the stem is not adapted
RESOLUTIONS = (28, 64, 128, 224)  # in which MedMNIST publishes its 2D sets, in pixels of a side
STANDARD_RESOLUTION = RESOLUTIONS[0]  # not part of a run folder's name, as the others are
MAX_COUNT = 1_000_000  # larger counts are typing mistakes
MAX_SEED = 2**32 - 1  # the largest that PYTHONHASHSEED and NumPy accept


def setting(default: Any, about: str, *, group: str, **limits: Any) -> Any:
    """A field of ``Config``; a tuple as ``default`` lists all choices, and its first one is the default.

    ``limits`` are any of ``ge``, ``le`` (inclusive), ``gt``, ``lt`` (exclusive), ``pattern`` (a regular expression that
    matches the whole value) with ``pattern_help`` (the same in words).
    """
    if isinstance(default, tuple):
        default, limits["choices"] = default[0], default
    return field(default=default, metadata={"help": about, "group": group, **limits})


_training = partial(setting, group="training")
_augmentation = partial(setting, group="augmentation")
_data_and_model = partial(setting, group="data and model")
_hardware = partial(setting, group="hardware")
_safety = partial(setting, group="safety")


def default_lock_file() -> Path:
    """One lock per user, in the temp folder, so that two users of a machine do not wait for each other."""
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # every temp folder is read-only; if home is too, locking reports it
        folder = os.path.expanduser("~")  # noqa: PTH111 (Path's own raises where there is no home)
    return Path(folder) / f"medmnist_training_{user}.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything a run depends on; change one with ``dataclasses.replace``.

    Raises:
        ConfigError: At least one value is outside its limits; the message has one line per value.
    """

    epochs: int = _training(60, "Maximum number of passes over the training split.", ge=1, le=MAX_COUNT)
    batch_size: int = _training(128, "Images per optimiser step.", ge=1, le=MAX_COUNT)
    lr: float = _training(0.008, "Initial learning rate of SGD; a cosine takes it to 0.", gt=0)
    momentum: float = _training(0.9, "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float = _training(5e-4, "L2 penalty of SGD.", ge=0)
    patience: int = _training(15, "Epochs without a better monitored figure before stopping.", ge=1, le=MAX_COUNT)
    monitor: str = _training(
        ("auto", "accuracy", "auc", "loss"),
        "Validation figure for selection and patience; auto is AUC for multi-label sets, accuracy for the others.",
    )
    mixup_alpha: float = _training(0.002, "Alpha of MixUp's Beta(alpha, alpha); 0 disables it.", ge=0)
    seed: int = _training(42, "Seeds weights, data order, augmentation and MixUp.", ge=0, le=MAX_SEED)

    hflip: float = _augmentation(
        0.5, "Probability of a horizontal flip; 0 for the MedMNIST sets in which left and right differ.", ge=0, le=1
    )
    rotation_angle: int = _augmentation(10, "Largest random rotation, in degrees.", ge=0, le=180)
    jitter_val: float = _augmentation(0.2, "Strength of the brightness and contrast jitter.", ge=0, le=1)
    no_tta: bool = _augmentation(False, "No test-time augmentation in the final evaluation.")

    dataset: str = _data_and_model(
        "bloodmnist", "MedMNIST set, 'synthblood' (drawn by the program, needs no network), or the path of an .npz."
    )
    resolution: int = _data_and_model(
        RESOLUTIONS,
        "Published size of a MedMNIST set's images, in pixels of a side; own files have a size of their own.",
    )
    model_name: str = _data_and_model(
        DEFAULT_MODEL_NAME,
        "Identifier in logs, reports and the run folder's name; never selects an architecture.",
        pattern=r"(?=.*[A-Za-z0-9])[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,100}",
        pattern_help="1 to 100 printable characters with a letter or a digit among them",
    )
    weights: str = _data_and_model(
        "imagenet",
        "Where training starts: 'imagenet', 'none', or the path of a ResNet-18 state dict.",
        pattern=r".+",
        pattern_help="'imagenet', 'none', or a path",
    )
    stem: str = _data_and_model(
        ("auto", "adapted", "stock"),
        "The network's first layers: 'adapted' (3x3, keeps every pixel), 'stock' (7x7 and max-pool, a quarter of the "
        "side), 'auto' (adapted up to 64 pixels).",
    )
    data_dir: Path = _data_and_model(Path("dataset"), "Folder of the downloaded data and weights.")
    output_dir: Path = _data_and_model(Path("outputs"), "Folder in which each run gets its own.")

    device: str = _hardware(
        "auto",
        "'auto' (cuda, then mps, then cpu), 'cpu', 'cuda', 'cuda:N' or 'mps'.",
        pattern=r"auto|cpu|cuda(:[0-9]{1,3})?|mps",
        pattern_help="auto, cpu, cuda, cuda:N or mps",
    )
    precision: str = _hardware(
        ("auto", "fp32", "bf16"), "Arithmetic of the network; auto takes bf16 where the hardware has it."
    )
    feed: str = _hardware(
        ("auto", "resident", "streamed"),
        "'resident' (images on the device), 'streamed' (worker processes), 'auto' (resident where it fits).",
    )
    num_workers: int = _hardware(4, "Worker processes when data are streamed.", ge=0, le=256)

    resume: str = _safety(
        "",
        "Continue an interrupted run to the same bits it would have had; its settings are taken over.",
        metavar="RUN_DIR",
    )
    reproducible: bool = _safety(False, "Same machine, same versions, same command: same bits. Slower.")
    lock_file: Path = _safety(default_lock_file(), "One training at a time per lock file.")
    checkpoint_every: float = _safety(
        30.0, "Seconds between checkpoints, at least; the last epoch, a new best and a stop are always written.", ge=0
    )
    no_process_guard: bool = _safety(False, "Leave ghost processes of earlier runs alone.")

    def __post_init__(self) -> None:
        problems = [problem for name in SETTINGS for problem in _problems(name, getattr(self, name))]
        if self.reproducible and self.precision == "bf16":
            problems.append("--precision bf16 cannot be used with --reproducible, which computes in fp32; drop one.")
        if problems:  # all of them at once, not one per start
            raise ConfigError(*problems)

    @property
    def is_dataset_path(self) -> bool:
        """Whether ``dataset`` names a file rather than an entry of the registry."""
        return self.dataset.endswith(".npz") or "/" in self.dataset or os.sep in self.dataset

    @property
    def dataset_part(self) -> str:
        """The data set's part of the run folder's name: ``bloodmnist_64``, or the name of an own file."""
        if self.is_dataset_path:
            return Path(self.dataset).stem
        return self.dataset if self.resolution == STANDARD_RESOLUTION else f"{self.dataset}_{self.resolution}"

    @property
    def model_part(self) -> str:
        """The model's part of the run folder's name: the user's name for it, or the backbone's key."""
        return BACKBONE if self.model_name == DEFAULT_MODEL_NAME else self.model_name

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values, in the order of their declaration."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting."""

    name: str
    kind: type
    default: Any
    metadata: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return f"--{self.name}"


_TYPES = get_type_hints(Config)
SETTINGS = {f.name: Setting(f.name, _TYPES[f.name], f.default, f.metadata) for f in fields(Config)}
_KIND_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False", Path: "a path"}
_LIMITS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}


def _problems(name: str, value: Any) -> Iterator[str]:
    """One sentence for each way in which ``value`` breaks its setting's declaration."""
    known = SETTINGS[name]
    if not _is_of_kind(value, known.kind):
        yield f"{known.flag} must be {_KIND_NAMES[known.kind]}, got {value!r}."
        return
    if known.kind is Path and "\0" in str(value):
        yield f"{known.flag} must be a path without null characters, got {str(value)!r}."
    limits = known.metadata
    if "choices" in limits and value not in limits["choices"]:
        yield f"{known.flag} must be one of {', '.join(map(str, limits['choices']))}, got {value!r}."
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        yield f"{known.flag} must be {limits['pattern_help']}, got {value!r}."
    for limit, (is_kept, words) in _LIMITS.items():
        if limit in limits and not is_kept(value, limits[limit]):
            number = f"{value:g}" if isinstance(value, float) else repr(value)
            yield f"{known.flag} must be {words} {limits[limit]}, got {number}."


def _is_of_kind(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # an int in Python, but not to a user
        return kind is bool
    if kind is float:  # compared, since math.isfinite cannot take a whole number beyond the floats
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)
