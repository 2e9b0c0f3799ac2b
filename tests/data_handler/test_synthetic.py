"""``synthblood`` is the same everywhere, quick, and says what it is."""

from __future__ import annotations

import numpy as np

from scripts.data_handler.synthetic import open_synthblood


def test_it_has_the_promised_shape_and_says_that_it_is_synthetic():
    dataset = open_synthblood()

    assert dataset.note == "Synthetic images drawn by the program: no medical result."
    assert len(dataset.class_names) == 8
    for name, count in {"train": 2000, "val": 400, "test": 600}.items():
        split = dataset.load(name)
        assert split.images.shape == (count, 28, 28, 3)
        assert split.images.dtype == np.uint8
        assert np.bincount(split.labels).tolist() == [count // 8] * 8


def test_it_is_the_same_at_every_call():
    first, second = open_synthblood(), open_synthblood()

    assert first.md5 == second.md5
    assert np.array_equal(first.load("val").images, second.load("val").images)


def test_no_image_is_in_two_splits():
    dataset = open_synthblood()
    images = [image.tobytes() for name in ("train", "val", "test") for image in dataset.load(name).images]

    assert len(set(images)) == 3000
