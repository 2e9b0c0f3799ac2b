"""Where a run's files are."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from scripts.core.config import Config
from scripts.core.errors import storage_errors
from scripts.core.files import remove_leftovers

MAX_SLUG_LENGTH = 60


def slug(text: str) -> str:
    """``text`` reduced to lower-case letters, digits and underscores: safe as part of a folder's name.

    >>> slug("ResNet-18, tuned (v2)")
    'resnet_18_tuned_v2'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:MAX_SLUG_LENGTH].strip("_") or "unnamed"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run, below its own folder ``root``."""

    root: Path

    @classmethod
    def create(cls, output_dir: Path, dataset: str, model: str, *, now: datetime) -> RunPaths:
        """Make the folder ``YYYYMMDD_HHMMSS_<dataset>_<model>`` with its subfolders.

        Args:
            output_dir: Where runs live; made if it is not there.
            dataset: The data set's key or an own file's name; becomes a slug.
            model: The backbone's key or the name the user gave; becomes a slug.
            now: The start of the run in local time.

        Raises:
            StorageError: A folder cannot be made.
        """
        name = f"{now:%Y%m%d_%H%M%S}_{slug(dataset)}_{slug(model)}"
        with storage_errors(output_dir, "make the run folder"):
            output_dir.mkdir(parents=True, exist_ok=True)
            for attempt in count(1):
                root = output_dir / (name if attempt == 1 else f"{name}_{attempt}")
                try:
                    root.mkdir()  # atomic: of two runs in one second, exactly one gets the name
                except FileExistsError:
                    continue
                break
            paths = cls(root)
            for folder in paths.folders:
                folder.mkdir()
        return paths

    @classmethod
    def reopen(cls, root: Path) -> RunPaths:
        """Make the folder of an earlier run ready to go on in: whole, and without what a killed run left half written.

        Raises:
            StorageError: A folder cannot be made.
        """
        paths = cls(root)
        for folder in paths.folders:
            with storage_errors(folder, "make the folder"):
                folder.mkdir(exist_ok=True)
        for folder in (root, *paths.folders):
            remove_leftovers(folder)
        return paths

    @property
    def folders(self) -> tuple[Path, ...]:
        """The subfolders, which are there before anything is written."""
        return self.logs, self.models, self.figures, self.reports

    @property
    def config(self) -> Path:
        """Every setting as applied, versions, commit, data MD5, seeds."""
        return self.root / "config.json"

    @property
    def summary(self) -> Path:
        """The result of the run for programs."""
        return self.root / "summary.json"

    @property
    def history(self) -> Path:
        """One JSON object per epoch and line."""
        return self.root / "history.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of the log."""
        return self.root / "logs"

    @property
    def log(self) -> Path:
        """What the screen showed, with times."""
        return self.logs / "run.log"

    @property
    def lock(self) -> Path:
        """Held by whoever writes this folder."""
        return self.logs / ".lock"

    @property
    def models(self) -> Path:
        """Folder of the weights."""
        return self.root / "models"

    @property
    def best_model(self) -> Path:
        """State dict of the best epoch, with torchvision's key names."""
        return self.models / "best_model.pth"

    @property
    def best_model_card(self) -> Path:
        """What a user of the weights needs to know, as JSON."""
        return self.models / "best_model.json"

    @property
    def last_checkpoint(self) -> Path:
        """The whole training state after the last epoch, or after the step at which a signal stopped it."""
        return self.models / "last_checkpoint.pth"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last one, for the case that the last one is damaged."""
        return self.models / "previous_checkpoint.pth"

    @property
    def figures(self) -> Path:
        """Folder of the pictures."""
        return self.root / "figures"

    @property
    def reports(self) -> Path:
        """Folder of the workbook and the predictions."""
        return self.root / "reports"

    @property
    def workbook(self) -> Path:
        """The Excel report."""
        return self.reports / "training_summary.xlsx"


def open_run_folder(config: Config) -> RunPaths:
    """The folder of a run: a new one, or with ``--resume`` that of the run to go on with.

    Raises:
        StorageError: A folder cannot be made.
    """
    if config.resume:
        return RunPaths.reopen(Path(config.resume))
    return RunPaths.create(config.output_dir, config.dataset_part, config.model_part, now=datetime.now())
