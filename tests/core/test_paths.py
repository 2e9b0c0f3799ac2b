from __future__ import annotations

import re
from datetime import datetime
from multiprocessing.pool import ThreadPool

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import StorageError
from scripts.core.paths import RunPaths, slug

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
        paths.history: "history.jsonl",
        paths.log: "logs/run.log",
        paths.best_model: "models/best_model.pth",
        paths.best_model_card: "models/best_model.json",
        paths.last_checkpoint: "models/last_checkpoint.pth",
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
