"""``--track``: what TensorBoard and MLflow get, once each, and that no tracker can harm a training."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import tracking
from scripts.core.config import Config
from scripts.core.errors import Interrupted
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.core.system import stop_request
from scripts.evaluation.reports import RunReport, add_test_figures_to_card, write_all_predictions
from scripts.tracking import Tracking
from tests.conftest import PROJECT_ROOT, FinishedRun, InProcess, Npz, finish_run, tiny_backbone
from tests.trainer.toys import record, without_times

BOTH = ("--track", "tensorboard", "--track", "mlflow")
EPOCHS = {"train/loss", "val/loss", "val/accuracy", "val/auc", "train/learning_rate", "train/images_per_second"}
Steps = dict[str, list[int]]
MLFLOW_VARIABLES = {*(name for name in os.environ if name.startswith("MLFLOW_")), *tracking.MLFLOW_DEFAULTS}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of this machine, and none that an earlier test set, choose a server."""
    for name in MLFLOW_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def write_toys(report: RunReport) -> list[Path]:
    """Write a workbook, a page and a figure that are quickly made."""
    paths = report.paths
    texts, figure = [paths.workbook, paths.root / "report.html"], paths.figures / "confusion_matrix.png"
    for path in texts:
        path.write_text(path.name)
    Image.new("RGB", (40, 20), "red").save(figure)
    return [*texts, figure]


