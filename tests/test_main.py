"""``main.py`` as its users meet it: what a run leaves, in which order things happen, and how it fails."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from openpyxl import load_workbook

import main
from scripts.core.config import Config
from scripts.core.download import fetch
from scripts.core.errors import LockHeldError
from scripts.core.paths import RunPaths
from scripts.core.system import StopRequest, ensure_single_instance
from scripts.data_handler.registry import DATASET_REGISTRY
from scripts.models.resnet import adapted_resnet18
from tests.conftest import CommandLine, Npz

QUICK = ("--weights", "none", "--epochs", "1", "--batch_size", "16")


def digests(run_folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and of the predictions of a run."""
    files = [run_folder / "models" / "best_model.pth", *sorted(run_folder.glob("reports/*.csv"))]
    assert len(files) == 3
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_leaves_a_folder_that_explains_itself(command_line: CommandLine, make_npz: Npz):
    done = command_line("--dataset", make_npz(classes=3), "--weights", "none", "--epochs", "2", "--batch_size", "16")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = command_line.run_folder()
    assert folder.name.endswith("_squares_resnet18")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    csv_files = {name for name in files if name.endswith(".csv")}
    assert len(csv_files) == 2
    assert files - csv_files == {
        "config.json",
        "summary.json",
        "history.jsonl",
        "logs/.lock",
        "logs/run.log",
        "models/best_model.pth",
        "models/best_model.json",
        "models/last_checkpoint.pth",
        "figures/dataset_samples.png",
        "figures/training_curves.png",
        "figures/confusion_matrix.png",
        "figures/sample_predictions.png",
        "reports/training_summary.xlsx",
    }
    named = json.loads((folder / "summary.json").read_text())["files"]
    assert set(named) == files - {"summary.json", "logs/.lock"}
    model = adapted_resnet18(3, seed=0)
    model.load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))
    epochs = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    log = (folder / "logs/run.log").read_text()
    assert all(line in log for line in epochs)
    assert load_workbook(folder / "reports/training_summary.xlsx").sheetnames[:6] == [
        "Summary",
        "History",
        "Per class",
        "Confusion matrix",
        "Configuration",
        "Environment",
    ]


def test_the_recorded_settings_are_the_applied_ones(command_line: CommandLine, make_npz: Npz):
    path = make_npz(class_names=np.array(["dark", "bright"]))
    done = command_line("--dataset", path, *QUICK, "--num_workers", "3", "--device", "auto", "--model_name", "My net!")

    assert done.returncode == 0, done.stderr
    folder = command_line.run_folder()
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


@pytest.mark.parametrize("channels", [1, 3])
def test_feeds_and_workers_change_no_bit_of_weights_and_predictions(run_in_process, make_npz: Npz, tmp_path, channels):
    path, found = make_npz(channels=channels), []
    for feed in (("resident", "0"), ("streamed", "0"), ("streamed", "1"), ("streamed", "4")):
        outputs = tmp_path / "-".join(feed)
        words = ("--feed", feed[0], "--num_workers", feed[1], "--output_dir", str(outputs))
        code, complaint = run_in_process("--dataset", str(path), *QUICK, "--precision", "fp32", *words)
        assert (code, complaint) == (0, "")
        (folder,) = outputs.iterdir()
        assert json.loads((folder / "config.json").read_text())["settings"]["num_workers"] == int(feed[1])
        found.append(digests(folder))

    assert found[0] == found[1] == found[2] == found[3]
    assert len(list((tmp_path / "dataset/uncompressed").iterdir())) == 3


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
    assert "memory: the images need 0.0 MB, free are 0.1 MB on this machine" in log
    assert "feed streamed: 0.0 MB of images do not fit into half of the 0.1 MB that are free on this machine; 1" in log
    assert f"unpacking 0.0 MB of images into {tmp_path}/dataset/uncompressed" in log
    recorded = json.loads((folder / "config.json").read_text())["settings"]
    assert (recorded["feed"], recorded["num_workers"]) == ("streamed", 1)


