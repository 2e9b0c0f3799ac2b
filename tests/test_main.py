"""``main.py`` as its users meet it: what a run leaves, in which order things happen, and how it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import locale
import multiprocessing
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from openpyxl import load_workbook
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import main
from scripts.core.config import Config
from scripts.core.errors import LockHeldError, StorageError
from scripts.core.paths import RunPaths
from scripts.core.system import StopRequest, ensure_single_instance
from scripts.data_handler.registry import DATASET_REGISTRY
from scripts.models.factory import new_model
from tests.conftest import CommandLine, FinishedRun, InProcess, Launcher, Npz, tiny_backbone, write_npz

QUICK = ("--weights", "none", "--epochs", "1", "--batch_size", "16")


def digests(run_folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and of the predictions of a run."""
    files = [run_folder / "models" / "best_model.pth", *sorted(run_folder.glob("reports/*.csv"))]
    assert len(files) == 4
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_leaves_a_folder_that_explains_itself(finished_resnet_run: FinishedRun):
    folder = finished_resnet_run.paths.root
    assert folder.name.endswith("_squares_resnet18")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    csv_files = {name for name in files if name.endswith(".csv")}
    assert len(csv_files) == 3
    assert files - csv_files == {
        "config.json",
        "summary.json",
        "report.html",
        "history.jsonl",
        "logs/.lock",
        "logs/run.log",
        "models/best_model.pth",
        "models/best_model.json",
        "models/last_checkpoint.pth",
        "figures/dataset_samples.png",
        "figures/training_curves.png",
        "figures/confusion_matrix.png",
        "figures/reliability.png",
        "figures/risk_and_coverage.png",
        "figures/sample_predictions.png",
        "reports/training_summary.xlsx",
    }
    named = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["files"]
    assert set(named) == files - {"summary.json", "logs/.lock"}
    model = new_model("resnet18", 3, seed=0)
    model.load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))
    epochs = [line for line in finished_resnet_run.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    log = (folder / "logs/run.log").read_text(encoding="utf-8")
    assert all(line in log for line in epochs)
    assert load_workbook(folder / "reports/training_summary.xlsx").sheetnames[:9] == [
        "Summary",
        "History",
        "Per class",
        "Confusion matrix",
        "Trust",
        "Reliability",
        "Risk and coverage",
        "Configuration",
        "Environment",
    ]


@pytest.mark.usefixtures("tiny_network", "no_reports")
def test_the_recorded_settings_are_the_applied_ones(in_process: InProcess, make_npz: Npz):
    path = make_npz(class_names=np.array(["dark", "bright"]))
    done = in_process("--dataset", path, *QUICK, "--num_workers", "3", "--device", "auto", "--model_name", "My net!")

    assert done.returncode == 0, done.stderr
    folder = in_process.run_folder()
    assert folder.name.endswith("_squares_my_net")
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["settings"]["num_workers"] == 0  # the images were resident
    assert recorded["settings"]["feed"] == "resident"
    assert recorded["settings"]["precision"] in ("fp32", "bf16")
    assert recorded["settings"]["device"] != "auto"
    assert recorded["dataset"]["md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert set(recorded["settings"]) == set(Config().as_dict())
    card = json.loads((folder / "models/best_model.json").read_text())
    assert card["class_names"] == ["dark", "bright"]
    assert card["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    assert card["validation"]["accuracy"] >= 0
    assert "--num_workers has no effect" in done.stdout


@pytest.mark.slow
def test_the_same_command_gives_the_same_bits_in_reproducibility_mode(make_npz: Npz, tmp_path: Path):
    path, found = make_npz(), []
    switches: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("--reproducible",), {}),
        ((), {"DOCKER_REPRODUCIBILITY_MODE": "Yes"}),
    ]
    for number, (flag, environment) in enumerate(switches):
        (tmp_path / str(number)).mkdir()
        command_line = CommandLine(tmp_path / str(number))
        done = command_line("--dataset", path, *QUICK, *flag, environment=environment)
        assert done.returncode == 0, done.stderr
        found.append(digests(command_line.run_folder()))
        recorded = json.loads((command_line.run_folder() / "config.json").read_text())
        assert recorded["settings"]["reproducible"] is True
        assert recorded["settings"]["precision"] == "fp32"

    assert found[0] == found[1]


@pytest.mark.parametrize(("channels", "workers"), [(1, ("0", "1")), (3, ("0", "1", "4"))])
def test_feeds_and_workers_change_no_bit_of_weights_and_scores(
    run_in_process, make_npz: Npz, tmp_path, monkeypatch, channels, workers
):
    found = []

    def keep(run, training, evaluation, *_):
        losses = [(record.train_loss, record.val_loss) for record in training.history]
        weights = run.paths.best_model.read_bytes()
        found.append((losses, weights, evaluation.plain_scores.tobytes(), evaluation.tta_scores.tobytes()))
        assert json.loads(run.paths.config.read_text())["settings"]["num_workers"] == run.config.num_workers

    monkeypatch.setattr("scripts.pipeline.report", keep)
    path = make_npz(channels=channels)
    for feed, number in [("resident", "0"), *(("streamed", number) for number in workers)]:
        code, complaint = run_in_process("--dataset", str(path), *QUICK, "--feed", feed, "--num_workers", number)
        assert (code, complaint) == (0, "")

    assert len(found) == 1 + len(workers)
    assert all(other == found[0] for other in found)
    assert len(list((tmp_path / "dataset/uncompressed").iterdir())) == 3


def test_the_temperatures_come_from_the_validation_split_alone(run_in_process, make_npz: Npz, monkeypatch):
    found = []
    monkeypatch.setattr("scripts.pipeline.report", lambda run, training, evaluation, *_: found.append(evaluation))
    labels = np.random.default_rng(1).integers(2, size=(24, 1), dtype=np.uint8)
    val_labels = np.tile(np.array([[0], [1], [1], [0]], np.uint8), (4, 1))  # half of them wrong, which no one can learn
    others: list[dict[str, np.ndarray]] = [
        {},
        {"test_labels": labels, "test_images": np.full((24, 12, 12, 3), 9, np.uint8)},
        {"val_labels": 1 - val_labels},
    ]
    for changes in others:
        path = make_npz(**({"val_labels": val_labels} | changes))
        assert run_in_process("--dataset", str(path), *QUICK, "--monitor", "loss")[0] == 0
    first, other_test, other_val = (
        [variant.trust.calibration.temperature for variant in evaluation.variants] for evaluation in found
    )

    assert found[0].plain.accuracy.value != found[1].plain.accuracy.value
    assert other_test == first
    assert all(mine != others for mine, others in zip(first, other_val, strict=True))


def test_an_image_of_test_that_is_in_train_is_a_warning_before_training_and_in_the_summary(
    run_in_process, make_npz: Npz, tmp_path, monkeypatch
):
    images = np.random.default_rng(0).integers(256, size=(48, 12, 12, 3), dtype=np.uint8)
    test_images = np.concatenate([images[:1], np.zeros((23, 12, 12, 3), np.uint8)])
    path = make_npz(train_images=images, test_images=test_images)
    monkeypatch.setattr("scripts.evaluation.reports.WRITERS", ())
    code, complaint = run_in_process("--dataset", str(path), *QUICK)

    assert code == 0
    assert complaint == (
        "warning: exact duplicates among the images: 22 in test equal to an earlier one, 1 of test also in train, "
        "1 with different labels\n"
    )
    (folder,) = (tmp_path / "outputs").iterdir()
    log = (folder / "logs/run.log").read_text(encoding="utf-8")
    assert log.index("exact duplicates") < log.index("epoch 1/1")
    duplicates = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["duplicates"]
    assert duplicates["within"] == {"train": 0, "val": 0, "test": 22}
    assert duplicates["across"] == {"train_val": 0, "train_test": 1, "val_test": 0}


@pytest.mark.usefixtures("no_reports")
def test_what_does_not_fit_into_half_of_the_memory_is_streamed(run_in_process, make_npz: Npz, tmp_path, monkeypatch):
    needed = (48 + 16 + 24) * 12 * 12 * 3
    monkeypatch.setattr("scripts.data_handler.memory.free_on_host", lambda: (2 * needed - 1, "on this machine"))
    monkeypatch.setattr("scripts.resolve.free_shared_memory", lambda: 5 * 16 * 12 * 12 * 3 * 2)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 0
    assert complaint.startswith(
        "warning: --num_workers 4 becomes 1: workers hand batches over in /dev/shm, where 4 need"
    )
    (folder,) = tmp_path.glob("outputs/*")
    log = (folder / "logs/run.log").read_text()
    assert "memory: the images need 0.0 MB, 0.1 MB are free on this machine" in log
    assert "feed streamed: 0.0 MB of images do not fit into half of the 0.1 MB that are free on this machine; 1" in log
    assert f"unpacking 0.0 MB of images into {tmp_path}/dataset/uncompressed" in log
    recorded = json.loads((folder / "config.json").read_text())["settings"]
    assert (recorded["feed"], recorded["num_workers"]) == ("streamed", 1)


def test_resident_images_that_cannot_fit_end_with_3_before_they_are_read(run_in_process, make_npz: Npz, monkeypatch):
    monkeypatch.setattr("scripts.data_handler.memory.free_on_host", lambda: (38_015, "on this machine"))
    monkeypatch.setattr("scripts.data_handler.opening.Split", None)  # what images are read into
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--feed", "resident")

    assert code == 3
    assert complaint == (
        "error: --feed resident was requested, but the images need 38,016 bytes of memory, and 38,015 are free on this "
        "machine. Use --feed streamed, which reads them from the disk batch by batch.\n"
    )


def test_a_disk_without_room_for_the_images_ends_with_6_before_training(run_in_process, make_npz: Npz, monkeypatch):
    monkeypatch.setattr("scripts.core.files.free_space", lambda _: 38_399)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--feed", "streamed")

    assert code == 6
    assert complaint.startswith("error: To be streamed, the images need 38,400 bytes of disk space, and 38,399 are")
    assert "Start again with: " in complaint


@pytest.mark.usefixtures("no_reports")
def test_an_earlier_runs_weights_are_taken_as_they_are(in_process: InProcess, make_npz: Npz):
    torch.save(new_model("resnet18", 2, seed=5).state_dict(), in_process.folder / "earlier.pth")
    done = in_process("--dataset", make_npz(), "--weights", "earlier.pth", "--epochs", "1", "--batch_size", "48")

    assert done.returncode == 0, done.stderr
    assert "weights earlier.pth (3×3 stem taken as it is, fc kept (class names unknown))" in done.stdout


def broken(make_npz: Npz, kind: str) -> Path:
    """A data set with one thing wrong."""
    images = np.zeros((4, 12, 12, 3), dtype=np.uint8)
    labels = np.zeros((4, 1), dtype=np.uint8)
    arrays: dict[str, dict[str, np.ndarray]] = {
        "wrong dtype": {"train_images": images.astype(np.float32)},
        "wrong shape": {"train_images": images[..., :2]},
        "unequal counts": {"val_labels": labels},
        "empty split": {"test_images": images[:0], "test_labels": labels[:0]},
        "pickled object": {"val_labels": np.array([[None]] * 16, dtype=object)},
        "label out of range": {"test_labels": np.full((24, 1), 9, dtype=np.uint8)},
    }
    path = make_npz(**arrays.get(kind, {}))
    if kind == "missing key":
        with np.load(path) as content:
            np.savez(path, **{name: content[name] for name in content.files if name != "test_labels"})
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "not a zip":
        path.write_text("this is a letter")
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing key",
        "wrong dtype",
        "wrong shape",
        "unequal counts",
        "empty split",
        "pickled object",
        "label out of range",
        "truncated",
        "not a zip",
    ],
)
def test_bad_data_ends_with_3_and_one_message(run_in_process, make_npz: Npz, kind):
    path = broken(make_npz, kind)
    code, complaint = run_in_process("--dataset", str(path), *QUICK)

    assert code == 3
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert str(path) in complaint
    assert list((path.parent / "outputs").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--dataset", "bloodmnits"), 2, "Did you mean 'bloodmnist'?"),
        (
            ("--dataset", "organmnist3d"),
            2,
            "is a set of 3D volumes at every --resolution; only 2D images are supported.",
        ),
        (("--lr", "nan"), 2, "--lr must be a finite number, got nan."),
        (("--epochs", "0"), 2, "--epochs must be at least 1, got 0."),
        (("--hflip", "1.5"), 2, "--hflip must be at most 1, got 1.5."),
        (("--epoch", "3"), 2, "Did you mean --epochs?"),
        (("--device", "cuda:99"), 2, "--device cuda:99 was requested, but"),
        (("--dataset", "nowhere/missing.npz"), 3, "missing.npz"),
        (("--dataset", "synthblood", "--weights", "missing.pth"), 3, "--weights missing.pth must be the file"),
    ],
)
def test_bad_command_lines_end_with_their_code_and_message(run_in_process, words, code, message):
    found, complaint = run_in_process(*words)

    assert found == code
    assert message in complaint
    assert complaint.startswith("error: ")
    assert "Traceback" not in complaint


