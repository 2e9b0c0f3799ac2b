import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import DataError
from scripts.core.log import log
from scripts.data_handler import npz, opening
from scripts.data_handler.dataset import members
from scripts.data_handler.opening import open_dataset
from scripts.data_handler.registry import BINARY, DATASET_REGISTRY, MULTI_CLASS, MULTI_LABEL, DatasetInfo
from tests.data_handler.test_npz import NUM_SAMPLES, toy_arrays

THREE = {
    "train_labels": np.array([[0], [1], [2], [0]]),
    "val_labels": np.array([[2], [2], [0]]),
    "test_labels": np.array([[1], [0]]),
}

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save_toy(name: str = "My Cells.npz", **changed: Any) -> Path:
        path = tmp_path / name
        np.savez_compressed(path, **toy_arrays(**changed))
        return path

    return save_toy


@pytest.fixture
def logged() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)


def refusal(name: object, data_dir: Path = Path("unused")) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(str(name), data_dir)
    return str(caught.value)


def test_an_own_file_is_known_by_its_name_and_content(save, tmp_path, logged):
    path = save(**THREE, class_names=np.array(["Zelle A", "Zelle B", "übrige"]))
    dataset = open_dataset(str(path), tmp_path)

    assert (dataset.key, dataset.title) == ("my_cells", "My Cells")
    assert dataset.task == MULTI_CLASS
    assert dataset.class_names == ("Zelle A", "Zelle B", "übrige")
    assert (dataset.height, dataset.width, dataset.channels) == (5, 6, 3)
    assert dataset.num_samples == NUM_SAMPLES
    assert dataset.md5 == hashlib.md5(path.read_bytes()).hexdigest()
    assert dataset.source == str(path)
    assert dataset.note is None
    assert logged == []


def test_a_split_is_read_as_it_was_written(save, tmp_path):
    dataset = open_dataset(str(save(**THREE)), tmp_path)
    for name in NUM_SAMPLES:
        split = dataset.load(name)
        np.testing.assert_array_equal(split.images, toy_arrays()[f"{name}_images"])
        assert split.images.dtype == np.uint8
        assert split.labels.tolist() == THREE[f"{name}_labels"][:, 0].tolist()
        assert split.labels.dtype == np.int64


def test_without_names_the_classes_are_numbered_from_the_training_labels(save, tmp_path):
    dataset = open_dataset(str(save(**THREE)), tmp_path)
    assert dataset.class_names == ("class 0", "class 1", "class 2")


def test_two_classes_make_a_binary_task_and_grey_images_one_channel(save, tmp_path):
    dataset = open_dataset(str(save(channels=1)), tmp_path)
    assert dataset.task == BINARY
    assert dataset.channels == 1
    assert dataset.load("test").images.shape == (2, 5, 6)


def test_a_relative_path_becomes_an_absolute_source(save, tmp_path, monkeypatch):
    save("cells.npz")
    monkeypatch.chdir(tmp_path)
    assert open_dataset("./cells.npz", tmp_path).source == str(tmp_path / "cells.npz")


