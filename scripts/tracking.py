"""Send a run's settings, figures and files to TensorBoard or MLflow, besides the run folder.

A tracker gets only what the run folder holds, and brings its copy up to date each time. It is switched off with one
warning as soon as it fails or hangs, and the training goes on.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from scripts.core.config import Config
from scripts.core.errors import Interrupted
from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.optional import missing_packages
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.core.resume import resume_command

DEADLINE_S = 60.0  # for one action of a tracker; its network requests have shorter limits of their own
MAX_REASON = 600  # characters of an error
FIGURES = {  # of an epoch: names in TensorBoard and MLflow, which group them by the part before the slash
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "val_auc": "val/auc",
    "learning_rate": "train/learning_rate",
    "images_per_second": "train/images_per_second",
}
MLFLOW_DEFAULTS = {  # environment variables, for those that the user did not set
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds; MLflow waits for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is sent to anyone but the tracking server
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
MAX_BATCH = {"metrics": 1000, "params": 100}  # that MLflow accepts in one request

Point = tuple[str, float, int]  # name, value, epoch


def tracker_names(config: Config) -> list[str]:
    """The trackers that ``--track`` names, each once."""
    return [name for name in dict.fromkeys(config.track.split(",")) if name in TRACKERS]


def tracking_problems(config: Config) -> Iterator[str]:
    """One sentence for each tracker whose package is not installed."""
    for name in tracker_names(config):
        yield from missing_packages(f"--track {name}", name)


class Tracking(AbstractContextManager["Tracking"]):
    """The trackers of one run; leaving the context by an exception marks the run as failed, or as killed by a signal.

    Every action runs in a thread of its own with a deadline, while the caller waits. So neither an error nor a server
    that hangs reaches the training, and no thread is at work when the training goes on and forks its workers.
    """

    def __init__(self, config: Config, paths: RunPaths) -> None:
        self._config, self._paths = config, paths
        self._working = {name: TRACKERS[name](config, paths) for name in tracker_names(config)}

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            status = "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED"
            self._each(lambda tracker: tracker.end(status))

    def update(self, history: Sequence[EpochRecord]) -> None:
        """Send the epochs of ``history`` that are not there yet; the first call also sends the settings."""
        self._each(lambda tracker: tracker.update(history))

    def finish(self) -> None:
        """Send the test figures of ``summary.json``, mark the run as finished, and send its figures and reports."""
        self._each(lambda tracker: tracker.finish(json.loads(self._paths.summary.read_text(encoding="utf-8"))))
        for path in _files(self._paths):
            self._each(partial(_send, path))  # each with a deadline of its own

    def update_from_files(self) -> None:
        """Bring the trackers up to date with a finished run."""
        self._each(lambda tracker: tracker.update(_read_history(self._paths)))
        self.finish()

    def _each(self, action: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self._working.items()):
            if reason := _run_within(DEADLINE_S, partial(action, tracker)):
                del self._working[name]
                log.warning(
                    "--track %s is switched off for the rest of this run: %s. To send everything when the run has "
                    "ended: %s",
                    *(name, reason, resume_command(self._config, self._paths.root)),
                )


class _Tracker(ABC):
    """One destination of a run's data. Its methods may raise anything and take long."""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        self._paths, self._config = paths, config
        self._is_open, self._num_sent = False, 0

    def update(self, history: Sequence[EpochRecord]) -> None:
        if not self._is_open:
            self._open(json.loads(self._paths.config.read_text(encoding="utf-8")))
            self._is_open = True
        self._add([point for record in history[self._num_sent :] for point in _points(record)])
        self._num_sent = len(history)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._add([(name, value, summary["training"]["best_epoch"]) for name, value in test_figures(summary)])
        self.end("FINISHED")

    @abstractmethod
    def _open(self, recorded: Mapping[str, Any]) -> None:
        """Start, or continue an earlier start of the same run; ``recorded`` is the content of ``config.json``."""

    @abstractmethod
    def _add(self, points: Sequence[Point]) -> None:
        """Send those figures that are not there yet."""

    @abstractmethod
    def send(self, path: Path) -> None:
        """Send a file of the run folder."""

    @abstractmethod
    def end(self, status: str) -> None:
        """Mark the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""


class _TensorBoard(_Tracker):
    """Writes one event file in the run folder; a resumed run replaces the file of the earlier start.

    The records are written directly: ``SummaryWriter`` does it in a thread, in which a full disk raises an error.
    """

    def _open(self, recorded: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import RecordWriter, summary

        self._event, self._summary, self._record_writer = Event, summary, RecordWriter
        folder = self._paths.tensorboard
        folder.mkdir(exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._file = folder / f"events.out.tfevents.{time.time_ns()}"
        settings = recorded["settings"]
        rows = "\n".join(f"| {name} | `{value}` |" for name, value in settings.items())
        described = summary.text("settings", f"| setting | value |\n|---|---|\n{rows}")
        compared = dict.fromkeys(("val/accuracy", "test/plain/accuracy", "test/plain/auc"), 0)
        self._write(
            Event(file_version="brain.Event:2"),
            Event(session_log=SessionLog(status=SessionLog.START)),  # what TensorBoard holds of an earlier file is void
            *(Event(summary=one) for one in (described, *summary.hparams(settings, compared))),
        )

    def _add(self, points: Sequence[Point]) -> None:
        self._write(
            *(self._event(step=epoch, summary=self._summary.scalar(name, value)) for name, value, epoch in points)
        )

    def send(self, path: Path) -> None:
        """Add an image; a file of another kind cannot be shown."""
        if path.suffix == ".png":
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            shown = self._summary.image(f"figures/{path.stem}", pixels, dataformats="HWC")
            self._write(self._event(summary=shown))

    def end(self, status: str) -> None:
        """Do nothing: an event file has no state."""

    def _write(self, *events: Any) -> None:
        with self._file.open("ab") as stream:
            for event in events:
                event.wall_time = time.time()
                self._record_writer(stream).write(event.SerializeToString())


class _MLflow(_Tracker):
    """Fills one MLflow run, whose id is kept in the run folder, so that a resumed run continues it."""

    def _open(self, recorded: Mapping[str, Any]) -> None:
        for name, value in MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        given, database = os.environ.get("MLFLOW_TRACKING_URI"), self._paths.root.resolve().parent / "mlflow.db"
        if not given and "?" in str(database):  # SQLAlchemy would take what follows for options
            raise ValueError(f"the address of a database cannot hold the ? of {database}; set MLFLOW_TRACKING_URI")
        uri = given or f"sqlite:///{database}"
        self._database = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
        with _locked(self._database.parent) if self._database else nullcontext():
            self._client = MlflowClient(uri)
        self._there: dict[str, set[int]] = {}  # the epochs of each figure
        # relative to the folder of runs, which may be moved
        server = _without_password(given) if given else "mlflow.db"
        run = self._find_run(server) or self._create_run(server, recorded)
        self._run_id, self._known = run.info.run_id, set(run.data.metrics)
        self._client.update_run(self._run_id, status="RUNNING")
        params = [Param(name, str(value)) for name, value in recorded["settings"].items() if value != ""]
        for some in _pieces(params, MAX_BATCH["params"]):  # the same value may be sent again
            self._client.log_batch(self._run_id, params=some)
        log.info("--track mlflow: run %s at %s", self._run_id, _without_password(uri))

    def _find_run(self, server: str) -> Any:
        """The run that an earlier start created on the same server; None if there is none."""
        from mlflow.exceptions import MlflowException

        if not self._paths.mlflow.exists():
            return None
        stored = json.loads(self._paths.mlflow.read_text(encoding="utf-8"))
        try:
            return self._client.get_run(stored["run_id"]) if stored["server"] == server else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the run folder was moved away from its database

    def _create_run(self, server: str, recorded: Mapping[str, Any]) -> Any:
        from mlflow.exceptions import MlflowException

        client, name = self._client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._config.dataset_part
        if (experiment := client.get_experiment_by_name(name)) is None:
            # MLflow would put the files of a database that it opens itself into the current folder
            location = self._database and (self._database.parent / "mlflow_artifacts").as_uri()
            with suppress(MlflowException):  # another run may create it at the same time
                client.create_experiment(name, artifact_location=location)
            experiment = client.get_experiment_by_name(name)
        tags = {
            "mlflow.source.name": "main.py",
            "mlflow.source.git.commit": str(recorded["environment"].get("commit")),
            "dataset": recorded["dataset"]["title"],
            "dataset_md5": recorded["dataset"]["md5"],
        }
        run = client.create_run(experiment.experiment_id, tags=tags, run_name=self._paths.root.resolve().name)
        write_json(self._paths.mlflow, {"server": server, "run_id": run.info.run_id})
        return run

    def _add(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        new = [Metric(name, value, now, epoch) for name, value, epoch in points if epoch not in self._epochs(name)]
        for some in _pieces(new, MAX_BATCH["metrics"]):
            self._client.log_batch(self._run_id, metrics=some)
        for metric in new:
            self._there[metric.key].add(metric.step)

    def _epochs(self, name: str) -> set[int]:
        """The epochs whose figure the run has; a training that was killed may have been ahead of its checkpoint."""
        if name not in self._there:
            known = self._client.get_metric_history(self._run_id, name) if name in self._known else ()
            self._there[name] = {metric.step for metric in known}
        return self._there[name]

    def send(self, path: Path) -> None:
        folder = path.relative_to(self._paths.root).parent.as_posix()
        self._client.log_artifact(self._run_id, str(path), None if folder == "." else folder)

    def end(self, status: str) -> None:
        if self._is_open:
            self._client.set_terminated(self._run_id, status)


TRACKERS: dict[str, type[_Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}


def test_figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The defined figures of a ``summary.json`` with the bounds of their intervals, without and with TTA."""
    for variant in ("plain", "tta"):
        for name, figure in (summary["test"].get(variant) or {}).items():
            if isinstance(figure, Mapping) and figure.get("value") is not None:
                yield f"test/{variant}/{name}", figure["value"]
                yield f"test/{variant}/{name}_low", figure["low"]
                yield f"test/{variant}/{name}_high", figure["high"]


