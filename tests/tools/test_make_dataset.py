"""``tools/make_dataset.py`` from its command line: its files, its messages, and its failures."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from scripts.core.errors import ConfigError
from scripts.data_handler.npz import SPLITS, validate_npz_keys
from scripts.data_handler.opening import open_dataset
from tests.conftest import PROJECT_ROOT
from tests.tools.conftest import Draw, Run, default_signal, noise
from tools import make_dataset
from tools.dataset_builder import build as build_module
from tools.dataset_builder import reading
from tools.dataset_builder.archive import Member, RowStore, write_npz
from tools.dataset_builder.decode import DecodedImage, Recipe, decode

PROGRAM = PROJECT_ROOT / "tools" / "make_dataset.py"


def images_in(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Split, class name and pixels of every image in a file."""
    with np.load(path) as content:
        for split in SPLITS:
            for image, label in zip(content[f"{split}_images"], content[f"{split}_labels"][:, 0], strict=True):
                yield split, str(content["class_names"][label]), image.tobytes()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def write_csv(path: Path, *rows: tuple[object, ...]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_a_folder_becomes_a_file_in_medmnists_schema(run: Run, cells: Path, tmp_path: Path):
    code, out, err = run("cells", "cells.npz", "--size", "12")

    assert (code, err) == (0, "")
    with np.load(tmp_path / "cells.npz") as content:
        assert set(content.files) == {f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")} | {
            "class_names",
            "preparation",
        }
        assert content["class_names"].tolist() == ["long", "round"]
        assert json.loads(content["preparation"].item()) == Recipe(size=12).as_dict()
        for split, number in zip(SPLITS, (14, 2, 4), strict=True):
            assert content[f"{split}_images"].shape == (number, 12, 12, 3)
            assert content[f"{split}_images"].dtype == np.uint8
            assert content[f"{split}_labels"].shape == (number, 1)
            assert content[f"{split}_labels"].dtype == np.uint8
    expected = {(name, noise(n + 100 * (name == "long")).tobytes()) for name in ("long", "round") for n in range(10)}
    assert {(name, pixels) for _, name, pixels in images_in(tmp_path / "cells.npz")} == expected
    md5 = hashlib.md5((tmp_path / "cells.npz").read_bytes()).hexdigest()
    size = (tmp_path / "cells.npz").stat().st_size
    assert out.splitlines() == [
        "20 images of 2 classes in cells",
        "no image is there more than once",
        "class     train       val      test     total",
        "long          7         1         2        10",
        "round         7         1         2        10",
        "total        14         2         4        20",
        "share     70.0%     10.0%     20.0%",
        f"wrote cells.npz: {size:,} bytes, MD5 {md5}",
        f"next: python {PROJECT_ROOT / 'main.py'} --dataset cells.npz",
    ]
    dataset = open_dataset("cells.npz", tmp_path)
    assert (dataset.class_names, dataset.md5, dataset.key) == (("long", "round"), md5, "cells")
    assert dataset.preparation == Recipe(size=12).as_dict()


def test_one_channel_on_request(run: Run, cells: Path, tmp_path: Path):
    code, out, _ = run("cells", "grey.npz", "--grey")

    assert code == 0
    assert validate_npz_keys(tmp_path / "grey.npz").channels == 1
    assert "in colour, converted to grey: 20 of 20 images" in out


def test_grey_images_in_three_channels_are_logged(run: Run, draw: Draw):
    for number in range(6):
        draw(f"set/{number % 2}/{number}.png", noise(number).convert("L"))
    assert "all images are grey: --grey" in run("set", "rgb.npz")[1]
    assert "--grey" not in run("set", "grey.npz", "--grey")[1]


def test_neither_time_nor_place_nor_order_nor_workers_change_a_byte(run: Run, cells: Path, tmp_path: Path, monkeypatch):
    files = sorted(path.relative_to(cells) for path in cells.rglob("*.png"))
    random.Random(3).shuffle(files)
    for file in files:
        (tmp_path / "elsewhere" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cells / file, tmp_path / "elsewhere" / file)
    listed = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            self.found = list(listed(path))[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.found

        def __exit__(self, *_: object) -> None: ...

    assert run("cells", "a.npz", "--num_workers", "1")[0] == 0
    monkeypatch.setattr(os, "scandir", Backwards)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert run("elsewhere", "b.npz", "--num_workers", "3")[0] == 0
    assert run("elsewhere", "c.npz", "--seed", "43")[0] == 0

    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")
    assert sha256(tmp_path / "a.npz") != sha256(tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_bytes_are_those_that_numpy_would_write(run: Run, cells: Path, tmp_path: Path):
    assert run("cells", "a.npz")[0] == 0
    with np.load(tmp_path / "a.npz") as content:
        np.savez(tmp_path / "b.npz", **{name: content[name] for name in content.files})
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")


def test_patients_are_never_split(run: Run, draw: Draw, tmp_path: Path):
    patient = {}
    rows: list[tuple[object, ...]] = [("path", "label", "group")]
    for number in range(60):
        draw(f"{number}.png", number)
        patient[noise(number).tobytes()] = f"p{number // 4}"
        rows.append((f"{number}.png", "ill" if number % 8 < 4 else "well", f"p{number // 4}"))
    write_csv(tmp_path / "set.csv", *rows)
    code, out, _ = run("set.csv", "set.npz", "--size", "12")

    assert code == 0
    assert "15 groups, none of them divided" in out
    splits: dict[str, set[str]] = {}
    for split, _, pixels in images_in(tmp_path / "set.npz"):
        splits.setdefault(patient[pixels], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == 15


def test_sub_folders_are_patients_on_request(run: Run, draw: Draw, tmp_path: Path):
    for number in range(24):
        draw(f"set/{number % 2}/p{number // 4}/{number}.png", number)
    draw("set/1/single.png", 24)
    code, out, _ = run("set", "set.npz", "--group_by_folder", "--size", "12", "--index", "rows.csv")

    assert code == 0
    assert "6 groups, none of them divided; 1 image without a group" in out
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["group"] for row in rows} == {"", *(f"p{number}" for number in range(6))}
    assert len({(row["group"], row["split"]) for row in rows}) == 7


def test_equal_images_stay_in_one_split_whatever_their_files(run: Run, draw: Draw, tmp_path: Path):
    for number in range(8):
        for copy in range(3):  # a file, its copy, and the same image in another file format
            draw(f"set/a/{number}_{copy}.{'bmp' if copy == 2 else 'png'}", number)
            draw(f"set/b/{number}_{copy}.png", 50 + 10 * number + copy)
    code, out, _ = run("set", "set.npz", "--size", "12")

    assert code == 0
    assert (
        "8 images are there more than once, in 16 files too many, of which 8 equal another to the byte; all are "
        "kept, equal ones in one split" in out
    )
    found = list(images_in(tmp_path / "set.npz"))
    assert len(found) == 48
    places = {(split, pixels) for split, _, pixels in found}
    assert len(places) == len({pixels for _, pixels in places}) == 32

    code, out, _ = run("set", "dropped.npz", "--size", "12", "--drop_duplicates")
    assert code == 0
    assert "only the first of each is kept" in out
    assert Counter(name for _, name, _ in images_in(tmp_path / "dropped.npz")) == {"a": 8, "b": 24}


def test_one_image_in_two_classes_is_refused_or_left_out(run: Run, cells: Path, draw: Draw, tmp_path: Path):
    draw("cells/long/copy.bmp", 3)
    code, _, err = run("cells", "set.npz", "--size", "12")
    assert code == 3
    assert err == (
        "error: 1 image is in several classes at once: cells/long/copy.bmp = cells/round/3.png; correct the "
        "labels, or leave these images out with --skip_contradictions.\n"
    ).replace("cells/", "")
    assert left_in(tmp_path) == {"cells"}

    code, _, err = run("cells", "set.npz", "--size", "12", "--skip_contradictions")
    assert code == 0
    assert err.startswith("warning: 1 image is in several classes at once")
    assert noise(3).tobytes() not in {pixels for _, _, pixels in images_in(tmp_path / "set.npz")}
    assert len(list(images_in(tmp_path / "set.npz"))) == 19


@pytest.mark.parametrize("other_class", [False, True])
def test_patients_who_share_an_image_stay_together_when_it_is_left_out(
    run: Run, draw: Draw, tmp_path: Path, other_class: bool
):
    # 20 pairs of patients: each has two images of its own, and both have a copy of a third
    rows: list[tuple[object, ...]] = [("path", "label", "group")]
    for patient in range(40):
        for number in range(2):
            draw(f"{patient}_{number}.png", 100 + 2 * patient + number)
            rows.append((f"{patient}_{number}.png", patient % 2, f"p{patient}"))
        draw(f"{patient}_shared.png", patient // 2)
        rows.append((f"{patient}_shared.png", patient % 2 if other_class else 0, f"p{patient}"))
    write_csv(tmp_path / "set.csv", *rows)
    flag = "--skip_contradictions" if other_class else "--drop_duplicates"
    assert run("set.csv", "set.npz", "--size", "12", flag, "--index", "rows.csv")[0] == 0

    with (tmp_path / "rows.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert len(found) == (80 if other_class else 100)
    splits: dict[int, set[str]] = {}
    for row in found:
        splits.setdefault(int(row["group"][1:]) // 2, set()).add(row["split"])
    assert len(splits) == 20
    assert all(len(of_pair) == 1 for of_pair in splits.values())


def given_splits(draw: Draw, folder: Path, *more: tuple[object, ...]) -> Path:
    rows: list[tuple[object, ...]] = [("path", "label", "split", "group")]
    for number in range(6):
        draw(f"{number}.png", number)
        rows.append((f"{number}.png", number % 2, SPLITS[number // 2], f"p{number // 2}"))
    return write_csv(folder / "set.csv", *rows, *more)


def test_given_splits_are_kept_in_the_csvs_order(run: Run, draw: Draw, tmp_path: Path):
    given_splits(draw, tmp_path)
    code, out, err = run("set.csv", "set.npz", "--size", "12", "--split", "0.4", "0.3", "0.3")

    assert code == 0
    assert err == "warning: --split has no effect: set.csv gives the splits\n"
    assert list(images_in(tmp_path / "set.npz")) == [
        (SPLITS[number // 2], str(number % 2), noise(number).tobytes()) for number in range(6)
    ]
    assert "share     33.3%     33.3%     33.3%" in out


def test_given_splits_that_share_an_image_or_a_patient_are_refused(run: Run, draw: Draw, tmp_path: Path):
    draw("twin.bmp", 0)
    draw("other.png", 77)
    given_splits(draw, tmp_path, ("twin.bmp", 0, "test", ""), ("other.png", 0, "val", "p0"))
    for flags in ((), ("--drop_duplicates",)):
        code, _, err = run("set.csv", "set.npz", "--size", "12", *flags)
        assert code == 3
        assert err.splitlines() == [
            "error: 1 image is in several splits: 0.png (train) = twin.bmp (test); correct the column split.",
            "error: 1 group is in several splits: p0 has 0.png (train) and other.png (val); correct the column split.",
        ]
    assert not (tmp_path / "set.npz").exists()


def test_a_given_split_without_a_class_is_logged_and_one_without_images_refused(run: Run, draw: Draw, tmp_path: Path):
    draw("extra.png", 99)
    given_splits(draw, tmp_path, ("extra.png", "2", "train", ""))
    code, _, err = run("set.csv", "set.npz")
    assert code == 0
    assert err.splitlines() == [
        "warning: val has no image of the class 2",
        "warning: test has no image of the class 2",
    ]
    write_csv(tmp_path / "two.csv", ("path", "label", "split"), ("0.png", "0", "train"), ("1.png", "1", "test"))
    code, _, err = run("two.csv", "two.npz")
    assert code == 3
    assert err == (
        "error: There is no image for val: every split needs one, so at least 3 images are needed that do not belong "
        "together.\n"
    )


def test_the_index_says_which_image_is_which_row_and_makes_the_same_file_again(
    run: Run, cells: Path, draw: Draw, tmp_path: Path
):
    (tmp_path / "lists").mkdir()
    (cells / "round" / "broken.png").touch()
    assert run("cells", "a.npz", "--size", "12", "--index", "lists/rows.csv", "--skip_unreadable")[0] == 0
    with (tmp_path / "lists" / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 20
    with np.load(tmp_path / "a.npz") as content:
        for row in rows:
            stored = content[f"{row['split']}_images"][int(row["row"])]
            with Image.open(tmp_path / "lists" / row["path"]) as image:
                assert np.array_equal(stored, np.asarray(image))
    code, out, _ = run("lists/rows.csv", "b.npz", "--size", "12")
    assert code == 0
    assert "ignored columns of rows.csv: row" in out
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("source", "index"),
    [
        ("cells", "linked/rows.csv"),
        ("linked/../../cells", "rows.csv"),
        ("linked/set.csv", "rows.csv"),
        ("linked/set.csv", "linked/rows.csv"),
    ],
)
def test_the_index_names_existing_files_also_through_links(
    run: Run, cells: Path, tmp_path: Path, source: str, index: str
):
    (tmp_path / "far" / "lists").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("far/lists")
    images = [(f"../../cells/{name}/{n}.png", name) for name in ("long", "round") for n in range(10)]
    write_csv(tmp_path / "far" / "lists" / "set.csv", ("path", "label"), *images)
    code, out, _ = run(source, "a.npz", "--size", "12", "--index", index)

    assert code == 0
    assert f"wrote {index}: which image is which row" in out.splitlines()
    with (tmp_path / index).open(newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    assert {
        (tmp_path / index).parent / path for path in paths if not ((tmp_path / index).parent / path).exists()
    } == set()
    assert run(index, "b.npz", "--size", "12")[0] == 0
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")


def test_an_image_that_is_a_link_keeps_its_name_in_the_index(run: Run, cells: Path, tmp_path: Path):
    for name in ("long", "round"):
        (tmp_path / "cells" / name / "0.png").rename(tmp_path / f"{name}.png")
        (tmp_path / "cells" / name / "0.png").symlink_to(f"../../{name}.png")
    assert run("cells", "a.npz", "--index", "rows.csv")[0] == 0
    with (tmp_path / "rows.csv").open(newline="") as stream:
        names = {row["path"] for row in csv.DictReader(stream)}
    assert names == {f"cells/{name}/{n}.png" for name in ("long", "round") for n in range(10)}


def spoil(folder: Path, number: int) -> None:
    """Files that are no images, of several kinds."""
    good = (folder / "0.png").read_bytes()
    contents = (b"", b"a text", good[: len(good) // 2])
    for index in range(number):
        (folder / f"bad{index:02}.jpg").write_bytes(contents[index % 3])


def test_unusable_files_are_all_counted_and_nothing_is_written(run: Run, cells: Path, tmp_path: Path):
    spoil(cells / "round", 12)
    code, _, err = run("cells", "set.npz", "--index", "rows.csv")

    assert code == 3
    assert err.count("\n") == 1
    assert err.startswith(
        "error: 12 of 32 images cannot be used: round/bad00.jpg (it is empty), round/bad01.jpg (it is"
    )
    assert "bad02.jpg (it is damaged: " in err
    assert "bad09.jpg" in err
    assert "bad10.jpg" not in err
    assert err.endswith("and 2 more; repair or remove them, or leave them out with --skip_unreadable.\n")
    assert left_in(tmp_path) == {"cells"}


def test_unusable_files_are_left_out_on_request_and_logged(run: Run, cells: Path, draw: Draw, tmp_path: Path):
    assert run("cells", "without.npz")[0] == 0
    spoil(cells / "round", 2)
    (cells / "round" / "gone.png").symlink_to("nowhere.png")
    (cells / "round" / "loop.png").symlink_to("loop.png")
    os.mkfifo(cells / "round" / "pipe.png")
    with (cells / "round" / "huge.png").open("wb") as stream:
        stream.truncate(reading.MAX_FILE_BYTES + 1)
    code, _, err = run("cells", "set.npz", "--skip_unreadable")

    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("warning: 6 of 26 images cannot be used: round/bad00.jpg (it is empty), ")
    assert "round/gone.png (it cannot be read: No such file or directory)" in err
    assert "round/huge.png (it has 1,073,741,825 bytes; at most 1,073,741,824 are read)" in err
    assert "round/loop.png (it cannot be read: Too many levels of symbolic links)" in err
    assert "round/pipe.png (it is not a regular file)" in err
    assert err.endswith("; they are left out.\n")
    assert sha256(tmp_path / "set.npz") == sha256(tmp_path / "without.npz")


def test_an_image_smaller_than_the_crop_is_named(run: Run, cells: Path, draw: Draw):
    draw("cells/long/small.png", Image.new("RGB", (11, 12)))
    code, _, err = run("cells", "set.npz", "--crop", "12")
    assert code == 3
    assert "1 of 21 images cannot be used: long/small.png (it has 11 × 12 pixels, too few for a crop of 12)" in err


def test_a_class_of_which_nothing_is_left_is_refused(run: Run, cells: Path, draw: Draw, tmp_path: Path):
    (cells / "flat").mkdir()
    (cells / "flat" / "1.png").touch()
    code, _, err = run("cells", "set.npz", "--skip_unreadable")
    assert code == 3
    assert "error: No image is left of the class flat: repair the images named above, or remove the class." in err
    assert left_in(tmp_path) == {"cells"}


def test_a_class_too_small_for_every_split_is_logged(run: Run, cells: Path, draw: Draw, tmp_path: Path):
    for number in (200, 201):
        draw(f"cells/flat/{number}.png", number)
    code, _, err = run("cells", "set.npz", "--size", "12")
    assert code == 0
    assert err == "warning: class flat has no image in val: it has only 2 different images\n"


def test_an_existing_file_is_replaced_only_on_request(run: Run, cells: Path, tmp_path: Path):
    (tmp_path / "set.npz").write_text("precious")
    (tmp_path / "rows.csv").write_text("precious")
    code, _, err = run("cells", "set.npz", "--index", "rows.csv")
    assert code == 2
    assert err.splitlines() == [
        "error: OUT.npz set.npz exists already: choose another name, or replace it with --overwrite.",
        "error: --index rows.csv exists already: choose another name, or replace it with --overwrite.",
    ]
    assert (tmp_path / "set.npz").read_text() == "precious"
    assert run("cells", "set.npz", "--index", "rows.csv", "--overwrite")[0] == 0
    assert validate_npz_keys(tmp_path / "set.npz").num_samples == {"train": 14, "val": 2, "test": 4}


def test_every_problem_of_a_command_line_comes_at_once(run: Run, cells: Path, tmp_path: Path):
    code, _, err = run(
        *("missing", "out.zip", "--size", "7", "--crop", "x", "--split", "0.7", "0.2", "0.2", "--seed", "-1"),
        *("--num_workers", "0", "--index", "nowhere/rows.csv"),
    )
    assert code == 2
    assert err.splitlines() == [
        "error: --size must be from 8 to 1024, got 7.",
        "error: --crop must be a whole number, got 'x'.",
        "error: --split must be three shares above 0 whose sum is 1, such as 0.7 0.1 0.2, got 0.7 0.2 0.2.",
        "error: --seed must be from 0 to 4294967295, got -1.",
        "error: --num_workers must be from 1 to 64, got 0.",
        "error: FOLDER_OR_CSV missing does not exist.",
        "error: OUT.npz must end in .npz, got out.zip.",
        "error: --index nowhere/rows.csv: there is no folder nowhere; make it first.",
    ]
    assert left_in(tmp_path) == {"cells"}


@pytest.mark.parametrize("spelling", ["sub/../set.csv", "symbolic.csv", "hard.csv", "sub/linked/set.csv"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_csv_that_is_read_is_never_replaced(run: Run, draw: Draw, tmp_path: Path, spelling: str, turned: bool):
    given_splits(draw, tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic.csv").symlink_to("set.csv")
    os.link(tmp_path / "set.csv", tmp_path / "hard.csv")
    (tmp_path / "sub" / "linked").symlink_to(tmp_path)
    content = (tmp_path / "set.csv").read_bytes()
    read, written = (spelling, "set.csv") if turned else ("set.csv", spelling)
    code, _, err = run(read, "x.npz", "--index", written, "--overwrite")

    assert code == 2
    assert err == f"error: --index {written} would replace the CSV that is read: choose another name.\n"
    assert (tmp_path / "set.csv").read_bytes() == content
    assert (tmp_path / "symbolic.csv").is_symlink()
    assert not (tmp_path / "x.npz").exists()


def test_no_input_is_replaced_by_the_result(run: Run, draw: Draw, tmp_path: Path):
    given_splits(draw, tmp_path)
    os.link(tmp_path / "set.csv", tmp_path / "list.npz")
    os.link(tmp_path / "3.png", tmp_path / "image.npz")
    (tmp_path / "image.csv").symlink_to("4.png")
    before = {entry.name: sha256(entry) for entry in tmp_path.iterdir()}

    code, _, err = run("set.csv", "list.npz", "--overwrite")
    assert (code, err) == (2, "error: OUT.npz list.npz would replace the CSV that is read: choose another name.\n")
    code, _, err = run("set.csv", "image.npz", "--index", "image.csv", "--overwrite")
    assert code == 2
    assert err.splitlines() == [
        "error: OUT.npz image.npz would replace the image '3.png' that is read: choose another name.",
        "error: --index image.csv would replace the image '4.png' that is read: choose another name.",
    ]
    assert {entry.name: sha256(entry) for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "The following arguments are required: FOLDER_OR_CSV, OUT.npz."),
        (("cells", "x.npz", "--siz", "28"), "Unknown flag '--siz'. Did you mean --size?"),
        (("cells", "x.npz", "--quick=1"), "Unknown flag '--quick'. See --help."),
        (("cells", "x.npz", "y.npz"), "Unexpected argument 'y.npz': give one FOLDER_OR_CSV and one OUT.npz."),
        (("cells", "x.npz", "--size"), "Argument --size: expected one argument."),
        (("cells", ".npz/", "--grey"), "OUT.npz must end in .npz, got .npz."),
        (("cells", "", "--grey"), "OUT.npz must be a path, got ''."),
        (("~nobody-here/x", "x.npz"), "FOLDER_OR_CSV must be a path, got '~nobody-here/x', whose user is not known"),
        (
            ("a.csv", "x.npz", "--group_by_folder"),
            "--group_by_folder is for folders; the groups of a.csv are in its column group.",
        ),
        (("a.csv", "x.npz", "--index", "a.csv", "--overwrite"), "--index a.csv would replace the CSV that is read"),
        (("cells", "x.npz", "--split", "0.8", "0.2", "0"), "--split must be three shares above 0 whose sum is 1"),
        (("cells", "x.npz", "--split", "nan", "0.2", "0.8"), "--split must be three shares above 0 whose sum is 1"),
        (("cells", "x.npz", "--split", "a", "0.2", "0.8"), "--split must be three shares above 0 whose sum is 1"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_its_message(run: Run, cells: Path, tmp_path: Path, argv, message):
    (tmp_path / "a.csv").write_text("path,label\n")
    code, _, err = run(*argv)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_flags_may_stand_anywhere():
    request = make_dataset.parse(["--size", "64", str(PROJECT_ROOT), "--split", "0.5", "0.3", "0.2", "none_yet.npz"])
    assert (request.size, request.split, request.out) == (64, (0.5, 0.3, 0.2), Path("none_yet.npz"))
    with pytest.raises(ConfigError):
        make_dataset.parse(["--size", "64", str(PROJECT_ROOT)])


@pytest.mark.parametrize("step", ["temporary", "archive"])
def test_a_full_disk_ends_with_6_and_leaves_nothing(run: Run, cells: Path, tmp_path: Path, monkeypatch, step):
    (tmp_path / "set.npz").write_text("precious")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "temporary":
        monkeypatch.setattr(RowStore, "append", fail)
    else:
        monkeypatch.setattr(build_module, "write_npz", fail)
    code, _, err = run("cells", "set.npz", "--overwrite", "--index", "rows.csv")

    assert code == 6
    assert "The disk is full: free some space, or choose another place." in err
    assert err.count("\n") == 1
    assert left_in(tmp_path) == {"cells", "set.npz"}
    assert (tmp_path / "set.npz").read_text() == "precious"


def test_reading_stays_only_a_little_ahead_of_writing():
    begun: list[int] = []
    num_threads = threading.active_count()

    def make(number: int) -> int:
        begun.append(number)
        return -number

    made = reading.map_ahead(make, range(1000), num_workers=2)

    assert [next(made) for _ in range(3)] == [0, -1, -2]
    made.close()
    assert threading.active_count() == num_threads
    assert len(begun) <= 3 + 2 * reading.AHEAD_PER_WORKER < 12
    assert list(reading.map_ahead(abs, range(-50, 0), num_workers=3)) == list(range(50, 0, -1))


def test_the_first_images_of_a_split_are_of_all_classes(run: Run, cells: Path, tmp_path: Path):
    assert run("cells", "set.npz")[0] == 0
    with np.load(tmp_path / "set.npz") as content:
        assert set(content["train_labels"][:7, 0].tolist()) == {0, 1}


def test_too_little_space_is_reported_before_anything_is_read(run: Run, cells: Path, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20 * 12 * 12 * 3 * 2 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, err = run("cells", "set.npz", "--size", "12")
    assert code == 6
    assert "twice while the file is made, need 17,280 bytes of disk space, and 17,279 are free" in err


def test_what_cannot_be_read_back_does_not_take_its_name(run: Run, cells: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build_module, "write_npz", lambda stream, _: stream.write(b"PK\x03\x04 but no more"))
    code, _, err = run("cells", "set.npz")
    assert code == 3
    assert "cut short or damaged" in err
    assert left_in(tmp_path) == {"cells"}


def test_a_bar_is_for_terminals_only(run: Run, cells: Path):
    assert "img/s" not in "".join(map(str, run("cells", "set.npz")))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(run: Run, cells: Path, tmp_path: Path, monkeypatch, number):
    decoded = []

    def stop_at_the_third(content: bytes, recipe: Recipe) -> DecodedImage:
        decoded.append(content)
        if len(decoded) == 3:
            os.kill(os.getpid(), number)
        return decode(content, recipe)

    monkeypatch.setattr(build_module, "decode", stop_at_the_third)
    with default_signal(number):
        code, _, err = run("cells", "set.npz", "--index", "rows.csv", "--num_workers", "1")

    assert code == 128 + number
    assert err == f"error: Stopped by {number.name}. Nothing was written.\n"
    assert left_in(tmp_path) == {"cells"}


def test_it_runs_from_any_folder_and_help_imports_nothing_slow(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert "python tools/make_dataset.py cells cells.npz --size 28 --crop 200" in done.stdout
    program = (
        "import sys; from tools import make_dataset\n"
        "try: make_dataset.parse(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'pandas', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.splitlines()[-1] == "[]"


class Tracked(bytearray):
    """Bytes that can be weakly referenced."""


def test_memory_does_not_grow_with_the_number_of_images(run: Run, draw: Draw, monkeypatch):
    read_row = RowStore.read
    references: list[weakref.ref[object]] = []
    peaks = {"decoded": 0, "written": 0}

    def track(kind: str, value: object) -> None:
        references.append(weakref.ref(value))
        peaks[kind] = max(peaks[kind], sum(reference() is not None for reference in references))

    def decode_tracked(content: bytes, recipe: Recipe) -> DecodedImage:
        image = decode(content, recipe)
        track("decoded", image.pixels)
        return image

    def read_tracked(store: RowStore, row: int) -> Tracked:
        content = Tracked(read_row(store, row))
        track("written", content)
        return content

    monkeypatch.setattr(build_module, "decode", decode_tracked)
    monkeypatch.setattr(RowStore, "read", read_tracked)
    for index in range(90):
        draw(f"set/{index % 2}/{index}.png", index)
    assert run("set", "set.npz", "--num_workers", "2")[0] == 0

    assert len(references) == 180
    # those ahead of the consumer, the one that it has, and those that the threads are about to hand over
    assert 1 <= peaks["decoded"] <= 2 * reading.AHEAD_PER_WORKER + 4
    assert 1 <= peaks["written"] <= 3


def test_an_array_is_written_piece_by_piece():
    stream, positions = io.BytesIO(), list[int]()

    def pieces() -> Iterator[bytes]:
        for _ in range(4):
            positions.append(stream.tell())
            yield bytes(100)

    write_npz(stream, [Member("a", (400,), np.dtype(np.uint8), pieces)])
    assert np.diff(positions).tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match="a must have 500 bytes, but got 400"):
        write_npz(io.BytesIO(), [Member("a", (500,), np.dtype(np.uint8), pieces)])


@pytest.mark.usefixtures("tiny_network", "no_reports")
def test_a_training_takes_the_file(run: Run, draw: Draw, tmp_path: Path):
    for number in range(30):
        shade = 60 if number % 2 else 190
        draw(f"cells/{'dark' if number % 2 else 'light'}/{number}.png", Image.new("RGB", (12, 12), (shade, number, 9)))
    assert run("cells", "cells.npz", "--size", "12")[0] == 0
    argv = ("--dataset", "cells.npz", "--weights", "none", "--epochs", "1", "--batch_size", "7", "--device", "cpu")
    assert main.main([*argv, "--lock_file", str(tmp_path / "lock"), "--no_process_guard"]) == 0

    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.endswith("_cells_resnet18")
    card = json.loads((folder / "models" / "best_model.json").read_text())
    assert card["class_names"] == ["dark", "light"]
    assert card["preparation"] == Recipe(size=12).as_dict()


def test_the_page_on_own_images_knows_every_flag_and_no_other():
    page = (PROJECT_ROOT / "docs" / "own_images.md").read_text(encoding="utf-8")
    flags = {option for action in make_dataset.build_parser()._actions for option in action.option_strings}
    named = set(re.findall(r"--[a-z_]+", page))

    assert named == flags - {"-h", "--help"} | {"--dataset"}
