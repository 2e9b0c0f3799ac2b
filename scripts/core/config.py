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
from scripts.core.recipes import RECIPES

DEFAULT_MODEL_NAME = "ResNet-18 Adapted"  # stands for the name that follows from the backbone and its stem
RESOLUTIONS = (28, 64, 128, 224)  # in which MedMNIST publishes its 2D sets, in pixels of a side
STANDARD_RESOLUTION = RESOLUTIONS[0]  # not part of a run folder's name, as the others are
NO_RECIPE = frozenset({"recipe", "epochs", "seed", "monitor", "no_tta"})  # settings of training that none has
MAX_COUNT = 1_000_000  # larger counts are typing mistakes
MAX_SEED = 2**32 - 1  # the largest that PYTHONHASHSEED and NumPy accept


def setting(default: Any, about: str, *, group: str, **limits: Any) -> Any:
    """A field of ``Config``; a tuple as ``default`` lists all choices, and its first one is the default.

    ``limits`` are any of ``ge``, ``le`` (inclusive), ``gt``, ``lt`` (exclusive), ``pattern`` (a regular expression that
    matches the whole value) with ``pattern_help`` (the same in words). The values of a ``repeatable`` flag are joined
    by commas; of any other flag, the last value is taken.
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

    recipe: str = _training(tuple(RECIPES), "Named set of settings; flags that are given win over it.")
    epochs: int = _training(60, "Maximum number of passes over the training split.", ge=1, le=MAX_COUNT)
    batch_size: int = _training(128, "Images per optimiser step.", ge=1, le=MAX_COUNT)
    optimizer: str = _training(("sgd", "adamw"), "SGD with momentum, or AdamW (momentum is then its first beta).")
    lr: float = _training(0.008, "Largest learning rate; --schedule says how it changes.", gt=0)
    schedule: str = _training(
        ("cosine", "onecycle", "constant"), "Learning rate over the steps; onecycle moves the momentum too."
    )
    warmup_epochs: float = _training(
        0.0, "Epochs in which the learning rate rises at first; with onecycle, 0 stands for 30 % of all.", ge=0
    )
    momentum: float = _training(0.9, "Momentum of SGD; with onecycle the middle of its range of 0.1.", ge=0, lt=1)
    nesterov: bool = _training(False, "Nesterov's momentum; no effect with adamw.")
    weight_decay: float = _training(5e-4, "L2 penalty of SGD; decoupled weight decay of AdamW.", ge=0)
    decay_params: str = _training(
        ("all", "weights"), "What weight decay applies to: all parameters, or only weights (neither biases nor norms)."
    )
    label_smoothing: float = _training(
        0.0, "Share of each target that is spread evenly: over the classes, or over a label's yes and no.", ge=0, lt=1
    )
    class_weights: str = _training(
        ("none", "balanced"), "Weights of the classes in the training loss; balanced is inverse to their frequency."
    )
    ema_decay: float = _training(
        0.0, "Decay per step of the averaged weights, which are then evaluated and saved; 0 is off.", ge=0, lt=1
    )
    grad_clip: float = _training(0.0, "Largest norm of the gradient; 0 is off.", ge=0)
    train_layers: str = _training(("all", "head"), "Layers to train: all, or only the last one (linear probe).")
    patience: int = _training(15, "Epochs without a better monitored figure before stopping.", ge=1, le=MAX_COUNT)
    monitor: str = _training(
        ("auto", "accuracy", "auc", "loss"),
        "Validation figure for selection and patience; auto is AUC for multi-label sets, accuracy for the others.",
    )
    mixup_alpha: float = _training(0.002, "Alpha of MixUp's Beta(alpha, alpha); 0 disables it.", ge=0)
    cutmix_alpha: float = _training(
        0.0, "Alpha of CutMix's Beta(alpha, alpha); 0 disables it. With MixUp on, each takes half of the steps.", ge=0
    )
    seed: int = _training(42, "Seeds weights, data order, augmentation and MixUp.", ge=0, le=MAX_SEED)

    symmetries: str = _augmentation(
        ("flip", "none", "all"),
        "Exact moves of pixels: 'flip' (by --hflip), 'none', 'all' eight symmetries of the square, where orientation "
        "does not matter.",
    )
    hflip: float = _augmentation(
        0.5, "Probability of a horizontal flip; 0 for the MedMNIST sets in which left and right differ.", ge=0, le=1
    )
    rotation_angle: int = _augmentation(10, "Largest random rotation, in degrees.", ge=0, le=180)
    rotation_prob: float = _augmentation(1.0, "Probability that an image is rotated.", ge=0, le=1)
    translate: int = _augmentation(0, "Largest random shift along each axis, in whole pixels.", ge=0, le=1000)
    scale: float = _augmentation(0.0, "Largest random change of size, as a fraction.", ge=0, lt=1)
    erasing: float = _augmentation(0.0, "Probability that a random rectangle is erased.", ge=0, le=1)
    jitter_val: float = _augmentation(0.2, "Strength of the brightness and contrast jitter.", ge=0, le=1)
    no_tta: bool = _augmentation(False, "No test-time augmentation in the final evaluation.")

    dataset: str = _data_and_model(
        "bloodmnist", "MedMNIST set, 'synthblood' (drawn by the program, needs no network), or the path of an .npz."
    )
    resolution: int = _data_and_model(
        RESOLUTIONS,
        "Published size of a MedMNIST set's images, in pixels of a side; own files have a size of their own.",
    )
    backbone: str = _data_and_model(
        "resnet18",
        "Architecture: resnet18, resnet34, resnet50, densenet121, mobilenet_v3_large, efficientnet_b0, "
        "efficientnet_v2_s, convnext_tiny, swin_v2_t, or 'timm/NAME' where timm is installed.",
        pattern=r"[\w./-]{1,100}",
        pattern_help="the name of a backbone",
    )
    dropout: float = _data_and_model(
        0.0, "Dropout before the last layer; 0 leaves the backbone as its authors made it.", ge=0, lt=1
    )
    model_name: str = _data_and_model(
        DEFAULT_MODEL_NAME,
        "Identifier in logs, reports and the run folder's name; never selects an architecture; follows --backbone.",
        pattern=r"(?=.*[A-Za-z0-9])[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,100}",
        pattern_help="1 to 100 printable characters with a letter or a digit among them",
    )
    weights: str = _data_and_model(
        "imagenet",
        "Where training starts: 'imagenet', 'none', or the path of a state dict of the backbone.",
        pattern=r".+",
        pattern_help="'imagenet', 'none', or a path",
    )
    stem: str = _data_and_model(
        ("auto", "adapted", "stock"),
        "The network's first layers: 'adapted' (smaller strides, for small images), 'stock' (as published), 'auto' "
        "(adapted up to 64 pixels).",
    )
    data_dir: Path = _data_and_model(Path("dataset"), "Folder of the downloaded data and weights.")
    output_dir: Path = _data_and_model(Path("outputs"), "Folder in which each run gets its own.")
    track: str = _data_and_model(
        "none",
        "Send settings, figures and reports to 'tensorboard' or 'mlflow' too; may be given twice, for both.",
        metavar="tensorboard|mlflow|none",
        pattern=r"none|(tensorboard|mlflow)(,(tensorboard|mlflow))*",
        pattern_help="tensorboard, mlflow, both (give the flag twice), or none",
        repeatable=True,
    )

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
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            problems.append("--nesterov needs a --momentum above 0; turn it off with --no_nesterov.")
        if not problems and self.warmup_epochs >= self.epochs:
            problems.append(f"--warmup_epochs must be below --epochs ({self.epochs}), got {self.warmup_epochs:g}.")
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
        return self.backbone if self.model_name == DEFAULT_MODEL_NAME else self.model_name

    @property
    def recipe_settings(self) -> dict[str, Any]:
        """All settings that belong to a recipe, as this run's recipe has them: its own, else the defaults."""
        own = RECIPES[self.recipe].settings(self.epochs)
        groups = ("training", "augmentation")
        names = [
            name for name, known in SETTINGS.items() if known.metadata["group"] in groups and name not in NO_RECIPE
        ]
        return {name: SETTINGS[name].default for name in names} | dict(own)

    @property
    def overridden(self) -> dict[str, dict[str, Any]]:
        """The settings that are not those of the recipe: what the recipe has, and what is applied."""
        found = {name: (value, getattr(self, name)) for name, value in self.recipe_settings.items()}
        return {name: {"recipe": own, "applied": value} for name, (own, value) in found.items() if own != value}

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