@pytest.fixture
def run_in_process(tmp_path, monkeypatch, capsys, tiny_network):
    """Call ``main.main`` in an empty folder, with a tiny network; returns the exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = main.main([*words, "--lock_file", str(tmp_path / "lock"), "--no_process_guard"])
        return code, capsys.readouterr().err

    return run


def test_all_problems_of_a_command_line_come_at_once(run_in_process):
    code, complaint = run_in_process("--lr", "nan", "--dataset", "bloodmnits", "--device", "cuda:99", "--oops")

    assert code == 2
    assert [line.split()[0] for line in complaint.splitlines()] == ["error:"] * 4


def test_no_network_ends_with_3_and_says_where_to_put_the_file(run_in_process, monkeypatch, tmp_path):
    with socket.socket() as closed:  # a port at which nobody answers
        closed.bind(("127.0.0.1", 0))
        files_url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    info = dataclasses.replace(DATASET_REGISTRY["bloodmnist"], files_url=files_url)
    monkeypatch.setattr("scripts.data_handler.opening.DATASET_REGISTRY", {"bloodmnist": info})
    monkeypatch.setattr("scripts.core.download.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    code, complaint = run_in_process("--dataset", "bloodmnist")

    assert code == 3
    error = complaint.splitlines()[-1]
    for part in (
        f"{files_url}/bloodmnist.npz",
        "7053d0359d879ad8a5505303e11de1dc",
        str(tmp_path / "dataset/bloodmnist.npz"),
        "--dataset synthblood",
    ):
        assert part in error


def test_an_output_folder_that_cannot_be_made_ends_with_6(run_in_process, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, complaint = run_in_process("--dataset", "synthblood", "--output_dir", "file/outputs")

    assert code == 6
    assert "file/outputs" in complaint


def test_weights_of_another_architecture_end_with_3(run_in_process, tmp_path, make_npz: Npz):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    code, complaint = run_in_process("--dataset", str(make_npz()), "--weights", "vgg.pth")

    assert code == 3
    assert "are not those of a ResNet-18" in complaint


def test_a_loss_that_is_not_finite_ends_with_5(run_in_process, make_npz: Npz):
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--lr", "1e30")

    assert code == 5
    assert complaint.startswith("error: Training diverged in epoch 1")
    assert "--resume" not in complaint


def test_an_unexpected_error_leaves_its_traceback_in_the_log(run_in_process, make_npz: Npz, monkeypatch, tmp_path):
    from scripts import pipeline

    monkeypatch.setattr(pipeline, "begin_or_resume", lambda *_: 1 / 0)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 1
    (log,) = tmp_path.glob("outputs/*/logs/run.log")
    assert "ZeroDivisionError: division by zero" in log.read_text()
    assert complaint.startswith("error: Unexpected error: ZeroDivisionError: division by zero")
    assert str(log.relative_to(tmp_path)) in complaint


def test_a_wrong_command_line_creates_reads_and_locks_nothing(run_in_process, tmp_path):
    assert run_in_process("--epochs", "0")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_refused_start_creates_nothing(run_in_process, tmp_path):
    with ensure_single_instance(tmp_path / "lock") as lock:
        lock.note(tmp_path / "the_run_before")
        code, complaint = run_in_process("--dataset", "synthblood")

    assert code == 4
    assert "the_run_before" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_lock_comes_before_the_guard_and_the_guard_before_the_folder(tmp_path, monkeypatch):
    summary: list[tuple[object, ...]] = []
    config = Config(lock_file=tmp_path / "lock", output_dir=tmp_path / "outputs", dataset="synthblood")

    def guard(entry_point):
        with pytest.raises(LockHeldError), ensure_single_instance(config.lock_file):
            pass
        summary.append(("guard", entry_point.name, config.output_dir.exists()))

    def steps(config, paths, stop):
        summary.append(("steps", json.loads((tmp_path / "lock").read_text())["run_folder"] == str(paths.root)))

    monkeypatch.setattr(main, "terminate_ghosts", guard)
    monkeypatch.setattr(main, "train_and_report", steps)

    paths = main.run(config, StopRequest())

    assert summary == [("guard", "main.py", False), ("steps", True)]
    assert paths.log.exists()


def start(command_line: CommandLine, *argv: str | Path, until: str, **options) -> subprocess.Popen[str]:
    """Start a run in a process of its own and wait until a file of its run folder exists."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process = subprocess.Popen(
        command_line.command(*argv), cwd=command_line.folder, env=command_line.environment, text=True, **pipes
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(command_line.outputs.glob(f"*/{until}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


LONG = ("--weights", "none", "--epochs", "1000", "--patience", "1000", "--batch_size", "16")


@pytest.mark.slow
@pytest.mark.usefixtures("hangup_not_ignored")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_a_signal_during_training_saves_the_step_and_prints_the_resume_command(
    command_line: CommandLine, make_npz: Npz, number, code
):
    process = start(command_line, "--dataset", make_npz(), *LONG, until="history.jsonl")
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)

    assert process.returncode == code
    assert complaint.startswith(f"error: Stopped by {signal.Signals(number).name}. Everything up to epoch ")
    assert "Go on with: " in complaint
    assert "Traceback" not in complaint


@pytest.mark.slow
@pytest.mark.usefixtures("hangup_not_ignored")
def test_a_closed_terminal_ends_the_run_with_129_and_its_state_saved(command_line: CommandLine, make_npz: Npz):
    ours, theirs = pty.openpty()
    own_terminal = [sys.executable, "-c", OWN_TERMINAL, *command_line.command("--dataset", make_npz(), *LONG)]
    process = subprocess.Popen(
        own_terminal, cwd=command_line.folder, env=command_line.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(command_line.outputs.glob("*/history.jsonl")):
        with suppress(BlockingIOError):
            os.read(ours, 1 << 16)
        time.sleep(0.02)
    os.close(ours)

    assert process.wait(60) == 129
    log = (command_line.run_folder() / "logs/run.log").read_text(encoding="utf-8")
    assert "Stopped by SIGHUP. Everything up to" in log.splitlines()[-1]


OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_that_was_started_by_nohup_outlives_the_terminal(command_line: CommandLine, make_npz: Npz):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words = ("--dataset", make_npz(), "--weights", "none", "--epochs", "4", "--batch_size", "16")
    process = start(command_line, *words, until="history.jsonl", preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    shown, complaint = process.communicate(timeout=120)

    assert (process.returncode, complaint) == (0, "")
    assert "epoch 4/4" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)  # five processes, on a busy machine
def test_a_stopped_run_is_resumed_by_the_command_it_prints(command_line: CommandLine, make_npz: Npz, tmp_path: Path):
    words = ("--dataset", make_npz(sizes=(48, 16, 24)), "--weights", "none", "--epochs", "6", "--batch_size", "16")
    (tmp_path / "straight").mkdir()
    straight = CommandLine(tmp_path / "straight")
    assert straight(*words).returncode == 0

    process = start(command_line, *words, until="history.jsonl")
    process.terminate()
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 143
    done = subprocess.run(
        ["bash", "-c", complaint.split("Go on with: ")[1].strip()],
        cwd=command_line.folder,
        env=command_line.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "resumed at epoch" in done.stdout
    assert digests(command_line.run_folder()) == digests(straight.run_folder())


def test_a_finished_run_is_not_trained_again(in_process: InProcess, finished_run: FinishedRun):
    done = in_process("--resume", finished_run.copy_to(in_process.folder).root)
    assert done.returncode == 0
    assert "is finished: its results are in" in done.stdout


def test_views_that_training_does_not_show_are_off_and_recorded_as_off(run_in_process, make_npz: Npz, tmp_path):
    words = ("--dataset", str(make_npz()), *QUICK, "--hflip", "0", "--rotation_angle", "0")
    assert run_in_process(*words)[0] == 0

    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "config.json").read_text())["settings"]["no_tta"] is True
    assert json.loads((folder / "models/best_model.json").read_text())["tta_views"] == []
    assert json.loads((folder / "summary.json").read_text())["test"]["tta"] is None


def test_a_batch_that_cannot_be_normalised_is_refused_before_training(run_in_process, make_npz: Npz):
    tiny = str(make_npz(sizes=(33, 8, 8), side=8))
    code, complaint = run_in_process("--dataset", tiny, *QUICK)

    assert code == 2
    assert complaint == (
        "error: --batch_size 16 leaves one of the 33 training images in a batch of its own, which batch normalisation "
        "cannot train on with images of 8 × 8 pixels and the adapted stem. Take another --batch_size.\n"
    )
    assert run_in_process("--dataset", tiny, *QUICK, "--batch_size", "11")[0] == 0


def test_the_card_is_enough_to_use_the_weights(finished_resnet_run: FinishedRun):
    folder = finished_resnet_run.paths.root
    card = json.loads((folder / "models/best_model.json").read_text(encoding="utf-8"))

    with np.load(finished_resnet_run.dataset) as data:
        images, labels = data["test_images"], data["test_labels"][:, 0]
    mean, std = (torch.tensor(card["normalisation"][name]) for name in ("mean", "std"))
    inputs = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    model = new_model("resnet18", len(card["class_names"]), seed=0).eval()
    model.load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))
    with torch.inference_mode():
        probabilities = model(inputs).softmax(1).numpy()

    assert card["decision"] == "argmax of softmax"
    assert (probabilities.argmax(1) == labels).mean() == card["test"]["without TTA"]["accuracy"]
    assert card["precision"] == "fp32"


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