@pytest.fixture(scope="module", autouse=True)
def _quick_reports() -> Iterator[None]:
    """Replace figures and workbook, which take longer than a tiny training."""
    writers = (add_test_figures_to_card, write_toys, write_all_predictions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.evaluation.reports.WRITERS", writers)
        yield


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run with both trackers."""
    with tiny_backbone(), pytest.MonkeyPatch.context() as patch:
        for name in MLFLOW_VARIABLES:
            patch.delenv(name, raising=False)
        return finish_run(tmp_path_factory.mktemp("tracked"), *BOTH)


@pytest.fixture(scope="module")
def untracked_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same run without trackers."""
    with tiny_backbone():
        return finish_run(tmp_path_factory.mktemp("untracked"))


@pytest.fixture
def shared_database(tracked_run: FinishedRun, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the database of ``tracked_run``, since making one takes seconds, with an experiment for each test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracked_run.paths.root.parent / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)


def events(paths: RunPaths) -> Any:
    """Read a run's event files as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

    return EventAccumulator(str(paths.tensorboard), STORE_EVERYTHING_SIZE_GUIDANCE).Reload()


def steps_in_tensorboard(paths: RunPaths) -> Steps:
    found = events(paths)
    assert len(list(paths.tensorboard.iterdir())) == 1  # nothing of an earlier start
    return {name: [event.step for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def the_run(paths: RunPaths) -> tuple[Any, Any]:
    """The client of the database, and the run there that the run folder names, the only one in its experiment."""
    from mlflow import MlflowClient

    stored = json.loads(paths.mlflow.read_text())
    local = f"sqlite:///{paths.root.parent / 'mlflow.db'}"
    client = MlflowClient(local if stored["server"] == "mlflow.db" else stored["server"])
    (run,) = client.search_runs([client.get_run(stored["run_id"]).info.experiment_id])
    assert run.info.run_id == stored["run_id"]
    return client, run


def steps_in_mlflow(paths: RunPaths) -> Steps:
    client, run = the_run(paths)
    return {
        name: sorted(metric.step for metric in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def summary_of(paths: RunPaths) -> Any:
    return json.loads(paths.summary.read_text(encoding="utf-8"))


def require_each_once(steps: Steps, epochs: Sequence[int]) -> None:
    assert {name for name in steps if not name.startswith("test/")} == EPOCHS
    assert all(steps[name] == [*epochs] for name in EPOCHS)
    tested = [name for name in steps if name.startswith("test/")]
    assert {"test/plain/accuracy", "test/tta/auc", "test/tta/auc_low", "test/plain/macro_f1_high"} <= {*tested}
    assert all(len(steps[name]) == 1 for name in tested)


def test_tensorboard_shows_settings_figures_and_plots(tracked_run: FinishedRun):
    paths = tracked_run.paths
    found, summary = events(paths), summary_of(tracked_run.paths)

    require_each_once(steps_in_tensorboard(paths), [1, 2])
    lines = [json.loads(line) for line in paths.history.read_text().splitlines()]
    for field, name in tracking.FIGURES.items():
        assert [event.value for event in found.Scalars(name)] == pytest.approx([line[field] for line in lines])
    for variant in ("plain", "tta"):
        for suffix, bound in (("", "value"), ("_low", "low"), ("_high", "high")):
            (point,) = found.Scalars(f"test/{variant}/auc{suffix}")
            assert point.value == pytest.approx(summary["test"][variant]["auc"][bound])
    (settings,) = found.Tensors("settings/text_summary")
    assert "| batch_size | `16` |" in settings.tensor_proto.string_val[0].decode()
    assert found.Tags()["images"] == [f"figures/{path.stem}" for path in sorted(paths.figures.glob("*.png"))]
    with Image.open(paths.figures / "confusion_matrix.png") as image:
        (shown,) = found.Images("figures/confusion_matrix")
        assert (shown.width, shown.height) == image.size
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_mlflow_holds_settings_figures_and_files(tracked_run: FinishedRun):
    paths = tracked_run.paths
    (client, run), summary = the_run(paths), summary_of(paths)

    require_each_once(steps_in_mlflow(paths), [1, 2])
    assert (run.info.status, run.info.run_name) == ("FINISHED", paths.root.name)
    assert client.get_experiment(run.info.experiment_id).name == "squares"
    assert (run.data.params["batch_size"], run.data.params["track"]) == ("16", "tensorboard,mlflow")
    assert run.data.tags["dataset_md5"] == summary["dataset"]["md5"]
    for variant in ("plain", "tta"):
        for suffix, bound in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert run.data.metrics[f"test/{variant}/accuracy{suffix}"] == summary["test"][variant]["accuracy"][bound]
    sent = Path(run.info.artifact_uri.removeprefix("file://"))
    assert sent.is_relative_to(paths.root.parent)
    files = {str(path.relative_to(sent)): path.read_bytes() for path in sent.rglob("*") if path.is_file()}
    assert {"summary.json", "config.json", "figures/confusion_matrix.png", "report.html", "history.jsonl"} <= {*files}
    assert "reports/training_summary.xlsx" in files
    assert all((paths.root / name).read_bytes() == content for name, content in files.items())


def test_no_bit_changes_with_tracking(tracked_run: FinishedRun, untracked_run: FinishedRun):
    tracked, plain = tracked_run.paths, untracked_run.paths
    assert tracked.best_model.read_bytes() == plain.best_model.read_bytes()
    assert without_times(tracked.history) == without_times(plain.history)
    scores = [{path.name: path.read_bytes() for path in paths.reports.glob("*.csv")} for paths in (tracked, plain)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3
    assert sorted({path.name for path in tracked.root.iterdir()} - {path.name for path in plain.root.iterdir()}) == [
        "mlflow.json",
        "tensorboard",
    ]


class KilledError(BaseException):
    """A simulated kill: nothing is sent or written afterwards."""


@pytest.mark.usefixtures("tiny_network", "shared_database")
def test_after_a_kill_a_resumed_run_continues_its_own_and_has_every_epoch_once(
    in_process: InProcess, make_npz: Npz, monkeypatch
):
    update = Tracking.update

    def update_and_die(self: Tracking, history: Sequence[EpochRecord]) -> None:
        update(self, history)
        if len(history) == 3:
            raise KilledError

    words = ("--weights", "none", "--epochs", "4", "--batch_size", "16", "--checkpoint_every", "1e6")
    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "update", update_and_die)
        patch.setattr(Tracking, "__exit__", lambda *_: None)
        with pytest.raises(KilledError):
            in_process("--dataset", make_npz(), *words, *BOTH)
    paths = RunPaths(in_process.run_folder())
    assert steps_in_mlflow(paths)["val/loss"] == steps_in_tensorboard(paths)["val/loss"] == [1, 2, 3]
    client, run = the_run(paths)
    client.set_terminated(run.info.run_id, "KILLED")  # as a signal does
    Tracking(Config(track="mlflow"), paths).update([])
    assert the_run(paths)[1].info.status == "RUNNING"

    done = in_process("--resume", paths.root)

    assert (done.returncode, done.stderr) == (0, "")
    assert "starting at the beginning" in done.stdout or "resumed at epoch 1," in done.stdout
    require_each_once(steps_in_mlflow(paths), [1, 2, 3, 4])
    require_each_once(steps_in_tensorboard(paths), [1, 2, 3, 4])
    assert the_run(paths)[1].info.status == "FINISHED"


@pytest.mark.usefixtures("shared_database")
def test_a_finished_run_can_be_sent_later_and_again(untracked_run: FinishedRun, in_process: InProcess):
    paths = untracked_run.copy_to(in_process.folder)
    for _ in range(2):
        done = in_process("--resume", paths.root, *BOTH)
        assert (done.returncode, done.stderr) == (0, "")
        require_each_once(steps_in_mlflow(paths), [1, 2])
        require_each_once(steps_in_tensorboard(paths), [1, 2])
        assert events(paths).Tags()["images"] == ["figures/confusion_matrix"]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that refuses connections, or that accepts them and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen(100)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("server", ["refusing", "silent"], indirect=True)
def test_a_server_that_does_not_answer_costs_one_warning(in_process: InProcess, make_npz: Npz, monkeypatch, server):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{server}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    done = in_process("--dataset", make_npz(), "--weights", "none", "--epochs", "2", "--batch_size", "16", *BOTH)

    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: --track mlflow is switched off for the rest of this run: MlflowException: ")
    assert f"http://{server}/" in line
    paths = RunPaths(in_process.run_folder())
    assert f"--resume {paths.root.relative_to(in_process.folder)} " in line
    assert line.endswith(" --track tensorboard,mlflow")
    assert "secret" not in line + paths.log.read_text()
    require_each_once(steps_in_tensorboard(paths), [1, 2])


@pytest.mark.usefixtures("tiny_network")
def test_a_folder_that_no_database_can_be_in_costs_one_warning(in_process: InProcess, make_npz: Npz):
    folder, flags = in_process.folder / "what?", ("--weights", "none", "--epochs", "1", "--batch_size", "16")
    done = in_process("--dataset", make_npz(), *flags, "--track", "mlflow", "--output_dir", folder)
    assert done.returncode == 0
    assert "is switched off for the rest of this run: ValueError: the address of a database" in done.stderr
    assert not (in_process.folder / "what").exists()
    assert not list(folder.glob("mlflow*"))


@pytest.mark.usefixtures("tiny_network")
def test_without_the_flag_neither_package_is_imported(in_process: InProcess, make_npz: Npz, monkeypatch):
    for name in ("mlflow", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    words = ("--dataset", make_npz(), "--weights", "none", "--epochs", "1", "--batch_size", "16")
    done = in_process(*words)
    assert (done.returncode, done.stderr) == (0, "")

    monkeypatch.setattr("scripts.core.optional.find_spec", lambda _name: "installed, but damaged")
    done = in_process(*words, *BOTH)
    assert done.returncode == 0
    assert done.stderr.count("is switched off for the rest of this run: ModuleNotFoundError") == 2


def test_a_missing_package_is_refused_with_its_command_before_anything_is_written(in_process: InProcess, monkeypatch):
    monkeypatch.setattr("scripts.core.optional.find_spec", lambda _name: None)
    done = in_process("--dataset", "synthblood", *BOTH)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: --track {name} needs the package {name}, which is not installed here. Install it: pip install {name}"
        for name in ("tensorboard", "mlflow")
    ]
    assert list(in_process.folder.iterdir()) == []


OPEN = """
import sys
from pathlib import Path
from scripts.core.config import Config
from scripts.core.paths import RunPaths
from scripts.tracking import Tracking

Tracking(Config(track="mlflow"), RunPaths(Path(sys.argv[1]))).update([])
"""


@pytest.mark.slow
def test_runs_that_make_the_database_at_once_do_not_disturb_each_other(tracked_run: FinishedRun, tmp_path: Path):
    folders = [tracked_run.copy_to(tmp_path / str(number)).root for number in range(3)]
    folders = [folder.rename(tmp_path / f"run_{number}") for number, folder in enumerate(folders)]
    for folder in folders:
        (folder / "mlflow.json").unlink()
    started = [
        subprocess.Popen([sys.executable, "-c", OPEN, folder], cwd=PROJECT_ROOT, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    assert [process.communicate(timeout=200)[1] for process in started] == [""] * 3
    assert all((folder / "mlflow.json").exists() for folder in folders)


class Toy(tracking._Tracker):
    """Keeps what it gets; fails, hangs or calls ``surprise`` at the action ``at``."""

    surprise: Any = staticmethod(lambda: None)
    at = ""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        super().__init__(config, paths)
        self.got: list[str] = []

    def _note(self, action: str) -> None:
        self.got.append(action)
        if action == self.at:
            self.surprise()

    def _open(self, recorded: object) -> None:
        self._note("open")

    def _add(self, points: Sequence[tuple[str, float, int]]) -> None:
        self._note(f"epochs {sorted({epoch for _, _, epoch in points})}")

    def send(self, path: Path) -> None:
        self._note(f"send {path.name}")

    def end(self, status: str) -> None:
        self._note(status)


class Flawed(Toy):
    """The one that fails."""


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracking:
    """A healthy and a flawed tracker of the folder of a run with two files and two epochs."""
    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": Flawed, "tensorboard": Toy})
    paths = RunPaths(tmp_path)
    paths.config.write_text("{}")
    paths.summary.write_text('{"training": {"best_epoch": 2}, "test": {}}')
    return Tracking(Config(track="mlflow,tensorboard"), paths)


def run_toys(toys: Tracking) -> None:
    with toys:
        for number in range(3):
            toys.update([record(epoch) for epoch in range(1, number + 1)])
        toys.finish()


ALL = [
    "open",
    "epochs []",
    "epochs [1]",
    "epochs [2]",
    "epochs []",
    "FINISHED",
    "send config.json",
    "send summary.json",
]


def test_a_tracker_gets_everything_once_and_in_order(toys: Tracking):
    trackers = list(toys._working.values())
    run_toys(toys)
    assert [tracker.got for tracker in trackers] == [ALL, ALL]  # type: ignore[attr-defined]


def exit_program() -> None:
    sys.exit("a library gives up")


def fail() -> None:
    raise ConnectionError("no route\nto https://me:secret@host")


@pytest.mark.parametrize("surprise", [fail, exit_program, threading.Event().wait], ids=["fails", "exits", "hangs"])
@pytest.mark.parametrize("at", [action for action in dict.fromkeys(ALL) if action != "epochs []"])
def test_a_failure_at_any_place_costs_one_warning_and_only_that_tracker(
    toys: Tracking, monkeypatch, caplog, at, surprise
):
    monkeypatch.setattr(Flawed, "at", at)
    monkeypatch.setattr(Flawed, "surprise", staticmethod(surprise))
    # one that hangs is waited for; the others need not be that fast
    monkeypatch.setattr(tracking, "DEADLINE_S", 0.3 if surprise is not fail and surprise is not exit_program else 60)
    flawed, healthy = toys._working.values()

    run_toys(toys)

    assert healthy.got == ALL  # type: ignore[attr-defined]
    assert flawed.got == ALL[: ALL.index(at) + 1]  # type: ignore[attr-defined]
    (warning,) = [message for message in caplog.messages if "switched off" in message]
    reasons = ("ConnectionError: no route to https://host.", "SystemExit: a library gives up.", "no answer within 0.3")
    assert sum(f"--track mlflow is switched off for the rest of this run: {one}" in warning for one in reasons) == 1


@pytest.mark.parametrize(("error", "status"), [(Interrupted(15, "stopped"), "KILLED"), (ValueError("bug"), "FAILED")])
def test_the_end_of_a_training_passes_through_and_is_marked(toys: Tracking, error, status):
    trackers = list(toys._working.values())

    def train() -> None:
        with toys:
            toys.update([])
            raise error

    with pytest.raises(type(error)) as caught:
        train()
    assert caught.value is error
    assert [tracker.got[-1] for tracker in trackers] == [status, status]  # type: ignore[attr-defined]


def test_a_signal_is_not_held_up_by_a_tracker_that_hangs(toys: Tracking, monkeypatch):
    def signal_and_hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

    monkeypatch.setattr(Flawed, "at", "open")
    monkeypatch.setattr(Flawed, "surprise", staticmethod(signal_and_hang))
    with stop_request(), pytest.raises(Interrupted):
        toys.update([])


def test_a_machine_without_another_thread_loses_only_the_tracking(toys: Tracking, monkeypatch, caplog):
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    run_toys(toys)
    assert Counter("can't start new thread" in message for message in caplog.messages)[True] == 2


def test_undefined_figures_are_left_out():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    undefined = dict.fromkeys(figure)
    summary = {"test": {"views": ["plain"], "plain": {"accuracy": figure, "auc": undefined, "notes": []}, "tta": None}}
    assert dict(tracking.test_figures(summary)) == {
        "test/plain/accuracy": 0.5,
        "test/plain/accuracy_low": 0.4,
        "test/plain/accuracy_high": 0.6,
    }
    assert np.isfinite(list(dict(tracking.test_figures(summary)).values())).all()
