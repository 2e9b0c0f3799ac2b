"""Which files are listed, in which order, and which are skipped or refused."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.core.errors import DataError
from tests.tools.conftest import Draw
from tools.dataset_builder.listing import Entry, Listing, list_csv, list_folder
from tools.dataset_builder.messages import count_are, count_of, join_some, printable


def names(listing: Listing) -> list[str]:
    return [entry.name for entry in listing.entries]


def touch(folder: Path, *paths: str) -> Path:
    """Empty files: a listing opens none."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def test_folders_are_classes_and_files_may_lie_at_any_depth(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/deep/er/1.tiff", "a/z.png", "a/10.webp")
    found = list_folder(tmp_path)

    assert found.class_names == ("a", "b")
    assert names(found) == ["a/10.webp", "a/z.png", "b/2.JPG", "b/deep/er/1.tiff"]
    assert [entry.label for entry in found.entries] == ["a", "a", "b", "b"]
    assert {entry.group for entry in found.entries} == {""}
    assert not found.is_split
    assert found.warnings == (
        "1 image in subfolders of the classes: if these are patients or slides, use --group_by_folder, so that "
        "none is divided over the splits",
    )


def test_the_order_is_that_of_the_names_whatever_the_file_systems_is(tmp_path, monkeypatch):
    touch(tmp_path, "a/b/1.png", "a/b.png", "b/1.png", ".x/1", ".y/1")
    listed = os.scandir

    @contextmanager
    def backwards(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with listed(path) as items:
            yield sorted(items, key=lambda item: item.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)
    found = list_folder(tmp_path)
    assert names(found) == ["a/b.png", "a/b/1.png", "b/1.png"]
    assert found.notes == ("skipped hidden files and folders: .x, .y",)


def test_the_folder_below_a_class_is_a_group_on_request(tmp_path):
    touch(tmp_path, "a/p1/1.png", "a/p1/eye/2.png", "b/p1/3.png", "b/4.png")
    found = list_folder(tmp_path, group_by_folder=True)

    assert [(entry.name, entry.group) for entry in found.entries] == [
        ("a/p1/1.png", "p1"),
        ("a/p1/eye/2.png", "p1"),
        ("b/4.png", ""),
        ("b/p1/3.png", "p1"),
    ]
    assert found.warnings == ()


def test_what_is_not_an_image_of_a_class_is_skipped_and_named(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png", "a/.hidden.png", ".cache/2.png", "a/notes.txt", "a/scan.dcm", "Thumbs.db")
    touch(tmp_path, "stray.png", "empty/readme")
    found = list_folder(tmp_path)

    assert names(found) == ["a/1.png", "b/1.png"]
    assert found.notes == (
        "skipped hidden files and folders: .cache, a/.hidden.png",
        "skipped files without the suffix of an image: .db × 1, .dcm × 1, .txt × 1, no suffix × 1",
    )
    assert found.warnings == (
        "skipped images outside the classes' folders: stray.png",
        "folders without an image are not classes: empty",
    )


def test_links_are_followed_unless_they_lead_back(tmp_path):
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    touch(folder, "a/1.png")
    touch(elsewhere, "2.png")
    (folder / "b").symlink_to(elsewhere)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "self").symlink_to("self")
    (folder / "a" / "gone.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    found = list_folder(folder)

    assert names(found) == ["a/1.png", "a/gone.png", "b/2.png"]
    assert found.warnings == (
        "skipped links that lead back to a folder that contains them: a/up",
        "skipped images outside the classes' folders: loop.png",
    )


def test_a_name_is_the_same_however_its_accents_are_stored(tmp_path):
    composed, decomposed = unicodedata.normalize("NFC", "Ödem"), unicodedata.normalize("NFD", "Ödem")
    touch(tmp_path / "linux", f"{composed}/1.png", "normal/1.png")
    touch(tmp_path / "mac", f"{decomposed}/1.png", "normal/1.png")

    assert list_folder(tmp_path / "linux").class_names == list_folder(tmp_path / "mac").class_names
    touch(tmp_path / "mac", f"{composed}/1.png")
    with pytest.raises(DataError, match="class names must differ, but these are there twice: Ödem"):
        list_folder(tmp_path / "mac")


def test_a_name_that_is_no_text_is_shown_without_harm(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    touch(tmp_path, os.fsdecode(b"a/\xff\n.png"))
    (entry,) = [entry for entry in list_folder(tmp_path).entries if entry.name not in ("a/1.png", "b/1.png")]
    assert printable(entry.name) == "a/\\udcff\\n.png"

    touch(tmp_path, os.fsdecode(b"\xff/1.png"))
    with pytest.raises(DataError, match="class names must be printable"):
        list_folder(tmp_path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "it needs images of 2 to 1000 classes, found: none"),
        (("1.png",), "it needs images of 2 to 1000 classes, found: none"),
        (("a/1.png",), "it needs images of 2 to 1000 classes, found: a"),
        (
            ("train/a/1.png", "val/a/1.png", "test/a/1.png"),
            "its folders test, train, val look like splits, not classes; use a folder per class, or a CSV with "
            "the columns path,label,split",
        ),
        ((f"{'x' * 201}/1.png", "b/1.png"), "class names must be printable and have at most 200 characters"),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path, paths, message):
    touch(tmp_path, *paths)
    with pytest.raises(DataError) as caught:
        list_folder(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_too_many_classes_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("path,label\n" + "".join(f"{n}.png,c{n}\n" for n in range(1001)))
    with pytest.raises(DataError, match=r"it needs images of 2 to 1000 classes, found: 1,001\."):
        list_csv(path)


def test_folders_named_by_numbers_are_in_the_order_of_these(tmp_path):
    touch(tmp_path, "10/1.png", "2/1.png", "0/1.png")
    assert list_folder(tmp_path).class_names == ("0", "2", "10")


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "set.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_gives_path_label_split_and_group_in_any_order_of_columns(tmp_path):
    path = write_csv(tmp_path, 'Group,label,age,path,split\np1,old,71,"a, b.png",train\n,young,,/c.png, TEST \n\n')
    found = list_csv(path)

    assert found.entries == (
        Entry("a, b.png", tmp_path / "a, b.png", "old", "p1", "train"),
        Entry("/c.png", Path("/c.png"), "young", "", "test"),
    )
    assert found.is_split
    assert found.notes == ("ignored columns of set.csv: age",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_spreadsheets_write_csv_in_their_own_ways(tmp_path, encoding, delimiter, line_end):
    rows = (("path", "label"), ("1.png", "é"), ("2.png", "b"))
    text = line_end.join(delimiter.join(row) for row in rows)
    found = list_csv(write_csv(tmp_path, text, encoding))

    assert found.class_names == ("b", "é")
    assert names(found) == ["1.png", "2.png"]


def test_rows_without_splits_are_taken_in_the_order_of_their_names_and_others_in_their_own(tmp_path):
    assert names(list_csv(write_csv(tmp_path, "path,label\nb,1\na,0\n"))) == ["a", "b"]
    assert names(list_csv(write_csv(tmp_path, "path,label,split\nb,1,val\na,0,val\n"))) == ["b", "a"]


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        ([str(number) for number in range(11)], tuple(str(number) for number in range(11))),
        (["10", "9", "b"], ("10", "9", "b")),
        (["-1", "0"], ("-1", "0")),
    ],
)
def test_whole_numbers_keep_their_order_and_other_names_the_alphabets(tmp_path, labels, class_names):
    text = "path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    assert list_csv(write_csv(tmp_path, text)).class_names == class_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line is '', not path,label[,split][,group]"),
        ("file,class\na,b\n", "its first line is 'file,class', not path,label[,split][,group]"),
        ("path,label,label\na,b,c\n", "it has the column label more than once"),
        ("path,label\n", "it needs images of 2 to 1000 classes, found: none"),
        ("path,label\na,x\na,y\n,x\nb,\n", "row 3 names a again; row 4 has no path; row 5 has no label"),
        (
            "path,label\na,b,x.png\n",
            "it is not a valid CSV: Expected 2 fields in line 2, saw 3 (write a path with a comma in quotes)",
        ),
        ("path,label,split\na,x,trian\nb,y,val\n", "row 2 has the split 'trian'; allowed are train, val, test"),
        ("path,label,split\na,x,train\nb,y,\n", "1 of 2 rows have no split; give one in all rows or in none"),
        (
            'path,label\n"a"b,x\n',
            "it is not a valid CSV: ',' expected after '\"' (write a path with a comma in quotes)",
        ),
        ("path,label\na\0b,x\nb,x\n", "row 2 has no path"),
        ('path,label\n"a,x\n', "it is not a valid CSV: unexpected end of data (write a path with a comma in quotes)"),
    ],
)
def test_a_csv_that_makes_no_sense_is_refused(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        list_csv(write_csv(tmp_path, text))
    assert str(caught.value) == f"Cannot use {tmp_path / 'set.csv'}: {message}."


def test_no_text_of_a_cell_is_taken_for_a_missing_value_or_a_number(tmp_path):
    found = list_csv(write_csv(tmp_path, "path,label,group,Age,AGE\nnan,NA,007,1,\n\n1.0,null,1e5\nNone,-,NaN,,\n"))

    assert [(entry.name, entry.label, entry.group) for entry in found.entries] == [
        ("1.0", "null", "1e5"),  # a short row
        ("None", "-", "NaN"),
        ("nan", "NA", "007"),
    ]
    assert found.notes == ("ignored columns of set.csv: Age, AGE",)


def test_rows_are_numbered_as_in_a_spreadsheet(tmp_path):
    with pytest.raises(DataError, match=r"row 4 has no label; row 5 names a again\."):
        list_csv(write_csv(tmp_path, "path,label\na,x\n,\nb, \na,y\n"))


def test_another_encoding_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"byte 14 is not UTF-8; save it as CSV in UTF-8\."):
        list_csv(write_csv(tmp_path, "path,label\na,bé\n", "latin-1"))


