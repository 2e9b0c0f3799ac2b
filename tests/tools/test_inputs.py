"""``tools/inputs.py``: images come batch by batch, in order, and in bounded memory."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import DataError
from scripts.data_handler import npz
from scripts.trained_run import TrainedRun, open_run
from tests.conftest import FinishedRun, coloured_squares, write_npz
from tests.tools.conftest import Draw, noise
from tools import inputs as module
from tools.dataset_builder.decode import DecodedImage, Recipe, decode
from tools.inputs import NUM_THREADS, open_inputs, recipe_of

TEST_IMAGES = coloured_squares(24, classes=3, seed=2)


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun) -> TrainedRun:
    return open_run(finished_run.paths.root)


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_is_read_in_pieces_of_any_size(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, order: str
):
    images, labels = TEST_IMAGES
    path = write_npz(tmp_path / "a.npz", classes=3, test_images=np.asarray(images, order=order))  # type: ignore[call-overload]
    monkeypatch.setattr(npz, "PIECE_BYTES", 1000)
    opened = open_inputs([path], [run])
    batches = list(opened.batches(batch_size))

    assert opened.num_images == 24
    assert [len(batch.names) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [name for batch in batches for name in batch.names] == list(range(24))
    assert (np.concatenate([batch.images[0] for batch in batches]) == images).all()
    assert (np.concatenate([batch.labels for batch in batches]) == labels[:, 0]).all()


def test_damage_in_an_npz_is_found_at_the_end_at_the_latest(run: TrainedRun, tmp_path: Path):
    path = tmp_path / "a.npz"
    images, _ = TEST_IMAGES
    with np.load(write_npz(tmp_path / "b.npz", classes=3)) as content:
        np.savez(path, **{name: content[name] for name in content.files})
    content = path.read_bytes()
    position = content.index(images.tobytes()) + 5000
    path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    with pytest.raises(DataError, match="test_images is damaged"):
        list(open_inputs([path], [run]).batches(4))


def test_decoded_images_do_not_pile_up(run: TrainedRun, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    references: list[weakref.ref[object]] = []
    peak = 0

    def decode_tracked(content: bytes, recipe: Recipe) -> DecodedImage:
        nonlocal peak
        image = decode(content, recipe)
        references.append(weakref.ref(image.pixels))
        peak = max(peak, sum(reference() is not None for reference in references))
        return image

    monkeypatch.setattr(module, "decode", decode_tracked)
    for number in range(60):
        draw(f"new/{number}.png", number)
    count = sum(len(batch.names) for batch in open_inputs([tmp_path / "new"], [run]).batches(5))
    assert count == len(references) == 60
    # two batches ahead, the one that is collected, and those that the threads are about to hand over
    assert peak <= 2 * 5 + 5 + NUM_THREADS + 2


def test_runs_with_one_recipe_share_its_images(run: TrainedRun, draw: Draw, tmp_path: Path):
    draw("a.png", noise(1, 30))
    (batch,) = open_inputs([tmp_path / "a.png"], [run, run]).batches(4)
    assert batch.images[0] is batch.images[1]
    expected = decode((tmp_path / "a.png").read_bytes(), recipe_of(run)).pixels
    assert (batch.images[0] == expected[np.newaxis]).all()


def test_images_outside_the_classes_make_a_folder_unlabelled(run: TrainedRun, draw: Draw, tmp_path: Path):
    for name in ("dark/a.png", "dark/deeper/b.png", "bright/c.png"):
        draw(f"cells/{name}", 1)
    opened = open_inputs([tmp_path / "cells"], [run])
    (batch,) = opened.batches(4)
    assert [Path(str(name)).name for name in batch.names] == ["c.png", "a.png", "b.png"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0, 0]
    shutil.copy(tmp_path / "cells/dark/a.png", tmp_path / "cells/loose.png")
    opened = open_inputs([tmp_path / "cells"], [run])
    assert not opened.is_labelled
    assert [batch.labels for batch in opened.batches(9)] == [None]


def test_folders_that_are_no_classes_are_searched_for_images(run: TrainedRun, draw: Draw, tmp_path: Path):
    for name in ("monday/a.png", "tuesday/x/b.png", ".hidden/c.png", "d.png", "notes.txt.png"):
        draw(f"new/{name}", 1)
    (tmp_path / "new" / "readme.txt").touch()
    opened = open_inputs([tmp_path / "new"], [run])
    (batch,) = opened.batches(9)
    assert [str(Path(str(name)).relative_to(tmp_path / "new")) for name in batch.names] == [
        "d.png",
        "monday/a.png",
        "notes.txt.png",
        "tuesday/x/b.png",
    ]
    assert batch.labels is None


def test_after_an_unusable_file_nothing_more_is_predicted(run: TrainedRun, draw: Draw, tmp_path: Path):
    for number in range(3):
        draw(f"new/{number}.png", number)
    (tmp_path / "new" / "1.png").write_text("not an image")
    batches = open_inputs([tmp_path / "new"], [run]).batches(1)
    assert next(batches).names == [str(tmp_path / "new" / "0.png")]
    with pytest.raises(DataError, match=r"1 of 3 images cannot be used: .*1\.png \(it is not an image"):
        next(batches)
