"""Images on the disk: complete or absent, of the right file, and read in any order."""

from __future__ import annotations

import gc
import hashlib
import logging
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.core import files
from scripts.core.config import Config
from scripts.core.errors import DataError, StorageError
from scripts.core.files import free_space
from scripts.core.log import log
from scripts.data_handler import npz, opening, unpacked
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.opening import open_dataset
from scripts.data_handler.sources import StreamedSource, make_device_split
from scripts.data_handler.unpacked import HEADER_BYTES, ImageFile, ImageReader
from tests.conftest import PROJECT_ROOT
from tests.data_handler.test_npz import NUM_SAMPLES, npy_header, save_with, toy_arrays
from tools.check_memory import look_up

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small data set."""
    np.savez_compressed(tmp_path / "toy.npz", **toy_arrays())
    return tmp_path / "toy.npz"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    earlier = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)
    log.setLevel(earlier)


def unpack(path: Path) -> Dataset:
    """The data set with its images on the disk, beside the file."""
    dataset = open_dataset(str(path), path.parent)
    return dataset.unpack(path.parent)


def folder_of(path: Path) -> Path:
    return path.parent / "uncompressed"


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def expected_names(path: Path) -> list[str]:
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return [f"{md5}_{split}_images.npy" for split in ("test", "train", "val")]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_unpacked_images_are_those_of_the_file_and_any_numpy_reads_them(tmp_path, monkeypatch, save, channels):
    monkeypatch.setattr(npz, "PIECE_BYTES", 7)  # which divides nothing here
    path = tmp_path / "toy.npz"
    save(path, **toy_arrays(channels))
    dataset = unpack(path)

    assert names_in(folder_of(path)) == expected_names(path)
    for split, count in NUM_SAMPLES.items():
        expected = toy_arrays(channels)[f"{split}_images"]
        found = dataset.load(split)
        assert found.file is not None
        assert found.file.path.stat().st_size == HEADER_BYTES + count * 30 * channels
        for images in (found.images, np.load(found.file.path), ImageReader(found.file)[np.arange(count)]):
            assert images.dtype == np.uint8
            np.testing.assert_array_equal(images, expected)
        assert isinstance(found.images, np.memmap)  # not a copy in memory
        assert found.labels.tolist() == toy_arrays(channels)[f"{split}_labels"][:, 0].tolist()


def test_what_is_there_is_used_and_what_is_not_is_made(path, logged):
    dataset = unpack(path)
    assert logged[-1] == (
        f"unpacking 0.0 MB of images into {folder_of(path)}, once; the folder may be deleted when no run uses it"
    )
    for name in expected_names(path):
        os.utime(folder_of(path) / name, ns=(1, 1))
    unpack(path)
    assert logged[-1] == f"images are read from {folder_of(path)}, where they lie uncompressed"

    file = dataset.load("val").file
    assert file is not None
    file.path.unlink()
    unpack(path)
    for name in expected_names(path):
        is_old = (folder_of(path) / name).stat().st_mtime_ns == 1
        assert is_old == ("_val_" not in name)


@pytest.mark.parametrize("spoil", ["cut short", "too long", "other shape", "a folder"])
def test_an_incomplete_file_is_made_again_or_refused(path, spoil):
    file = unpack(path).load("train").file
    assert file is not None
    content = bytearray(file.path.read_bytes())
    if spoil == "cut short":
        file.path.write_bytes(content[:-1])
    elif spoil == "too long":
        file.path.write_bytes(content + b"\0")
    elif spoil == "other shape":
        file.path.write_bytes(content.replace(b"(4, 5, 6, 3)", b"(4, 6, 5, 3)"))
    else:
        file.path.unlink()
        file.path.mkdir()
        with pytest.raises(StorageError, match=re.escape(str(file.path))):
            unpack(path)
        return
    assert not file.is_complete()
    np.testing.assert_array_equal(unpack(path).load("train").images, toy_arrays()["train_images"])


def test_another_file_of_the_same_name_gets_images_of_its_own(path):
    unpack(path)
    first = names_in(folder_of(path))
    changed = toy_arrays()["train_images"] + 1
    np.savez_compressed(path, **toy_arrays(train_images=changed))
    np.testing.assert_array_equal(unpack(path).load("train").images, changed)
    assert len(names_in(folder_of(path))) == 6
    assert set(first) < set(names_in(folder_of(path)))


def test_damage_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, 60, 60), dtype=np.uint8)
    path = tmp_path / "toy.npz"
    rest: dict[str, Any] = {f"{split}_images": images[:count] for split, count in NUM_SAMPLES.items()}
    np.savez(path, **toy_arrays(**rest))
    monkeypatch.setattr(npz, "verify_checksums", lambda _: None)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("val_images.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 9000] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match="val_images is damaged"):
        unpack(path)
    assert names_in(folder_of(path)) == [name for name in expected_names(path) if "_train_" in name]


def test_damage_is_found_again_only_until_the_images_are_unpacked(path, monkeypatch):
    compared: list[object] = []
    monkeypatch.setattr(npz, "verify_checksums", compared.append)
    unpack(path)
    assert len(compared) == 1
    unpack(path)
    assert len(compared) == 1
    (folder_of(path) / expected_names(path)[0]).unlink()
    unpack(path)
    assert len(compared) == 2


def test_a_file_that_changes_while_it_is_read_leaves_nothing(path, monkeypatch):
    real = npz.read_pieces

    def pieces(layout, key):
        yield from real(layout, key)
        np.savez_compressed(path, **toy_arrays(train_images=toy_arrays()["train_images"] + 1))

    monkeypatch.setattr(unpacked, "read_pieces", pieces)
    with pytest.raises(DataError, match="has changed since the run began"):
        unpack(path)
    assert names_in(folder_of(path)) == []


def test_too_little_space_is_noticed_before_anything_is_written(path, monkeypatch):
    needed = 3 * HEADER_BYTES + 9 * 90
    monkeypatch.setattr(files, "free_space", lambda _: needed - 1)
    with pytest.raises(StorageError) as caught:
        unpack(path)
    assert str(caught.value) == (
        f"To be streamed, the images need 1,194 bytes of disk space, and 1,193 are free at {folder_of(path)}. "
        "Free some space, or choose another place with --data_dir."
    )
    assert names_in(folder_of(path)) == []
    monkeypatch.setattr(files, "free_space", lambda _: needed)
    unpack(path)


def test_a_small_file_that_claims_terabytes_fills_neither_memory_nor_disk(tmp_path):
    path = save_with(
        tmp_path / "bomb.npz",
        train_images=npy_header("(10000000000, 5, 6, 3)"),
        train_labels=npy_header("(10000000000, 1)"),
    )
    for ask in (lambda: open_dataset(str(path), tmp_path), lambda: look_up(Config(dataset=str(path)))):
        with pytest.raises(DataError, match="train_images would be 900,000,000,0"):
            ask()
    assert names_in(folder_of(path)) == []


def test_a_folder_that_cannot_be_made_is_named(path):
    folder_of(path).write_text("in the way")
    with pytest.raises(StorageError, match="make the folder for the uncompressed images") as caught:
        unpack(path)
    assert str(folder_of(path)) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(path):
    dataset = open_dataset(str(path), path.parent)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission is denied"):
            dataset.unpack(path.parent)
    finally:
        path.parent.chmod(0o700)


def test_images_stored_by_columns_are_refused_with_a_way_out(tmp_path):
    path = tmp_path / "toy.npz"
    np.savez(path, **toy_arrays(val_images=np.asfortranarray(toy_arrays()["val_images"])))
    with pytest.raises(DataError) as caught:
        unpack(path)
    assert "val_images is stored by columns (Fortran order)" in str(caught.value)
    assert "--feed resident" in str(caught.value)
    assert open_dataset(str(path), tmp_path).load("val").images.flags.c_contiguous


def child(program: str, *words: object) -> subprocess.Popen[str]:
    """A Python process in the project's folder that has unpacking at hand."""
    prelude = (
        "import resource, sys, time\nfrom pathlib import Path\nimport numpy as np\n"
        "from scripts.core.errors import PipelineError\n"
        "from scripts.data_handler import unpacked\nfrom scripts.data_handler.opening import open_dataset\n"
        "path = Path(sys.argv[1])\ndataset = open_dataset(str(path), path.parent)\n"
    )
    command = [sys.executable, "-c", prelude + program, *map(str, words)]
    return subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_kill_in_the_middle_leaves_nothing_that_looks_complete(path):
    process = child(
        "real = unpacked.read_pieces\n"
        "def pieces(layout, key):\n"
        "    for piece in real(layout, key):\n"
        "        yield piece[:100]\n"
        "        if key == 'val_images':\n"
        "            print('in the middle', flush=True)\n"
        "            time.sleep(600)\n"
        "        yield piece[100:]\n"
        "unpacked.read_pieces = pieces\n"
        "dataset.unpack(path.parent)\n",
        path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)

    train = [name for name in expected_names(path) if "_train_" in name]
    left = names_in(folder_of(path))
    assert [name for name in left if not name.endswith(".part")] == train
    assert len(left) == 2  # the killed writer's temporary file is there, under a name that nobody reads
    dataset = unpack(path)
    assert names_in(folder_of(path)) == expected_names(path)
    for split in NUM_SAMPLES:
        np.testing.assert_array_equal(dataset.load(split).images, toy_arrays()[f"{split}_images"])


