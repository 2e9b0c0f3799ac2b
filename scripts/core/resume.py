"""Resume a run: its stored settings, and which flags are allowed together with ``--resume``."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.core.config import DEFAULT_MODEL_NAME, SETTINGS, Config
from scripts.core.errors import ConfigError
from scripts.core.paths import RunPaths

# settings that change no bit of the result, so that a resumed run may have others than it was started with
FREE = frozenset(
    {"resume", "lock_file", "no_process_guard", "num_workers", "feed", "data_dir", "checkpoint_every", "track"}
)
NAMING = frozenset({"output_dir", "model_name"})
UNSTORED = FREE - {"data_dir", "track"}  # free settings that belong to an invocation, not to the run
# what may change the bits of a result
ENVIRONMENT = ("commit", "python", "device_name", "cuda", "cudnn", "torch_threads")
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")


def with_stored_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that ``--resume`` names, with the free settings of the command line, ``given``.

    Raises:
        ConfigError: The folder is not that of a run, or settings were given that would change the result.
    """
    folder = _existing_folder(given["resume"])
    stored, free_names = _read_stored(folder)
    bound = {name: value for name, value in given.items() if name not in free_names}
    if problems := list(filter(None, (_conflict(name, value, stored, folder) for name, value in bound.items()))):
        raise ConfigError(*problems)
    replaced = {name: value for name, value in given.items() if name in free_names | {"dataset"}}
    return stored | replaced | {"resume": str(folder)}


def free_settings(dataset: Mapping[str, Any]) -> frozenset[str]:
    """The settings that change no bit of the result on ``dataset``, as a ``config.json`` describes it."""
    # where left and right differ, no image is mirrored, whatever --hflip is
    return FREE | {"hflip"} if dataset.get("orientation_free") is False else FREE


def is_same_choice(name: str, requested: Any, applied: Any) -> bool:
    """Whether a requested value is the one that was applied; ``cuda`` is ``cuda:0``."""
    return bool(requested == applied or (name, requested, applied) == ("device", "cuda", "cuda:0"))


def names_backbone(model_name: str, backbone: str) -> bool:
    """Whether a model's name is the one that follows from its backbone.

    >>> names_backbone("ConvNeXt-Tiny Adapted", "convnext_tiny")
    True
    """
    plain = (re.sub(r"[^a-z0-9]", "", text.lower().removeprefix("timm/")) for text in (model_name, backbone))
    return next(plain).removesuffix("adapted") == next(plain)


def start_command() -> str:
    """The command that started this run."""
    return shlex.join([*_program(), *sys.argv[1:]])


def resume_command(config: Config, root: Path) -> str:
    """The command that resumes the run in ``root``, with the interpreter and script that started this one."""
    argv = [*_program(), "--resume", str(root)]
    for name in ("lock_file", "no_process_guard", "track"):
        known, value = SETTINGS[name], getattr(config, name)
        if value != known.default:
            argv += [known.flag] if known.kind is bool else [known.flag, str(value)]
    return shlex.join(argv)


def next_step(config: Config, paths: RunPaths) -> str:
    """What to do after a stop: resume the run if there is something to resume, otherwise start it again."""
    if config.resume or paths.is_resumable:
        return f"Go on with: {resume_command(config, paths.root)}"
    return f"Start again with: {start_command()}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each changed part of the environment that may change the bits of a result."""
    before, now = ({**environment, **environment.get("packages", {})} for environment in (before, now))
    for name in (*ENVIRONMENT, *PACKAGES):
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name)} and is {now.get(name)}"


def _existing_folder(text: str) -> Path:
    """The folder that ``--resume`` names."""
    try:
        folder = Path(text).expanduser()
        if text and folder.is_dir():
            return folder
        problem = f"{folder} does not exist" if text else "got ''"
    except (OSError, RuntimeError, ValueError) as error:  # too long, no permission, or of an unknown user
        problem = f"{text!r} cannot be opened ({error})"
    raise ConfigError(f"--resume must be the folder of a run, but {problem}.")


def _read_stored(folder: Path) -> tuple[dict[str, Any], frozenset[str]]:
    """The settings in a run's ``config.json``, and the names of those that may be changed now."""
    try:
        content = json.loads(RunPaths(folder).config.read_text(encoding="utf-8"))
        settings, dataset = content["settings"], content["dataset"]
        source, free_names = dataset["source"], free_settings(dataset)
        # no default replaces a missing setting: the version that did not have it may have worked differently
        settings = {"track": SETTINGS["track"].default, **settings}  # changes no bit of the result
        values: dict[str, Any] = {name: settings[name] for name in SETTINGS if name not in UNSTORED}
        values |= {name: Path(value) for name, value in values.items() if SETTINGS[name].kind is Path}
        if Config(**values).is_dataset_path and source != "generated":
            values["dataset"] = source  # absolute: the run may be resumed from another folder
        Config(**values)
    except FileNotFoundError:
        raise ConfigError(
            f"--resume must be the folder of a run, but {folder} has no config.json, so nothing was trained there yet."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--resume {folder} cannot be used: its config.json is damaged or of another version of the program "
            f"({reason}). Start a new run."
        ) from error
    return values, free_names


def _conflict(name: str, value: Any, stored: Mapping[str, Any], folder: Path) -> str | None:
    """Why a setting that is not free cannot be given beside ``--resume``; None if it can."""
    known = SETTINGS[name]
    if is_same_choice(name, value, stored[name]) or value == known.default == "auto":
        return None  # what a run takes for auto is stored
    if name == "model_name" and value == DEFAULT_MODEL_NAME and names_backbone(stored[name], stored["backbone"]):
        return None  # the default stands for the name that follows from the backbone and its stem
    if name == "dataset" and all(Config(dataset=text).is_dataset_path for text in (value, stored[name])):
        return None  # the file may have moved; its MD5 is compared later
    flag = f"{known.flag} {value}" if known.kind is not bool else known.flag if value else f"--no_{name}"
    start = f"{flag} cannot be used with --resume {folder}, which was started with {stored[name]}"
    if name == "epochs":
        return (
            f"{start}: the learning rate follows its schedule over all epochs, so another number would have changed "
            "every epoch so far. Leave it out, or start a new run, from these weights if you like "
            f"(--weights {RunPaths(folder).best_model})."
        )
    reason = "the run already has its folder and its name" if name in NAMING else "the result would change"
    return f"{start}: {reason}. Leave it out, or start a new run."


def _program() -> list[str]:
    """The interpreter and the script of this process, as they were typed."""
    return [sys.orig_argv[0] if sys.orig_argv else "python", sys.argv[0] or "main.py"]
