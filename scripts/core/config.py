"""Every setting of a run, declared once: name, type, default, limits and help."""

from __future__ import annotations

import getpass
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from scripts.core.errors import ConfigError

BACKBONE = "resnet18"
DEFAULT_MODEL_NAME = "ResNet-18 Adapted"
STOCK_MODEL_NAME = "ResNet-18"  # in place of the default where the stem is not adapted after all
RESOLUTIONS = (28, 64, 128, 224)  # that MedMNIST publishes its 2D sets in; pixels of a side
STANDARD_RESOLUTION = 28  # the only one that is no part of a name
MAX_COUNT = 1_000_000  # of anything counted: beyond it lies a typing mistake, and at last an overflow
MAX_SEED = 2**32 - 1  # what PYTHONHASHSEED and NumPy accept


def setting(default: Any, about: str, *, group: str, **limits: Any) -> Any:
    """A field of ``Config``; a callable default is called when the Config is made.

    ``limits`` are any of ``ge``, ``le`` (inclusive), ``gt``, ``lt`` (exclusive), ``choices``, ``pattern`` (a
    regular expression that the whole value matches) with ``pattern_help`` (the same in words).
    """
    metadata = {"help": about, "group": group, **limits}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def default_lock_file() -> Path:
    """One lock per user, in the temp folder, so that two users of a machine do not wait for each other."""
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # every temp folder is read-only; home may not be, and if it is, the lock will say so
        folder = os.path.expanduser("~")  # noqa: PTH111 (Path's own raises where there is no home)
    return Path(folder) / f"medmnist_training_{user}.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything a run depends on; change one with ``dataclasses.replace``.

    Raises:
        ConfigError: At least one value is out of its limits; every such value has its line.
    """

    epochs: int = setting(60, "Maximum number of passes over the training split.", group="training", ge=1, le=MAX_COUNT)
    batch_size: int = setting(128, "Images per optimiser step.", group="training", ge=1, le=MAX_COUNT)
    lr: float = setting(0.008, "Initial learning rate of SGD; a cosine takes it to 0.", group="training", gt=0)
    momentum: float = setting(0.9, "Momentum of SGD.", group="training", ge=0, lt=1)
    weight_decay: float = setting(5e-4, "L2 penalty of SGD.", group="training", ge=0)
    patience: int = setting(
        15, "Epochs without a better monitored figure before stopping.", group="training", ge=1, le=MAX_COUNT
    )
    monitor: str = setting(
        "auto",
        "Validation figure for selection and patience; auto is AUC for multi-label sets, accuracy for the others.",
        group="training",
        choices=("auto", "accuracy", "auc", "loss"),
    )
    mixup_alpha: float = setting(0.002, "Alpha of MixUp's Beta(alpha, alpha); 0 disables it.", group="training", ge=0)
    seed: int = setting(42, "Seeds weights, data order, augmentation and MixUp.", group="training", ge=0, le=MAX_SEED)

    hflip: float = setting(
        0.5,
        "Probability of a horizontal flip; 0 for the MedMNIST sets in which left and right differ.",
        group="augmentation",
        ge=0,
        le=1,
    )
    rotation_angle: int = setting(10, "Largest random rotation, in degrees.", group="augmentation", ge=0, le=180)
    jitter_val: float = setting(
        0.2, "Strength of the brightness and contrast jitter.", group="augmentation", ge=0, le=1
    )
    no_tta: bool = setting(False, "No test-time augmentation in the final evaluation.", group="augmentation")

    dataset: str = setting(
        "bloodmnist",
        "MedMNIST set, 'synthblood' (drawn by the program, needs no network), or the path of an .npz.",
        group="data and model",
    )
    resolution: int = setting(
        STANDARD_RESOLUTION,
        "Published size of a MedMNIST set's images, in pixels of a side; own files have a size of their own.",
        group="data and model",
        choices=RESOLUTIONS,
    )
    model_name: str = setting(
        DEFAULT_MODEL_NAME,
        "Identifier in logs, reports and the run folder's name; never selects an architecture.",
        group="data and model",
        pattern=r"(?=.*[A-Za-z0-9])[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,100}",  # no bytes that are no text, either
        pattern_help="1 to 100 printable characters with a letter or a digit among them",
    )
    weights: str = setting(
        "imagenet",
        "Where training starts: 'imagenet', 'none', or the path of a ResNet-18 state dict.",
        group="data and model",
        pattern=r".+",
        pattern_help="'imagenet', 'none', or a path",
    )
    stem: str = setting(
        "auto",
        "The network's first layers: 'adapted' (3x3, keeps every pixel), 'stock' (7x7 and max-pool, a quarter of the "
        "side), 'auto' (adapted up to 64 pixels).",
        group="data and model",
        choices=("auto", "adapted", "stock"),
    )
    data_dir: Path = setting(Path("dataset"), "Folder of the downloaded data and weights.", group="data and model")
    output_dir: Path = setting(Path("outputs"), "Folder in which each run gets its own.", group="data and model")

    device: str = setting(
        "auto",
        "'auto' (cuda, then mps, then cpu), 'cpu', 'cuda', 'cuda:N' or 'mps'.",
        group="hardware",
        pattern=r"auto|cpu|cuda(:[0-9]{1,3})?|mps",
        pattern_help="auto, cpu, cuda, cuda:N or mps",
    )
    precision: str = setting(
        "auto",
        "Arithmetic of the network; auto takes bf16 where the hardware has it.",
        group="hardware",
        choices=("auto", "fp32", "bf16"),
    )
    feed: str = setting(
        "auto",
        "'resident' (images on the device), 'streamed' (worker processes), 'auto' (resident where it fits).",
        group="hardware",
        choices=("auto", "resident", "streamed"),
    )
    num_workers: int = setting(4, "Worker processes when data are streamed.", group="hardware", ge=0, le=256)

    resume: str = setting(
        "",
        "Continue an interrupted run to the same bits it would have had; its settings are taken over.",
        group="safety",
        metavar="RUN_DIR",
    )
    reproducible: bool = setting(False, "Same machine, same versions, same command: same bits. Slower.", group="safety")
    lock_file: Path = setting(default_lock_file, "One training at a time per lock file.", group="safety")
    checkpoint_every: float = setting(
        30.0,
        "Seconds between checkpoints, at least; the last epoch, a new best and a stop are always written.",
        group="safety",
        ge=0,
    )
    no_process_guard: bool = setting(False, "Leave ghost processes of earlier runs alone.", group="safety")

    def __post_init__(self) -> None:
        problems = [problem for name in SETTINGS for problem in _problems(name, getattr(self, name))]
        if self.reproducible and self.precision == "bf16":
            problems.append("--precision bf16 cannot be used with --reproducible, which computes in fp32; drop one.")
        if problems:  # all of them at once: nobody likes one error per launch
            raise ConfigError(*problems)

    @property
    def is_dataset_path(self) -> bool:
        """Whether ``dataset`` names a file rather than an entry of the registry."""
        return self.dataset.endswith(".npz") or "/" in self.dataset or os.sep in self.dataset

    @property
    def dataset_part(self) -> str:
        """What the run folder's name says of the data: the registry's name, or an own file's without its ending.

        >>> Config(dataset="bloodmnist", resolution=64).dataset_part
        'bloodmnist_64'
        """
        if self.is_dataset_path:
            return Path(self.dataset).stem
        return self.dataset if self.resolution == STANDARD_RESOLUTION else f"{self.dataset}_{self.resolution}"

    @property
    def model_part(self) -> str:
        """What the run folder's name says of the model: the user's name for it, or the backbone's key."""
        return BACKBONE if self.model_name == DEFAULT_MODEL_NAME else self.model_name

    def as_dict(self) -> dict[str, Any]:
        """The settings as values that JSON knows, in the order of their declaration."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting before any value is given."""

    name: str
    kind: type
    default: Any
    metadata: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The name as it is typed."""
        return f"--{self.name}"


def _declared() -> Iterator[Setting]:
    kinds = get_type_hints(Config)
    for entry in fields(Config):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        yield Setting(entry.name, kinds[entry.name], default, entry.metadata)


SETTINGS: dict[str, Setting] = {declared.name: declared for declared in _declared()}

_KIND_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False", Path: "a path"}


def _problems(name: str, value: Any) -> Iterator[str]:
    """One sentence for each way in which ``value`` breaks what its setting declares."""
    known = SETTINGS[name]
    if not _is_of_kind(value, known.kind):
        yield f"{known.flag} must be {_KIND_NAMES[known.kind]}, got {value!r}."
        return
    if known.kind is Path and ("\0" in str(value)):
        yield f"{known.flag} must be a path without null characters, got {str(value)!r}."
    limits = known.metadata
    number = f"{value:g}" if isinstance(value, float) else repr(value)
    if "choices" in limits and value not in limits["choices"]:
        yield f"{known.flag} must be one of {', '.join(map(str, limits['choices']))}, got {value!r}."
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        yield f"{known.flag} must be {limits['pattern_help']}, got {value!r}."
    if "ge" in limits and value < limits["ge"]:
        yield f"{known.flag} must be at least {limits['ge']}, got {number}."
    if "gt" in limits and value <= limits["gt"]:
        yield f"{known.flag} must be above {limits['gt']}, got {number}."
    if "le" in limits and value > limits["le"]:
        yield f"{known.flag} must be at most {limits['le']}, got {number}."
    if "lt" in limits and value >= limits["lt"]:
        yield f"{known.flag} must be below {limits['lt']}, got {number}."


def _is_of_kind(value: Any, kind: type) -> bool:
    if kind is float:
        # compared, since math.isfinite cannot take a whole number beyond the floats
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:  # True is an int to Python, never to a user
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