def test_a_disk_that_is_full_in_the_middle_is_named_with_what_was_needed(path):
    process = child(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    dataset.unpack(path.parent)\n"
        "except PipelineError as error:\n"
        "    print(type(error).__name__, error)\n",
        path,
    )
    stdout, stderr = process.communicate(timeout=120)
    assert stderr == ""
    assert stdout.startswith("StorageError Cannot write the file at ")
    assert f"_train_images.npy: it needs {HEADER_BYTES + 360} bytes." in stdout
    assert names_in(folder_of(path)) == []


def test_neither_unpacking_nor_reading_needs_the_memory_of_all_images(tmp_path):
    path = tmp_path / "wide.npz"
    images = np.zeros((3000, 200, 200), dtype=np.uint8)  # 120 MB
    images[:, 0, 0] = np.arange(3000) % 251
    few: dict[str, Any] = {
        f"{split}_images": images[:count] for split, count in NUM_SAMPLES.items() if split != "train"
    }
    labels = (np.arange(3000) % 2)[:, None]
    np.savez_compressed(path, **toy_arrays(train_images=images, train_labels=labels, **few))
    process = child(
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + 60_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "files = unpacked.image_files(dataset, dataset.md5, path.parent)\n"
        "dataset.unpack(path.parent)\n"
        "reader = unpacked.ImageReader(files['train'])\n"
        "order = np.random.default_rng(0).permutation(3000)\n"
        "for start in range(0, 3000, 100):\n"
        "    batch = reader[order[start:start + 100]]\n"
        "    assert (batch[:, 0, 0] == order[start:start + 100] % 251).all()\n"
        "print('read')\n",
        path,
    )
    stdout, stderr = process.communicate(timeout=200)
    assert (stdout, stderr) == ("read\n", "")