def test_a_path_may_begin_at_home(save, tmp_path, monkeypatch):
    save("cells.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset("~/cells.npz", tmp_path).source == str(tmp_path / "cells.npz")


def test_a_link_is_named_as_typed_and_traced_to_its_file(save, tmp_path):
    path = save("version3.npz")
    link = tmp_path / "current.npz"
    link.symlink_to(path)
    dataset = open_dataset(str(link), tmp_path)
    assert (dataset.key, dataset.source) == ("current", str(path))


def test_labels_outside_the_training_range_are_refused(save):
    path = save(test_labels=np.array([[0], [2]]))
    assert refusal(path) == (
        f"Cannot use {path}: test_labels has 1 of 2 labels out of range (such as 2); "
        "expected class indices from 0 to 1."
    )


def test_labels_without_a_name_are_refused(save):
    path = save(train_labels=np.array([[0], [1], [2], [3]]), class_names=np.array(["a", "b"]))
    assert refusal(path) == (
        f"Cannot use {path}: train_labels has 2 of 4 labels out of range (such as 2, 3); "
        "expected class indices from 0 to 1."
    )


def test_one_class_is_too_few(save):
    path = save(train_labels=np.zeros((4, 1), int))
    assert refusal(path) == f"Cannot use {path}: all of train_labels are 0; expected at least two classes."


def label_rows(num_labels: int = 3) -> dict[str, Any]:
    """Image ``index`` has label ``index`` alone, counted round the labels."""
    return {
        f"{split}_labels": np.eye(num_labels, dtype=np.uint8)[np.arange(count) % num_labels]
        for split, count in NUM_SAMPLES.items()
    }


def test_several_columns_of_labels_make_a_multi_label_task(save, tmp_path, logged):
    dataset = open_dataset(str(save(**label_rows(), class_names=np.array(["mass", "nodule", "edema"]))), tmp_path)
    assert dataset.task == MULTI_LABEL
    assert dataset.class_names == ("mass", "nodule", "edema")
    labels = dataset.load("train").labels
    assert labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert labels.dtype == np.int64
    assert logged == []


def test_without_names_the_labels_are_numbered_and_those_without_a_training_image_are_named(save, tmp_path, logged):
    path = save(**label_rows() | {"train_labels": np.array([[1, 0, 1]] * 4)})
    assert open_dataset(str(path), tmp_path).class_names == ("label 0", "label 1", "label 2")
    assert logged == [f"{path} has no training image of 1 of its 3 labels: label 1."]


def test_each_label_has_a_name_or_none_has(save):
    path = save(**label_rows(), class_names=np.array(["a", "b"]))
    assert refusal(path) == (
        f"Cannot use {path}: class_names has 2 names, train_labels 3 columns; expected a name for each label."
    )


@pytest.mark.parametrize("split", list(NUM_SAMPLES))
def test_a_label_of_a_multi_label_set_is_0_or_1(save, split):
    rows = np.zeros((NUM_SAMPLES[split], 3), dtype=np.int16)
    rows[0] = 2, -1, 1
    path = save(**label_rows() | {f"{split}_labels": rows})
    assert refusal(path) == (
        f"Cannot use {path}: {split}_labels has 2 of {rows.size} labels that are neither 0 nor 1 (such as -1, 2); "
        "expected 1 in each of the 3 columns whose label the image has, else 0."
    )


def test_more_labels_than_can_be_handled_are_refused(save):
    path = save(**label_rows(1001))
    assert refusal(path) == f"Cannot use {path}: train_labels has 1,001 columns; expected at most 1000 labels."


def test_the_members_of_a_class_and_of_a_label():
    assert members(np.array([2, 0, 2]), 2).tolist() == [True, False, True]
    assert members(np.array([[1, 0], [0, 1], [1, 1]]), 1).tolist() == [False, True, True]


def test_classes_without_a_training_image_are_named(save, tmp_path, logged):
    path = save(train_labels=np.array([[1], [3], [1], [3]]), val_labels=np.array([[0], [1], [3]]))
    open_dataset(str(path), tmp_path)
    assert logged == [f"{path} has no training image of 2 of its 4 classes: class 0, class 2."]


def test_labels_that_the_memory_cannot_hold_are_refused_from_the_headers_alone(save, monkeypatch):
    path = save()
    needed = 9 * (1 + 8)  # nine labels of a byte, and as 64-bit integers
    monkeypatch.setattr(opening, "free_on_host", lambda: (needed - 1, "here"))
    with pytest.raises(DataError) as caught:
        open_dataset(str(path), path.parent)
    assert str(caught.value) == f"Cannot use {path}: its labels need 81 bytes of memory, and 80 are free."
    monkeypatch.setattr(opening, "free_on_host", lambda: (needed, "here"))
    open_dataset(str(path), path.parent)


def test_damage_in_the_test_split_is_found_before_training(save):
    noise = np.random.default_rng(0)
    images = {
        f"{split}_images": noise.integers(0, 256, (count, 50, 50), dtype=np.uint8)
        for split, count in NUM_SAMPLES.items()
    }
    path = save(**images)
    content = bytearray(path.read_bytes())
    # well behind the header, which is looked at anyway
    content[content.index(b"test_images.npy") + 4900] ^= 0xFF
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"Cannot use {path}: test_images is damaged (")


@pytest.mark.parametrize("split", list(NUM_SAMPLES))
def test_a_file_that_changed_during_the_run_is_refused(save, tmp_path, split):
    path = save()
    dataset = open_dataset(str(path), tmp_path)
    save(**{f"{split}_images": toy_arrays()[f"{split}_images"] + 1})
    with pytest.raises(DataError) as caught:
        dataset.load(split)
    assert str(caught.value) == f"{path} has changed since the run began: start again with the file as it is now."


@pytest.fixture
def replaced_while(monkeypatch) -> Callable[[str, Callable[[], object]], None]:
    """Call a function once, right after a function of the module, or of ``npz``, has returned."""

    def add(name: str, happen: Callable[[], object]) -> None:
        module = opening if hasattr(opening, name) else npz
        real = getattr(module, name)

        def and_then(*arguments: Any, **settings: Any) -> Any:
            result = real(*arguments, **settings)
            monkeypatch.setattr(module, name, real)
            happen()
            return result

        monkeypatch.setattr(module, name, and_then)

    return add