OUT_OF_MEMORY = "error: The memory of cpu is used up with --batch_size 16 and --feed resident. Take"


def test_a_model_that_does_not_fit_into_memory_gives_advice_and_leaves_no_folder(
    run_in_process, make_npz: Npz, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.nn.Module, "to", out_of_memory)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 1
    assert complaint.startswith(OUT_OF_MEMORY)
    assert "Start again with: " in complaint
    assert list((tmp_path / "outputs").iterdir()) == []


def test_test_images_that_do_not_fit_into_memory_give_advice_and_the_resume_command(
    run_in_process, make_npz: Npz, monkeypatch, tmp_path
):
    from scripts.data_handler.sources import make_device_split

    def make(split, *words, **options):
        return out_of_memory() if len(split.labels) == 24 else make_device_split(split, *words, **options)

    monkeypatch.setattr("scripts.pipeline.make_device_split", make)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 1
    assert complaint.startswith(OUT_OF_MEMORY)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert f"Go on with: {shlex.join([sys.orig_argv[0], sys.argv[0]])} --resume outputs/{folder.name}" in complaint


@pytest.mark.usefixtures("no_reports")
def test_a_run_whose_worker_was_killed_is_resumed_by_the_command_it_prints(run_in_process, make_npz: Npz, monkeypatch):
    def kill_workers(record, *_: object, **__: object) -> str:
        for worker in multiprocessing.active_children() if record.epoch == 1 else ():
            worker.kill()
            worker.join(60)
        return f"epoch {record.epoch}"

    # PyTorch checks every 5 s whether its workers live
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    monkeypatch.setattr("scripts.trainer.fit.epoch_line", kill_workers)
    streamed = ("--feed", "streamed", "--num_workers", "1", "--epochs", "2", "--checkpoint_every", "1000")
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, *streamed)

    assert code == 1
    assert complaint.startswith("error: A worker process that reads images was killed, probably because memory ran out")
    resume = shlex.split(complaint.split(" Go on with: ")[1])
    assert resume[:3] == [sys.orig_argv[0], sys.argv[0], "--resume"]
    history = Path(resume[3]) / "history.jsonl"
    assert len(history.read_text(encoding="utf-8").splitlines()) == 1
    assert run_in_process(*resume[2:4], "--num_workers", "0") == (0, "")
    assert "resumed at epoch 2" in (Path(resume[3]) / "logs/run.log").read_text(encoding="utf-8")
    assert len(history.read_text(encoding="utf-8").splitlines()) == 2