def test_resident_images_that_cannot_fit_end_with_3_before_they_are_read(run_in_process, make_npz: Npz, monkeypatch):
    monkeypatch.setattr("scripts.data_handler.memory.free_on_host", lambda: (38_015, "on this machine"))
    monkeypatch.setattr("scripts.data_handler.opening.read_array", None)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--feed", "resident")

    assert code == 3
    assert complaint == (
        "error: --feed resident was requested, but the images need 38,016 bytes of memory, and 38,015 are free on this "
        "machine. Use --feed streamed, which reads them from the disk batch by batch.\n"
    )


def test_a_disk_without_room_for_the_images_ends_with_6_before_training(run_in_process, make_npz: Npz, monkeypatch):
    monkeypatch.setattr("scripts.data_handler.unpacked.free_space", lambda _: 38_399)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--feed", "streamed")

    assert code == 6
    assert complaint.startswith("error: The images need 38,400 bytes of disk space to be streamed, and 38,399 are free")
    assert "Go on with: " in complaint


def test_an_earlier_runs_weights_are_taken_as_they_are(command_line: CommandLine, make_npz: Npz):
    torch.save(adapted_resnet18(2, seed=5).state_dict(), command_line.folder / "earlier.pth")
    done = command_line("--dataset", make_npz(), "--weights", "earlier.pth", "--epochs", "1", "--batch_size", "48")

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
        (("--device", "cuda:99"), 2, "--device cuda:99 was asked for, but"),
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
def run_in_process(tmp_path, monkeypatch, capsys):
    """Calls ``main.main`` in an empty folder; returns the exit code and what stood on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DOCKER_REPRODUCIBILITY_MODE", raising=False)

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
    monkeypatch.setattr("scripts.data_handler.opening.fetch", functools.partial(fetch, sleep=lambda _: None))
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


def test_a_loss_that_is_no_number_ends_with_5(run_in_process, make_npz: Npz):
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK, "--lr", "1e30")

    assert code == 5
    assert complaint.startswith("error: Training diverged in epoch 1")


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_training_ends_the_run_cleanly(command_line: CommandLine, make_npz: Npz, number, code):
    words = ("--dataset", make_npz(sizes=(2000, 16, 24)), "--weights", "none", "--patience", "60")
    process = subprocess.Popen(
        command_line.command(*words),
        cwd=command_line.folder,
        env=command_line.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(command_line.outputs.glob("*/config.json")):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)

    assert process.returncode == code
    assert complaint.startswith(f"error: Stopped by {signal.Signals(number).name}.")
    assert "Traceback" not in complaint


def test_a_stopped_run_is_resumed_by_the_command_it_prints(command_line: CommandLine, make_npz: Npz, tmp_path: Path):
    words = ("--dataset", make_npz(sizes=(400, 16, 24)), "--weights", "none", "--epochs", "3", "--batch_size", "16")
    (tmp_path / "straight").mkdir()
    straight = CommandLine(tmp_path / "straight")
    assert straight(*words).returncode == 0

    process = subprocess.Popen(
        command_line.command(*words),
        cwd=command_line.folder,
        env=command_line.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(command_line.outputs.glob("*/history.jsonl")):
        time.sleep(0.02)
    process.terminate()
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 143
    resume = complaint.split("Go on with: ")[1].strip()
    done = subprocess.run(
        ["bash", "-c", resume],
        cwd=command_line.folder,
        env=command_line.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "resumed at epoch" in done.stdout
    assert digests(command_line.run_folder()) == digests(straight.run_folder())
    again = command_line("--resume", command_line.run_folder())
    assert again.returncode == 0
    assert "is finished: its results are in" in again.stdout


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
        "cannot train on with pictures of 8 × 8 pixels and the adapted stem. Take another --batch_size.\n"
    )
    assert run_in_process("--dataset", tiny, *QUICK, "--batch_size", "11")[0] == 0


def test_the_card_is_enough_to_use_the_weights(run_in_process, make_npz: Npz, tmp_path):
    path = make_npz(sizes=(96, 16, 40))
    assert run_in_process("--dataset", str(path), *QUICK, "--precision", "fp32")[0] == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    card = json.loads((folder / "models/best_model.json").read_text())

    with np.load(path) as data:
        images, labels = data["test_images"], data["test_labels"][:, 0]
    mean, std = (torch.tensor(card["normalisation"][name]) for name in ("mean", "std"))
    inputs = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    model = adapted_resnet18(len(card["class_names"]), seed=0).eval()
    model.load_state_dict(torch.load(folder / "models/best_model.pth", weights_only=True))
    with torch.inference_mode():
        probabilities = model(inputs).softmax(1).numpy()

    assert card["decision"] == "p[1] > 0.5"
    assert ((probabilities[:, 1] > 0.5) == labels).mean() == card["test"]["without TTA"]["accuracy"]
    assert card["precision"] == "fp32"


def test_used_up_memory_gives_advice(run_in_process, make_npz: Npz, monkeypatch):
    from scripts import pipeline

    def fit(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(pipeline, "fit", fit)
    code, complaint = run_in_process("--dataset", str(make_npz()), *QUICK)

    assert code == 1
    assert complaint.startswith("error: The memory of cpu is used up with --batch_size 16 and --feed resident. Take")


def test_a_test_split_of_one_class_is_reported_with_an_undefined_auc(run_in_process, make_npz: Npz, tmp_path):
    one_class = {"test_images": np.zeros((6, 12, 12, 3), np.uint8), "test_labels": np.ones((6, 1), np.uint8)}
    assert run_in_process("--dataset", str(make_npz(**one_class)), *QUICK)[0] == 0

    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "models/best_model.json").read_text())["test"]["with TTA"]["auc"] is None
    assert json.loads((folder / "summary.json").read_text())["test"]["tta"]["auc"]["value"] is None


def test_a_run_cannot_be_resumed_while_it_runs_under_another_lock_file(run_in_process, make_npz: Npz, tmp_path):
    assert run_in_process("--dataset", str(make_npz()), *QUICK)[0] == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    with ensure_single_instance(RunPaths(folder).lock):
        code, complaint = run_in_process("--resume", str(folder))

    assert code == 4
    assert f"pid {os.getpid()}" in complaint


def stopped_run(run_in_process, make_npz: Npz, tmp_path: Path, monkeypatch) -> RunPaths:
    """A run of three epochs that ended after its second, as if the machine had gone."""
    from scripts.trainer import fit as module

    monkeypatch.setattr(module, "epoch_line", lambda record, *_: 1 / 0 if record.epoch == 2 else "")
    words = ("--dataset", str(make_npz()), "--weights", "none", "--epochs", "3", "--batch_size", "16")
    assert run_in_process(*words)[0] == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    return RunPaths(folder)


def test_resuming_under_changed_settings_is_refused(run_in_process, make_npz: Npz, tmp_path, monkeypatch):
    paths = stopped_run(run_in_process, make_npz, tmp_path, monkeypatch)
    paths.config.write_text(paths.config.read_text().replace('"lr": 0.008', '"lr": 0.5'))

    code, complaint = run_in_process("--resume", str(paths.root))

    assert code == 3
    assert "its config.json is not the one that its checkpoint was trained with" in complaint


def test_without_a_sound_checkpoint_what_was_trained_is_left_alone(
    run_in_process, make_npz: Npz, tmp_path, monkeypatch
):
    paths = stopped_run(run_in_process, make_npz, tmp_path, monkeypatch)
    weights = paths.best_model.read_bytes()
    for path in (paths.last_checkpoint, paths.previous_checkpoint):
        path.write_bytes(path.read_bytes()[:1000])

    code, complaint = run_in_process("--resume", str(paths.root))

    assert code == 3
    assert "none of its checkpoints is valid, so its training cannot go on" in complaint
    assert paths.best_model.read_bytes() == weights