@pytest.mark.parametrize("moment", ["md5_of", "verify_checksums", "read_class_names"])
@pytest.mark.parametrize("is_unpacked", [False, True])
def test_a_file_replaced_while_it_is_opened_is_not_used_under_the_earlier_md5(
    save, tmp_path, replaced_while, moment, is_unpacked
):
    path = save()
    if is_unpacked:
        unpack = open_dataset(str(path), tmp_path).unpack
        unpack(tmp_path)
        (next((tmp_path / "uncompressed").glob("*val*"))).unlink()  # so that the checksums are compared again
    before = {entry.name for entry in (tmp_path / "uncompressed").glob("*")}
    replaced_while(moment, lambda: save(train_images=toy_arrays()["train_images"] + 1))
    dataset = open_dataset(str(path), tmp_path)

    unpack_anew = dataset.unpack
    for use in (lambda: dataset.load("train"), lambda: unpack_anew(tmp_path)):
        with pytest.raises(DataError, match="has changed since the run began"):
            use()
    assert {entry.name for entry in (tmp_path / "uncompressed").glob("*")} == before


def test_labels_of_a_replaced_file_do_not_join_images_that_were_unpacked(save, tmp_path, replaced_while):
    path = save()
    unpack = open_dataset(str(path), tmp_path).unpack
    unpack(tmp_path)
    replaced_while("md5_of", lambda: save(train_labels=toy_arrays()["train_labels"][::-1]))
    dataset = open_dataset(str(path), tmp_path)
    with pytest.raises(DataError, match="has changed since the run began"):
        dataset.unpack(tmp_path)


def test_a_file_that_was_only_touched_is_still_the_same(save, tmp_path):
    path = save()
    dataset = open_dataset(str(path), tmp_path)
    os.utime(path, (1, 1))
    assert len(dataset.load("test").labels) == 2


def test_a_file_that_vanished_during_the_run_is_named(save, tmp_path):
    path = save()
    dataset = open_dataset(str(path), tmp_path)
    path.unlink()
    with pytest.raises(DataError) as caught:
        dataset.load("test")
    assert str(caught.value) == f"Cannot read {path}: No such file or directory."


def test_a_path_that_is_no_file_is_refused_with_what_may_have_been_meant(save, tmp_path):
    path = save("cells.npz")
    schema = "Give the path of an .npz file in MedMNIST's schema."
    assert refusal(tmp_path / "cell.npz") == (
        f"--dataset {tmp_path / 'cell.npz'}: there is no file {tmp_path / 'cell.npz'}. Did you mean {path}?"
    )
    assert refusal(tmp_path / "zzz") == f"--dataset {tmp_path / 'zzz'}: there is no file {tmp_path / 'zzz'}. {schema}"
    assert refusal(tmp_path / "no" / "x.npz").endswith(schema)
    assert refusal(tmp_path) == (
        f"--dataset {tmp_path} is a folder; expected the path of an .npz file. Did you mean {path}?"
    )


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert refusal(tmp_path / "pipe.npz") == (
        f"--dataset {tmp_path / 'pipe.npz'} is not a regular file; expected the path of an .npz file."
    )


@pytest.mark.parametrize("name", ["~nobody_of_this_name/x.npz", "a\0b/x.npz", f"{'x' * 300}/x.npz"])
def test_a_path_that_cannot_be_is_refused(name):
    assert refusal(name).startswith("--dataset ")


def test_synthblood_needs_no_file(tmp_path):
    dataset = open_dataset("synthblood", tmp_path / "nowhere")
    assert (dataset.key, dataset.source) == ("synthblood", "generated")
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DatasetInfo]:
    """Put a set into the registry whose file already lies in the data folder, so that nothing is downloaded."""

    def add(resolution: int = 28, *, height: int = 0, width: int = 0, **changed: Any) -> DatasetInfo:
        path = tmp_path / ("toymnist.npz" if resolution == 28 else f"toymnist_{resolution}.npz")
        size = height or resolution, width or resolution
        images: dict[str, Any] = {
            f"{split}_images": np.full((count, *size, 3), 7, np.uint8) for split, count in NUM_SAMPLES.items()
        }
        rows = label_rows() if changed.get("task") == MULTI_LABEL else {}
        np.savez_compressed(path, **toy_arrays(**images, **rows))
        facts = {
            "key": "toymnist",
            "title": "ToyMNIST",
            "task": BINARY,
            "channels": 3,
            "class_names": ("healthy", "ill"),
            "num_samples": NUM_SAMPLES,
            "orientation_free": False,
            "md5s": {resolution: hashlib.md5(path.read_bytes()).hexdigest()},
            "files_url": "http://127.0.0.1:9",
        }
        info = DatasetInfo(**{**facts, **changed})
        monkeypatch.setattr(opening, "DATASET_REGISTRY", {**DATASET_REGISTRY, info.key: info})
        return info

    return add