def test_a_csv_that_cannot_be_read_or_is_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"Cannot read .*none\.csv: No such file or directory\."):
        list_csv(tmp_path / "none.csv")
    monkeypatch.setattr("tools.dataset_builder.listing.MAX_LISTING_BYTES", 20)
    assert len(list_csv(write_csv(tmp_path, "path,label\na,x\nb,y\n")).entries) == 2
    with pytest.raises(DataError, match="it has more than 20 bytes, which no list of images needs"):
        list_csv(write_csv(tmp_path, "path,label\na,x\nb,y\nc,y\n"))


def test_of_many_problems_ten_are_named_and_the_rest_counted(tmp_path):
    text = "path,label\n" + "".join(f"{number}.png,\n" for number in range(13))
    with pytest.raises(DataError) as caught:
        list_csv(write_csv(tmp_path, text))
    assert "row 11 has no label; and 3 more." in str(caught.value)
    assert "row 12" not in str(caught.value)
    assert join_some(["a", "b"]) == "a, b"


def test_one_is_singular():
    assert (count_of(1, "image"), count_of(2000, "image"), count_are(1, "group")) == (
        "1 image",
        "2,000 images",
        "1 group is",
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path, draw: Draw, monkeypatch):
    draw("a/1.png")
    draw("b/1.png")

    def scandir(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=rf"Cannot read the folder {tmp_path}: Permission denied\."):
        list_folder(tmp_path)