def _points(record: EpochRecord) -> Iterator[Point]:
    for field, name in FIGURES.items():
        if (value := getattr(record, field)) is not None:
            yield name, value, record.epoch


def _files(paths: RunPaths) -> list[Path]:
    """The files that are sent, as far as they exist."""
    named = (paths.config, paths.summary, paths.history, paths.root / "report.html", paths.workbook)
    return [*filter(Path.is_file, named), *sorted(paths.figures.glob("*.png"))]


def _send(path: Path, tracker: _Tracker) -> None:
    tracker.send(path)


def _read_history(paths: RunPaths) -> list[EpochRecord]:
    lines = paths.history.read_text(encoding="utf-8").splitlines()
    return [EpochRecord(**json.loads(line)) for line in lines]


def _pieces(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out while inside: MLflow fails where two processes make a database's tables at once."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _without_password(text: str) -> str:
    """``text`` without the user and password of any URL in it.

    >>> _without_password("cannot reach https://me:secret@example.org/api")
    'cannot reach https://example.org/api'
    """
    return re.sub(r"//[^/@\s]*@", "//", text)


def _run_within(deadline_s: float, action: Callable[[], None]) -> str:
    """Run ``action`` in a thread and wait for it; return why it failed, or ""."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            action()
            outcome.set_result(None)
        except BaseException as error:  # the caller reports it
            outcome.set_exception(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of a library about itself
        try:
            Thread(target=run, name="tracking", daemon=True).start()  # one that hangs does not delay the program's end
            error = outcome.exception(deadline_s)
        except FutureTimeoutError:
            return f"no answer within {deadline_s:g} seconds"
        except RuntimeError as no_thread:
            error = no_thread
    if error is None:
        return ""
    reason = _without_password(" ".join(f"{type(error).__name__}: {error}".split()).rstrip("."))
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"