def test_best_weights_that_are_not_those_of_the_model_end_with_3(run_in_process, make_npz: Npz, monkeypatch):
    from scripts.trainer.fit import fit

    def tamper(*words, paths, **options):
        training = fit(*words, paths=paths, **options)
        state = torch.load(paths.best_model, weights_only=True)
        torch.save(state | {"fc.weight": state["fc.weight"][:1], "fc.bias": state["fc.bias"][:1]}, paths.best_model)
        return training

    monkeypatch.setattr("scripts.pipeline.fit", tamper)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 3
    assert "are not of this run's model" in complaint


def test_the_report_names_the_commit_that_trained(run_in_process, make_npz: Npz, tmp_path, monkeypatch):
    from scripts import pipeline

    train_model = pipeline.train_model
    monkeypatch.setenv("MEDMNIST_COMMIT", "of-the-evening")

    def train_all_night(*words):
        monkeypatch.setenv("MEDMNIST_COMMIT", "of-the-morning")
        return train_model(*words)

    monkeypatch.setattr(pipeline, "train_model", train_all_night)
    assert run_in_process("--dataset", str(make_npz()), *QUICK)[0] == 0

    (folder,) = (tmp_path / "outputs").iterdir()
    for name in ("config.json", "summary.json"):
        assert json.loads((folder / name).read_text(encoding="utf-8"))["environment"]["commit"] == "of-the-evening"


