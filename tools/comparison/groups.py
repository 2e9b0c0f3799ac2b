"""Two groups of finished runs with the same test images, and their predictions."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.core.config import SETTINGS
from scripts.core.errors import ConfigError, DataError
from scripts.core.resume import FREE, NAMING
from scripts.data_handler.registry import DATASET_REGISTRY, MULTI_LABEL
from scripts.evaluation.confusion import Floats, Integers
from scripts.evaluation.metrics import compute_metrics
from scripts.trained_run import TrainedRun, open_run

PLAIN, TTA = "plain", "tta"
MAX_FEW_RUNS = 5
PER_RUN = FREE | NAMING | {"seed", "device", "dataset"}  # what may differ between the runs of a group


@dataclass(frozen=True, slots=True)
class Pair:
    """Two groups of runs with the same test images."""

    a: tuple[TrainedRun, ...]
    b: tuple[TrainedRun, ...]
    labels: Integers  # as in ``EvaluationResult``
    variant: str  # PLAIN or TTA
    scores_a: tuple[Floats, ...]  # (N, C) of each run
    scores_b: tuple[Floats, ...]
    notes: tuple[str, ...]  # sentences that a reader of the comparison needs

    @property
    def task(self) -> str:
        """As in ``DatasetInfo``."""
        return self.a[0].task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the C classes or labels."""
        return self.a[0].class_names

    @property
    def way(self) -> str:
        """The variant in words."""
        return "without TTA" if self.variant == PLAIN else "with TTA"

    @property
    def is_of_groups(self) -> bool:
        """Whether a group has several runs."""
        return len(self.a) + len(self.b) > 2


def open_pair(roots_a: Sequence[Path], roots_b: Sequence[Path], *, plain: bool) -> Pair:
    """Open the runs, check that they can be compared, and read their predictions.

    With ``plain`` those without TTA are read, else those with TTA where every run has them.

    Raises:
        ConfigError: A folder is not that of a finished run, or the runs have different test data.
        DataError: A file of a run is missing or damaged.
    """
    for roots in (roots_a, roots_b):
        if len(set(map(os.path.realpath, roots))) < len(roots):
            raise ConfigError("A run is given twice in one group: it would count twice.")
    runs = [open_run(root) for root in (*roots_a, *roots_b)]
    for run in runs[1:]:
        _refuse(runs[0], run, _difference_of_data(runs[0], run))
    without_tta = [run for run in runs if not _files(run, TTA)]
    variant = PLAIN if plain or without_tta else TTA
    labels = [_read_labels(run) for run in runs]
    scores = [_read_scores(run, variant, of_run) for run, of_run in zip(runs, labels, strict=True)]
    for run, of_run in zip(runs[1:], labels[1:], strict=True):
        _refuse(runs[0], run, _difference_of_labels(labels[0], of_run))
    a, b = tuple(runs[: len(roots_a)]), tuple(runs[len(roots_a) :])
    notes = list(_notes(a, b))
    if not plain and 0 < len(without_tta) < len(runs):
        notes.insert(0, f"{without_tta[0].paths.root} has no predictions with TTA: all are compared without TTA.")
    return Pair(a, b, labels[0], variant, tuple(scores[: len(a)]), tuple(scores[len(a) :]), tuple(notes))


def _read_labels(run: TrainedRun) -> Integers:
    path = run.paths.test_labels
    if not path.is_file():
        raise DataError(
            f"{run.paths.root} has no {path.relative_to(run.paths.root)}: an earlier version of the program, which did "
            f"not write the true classes of the test images, trained it. Train it again to compare it."
        )
    rows = _read_rows(path)
    columns = len(run.class_names) if run.task == MULTI_LABEL else 1
    labels = rows.astype(np.int64)
    if rows.shape[1] != columns or (rows != labels).any():
        raise DataError(f"{path} is damaged: it must have {columns} whole number(s) for each image.")
    return labels if run.task == MULTI_LABEL else labels[:, 0]


