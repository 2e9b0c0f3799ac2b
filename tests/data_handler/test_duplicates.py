"""Exact duplicates are counted, in memory and from a file, and said in the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.data_handler import duplicates
from scripts.data_handler.dataset import Split
from scripts.data_handler.duplicates import Duplicates, count_duplicates, digest_pixels
from scripts.data_handler.opening import open_dataset
from tests.conftest import write_npz

SIZES = (48, 16, 24)


def noise(count, *, channels=3, seed=0):
    shape = (count, 6, 5) if channels == 1 else (count, 6, 5, channels)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def known_pairs(channels=3):
    """Splits with one image twice in train, three of val in train, and of test one in train and one in val."""
    images = {
        name: noise(count, channels=channels, seed=number)
        for number, (name, count) in enumerate(zip(("train", "val", "test"), SIZES, strict=True))
    }
    labels = {name: np.zeros(len(of_split), np.int64) for name, of_split in images.items()}
    images["train"][40] = images["train"][0]
    for place in (2, 5, 11):
        images["val"][place] = images["train"][place + 1]
    images["test"][7], images["test"][9] = images["train"][20], images["val"][15]
    labels["test"][7] = 1  # in train it has another label
    return images, labels


FOUND = Duplicates(
    within={"train": 1, "val": 0, "test": 0}, across={"train_val": 3, "train_test": 1, "val_test": 1}, contradictory=1
)


@pytest.mark.parametrize("channels", [1, 3])
def test_known_pairs_are_found_within_and_across_splits(channels):
    images, labels = known_pairs(channels)
    assert count_duplicates({name: Split(images[name], labels[name]) for name in images}) == FOUND


@pytest.mark.parametrize("channels", [1, 3])
def test_uncompressed_files_are_counted_in_pieces_and_alike(tmp_path: Path, monkeypatch, channels):
    images, labels = known_pairs(channels)
    arrays = {f"{name}_images": images[name] for name in images}
    arrays |= {f"{name}_labels": labels[name][:, np.newaxis] for name in images}
    path = write_npz(tmp_path / "pairs.npz", **arrays, class_names=np.array(["a", "b"]))
    dataset = open_dataset(str(path), tmp_path).unpack(tmp_path)
    splits = {name: dataset.load(name) for name in images}
    assert all(split.file for split in splits.values())

    for chunk_bytes in (1, 7 * images["train"][0].nbytes, 1 << 22):  # one image at least, some, all
        monkeypatch.setattr(duplicates, "CHUNK_BYTES", chunk_bytes)
        assert count_duplicates(splits) == FOUND


def test_an_image_is_a_duplicate_only_if_every_pixel_is_equal():
    images = noise(2)
    images[1] = images[0]
    assert digest_pixels(images[0].ravel()) == digest_pixels(images[1].ravel())
    images[1, 5, 4, 2] ^= 1
    assert digest_pixels(images[0].ravel()) != digest_pixels(images[1].ravel())


def test_rows_of_several_labels_contradict_each_other_if_one_label_differs():
    images = np.repeat(noise(1), 3, axis=0)
    for last_row, expected in (([0, 1], 0), ([1, 1], 1)):
        rows = np.array([[0, 1], [0, 1], last_row])
        found = count_duplicates({"train": Split(images, rows)})
        assert (found.within, found.contradictory) == ({"train": 2}, expected)


def test_images_in_two_splits_are_a_warning_and_the_rest_is_information(caplog):
    images, labels = known_pairs()
    splits = {name: Split(images[name], labels[name]) for name in images}
    with caplog.at_level("INFO", logger="medmnist"):
        count_duplicates(splits)
        count_duplicates({"train": splits["train"]})
        count_duplicates({"val": splits["val"], "test": Split(noise(3, seed=9), np.zeros(3, np.int64))})

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "exact duplicates among the images: 1 in train equal to an earlier one, 3 of val also in train, "
            "1 of test also in train, 1 of test also in val, 1 with different labels",
        ),
        ("INFO", "exact duplicates among the images: 1 in train equal to an earlier one"),
        ("INFO", "exact duplicates among the images: none"),
    ]