@pytest.fixture
def ascii_locale():
    """Let files that are opened without an encoding be read and written as ASCII."""
    earlier = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    with open(os.devnull) as stream:  # noqa: PTH123 (as the program would)
        encoding = stream.encoding
    yield encoding
    locale.setlocale(locale.LC_CTYPE, earlier)


@pytest.mark.usefixtures("tiny_network")
def test_a_locale_without_umlauts_trains_reports_and_resumes_a_set_that_has_them(
    in_process: InProcess, make_npz: Npz, ascii_locale
):
    if ascii_locale.lower().startswith("utf"):
        pytest.skip("this Python uses UTF-8 whatever the locale")
    dataset = make_npz(class_names=np.array(["Blüte", "日本"]))
    done = in_process("--dataset", dataset, *QUICK)
    assert done.returncode == 0, done.stderr
    folder = in_process.run_folder()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["dataset"]["class_names"] == ["Blüte", "日本"]

    (folder / "summary.json").unlink()
    assert in_process("--resume", folder).returncode == 0
    assert (folder / "summary.json").exists()


@pytest.mark.slow
def test_a_terminal_that_shows_ascii_only_gets_every_line_of_a_run(command_line: CommandLine, make_npz: Npz):
    variables = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("--dataset", make_npz(class_names=np.array(["Blüte", "Blatt"])), *QUICK)
    done = command_line(*words, environment=variables)

    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xd7" in done.stdout  # ×


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "one class", "missing", "settings"])
def test_a_start_that_is_refused_before_its_first_step_leaves_no_run_folder(
    run_in_process, make_npz: Npz, tmp_path, kind
):
    path = make_npz(sizes=(33, 8, 8), side=8)  # with this batch size refused: one image would be alone
    if kind == "one class":
        make_npz(**{f"{name}_labels": np.zeros((count, 1), np.uint8) for name, count in SIZES.items()})
    elif kind != "settings":
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    code, complaint = run_in_process("--dataset", str(path), *QUICK)

    assert code in (2, 3)
    assert complaint.startswith("error: ")
    assert list((tmp_path / "outputs").iterdir()) == []


