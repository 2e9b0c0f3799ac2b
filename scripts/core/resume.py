"""A run that goes on: the settings it was started with, and what may be said anew beside them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from scripts.core.config import DEFAULT_MODEL_NAME, SETTINGS, STOCK_MODEL_NAME, Config
from scripts.core.errors import ConfigError
from scripts.core.paths import RunPaths

# settings that change no bit of the result, so a resumed run may have others than it was started with
FREE = frozenset({"resume", "lock_file", "no_process_guard", "num_workers", "feed", "data_dir", "checkpoint_every"})
NAMING = frozenset({"output_dir", "model_name"})
# of those that are free, the ones that belong to an invocation and not to the run
UNSTORED = FREE - {"data_dir"}


def with_stored_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that ``--resume`` names, with what else was given.

    Args:
        given: Settings from the command line, ``resume`` among them.

    Raises:
        ConfigError: The folder is no run's, or settings were given that would change the result; every such setting
            has its line.
    """
    folder = _folder_of(given["resume"])
    stored, free_names = _read_stored(folder)
    problems = [_conflict(name, value, stored, folder) for name, value in given.items() if name not in free_names]
    if any(problems):
        raise ConfigError(*filter(None, problems))
    own_path = {"dataset": given["dataset"]} if "dataset" in given else {}
    free = {name: value for name, value in given.items() if name in free_names}
    return stored | own_path | free | {"resume": str(folder)}


def free_settings(dataset: Mapping[str, Any]) -> frozenset[str]:
    """The settings that change no bit of the result on the data set that a ``config.json`` describes.

    Where left and right differ, ``hflip`` is among them: no picture is mirrored there, whatever it says.
    """
    return FREE | {"hflip"} if dataset.get("orientation_free") is False else FREE


def is_same_choice(name: str, asked: Any, applied: Any) -> bool:
    """Whether a setting that is asked for is the one that was applied, which may have been written out.

    >>> is_same_choice("device", "cuda", "cuda:0")
    True
    """
    return bool(asked == applied or (name, asked, applied) == ("device", "cuda", "cuda:0"))


def start_command() -> str:
    """What was typed to start this run."""
    return shlex.join([*_program(), *sys.argv[1:]])


def resume_command(config: Config, root: Path) -> str:
    """What to type to go on with the run in ``root``, as this one was typed."""
    words = [*_program(), "--resume", str(root)]
    for name in ("lock_file", "no_process_guard"):
        known, value = SETTINGS[name], getattr(config, name)
        if value != known.default:
            words += [known.flag] if known.kind is bool else [known.flag, str(value)]
    return shlex.join(words)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each part of the environment that may change the bits of a result and is not what it was."""
    for name in ("commit", "python", "device_name", "cuda", "cudnn", "torch_threads"):
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name)} and is {now.get(name)}"
    packages_before, packages_now = before.get("packages", {}), now.get("packages", {})
    for name in ("torch", "torchvision", "numpy", "scikit-learn"):
        if packages_before.get(name) != packages_now.get(name):
            yield f"{name} was {packages_before.get(name)} and is {packages_now.get(name)}"


def _folder_of(text: str) -> Path:
    """The folder that ``--resume`` names, which is there."""
    try:
        folder = Path(text).expanduser()
        if text and folder.is_dir():
            return folder
        what = f"{folder} is not there" if text else "got ''"
    except (OSError, RuntimeError, ValueError) as error:  # too long, closed to us, or of a user who is not known here
        what = f"{text!r} cannot be looked at ({error})"
    raise ConfigError(f"--resume must be the folder of a run, but {what}.")


def _read_stored(folder: Path) -> tuple[dict[str, Any], frozenset[str]]:
    """The settings in a run's ``config.json``, and the names of those that may be others now.

    Settings are not filled in where they are missing: a version that did not know one may have done something else.

    Raises:
        ConfigError: The settings do not make a Config.
    """
    path = RunPaths(folder).config
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, dataset = content["settings"], content["dataset"]
        source, free_names = dataset["source"], free_settings(dataset)
        kept = {entry.name: settings[entry.name] for entry in fields(Config) if entry.name not in UNSTORED}
        values: dict[str, Any] = {
            name: Path(value) if SETTINGS[name].kind is Path else value for name, value in kept.items()
        }
        if source != "generated" and Config(**values).is_dataset_path:
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
    if is_same_choice(name, value, stored[name]) or (name in ("device", "precision", "stem") and value == "auto"):
        return None
    if name == "model_name" and (value, stored[name]) == (DEFAULT_MODEL_NAME, STOCK_MODEL_NAME):
        return None  # the default, which the stem has turned into the other
    if name == "dataset" and all(Config(dataset=text).is_dataset_path for text in (value, stored[name])):
        return None  # the file may have moved: its MD5 will tell
    start = f"{known.flag} {value} cannot be used with --resume {folder}, which was started with {stored[name]}"
    if name == "epochs":
        return (
            f"{start}: the learning rate follows a cosine over all epochs, so with another number of them every epoch "
            "so far would have been another. Leave it out, or start a new run, from these weights if you like "
            f"(--weights {RunPaths(folder).best_model})."
        )
    reason = "the run has its folder and its name already" if name in NAMING else "the result would be another"
    return f"{start}: {reason}. Leave it out, or start a new run."


def _program() -> list[str]:
    """The interpreter and the script as they were typed."""
    interpreter = sys.orig_argv[0] if sys.orig_argv else "python"
    return [interpreter, sys.argv[0] or "main.py"]
