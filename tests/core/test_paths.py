from __future__ import annotations

import re
from datetime import datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.config import Config
from scripts.core.errors import DataError, Interrupted, StorageError, UnexpectedError
from scripts.core.paths import RunPaths, run_folder, slug

NOW = datetime(2026, 1, 31, 22, 15, 0)


def test_the_run_folder_of_the_defaults_is_the_published_one(tmp_path):
    paths = RunPaths.create(tmp_path / "outputs", "bloodmnist", "resnet18", now=NOW)
    assert paths.root == tmp_path / "outputs" / "20260131_221500_bloodmnist_resnet18"
    assert sorted(entry.name for entry in paths.root.iterdir()) == ["figures", "logs", "models", "reports"]


def test_every_file_is_where_the_contract_says(tmp_path):
    paths = RunPaths(tmp_path)
    files = {
        paths.config: "config.json",
        paths.summary: "summary.json",
        paths.report: "report.html",
        paths.history: "history.jsonl",
        paths.log: "logs/run.log",
        paths.best_model: "models/best_model.pth",
        paths.best_model_card: "models/best_model.json",
        paths.last_checkpoint: "models/last_checkpoint.pth",
        paths.previous_checkpoint: "models/previous_checkpoint.pth",
        paths.lock: "logs/.lock",
        paths.figures: "figures",
        paths.workbook: "reports/training_summary.xlsx",
    }
    assert {str(path.relative_to(tmp_path)): name for path, name in files.items()} == {n: n for n in files.values()}


def test_runs_of_the_same_second_are_numbered(tmp_path):
    names = [RunPaths.create(tmp_path, "a", "b", now=NOW).root.name for _ in range(3)]
    assert names == ["20260131_221500_a_b", "20260131_221500_a_b_2", "20260131_221500_a_b_3"]


def test_runs_that_start_at_once_never_share_a_folder(tmp_path):
    with ThreadPool(8) as pool:
        roots = pool.map(lambda _: RunPaths.create(tmp_path, "a", "b", now=NOW).root, range(24))
    assert len(set(roots)) == 24


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ResNet-18, tuned (v2)", "resnet_18_tuned_v2"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\runs\\x", "c_runs_x"),
        ("Zellen für Ärzte", "zellen_fur_arzte"),
        ("a\0b\nc", "a_b_c"),
        ("$(rm -rf ~); `x`", "rm_rf_x"),
        (".hidden", "hidden"),
        ("...", "unnamed"),
        ("血液", "unnamed"),
        ("", "unnamed"),
        ("\udcff", "unnamed"),
        ("a" * 59 + "-b" + "c" * 200, "a" * 59),
    ],
)
def test_a_hostile_name_becomes_a_harmless_slug(text, expected):
    assert slug(text) == expected


@given(st.text())
def test_a_slug_is_always_a_part_of_a_folder_name(text):
    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9_]{0,58}[a-z0-9])?", slug(text))


def test_a_hostile_name_stays_inside_the_output_folder(tmp_path):
    paths = RunPaths.create(tmp_path / "outputs", "../../data", "/etc", now=NOW)
    assert paths.root == tmp_path / "outputs" / "20260131_221500_data_etc"


def test_an_output_folder_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(StorageError) as caught:
        RunPaths.create(tmp_path / "outputs", "a", "b", now=NOW)
    assert str(caught.value) == (
        f"Cannot make the run folder at {tmp_path / 'outputs'}. File exists: check the path, or choose another place."
    )


def test_an_earlier_runs_folder_is_reopened_whole_and_without_what_was_half_written(tmp_path):
    root = RunPaths.create(tmp_path, "a", "b", now=NOW).root
    (root / "figures").rmdir()
    (root / "models" / ".best_model.pth.abc.part").write_bytes(b"half")
    (root / ".config.json.abc.part").write_bytes(b"half")
    (root / "models" / "best_model.pth").write_bytes(b"whole")

    paths = RunPaths.reopen(root)

    assert paths == RunPaths(root)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert names == ["figures", "logs", "models", "models/best_model.pth", "reports"]


def test_a_folder_that_cannot_be_made_again_is_a_storage_error(tmp_path):
    root = RunPaths.create(tmp_path, "a", "b", now=NOW).root
    (root / "figures").rmdir()
    (root / "figures").write_bytes(b"in the way")
    with pytest.raises(StorageError, match=r"Cannot make the folder at .*/figures\. File exists"):
        RunPaths.reopen(root)


@pytest.mark.parametrize("folder", ["loop", "loop/below"])
def test_an_output_folder_that_is_a_loop_of_links_is_named_as_that(tmp_path, folder):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError) as caught:
        RunPaths.create(tmp_path / folder, "a", "b", now=NOW)
    assert str(caught.value) == (
        f"Cannot make the run folder at {tmp_path / folder}. The path is a loop of symbolic links: remove them, or "
        "choose another place."
    )


def start(output_dir: Path, error: BaseException, *written: str) -> RunPaths:
    """Begin a run that writes some files and fails."""
    started = []

    def run() -> None:
        with run_folder(Config(output_dir=output_dir)) as paths:
            started.append(paths)
            for name in ("config.json", "logs/run.log", "logs/.lock", *written):
                (paths.root / name).write_text("")
            raise error

    with pytest.raises(type(error)):
        run()
    return started[0]


@pytest.mark.parametrize("error", [DataError("The file is truncated."), Interrupted(15, "Stopped by SIGTERM.")])
def test_a_run_that_ends_before_its_training_leaves_no_folder(tmp_path, error):
    (tmp_path / "other").mkdir()
    start(tmp_path, error, "models/.last_checkpoint.pth.abc.part")
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]


@pytest.mark.parametrize("name", ["models/last_checkpoint.pth", "models/previous_checkpoint.pth", "history.jsonl"])
def test_a_run_whose_training_has_begun_keeps_all_that_resuming_needs(tmp_path, name):
    paths = start(tmp_path, DataError("The file is truncated."), name)
    assert all(path.exists() for path in (paths.root / name, paths.config, paths.log, *paths.folders))


def test_a_file_of_somebody_else_is_not_removed(tmp_path):
    assert (start(tmp_path, DataError("The file is truncated."), "figures/mine.txt").figures / "mine.txt").exists()


@pytest.mark.parametrize("error", [UnexpectedError("The traceback is in the log."), KeyError("outside of the log")])
def test_a_run_that_ends_with_an_unexpected_error_keeps_its_log(tmp_path, error):
    assert start(tmp_path, error).log.exists()


def test_a_resumed_run_keeps_its_folder(tmp_path):
    root = RunPaths.create(tmp_path, "a", "b", now=NOW).root
    with pytest.raises(DataError), run_folder(Config(resume=str(root))) as paths:
        raise DataError("The file is truncated.")
    assert paths.root.exists()