SIZES = {"train": 48, "val": 16, "test": 24}


def test_a_file_that_the_start_did_not_write_is_not_removed(run_in_process, make_npz: Npz, monkeypatch, tmp_path):
    def open_dataset(*_: object) -> None:
        (folder,) = (tmp_path / "outputs").iterdir()
        (folder / "figures" / "notes.txt").write_text("mine")
        raise StorageError("The disk is full.")

    monkeypatch.setattr("scripts.pipeline.open_dataset", open_dataset)
    assert run_in_process("--dataset", str(make_npz()), *QUICK)[0] == 6
    (notes,) = (tmp_path / "outputs").glob("*/figures/notes.txt")
    assert notes.read_text() == "mine"


def test_a_signal_before_the_first_step_leaves_nothing_and_says_to_start_again(
    run_in_process, make_npz: Npz, monkeypatch, tmp_path
):
    monkeypatch.setattr("scripts.pipeline.build_model", lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 143
    assert complaint.startswith("error: Stopped by SIGTERM. Start again with: ")
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_run_that_is_resumed_keeps_its_folder_whatever_happens(run_in_process, stopped_run, monkeypatch):
    paths = stopped_run()
    for path in (paths.last_checkpoint, paths.previous_checkpoint, paths.history):
        path.unlink(missing_ok=True)
    monkeypatch.setattr("scripts.pipeline.build_model", lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    code, complaint = run_in_process("--resume", str(paths.root))

    assert code == 143
    assert f"Go on with: {shlex.join([sys.orig_argv[0], sys.argv[0]])} --resume {paths.root}" in complaint
    assert paths.config.exists()


def test_an_output_folder_that_is_a_loop_of_links_is_named_as_that(run_in_process, make_npz: Npz, tmp_path):
    (tmp_path / "outputs").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "outputs")
    for folder in ("outputs", "outputs/below"):
        code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--output_dir", folder)
        assert code == 6
        assert f"{folder}. The path is a loop of symbolic links: remove them, or choose another place." in complaint


def test_settings_of_a_resumed_run_are_as_the_run_began(run_in_process, stopped_run):
    paths = stopped_run()
    assert run_in_process("--resume", str(paths.root), "--monitor", "auto", "--precision", "auto")[0] == 0
    first, _, resumed = paths.log.read_text(encoding="utf-8").rpartition("as if the machine had failed")
    for setting in ("precision ", "stem adapted (3x3, stride 1, no max-pool): ", "monitor accuracy, which selects"):
        for log, is_resumed in ((first, False), (resumed, True)):
            (line,) = (line for line in log.splitlines() if f"INFO    {setting}" in line)
            assert (": as the run began" in line) is is_resumed


def test_a_test_split_of_one_class_is_reported_with_an_undefined_auc(run_in_process, make_npz: Npz, tmp_path):
    one_class = {"test_images": np.zeros((6, 12, 12, 3), np.uint8), "test_labels": np.ones((6, 1), np.uint8)}
    assert run_in_process("--dataset", str(make_npz(**one_class)), *QUICK)[0] == 0

    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "models/best_model.json").read_text())["test"]["with TTA"]["auc"] is None
    assert json.loads((folder / "summary.json").read_text())["test"]["tta"]["auc"]["value"] is None


