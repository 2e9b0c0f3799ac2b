"""Where a run's files are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from scripts.core.config import Config
from scripts.core.errors import Interrupted, PipelineError, UnexpectedError, storage_errors
from scripts.core.files import remove_leftovers

MAX_SLUG_LENGTH = 60


def slug(text: str) -> str:
    """``text`` reduced to lower-case letters, digits and underscores.

    >>> slug("ResNet-18, tuned (v2)")
    'resnet_18_tuned_v2'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:MAX_SLUG_LENGTH].strip("_") or "unnamed"


class _Below:
    """An attribute of ``RunPaths``: a path below its root."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, paths: RunPaths, owner: type) -> Path:
        return paths.root / self._name


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run, below its own folder ``root``."""

    root: Path

    config = _Below("config.json")  # every setting as applied, versions, commit, data MD5, seeds
    summary = _Below("summary.json")  # the result of the run for programs
    history = _Below("history.jsonl")  # one JSON object per epoch and line
    report = _Below("report.html")  # the result of the run for people, in one file
    logs = _Below("logs")
    log = _Below("logs/run.log")  # the lines of the screen, with times
    lock = _Below("logs/.lock")  # held by the process that writes this folder
    models = _Below("models")
    best_model = _Below("models/best_model.pth")  # state dict of the best epoch, with torchvision's key names
    best_model_card = _Below("models/best_model.json")  # what a user of the weights needs to know
    last_checkpoint = _Below("models/last_checkpoint.pth")  # the whole training state, written last
    previous_checkpoint = _Below("models/previous_checkpoint.pth")  # used if the last one is damaged
    figures = _Below("figures")
    reports = _Below("reports")
    workbook = _Below("reports/training_summary.xlsx")
    tensorboard = _Below("tensorboard")  # event files, with --track tensorboard
    mlflow = _Below("mlflow.json")  # server and id of the run in MLflow, with --track mlflow
    test_labels = _Below("reports/test_labels.csv")  # the true classes, line by line as in the files of predictions

    @classmethod
    def create(cls, output_dir: Path, dataset: str, model: str, *, now: datetime) -> RunPaths:
        """Make the folder ``YYYYMMDD_HHMMSS_<dataset>_<model>`` with its subfolders, and ``output_dir`` if necessary.

        ``dataset`` and ``model`` become slugs; ``now`` is the start of the run in local time.

        Raises:
            StorageError: A folder cannot be made.
        """
        name = f"{now:%Y%m%d_%H%M%S}_{slug(dataset)}_{slug(model)}"
        with storage_errors(output_dir, "make the run folder"):
            output_dir.mkdir(parents=True, exist_ok=True)
            for attempt in count(1):
                paths = cls(output_dir / (name if attempt == 1 else f"{name}_{attempt}"))
                with suppress(FileExistsError):
                    paths.root.mkdir()  # atomic: of two runs in one second, exactly one gets the name
                    break
            for folder in paths.folders:
                folder.mkdir()
        return paths

    @classmethod
    def reopen(cls, root: Path) -> RunPaths:
        """Prepare the folder of an earlier run: complete its subfolders, remove the temporary files of a killed run."""
        paths = cls(root)
        remove_leftovers(root)
        for folder in paths.folders:
            with storage_errors(folder, "make the folder"):
                folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
        return paths

    @property
    def folders(self) -> tuple[Path, ...]:
        """The subfolders, which exist before anything is written."""
        return self.logs, self.models, self.figures, self.reports

    @property
    def is_resumable(self) -> bool:
        """Whether training has begun: the first checkpoint, written before the first step, is there."""
        return any(path.exists() for path in (self.last_checkpoint, self.previous_checkpoint, self.history))

    def remove_start(self) -> None:
        """Remove the folder of a run that did not begin to train; files that the start did not write stay."""
        with suppress(OSError):
            for path in (self.config, self.log, self.lock):
                path.unlink(missing_ok=True)
            for folder in (*self.folders, self.root):
                remove_leftovers(folder)
                folder.rmdir()


@contextmanager
def run_folder(config: Config) -> Iterator[RunPaths]:
    """The folder of a run while inside: a new one, or with ``--resume`` that of the run to resume.

    A new folder is removed if the run ends before its training begins, unless its log holds an unexpected error.
    """
    if config.resume:
        yield RunPaths.reopen(Path(config.resume))
        return
    paths = RunPaths.create(config.output_dir, config.dataset_part, config.model_part, now=datetime.now())
    try:
        yield paths
    except (PipelineError, Interrupted) as error:
        if not isinstance(error, UnexpectedError) and not paths.is_resumable:
            paths.remove_start()
        raise