def _read_scores(run: TrainedRun, variant: str, labels: Integers) -> Floats:
    if not (paths := _files(run, variant)):
        raise DataError(f"{run.paths.summary} is damaged: it names no file of predictions @{variant}.csv.")
    path = paths[-1]
    scores = _read_rows(path)
    try:
        compute_metrics(labels, scores, task=run.task, class_names=run.class_names, seed=0, resamples=1)
    except ValueError as error:
        raise DataError(f"{path} is damaged, or {run.paths.test_labels.name} is: {error}") from error
    return scores


def _files(run: TrainedRun, variant: str) -> list[Path]:
    """The files of predictions of a variant that a run names."""
    files = run.summary.get("files")
    names = filter(
        re.compile(rf"reports/[^/]*@{variant}\.csv").fullmatch, map(str, files if isinstance(files, list) else ())
    )
    return [run.paths.root / name for name in names]


def _read_rows(path: Path) -> Floats:
    """Read the lines ``index,value,…`` of a file; shape (N, number of values)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, which is refused below
            values = np.loadtxt(path, delimiter=",", comments=None, ndmin=2, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or 'it is missing'}.") from error
    except ValueError:
        values = np.empty((0, 0))
    if values.shape[1] < 2 or not np.isfinite(values).all() or (values[:, 0] != np.arange(len(values))).any():
        raise DataError(f"{path} is damaged: expected lines index,value,… with the indices 0, 1, 2, … and numbers.")
    return values[:, 1:]


def _refuse(one: TrainedRun, other: TrainedRun, reason: str | None) -> None:
    if reason:
        raise ConfigError(f"{other.paths.root} and {one.paths.root} cannot be compared: {reason}.")


def _difference_of_data(one: TrainedRun, other: TrainedRun) -> str | None:
    """Why two runs have no common test images, as far as their descriptions say."""
    if (one.task, one.class_names) != (other.task, other.class_names):
        return "their classes differ"
    # the resolutions of a published set are the same images
    if one.config.dataset == other.config.dataset and one.config.dataset in DATASET_REGISTRY:
        return None
    facts, other_facts = one.card["dataset"], other.card["dataset"]
    if facts["md5"] != other_facts["md5"]:
        return f"they were tested on different data ({_described(other_facts)} and {_described(facts)})"
    return None


def _described(facts: dict[str, str]) -> str:
    return f"{facts.get('title')}, MD5 {facts['md5']}"


def _difference_of_labels(labels: Integers, others: Integers) -> str | None:
    if len(labels) != len(others):
        return f"they have {len(others):,} and {len(labels):,} test images"
    return None if (labels == others).all() else "the true classes of their test images differ"


def _notes(*groups: tuple[TrainedRun, ...]) -> Iterator[str]:
    for letter, runs in zip("AB", groups, strict=True):
        settings = {name: {str(getattr(run.config, name)) for run in runs} for name in SETTINGS if name not in PER_RUN}
        if differing := [name for name, values in settings.items() if len(values) > 1]:
            flags = ", ".join(f"--{name}" for name in differing)
            yield f"The runs of {letter} differ in more than the seed: {flags}."
    if few := [letter for letter, runs in zip("AB", groups, strict=True) if 1 < len(runs) <= MAX_FEW_RUNS]:
        yield (
            f"{' and '.join(few)} {'have' if len(few) > 1 else 'has'} 2 to {MAX_FEW_RUNS} runs: how far trainings "
            "differ is roughly known, so the intervals are wider. More seeds make them narrower."
        )
    if single := [letter for letter, runs in zip("AB", groups, strict=True) if len(runs) == 1]:
        yield (
            f"{' and '.join(single)} {'are one run each' if len(single) > 1 else 'is one run'}: the intervals hold for "
            "these trained models. Compare several seeds to say which settings are better."
        )