def test_a_set_of_the_registry_has_its_official_names(register, tmp_path):
    info = register()
    dataset = open_dataset("toymnist", tmp_path)

    assert (dataset.key, dataset.title, dataset.task) == ("toymnist", "ToyMNIST", BINARY)
    assert dataset.class_names == ("healthy", "ill")
    assert dataset.md5 == info.md5s[28]
    assert dataset.source == str(tmp_path / "toymnist.npz")
    assert dataset.load("val").labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("moment", ["fetch", "validate_npz_keys"])
def test_a_set_of_the_registry_replaced_after_its_check_is_refused(register, tmp_path, replaced_while, moment):
    register()
    path = tmp_path / "toymnist.npz"
    with np.load(path) as content:
        arrays = dict(content)

    def replace() -> None:
        np.savez_compressed(path, **{**arrays, "train_images": arrays["train_images"] + 1})

    replaced_while(moment, replace)
    dataset = open_dataset("toymnist", tmp_path)
    with pytest.raises(DataError, match="has changed since the run began"):
        dataset.load("train")


def test_a_multi_label_set_of_the_registry_has_a_column_for_each_name(register, tmp_path):
    register(task=MULTI_LABEL, class_names=("mass", "nodule", "edema"))
    dataset = open_dataset("toymnist", tmp_path)
    assert (dataset.task, dataset.class_names) == (MULTI_LABEL, ("mass", "nodule", "edema"))
    assert dataset.load("test").labels.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "changed",
    [
        {"channels": 1},
        {"num_samples": {"train": 5, "val": 3, "test": 2}},
        {"task": MULTI_LABEL, "class_names": ("mass", "nodule")},
    ],
)
def test_a_file_that_contradicts_the_registry_is_refused(register, tmp_path, changed):
    register(**changed)
    assert refusal("toymnist", tmp_path).startswith(f"Cannot use {tmp_path / 'toymnist.npz'}: ToyMNIST has ")


def test_a_set_that_cannot_be_fetched_names_what_works_without_a_network(register, tmp_path, monkeypatch):
    info = register(md5s={28: "0" * 32}, files_url="ftp://127.0.0.1")  # an address that fails at once
    message = refusal("toymnist", tmp_path)
    assert message.startswith(f"Cannot download ToyMNIST from {info.url(28)}: the address cannot be used")
    assert (
        f"Put the file with MD5 {'0' * 32} at {tmp_path / 'toymnist.npz'} yourself, "
        "or use --dataset synthblood, which needs no network." in message
    )


@pytest.mark.parametrize("resolution", [64, 128, 224])
def test_each_resolution_has_its_own_file_and_checksum(register, tmp_path, resolution):
    info = register(resolution)
    dataset = open_dataset("toymnist", tmp_path, resolution)

    assert dataset.source == str(tmp_path / f"toymnist_{resolution}.npz")
    assert dataset.md5 == info.md5s[resolution]
    assert (dataset.key, dataset.height, dataset.width) == ("toymnist", resolution, resolution)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (64, 32), (32, 64)])
def test_a_file_of_another_size_than_its_resolution_is_refused(register, tmp_path, height, width):
    register(64, height=height, width=width)
    with pytest.raises(DataError) as caught:
        open_dataset("toymnist", tmp_path, 64)
    assert str(caught.value) == (
        f"Cannot use {tmp_path / 'toymnist_64.npz'}: at --resolution 64 ToyMNIST has images of 64 × 64 pixels, "
        f"but the file has {height} × {width}."
    )


def test_a_large_set_that_cannot_be_fetched_is_named_with_its_size_and_its_own_place(register, tmp_path):
    info = register(64, md5s={224: "1" * 32}, files_url="ftp://127.0.0.1")
    with pytest.raises(DataError) as caught:
        open_dataset("toymnist", tmp_path, 224)
    assert info.url(224) == "ftp://127.0.0.1/toymnist_224.npz?download=1"
    assert str(caught.value).startswith(f"Cannot download ToyMNIST at 224 × 224 pixels from {info.url(224)}: ")
    assert f"Put the file with MD5 {'1' * 32} at {tmp_path / 'toymnist_224.npz'} yourself" in str(caught.value)


@pytest.mark.parametrize("orientation_free", [True, False])
def test_a_set_of_the_registry_says_whether_it_has_a_left_and_a_right(register, tmp_path, orientation_free):
    register(orientation_free=orientation_free)
    assert open_dataset("toymnist", tmp_path).orientation_free is orientation_free
    assert open_dataset("toymnist", tmp_path).as_dict()["orientation_free"] is orientation_free


def test_an_own_file_and_the_drawn_set_leave_orientation_to_the_flags(register, tmp_path):
    register()  # the very file of a set that has a left and a right, given by its path
    assert open_dataset(str(tmp_path / "toymnist.npz"), tmp_path).orientation_free is True
    assert open_dataset("synthblood", tmp_path).orientation_free is True