@pytest.fixture
def file(tmp_path: Path) -> ImageFile:
    """Ten images of 2 × 3 pixels, whose first pixel is their number."""
    images = np.zeros((10, 2, 3), dtype=np.uint8)
    images[:, 0, 0] = np.arange(10)
    file = ImageFile(tmp_path / "images.npy", images.shape)
    file.path.write_bytes(file.header + images.tobytes())
    return file


@pytest.mark.parametrize("order", [[9, 0, 3, 3, 7], [0, 1, 2], [5], []])
def test_rows_come_in_the_requested_order(file, order):
    indices = np.array(order, dtype=np.int64)
    rows = ImageReader(file)[indices]
    assert rows.shape == (len(order), 2, 3)
    assert rows[:, 0, 0].tolist() == order
    np.testing.assert_array_equal(rows, file.map()[indices])


def test_a_copy_in_another_process_reads_for_itself(file):
    copy = pickle.loads(pickle.dumps(ImageReader(file)))
    assert copy[np.array([4, 2])][:, 0, 0].tolist() == [4, 2]


def test_an_open_file_outlives_its_name(file):
    reader = ImageReader(file)
    file.path.unlink()
    assert reader[np.array([8])][0, 0, 0] == 8
    with pytest.raises(DataError) as caught:
        ImageReader(file)
    assert str(caught.value) == (
        f"Cannot read the uncompressed images {file.path}: No such file or directory. Delete the file, if it is there: "
        "it is made again from the data set's own."
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_cut_short_during_a_run_is_reported_in_one_sentence_by_any_source(file, num_workers):
    def complaint_of_a_run() -> str:
        feed = StreamedSource(ImageReader(file), CPU, num_workers)
        assert len(list(feed.batches(np.arange(10), 4))) == 3
        os.truncate(file.path, file.num_bytes - 1)
        try:
            list(feed.batches(np.arange(10), 4))
        except DataError as error:
            return str(error)
        return ""

    gc.collect()  # feeds of other tests
    before = multiprocessing.active_children()
    complaint = complaint_of_a_run()
    assert multiprocessing.active_children() == before  # at once, or a run would wait for its workers for ever
    assert complaint == (
        f"Cannot read the uncompressed images {file.path}: it has been cut short. Delete the file, if it is there: it "
        "is made again from the data set's own."
    )
    with pytest.raises(DataError, match="Cannot read the uncompressed images"):
        file.map()


def test_a_streamed_split_is_read_from_its_file_and_not_from_the_mapping(path, monkeypatch):
    split = unpack(path).load("train")
    monkeypatch.setattr(ImageReader, "__getitem__", lambda self, indices: np.full((len(indices), 5, 6, 3), 7, np.uint8))
    examples = make_device_split(split, 2, feed="streamed", device=CPU, num_workers=0)
    assert {int(batch.max()) for batch in examples.source.batches(np.arange(4), 2)} == {7}


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path):
    statistics = os.statvfs(tmp_path)
    found = free_space(tmp_path / "not" / "yet")
    assert abs(found - statistics.f_bavail * statistics.f_frsize) < 1_000_000_000


def test_an_outlook_knows_the_images_without_reading_them(path, monkeypatch):
    for module, reading in ((npz, "read_pieces"), (npz, "read_array"), (npz, "read_labels"), (opening, "fetch")):
        monkeypatch.setattr(module, reading, None)
    source, images, md5, download = look_up(Config(dataset=str(path)))
    assert md5 is not None
    assert (source, images.num_samples, images.total_bytes, download) == (str(path), NUM_SAMPLES, 9 * 90, None)
    assert sorted(file.path.name for file in unpacked.image_files(images, md5, path.parent).values()) == sorted(
        expected_names(path)
    )
    _, registered, _, download = look_up(Config(dataset="bloodmnist", data_dir=path.parent))
    assert download is not None
    assert (registered.total_bytes, download.name) == (17_092 * 28 * 28 * 3, "bloodmnist.npz")
    assert look_up(Config(dataset="synthblood"))[2:] == (None, None)