def test_a_run_cannot_be_resumed_while_it_runs_under_another_lock_file(run_in_process, stopped_run):
    paths = stopped_run()
    with ensure_single_instance(paths.lock):
        code, complaint = run_in_process("--resume", str(paths.root))

    assert code == 4
    assert f"pid {os.getpid()}" in complaint


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Launcher, RunPaths]:
    """A run of three epochs that ended after its second, as if the machine had failed."""

    def fail_in_second_epoch(record, *_: object, **__: object) -> str:
        if record.epoch == 2:
            raise RuntimeError("as if the machine had failed")
        return ""

    run = InProcess(tmp_path_factory.mktemp("interrupted"))
    dataset = write_npz(run.folder / "squares.npz")
    with tiny_backbone(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.trainer.fit.epoch_line", fail_in_second_epoch)
        words = ("--weights", "none", "--epochs", "3", "--batch_size", "16", "--checkpoint_every", "0")
        assert run("--dataset", dataset, *words).returncode == 1
    return run, RunPaths(run.run_folder())


@pytest.fixture
def stopped_run(interrupted_run, tmp_path) -> Callable[[], RunPaths]:
    """Call it for a copy of ``interrupted_run`` that the test may change."""

    def copy() -> RunPaths:
        return RunPaths(shutil.copytree(interrupted_run[1].root, tmp_path / interrupted_run[1].root.name))

    return copy


def test_resuming_under_changed_settings_is_refused(run_in_process, stopped_run):
    paths = stopped_run()
    paths.config.write_text(paths.config.read_text(encoding="utf-8").replace('"lr": 0.008', '"lr": 0.5'))

    code, complaint = run_in_process("--resume", str(paths.root))

    assert code == 3
    assert "its config.json is not the one that its checkpoint was trained with" in complaint


def test_without_a_valid_checkpoint_what_was_trained_is_left_alone(run_in_process, stopped_run):
    paths = stopped_run()
    weights = paths.best_model.read_bytes()
    for path in (paths.last_checkpoint, paths.previous_checkpoint):
        path.write_bytes(path.read_bytes()[:1000])

    code, complaint = run_in_process("--resume", str(paths.root))

    assert code == 3
    assert "none of its checkpoints is valid, so its training cannot go on" in complaint
    assert paths.best_model.read_bytes() == weights
