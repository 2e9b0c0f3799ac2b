"""``tools/check_memory.py`` from its command line: what it prints, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.core import files
from scripts.data_handler import memory
from tests.conftest import PROJECT_ROOT, Npz
from tools import check_memory

MEGABYTE = 1_000_000


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Calls the program in an empty folder, with fixed free memory; returns exit code, facts and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DOCKER_REPRODUCIBILITY_MODE", raising=False)
    machine = SimpleNamespace(host=1000 * MEGABYTE, disk=5000 * MEGABYTE, shared=64 * MEGABYTE)
    monkeypatch.setattr(memory, "free_on_host", lambda: (machine.host, "on this machine"))
    for module in (files, check_memory):
        monkeypatch.setattr(module, "free_space", lambda _: machine.disk)
    monkeypatch.setattr(check_memory, "free_shared_memory", lambda: machine.shared)

    def run(*argv: str, **free: int) -> tuple[int, dict[str, str], str]:
        vars(machine).update(free)
        code = check_memory.main([*argv, "--device", "cpu"])
        shown = capsys.readouterr()
        return code, {line[:12].strip(): line[12:] for line in shown.out.splitlines()}, shown.err

    return run


def test_a_set_that_is_not_downloaded_is_checked_by_the_facts_of_the_registry(check, tmp_path):
    code, facts, error = check("bloodmnist")

    assert (code, error) == (0, "")
    assert facts == {
        "data set": "bloodmnist: the registry; it is not downloaded yet",
        "images": "17,092 of 28 × 28 × 3 bytes: train 28 MB, val 4.0 MB, test 8.0 MB",
        "memory": "the images need 40 MB, 1,000 MB are free on this machine",
        "feed": "resident: 40 MB of images fit into half of the memory that is free",
        "streamed": f"would need 40 MB of disk space once, in {tmp_path}/dataset/uncompressed, where 5,000 MB are "
        "free; the download needs space in addition",
        "workers": "4 if streamed, with 3.3 MB of batches in flight, of 64 MB that are free in /dev/shm",
        "verdict": "it can be trained",
    }
    assert list(tmp_path.iterdir()) == []


def test_images_that_do_not_fit_would_be_streamed(check, make_npz: Npz):
    code, facts, error = check(str(make_npz()), host=76_031)

    assert (code, error) == (0, "")
    assert (
        facts["feed"] == "streamed: 0.0 MB of images do not fit into half of the 0.1 MB that are free on this machine"
    )
    assert check(str(make_npz()), host=76_032)[1]["feed"].startswith("resident")


def test_images_that_can_be_neither_resident_nor_streamed_end_with_3(check, make_npz: Npz, tmp_path):
    code, facts, error = check(str(make_npz()), host=76_031, disk=38_399)

    assert code == 3
    assert facts["verdict"] == "it cannot be trained"
    assert facts["feed"].startswith("streamed")
    assert error == (
        f"error: To be streamed, the images need 38,400 bytes of disk space, and 38,399 are free at {tmp_path}/dataset/"
        "uncompressed. Free some space, or choose another place with --data_dir.\n"
    )
    assert check(str(make_npz()), disk=38_400)[0] == 0


@pytest.fixture
def read_only(monkeypatch):
    """Makes folders read-only, for root too."""
    access = os.access
    folders: set[str] = set()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in folders and access(path, mode))
    return folders.add


@pytest.mark.parametrize("is_there", [False, True])
def test_a_data_folder_that_cannot_be_written_to_ends_with_3(check, make_npz: Npz, tmp_path, read_only, is_there):
    path, nearest = make_npz(), tmp_path / "dataset" if is_there else tmp_path
    nearest.mkdir(exist_ok=True)
    read_only(str(nearest))
    code, facts, error = check(str(path), "--feed", "streamed")

    assert code == 3
    assert facts["verdict"] == "it cannot be trained"
    assert error == (
        f"error: Cannot write to {tmp_path}/dataset/uncompressed: {nearest} is read-only for this user. Make it a "
        "folder that can be written to, or choose another place with --data_dir.\n"
    )
    assert check(str(path), "--feed", "resident")[0] == 0


def test_a_download_needs_a_writable_folder_with_every_feed(check, tmp_path, read_only):
    read_only(str(tmp_path))
    code, facts, error = check("bloodmnist", "--feed", "resident")

    assert code == 3
    assert facts["verdict"] == "it cannot be trained"
    assert error.startswith(f"error: Cannot write to {tmp_path}/dataset: {tmp_path} is read-only for this user.")


def test_a_data_folder_that_is_a_file_ends_with_3(check, make_npz: Npz, tmp_path):
    (tmp_path / "dataset").write_text("a file")
    code, _, error = check(str(make_npz()), "--feed", "streamed")
    assert code == 3
    assert f"{tmp_path}/dataset is not a folder" in error


def test_resident_images_that_do_not_fit_end_with_3(check, make_npz: Npz):
    code, facts, error = check(str(make_npz()), "--feed", "resident", host=38_015)

    assert code == 3
    assert facts["verdict"] == "it cannot be trained"
    assert error.startswith("error: --feed resident was requested, but the images need 38,016 bytes of memory")


def test_images_that_are_uncompressed_already_need_no_disk_space(check, make_npz: Npz, tmp_path, read_only):
    from scripts.data_handler.opening import open_dataset

    path = make_npz()
    dataset = open_dataset(str(path), tmp_path / "dataset")
    dataset.unpack(tmp_path / "dataset")
    read_only(f"{tmp_path}/dataset/uncompressed")
    code, facts, _ = check(str(path), "--feed", "streamed", disk=0)

    assert code == 0
    assert facts["streamed"] == f"the images are stored uncompressed in {tmp_path}/dataset/uncompressed already"


def test_shared_memory_limits_the_number_of_workers(check):
    # a batch has 10,000 images of 2,352 bytes; five batches fit, and four workers have eleven in flight
    _, facts, _ = check("pathmnist", "--batch_size", "10000", shared=5 * 10_000 * 2352)
    assert facts["workers"].startswith("1 if streamed, with 118 MB of batches in flight, of 118 MB that are free")
    assert "--num_workers 4 becomes 1" in facts["workers"]
    assert check("pathmnist", "--reproducible")[1]["workers"] == "none if streamed: reproducibility mode"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("bloodmnits",), 2, "Did you mean 'bloodmnist'?"),
        (("bloodmnist", "--feed", "sometimes"), 2, "--feed must be one of auto, resident, streamed"),
        (("bloodmnist", "breastmnist"), 2, "Unexpected argument 'breastmnist'"),
        (("nowhere/missing.npz",), 3, "missing.npz"),
    ],
)
def test_a_wrong_command_line_ends_with_its_code_and_message(check, argv, code, message):
    found, facts, error = check(*argv)

    assert found == code
    assert facts == {}
    assert error.startswith("error: ")
    assert message in error


def test_a_damaged_file_ends_with_3(check, tmp_path):
    (tmp_path / "text.npz").write_text("this is a text")
    code, _, error = check("./text.npz")
    assert code == 3
    assert "it is not an .npz file" in error


def test_it_runs_from_any_folder_and_help_imports_nothing_slow(tmp_path: Path):
    program = (
        "import sys, runpy; sys.argv = ['check_memory.py', '--help']\n"
        f"try: runpy.run_path({str(PROJECT_ROOT / 'tools/check_memory.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: print('code', end.code, sorted({'torch', 'numpy', 'psutil'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.splitlines()[-1] == "code 0 []"
    assert "python tools/check_memory.py pathmnist" in done.stdout
