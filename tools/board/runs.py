"""Find the runs below a folder, and read the facts about each that a table shows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.core.config import SETTINGS
from scripts.core.paths import RunPaths
from scripts.core.system.lock import LockRecord, holds_lock

FINISHED, RUNNING, UNFINISHED, FAILED, DAMAGED = "finished", "running", "unfinished", "failed", "damaged"
VARIANTS, METRICS = ("plain", "tta"), ("accuracy", "auc", "macro_f1")
FIGURES = tuple(f"{metric}_{variant}" for variant in VARIANTS for metric in METRICS)
RUN_FILES, RUN_PARTS = {"config.json", "summary.json"}, {"logs", "models", "reports", "history.jsonl"}
FIRST_FOLDERS = {"logs", "models", "reports", "figures"}  # of a run that ended before its config.json
# of a damaged file
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
STOPPED = "Stopped by "  # begins the message of a run that a signal ended
MAX_NUMBER = 1e12  # no seed or time of a run is larger
TAIL_BYTES = 1 << 14  # of a log or a history


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the test split with its 95 % interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run as the table shows it; what is not known is None."""

    folder: Path
    state: str
    dataset: str | None = None
    resolution: str | None = None
    backbone: str | None = None
    recipe: str | None = None
    seed: int | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by a name of FIGURES; undefined ones are missing
    epochs: int | None = None  # trained
    seconds: float | None = None  # of training
    finished: str | None = None  # ISO 8601
    commit: str | None = None
    note: str | None = None


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the folders of runs below ``root`` and ``root`` itself, in the order of their names.

    Links are followed, each folder is visited once, and folders that cannot be read are left out. Nothing is looked
    for inside a run.
    """
    visited = set()
    for folder, names, files in os.walk(root, followlinks=True):
        try:
            status = os.stat(folder)  # noqa: PTH116
        except OSError:  # it was removed meanwhile
            names.clear()
            continue
        identity = status.st_dev, status.st_ino
        if identity in visited:  # a loop of links
            names.clear()
            continue
        visited.add(identity)
        names.sort()
        has_files = RUN_FILES & {*files} and RUN_PARTS & {*files, *names}
        if has_files or ({*names} >= FIRST_FOLDERS and RunPaths(Path(folder)).log.is_file()):
            names.clear()
            yield Path(folder)


def read_run(folder: Path) -> Row:
    """Read the facts of one run; a damaged one gives a row that says so."""
    paths = RunPaths(folder)
    try:
        if paths.summary.is_file():
            return _finished(folder, json.loads(paths.summary.read_text(encoding="utf-8")))
        return _unfinished(paths)
    except READ_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Row(folder=folder, state=DAMAGED, note=_text(reason))


def _finished(folder: Path, summary: Mapping[str, Any]) -> Row:
    training, test, environment = summary["training"], summary["test"], summary["environment"]
    figures = {
        f"{metric}_{variant}": Figure(*(_number(found.get(key)) for key in ("value", "low", "high")))
        for variant in VARIANTS
        for metric in METRICS
        if (found := (test[variant] or {}).get(metric)) and found["value"] is not None
    }
    return Row(
        folder=folder,
        state=FINISHED,
        **_settings(summary["config"], summary["dataset"]),
        figures=figures,
        epochs=_whole_number(training["epochs"]),
        seconds=_number(training["seconds"]),
        finished=_text(summary["finished"]),
        commit=_text(environment["commit"]),
        note=None if summary["note"] is None else _text(summary["note"]),
    )


def _unfinished(paths: RunPaths) -> Row:
    state, note, settings = UNFINISHED, None, {}
    with suppress(FileNotFoundError):  # a run makes its folder before it writes config.json
        stored = json.loads(paths.config.read_text(encoding="utf-8"))
        settings = _settings(stored["settings"], stored["dataset"]) | {"commit": _text(stored["environment"]["commit"])}
    if _is_running(paths.lock):
        state = RUNNING
    elif note := _last_error(paths.log):
        state = UNFINISHED if note.startswith(STOPPED) else FAILED
    elif not settings:
        note = "It has no config.json, so it cannot be resumed."
    return Row(folder=paths.root, state=state, **settings, epochs=_last_epoch(paths.history), note=note)


def _settings(settings: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of settings; one that is younger than the run had its default."""
    height, width = _whole_number(dataset["height"]), _whole_number(dataset["width"])
    backbone, recipe, seed = (settings.get(name, SETTINGS[name].default) for name in ("backbone", "recipe", "seed"))
    return {
        "dataset": _text(dataset["key"]),
        "resolution": str(height) if height == width else f"{height}x{width}",
        "backbone": _text(backbone),
        "recipe": _text(recipe),
        "seed": _whole_number(seed),
    }


def _text(value: Any) -> str:
    """Escape the characters of a text that UTF-8 cannot hold; TypeError if it is not a text."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float:
    """Convert a number of a summary; TypeError, ValueError or OverflowError if it is none, NaN, or too large."""
    number = float(value)
    if not abs(number) <= MAX_NUMBER:
        raise ValueError(f"expected a number up to {MAX_NUMBER:.0e}, got {value!r}")
    return number


def _whole_number(value: Any) -> int:
    """Convert a whole number of a summary; the same errors."""
    _number(value)
    return int(value)


def _is_running(lock: Path) -> bool:
    """Whether a process of this machine holds the lock of a run; the lock itself is not touched."""
    import psutil

    with suppress(OSError, psutil.NoSuchProcess):
        record = LockRecord.parse(lock.read_bytes())
        try:
            return record is not None and holds_lock(record.pid)
        except psutil.AccessDenied:  # another user's process
            return True
    return False


def _last_error(log: Path) -> str | None:
    """The message of the error that ended a run; None where its log ends otherwise."""
    last = None
    for line in _tail(log):
        # lines begin with a time and a level; those of a traceback or of a long message do not
        level = line[24:32].strip() if line[:4].isdigit() and line[19:20] == "," else None
        if level is not None:
            last = line[32:].strip() if level == "ERROR" else None
    return last


def _last_epoch(history: Path) -> int | None:
    for line in reversed(_tail(history)):
        with suppress(*READ_ERRORS):  # the last line of a killed run may be cut
            return int(json.loads(line)["epoch"])
    return None


def _tail(path: Path) -> list[str]:
    """The last lines of a text; none where there is no such file."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
