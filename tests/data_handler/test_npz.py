import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import DataError
from scripts.data_handler.npz import (
    KEYS,
    read_array,
    read_class_names,
    read_labels,
    read_pieces,
    read_preparation,
    validate_npz_keys,
    verify_checksums,
)
from scripts.data_handler.opening import open_dataset

NUM_SAMPLES = {"train": 4, "val": 3, "test": 2}


def toy_arrays(channels: int = 3, **changed: Any) -> dict[str, Any]:
    """Two classes, images of 5 x 6 pixels; an array changed to None is left out."""
    arrays: dict[str, Any] = {}
    for split, count in NUM_SAMPLES.items():
        shape = (count, 5, 6, 3) if channels == 3 else (count, 5, 6)
        arrays[f"{split}_images"] = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    return {key: array for key, array in {**arrays, **changed}.items() if array is not None}


def npy_bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(shape: str, dtype: str = "|u1") -> bytes:
    """The beginning of an array file that claims this shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def save_members(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return path


def save_with(path: Path, **replaced: bytes) -> Path:
    """A valid file but for the members given as bytes."""
    return save_members(path, {**{key: npy_bytes(array) for key, array in toy_arrays().items()}, **replaced})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy.npz"


def refusal(path: Path, read: Callable[[Path], object] = validate_npz_keys) -> str:
    """What a DataError says after the file's name."""
    with pytest.raises(DataError) as caught:
        read(path)
    beginning = f"Cannot use {path}: "
    assert str(caught.value).startswith(beginning)
    return str(caught.value).removeprefix(beginning)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_valid_file_is_described_from_its_headers(path, save, channels):
    save(path, **toy_arrays(channels))
    layout = validate_npz_keys(path)

    assert (layout.height, layout.width, layout.channels, layout.label_columns) == (5, 6, channels, 1)
    assert layout.num_samples == NUM_SAMPLES
    assert tuple(layout.headers) == KEYS
    assert layout.headers["val_labels"].shape == (3, 1)
    assert layout.headers["val_labels"].dtype == np.uint8
    verify_checksums(layout)
    for key, array in toy_arrays(channels).items():
        np.testing.assert_array_equal(read_array(layout, key), array)


def test_further_arrays_are_ignored(path):
    np.savez(path, **toy_arrays(notes=np.array(["from", "me"]), pickled=np.array([{}], dtype=object)))
    assert tuple(validate_npz_keys(path).headers) == KEYS


def test_column_order_big_endian_and_old_headers_are_read_like_any_other(path):
    labels = np.array([[0], [1], [2], [3]], dtype=">i4")
    images = np.asfortranarray(toy_arrays()["val_images"])
    old = npy_header("(2L, 1L)", "<i8") + np.array([0, 1], dtype="<i8").tobytes()  # as Python 2 wrote it
    save_with(path, train_labels=npy_bytes(labels), val_images=npy_bytes(images), test_labels=old)
    layout = validate_npz_keys(path)

    assert read_labels(layout, "train").tolist() == [0, 1, 2, 3]
    assert read_labels(layout, "train").dtype == np.int64
    assert read_labels(layout, "test").tolist() == [0, 1]
    np.testing.assert_array_equal(read_array(layout, "val_images"), images)
    assert read_array(layout, "val_images").flags.c_contiguous


OTHER_SIZE = np.zeros((3, 5, 7, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"val_labels": None},
            f"it has no array val_labels; expected {', '.join(KEYS)}, "
            "found train_images, train_labels, val_images, test_images, test_labels.",
        ),
        (
            dict.fromkeys(KEYS) | {"x": np.zeros(2), "y y\n": np.zeros(2)},
            f"it has no array {', '.join(KEYS)}; expected {', '.join(KEYS)}, found x, 'y y\\n'.",
        ),
        (
            {"train_images": np.zeros((4, 5, 6, 3), np.float32)},
            "train_images has dtype float32; expected uint8 (0 to 255).",
        ),
        (
            {"train_images": np.zeros((4, 5, 6, 3), np.uint16)},
            "train_images has dtype uint16; expected uint8 (0 to 255).",
        ),
        (
            {"test_images": np.zeros((2, 5, 6, 4), np.uint8)},
            "test_images has shape (2, 5, 6, 4); expected (N, H, W) for grey images or (N, H, W, 3) for RGB.",
        ),
        (
            {"train_images": np.zeros((4, 90), np.uint8)},
            "train_images has shape (4, 90); expected (N, H, W) for grey images or (N, H, W, 3) for RGB.",
        ),
        (
            {"val_images": OTHER_SIZE},
            "val_images has images of shape (5, 7, 3), train_images (5, 6, 3); expected the same in all.",
        ),
        (
            {"test_images": np.zeros((2, 5, 6), np.uint8)},
            "test_images has images of shape (5, 6), train_images (5, 6, 3); expected the same in all.",
        ),
        (
            {"val_images": np.zeros((0, 5, 6, 3), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)},
            "val_images has shape (0, 5, 6, 3); expected at least one image of at least one pixel.",
        ),
        (
            {"train_images": np.zeros((4, 5, 0, 3), np.uint8)},
            "train_images has shape (4, 5, 0, 3); expected at least one image of at least one pixel.",
        ),
        (
            {"test_labels": np.zeros((3, 1), np.uint8)},
            "test_labels has 3 rows, test_images 2 images; expected a row for each.",
        ),
        ({"train_labels": np.zeros((4, 1))}, "train_labels has dtype float64; expected integers."),
        ({"train_labels": np.zeros((4, 1), bool)}, "train_labels has dtype bool; expected integers."),
        ({"val_labels": np.zeros(3, np.uint8)}, "val_labels has shape (3,); expected (N, L), such as (100, 1)."),
        (
            {"val_labels": np.zeros((3, 0), np.uint8)},
            "val_labels has shape (3, 0); expected (N, L), such as (100, 1).",
        ),
        (
            {"val_labels": np.zeros((3, 2), np.uint8)},
            "val_labels has 2 columns, train_labels 1; expected the same in all.",
        ),
        (
            {"train_labels": np.array([[0], [1], [0], [None]], dtype=object)},
            "train_labels has dtype object; expected integers.",
        ),
        (
            {"class_names": np.array([b"a", b"b"])},
            "class_names is shape (2,), dtype |S1; expected a vector of text, such as shape (8,), dtype <U20.",
        ),
        (
            {"class_names": np.array([["a", "b"]])},
            "class_names is shape (1, 2), dtype <U1; expected a vector of text, such as shape (8,), dtype <U20.",
        ),
        ({"class_names": np.array(["a"])}, "class_names has 1 names; expected 2 to 1000."),
        ({"class_names": np.array(["a"] * 1001)}, "class_names has 1,001 names; expected 2 to 1000."),
        (
            {"class_names": np.array(["a", "b" * 201])},
            "class_names has dtype <U201; expected at most 200 characters each.",
        ),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_in_one_sentence(path, changed, expected):
    np.savez(path, **toy_arrays(**changed))
    assert refusal(path) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", ""], "class_names[1] is ''; expected a printable name."),
        (["\x1b[2J", "b"], "class_names[0] is '\\x1b[2J'; expected a printable name."),
        (["a", "b", "a"], "class_names has 'a' twice; expected different names."),
    ],
)
def test_class_names_that_a_report_cannot_show_are_refused(path, names, expected):
    np.savez(path, **toy_arrays(class_names=np.array(names)))
    assert refusal(path, lambda path: read_class_names(validate_npz_keys(path))) == expected


def test_long_names_in_any_byte_order_are_read(path):
    names = np.array(["ä" * 200, "b"])
    for kind in ("<U200", ">U200"):
        np.savez(path, **toy_arrays(class_names=names.astype(kind)))
        assert read_class_names(validate_npz_keys(path)) == ("ä" * 200, "b")


@pytest.mark.parametrize("code", [0xFFFFFFFF, 0x110000, 0x7FFFFFFF])
def test_class_names_with_invalid_characters_are_damage(path, code):
    save_with(path, class_names=npy_header("(2,)", "<U1") + struct.pack("<II", code, ord("b")))
    message = refusal(path, lambda path: read_class_names(validate_npz_keys(path)))
    assert message.startswith("class_names is damaged (")


def test_how_the_images_were_prepared_is_read_as_recorded(path):
    record = {"size": 28, "crop": None, "grey": False, "resize": "é"}
    np.savez(path, **toy_arrays(preparation=np.array(json.dumps(record))))
    assert read_preparation(validate_npz_keys(path)) == record
    np.savez(path, **toy_arrays())
    assert read_preparation(validate_npz_keys(path)) is None


@pytest.mark.parametrize(
    "record",
    [
        np.arange(3),
        np.array(["{}"]),
        np.array(b"{}"),
        np.array({"a": 1}),
        np.array("{" + " " * 2000 + "}"),
        *map(
            np.array, ("", "[]", "[" * 2000, '{"a": 1.5}', '{"a": NaN}', '{"a": [1]}', '{"a": {}}', '{"a": "\\u001b"}')
        ),
        np.array('{"\\ud800": 1}'),
    ],
)
def test_an_unusable_record_of_the_preparation_is_ignored_with_a_warning(path, record, caplog):
    np.savez(path, **toy_arrays(preparation=record))
    assert read_preparation(validate_npz_keys(path)) is None
    (warning,) = caplog.messages
    assert warning.startswith(f"Cannot use {path}: preparation ")
    assert warning.endswith("Its record of how the images were prepared is ignored.")


def test_a_damaged_record_of_the_preparation_is_ignored_with_a_warning(path, caplog):
    for content in (b"", b"\x93NUMPY", npy_header("()", "<U1") + struct.pack("<I", 0xFFFFFFFF)):
        save_with(path, preparation=content)
        assert read_preparation(validate_npz_keys(path)) is None
    assert len(caplog.messages) == 3


@pytest.mark.parametrize(
    ("labels", "num_classes", "expected"),
    [
        (np.array([0, 1, 2, 7, 7], np.uint8), 2, "3 of 5 labels out of range (such as 2, 7)"),
        (np.array([0, -1, 1, 0, 0], np.int8), 1000, "1 of 5 labels out of range (such as -1)"),
        (np.array([0, 1, 0, 0, 2**64 - 1], np.uint64), 1000, f"1 of 5 labels out of range (such as {2**64 - 1})"),
    ],
)
def test_labels_out_of_range_are_counted_and_named(path, labels, num_classes, expected):
    np.savez(path, **toy_arrays(train_images=np.zeros((5, 5, 6, 3), np.uint8), train_labels=labels[:, None]))
    message = refusal(path, lambda path: read_labels(validate_npz_keys(path), "train", num_classes))
    assert message == f"train_labels has {expected}; expected class indices from 0 to {num_classes - 1}."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty; make or fetch it again."),
        (
            b"<!DOCTYPE html><html>",
            "it is not an .npz file (a zip archive): it begins with b'<!DOCTYPE html><'; make or fetch it again.",
        ),
        (npy_bytes(np.zeros(3))[:16], None),
    ],
)
def test_what_is_no_zip_is_called_so(path, content, expected):
    path.write_bytes(content)
    assert refusal(path) == (
        expected or f"it is not an .npz file (a zip archive): it begins with {content!r}; make or fetch it again."
    )


def test_a_truncated_file_is_called_cut_short(path):
    np.savez(path, **toy_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(path) == (
        "it begins like an .npz file, but is cut short or damaged (File is not a zip file); make or fetch it again."
    )


def test_a_missing_file_and_a_folder_are_no_data(tmp_path):
    with pytest.raises(DataError) as caught:
        validate_npz_keys(tmp_path / "nothing.npz")
    assert str(caught.value) == f"Cannot read {tmp_path / 'nothing.npz'}: No such file or directory."
    assert refusal(tmp_path) == "it is not a regular file."


def test_a_huge_claim_is_refused_without_allocating_it(path):
    save_with(path, train_images=npy_header("(1000000000000, 5, 6, 3)"))
    assert refusal(path) == (
        "train_images would be 90,000,000,000,088 bytes by its header (shape (1000000000000, 5, 6, 3), dtype uint8), "
        "but the file holds 88 bytes of it; make or fetch it again."
    )


def test_a_truth_value_in_a_shape_is_the_number_it_stands_for(path):
    save_with(path, test_labels=npy_header("(2, True)") + bytes(2))
    assert str(validate_npz_keys(path).headers["test_labels"].shape) == "(2, 1)"


def test_more_content_than_claimed_is_refused_too(path):
    save_with(path, train_labels=npy_header("(4, 1)") + bytes(5))
    assert refusal(path) == (
        "train_labels would be 74 bytes by its header (shape (4, 1), dtype uint8), "
        "but the file holds 75 bytes of it; make or fetch it again."
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (f"({'9' * 3000},)", f"shape ({'9' * 93}; expected (N, H, W) for grey images or (N, H, W, 3) for RGB."),
        ("(1, 1, 1, 1, 90)", "shape (1, 1, 1, 1, 90); expected (N, H, W) for grey images or (N, H, W, 3) for RGB."),
        ("(-4, 5, 6, 3)", "shape (-4, 5, 6, 3); expected at least one image of at least one pixel."),
    ],
)
def test_an_impossible_shape_is_refused(path, shape, expected):
    save_with(path, train_images=npy_header(shape))
    assert refusal(path) == f"train_images has {expected}"


def test_a_directory_that_lies_about_sizes_is_refused_without_allocating_them(path):
    """Header and directory agree on 3.6 GB, which no 83 bytes can unpack to."""
    header = npy_header("(40000000, 5, 6, 3)")
    save_with(path, train_images=header)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24  # the unpacked size of the first member
    assert struct.unpack_from("<I", content, at) == (len(header),)
    struct.pack_into("<I", content, at, len(header) + 3_600_000_000)
    path.write_bytes(content)
    assert len(header) == 83
    assert refusal(path) == "train_images cannot unpack to 3,600,000,083 bytes from 83; make or fetch it again."


def test_a_member_that_reaches_behind_the_end_of_the_file_is_refused(path):
    save_with(path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 20  # sizes of the last member, test_labels
    content[at : at + 8] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    assert refusal(path) == "test_labels is damaged (EOFError); make or fetch the file again."


def test_members_that_share_bytes_are_refused(path):
    save_with(path)
    content = bytearray(path.read_bytes())
    last = content.rindex(b"PK\x01\x02")
    second_last = content.rindex(b"PK\x01\x02", 0, last)
    # both entries point at the same local header
    content[last + 42 : last + 46] = content[second_last + 42 : second_last + 46]
    path.write_bytes(content)
    assert refusal(path) == (
        "test_labels is damaged (File name in directory 'test_labels.npy' and header b'test_images.npy' differ.); "
        "make or fetch the file again."
    )


def test_content_that_ends_early_is_damage_even_with_a_checksum_of_its_own(path):
    """The directory promises 8 labels more than the deflated data hold; the checksum is that of the shorter data."""
    content = npy_header("(12, 1)") + bytes(4)
    images = npy_bytes(np.zeros((12, 5, 6, 3), np.uint8))
    save_with(path, train_images=images)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): archive.read(info) for info in archive.infolist()}
    save_members(path, {**members, "train_labels": content}, zipfile.ZIP_DEFLATED)
    archive_bytes = bytearray(path.read_bytes())
    at = archive_bytes.rindex(b"PK\x01\x02", 0, archive_bytes.rindex(b"train_labels.npy")) + 24
    assert struct.unpack_from("<I", archive_bytes, at) == (len(content),)
    struct.pack_into("<I", archive_bytes, at, len(content) + 8)
    path.write_bytes(archive_bytes)

    layout = validate_npz_keys(path)
    for read in (verify_checksums, lambda layout: read_array(layout, "train_labels")):
        with pytest.raises(DataError, match=r"train_labels is damaged \(8 bytes are missing\)"):
            read(layout)


def test_two_arrays_of_one_name_are_refused(path):
    save_with(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("val_labels.npy", npy_bytes(np.zeros((3, 1), np.uint8)))
    assert refusal(path) == "it has 2 arrays val_labels.npy; expected one."


def test_encrypted_and_unusually_packed_members_are_refused(path):
    save_with(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, of the first member
    path.write_bytes(content)
    assert refusal(path) == (
        "train_images is damaged (File 'train_images.npy' is encrypted, password required for extraction); "
        "make or fetch the file again."
    )

    save_members(path, {key: npy_bytes(array) for key, array in toy_arrays().items()}, zipfile.ZIP_BZIP2)
    assert refusal(path) == "train_images is packed by method 12; expected stored (0) or deflated (8)."


def test_a_directory_too_large_to_be_honest_is_not_read(path):
    save_with(path)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    padding = bytes(1 << 25)
    content[end:end] = padding
    end += len(padding)
    size, offset = struct.unpack_from("<II", content, end + 12)
    struct.pack_into("<II", content, end + 12, size + len(padding), offset)
    path.write_bytes(content)
    assert "cut short or damaged (its directory has 33,5" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        b"\x93NUMPX\x01\x00",
        b"\x93NUMPY\x03\x00" + bytes(100),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
        npy_header("(4, 5, 6, 3"),
        npy_header("(" * 900),
        npy_header("-" * 3900 + "1"),
        npy_header("('4', 5, 6, 3)"),
        npy_header("(1,)", "|V99999999999"),
        npy_header("__import__('os')"),
        npy_header("{[]: 1}"),
        b"",
    ],
)
def test_a_malformed_header_is_damage_not_a_crash(path, header):
    save_with(path, val_images=header)
    message = refusal(path)
    # an older NumPy takes some of them for headers, of arrays that the file cannot hold
    assert message.startswith(("val_images is damaged (", "val_images would be "))
    assert message.endswith(("); make or fetch the file again.", " bytes of it; make or fetch it again."))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", KEYS)
def test_a_flipped_byte_behind_a_header_is_found_by_every_way_of_reading(path, save, key):
    # labels longer than what is read with a header, images longer than what is read at once
    save(path, **{key: np.ones((9000, 11, 11) if key.endswith("images") else (9000, 1), np.uint8) for key in KEYS})
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{key}.npy")
    content = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack_from("<HH", content, info.header_offset + 26)
    end = info.header_offset + 30 + name_length + extra_length + info.compress_size
    content[end - 10] ^= 0xFF
    path.write_bytes(content)

    layout = validate_npz_keys(path)  # the headers are intact
    for read in (
        lambda _: verify_checksums(layout),
        lambda _: read_array(layout, key),
        lambda _: list(read_pieces(layout, key)),
    ):
        assert re.fullmatch(rf"{key} is damaged \(.+\); make or fetch the file again\.", refusal(path, read))


@pytest.mark.parametrize("read", [read_array, lambda layout, key: list(read_pieces(layout, key))])
def test_a_file_that_changed_shape_since_it_was_checked_is_refused(path, read):
    np.savez(path, **toy_arrays())
    layout = validate_npz_keys(path)
    np.savez(path, **toy_arrays(val_images=OTHER_SIZE))
    assert refusal(path, lambda _: read(layout, "val_images")) == (
        "val_images has changed from shape (3, 5, 6, 3), dtype uint8 to shape (3, 5, 7, 3), dtype uint8 "
        "in the meantime."
    )
    np.savez(path, **toy_arrays(val_images=None))
    assert refusal(path, lambda _: read(layout, "val_images")) == "it has 0 arrays val_images.npy; expected one."


def test_an_array_beyond_the_memory_is_named_with_its_size(path, monkeypatch):
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    np.savez(path, **toy_arrays())
    layout = validate_npz_keys(path)
    monkeypatch.setattr(np, "empty", no_memory)
    assert refusal(path, lambda _: read_array(layout, "train_images")) == (
        "train_images needs 360 bytes of memory, more than there is."
    )


def mutated(content: bytes, chance: random.Random) -> bytes:
    """``content`` with a few bytes changed, removed or put in; more often near the end, where the directory is."""
    bytes_now = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(bytes_now))
        if chance.random() < 0.5:
            at = max(at, len(bytes_now) - chance.randrange(1, 900))
        kind = chance.randrange(4)
        if kind == 0:
            bytes_now[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            bytes_now[at] = chance.choice(b"0123456789()[]{}<|,'LOU\x00\xff")
        elif kind == 2:
            del bytes_now[at : at + chance.choice([1, 3, 50, 100_000])]
        else:
            bytes_now[at:at] = chance.choice([chance.randbytes(3), b"9" * 50, b"(" * 150, b"-" * 2000, b"O"])
        if not bytes_now:
            return b""
    return bytes(bytes_now)


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_opens_or_is_refused_and_nothing_else(path, seed):
    """Change the bytes of the file or, with valid checksums, those of one array."""
    chance = random.Random(seed)
    members = {key: npy_bytes(array) for key, array in toy_arrays(class_names=np.array(["a", "b"])).items()}
    num_opened, refusals = 0, list[str]()
    for turn in range(150):
        if turn % 2:
            save_members(path, members, chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            path.write_bytes(mutated(path.read_bytes(), chance))
        else:
            key = chance.choice(list(members))
            save_members(path, {**members, key: mutated(members[key], chance)})
        try:
            dataset = open_dataset(str(path), path.parent)
            splits = {split: dataset.load(split) for split in NUM_SAMPLES}
        except DataError as error:
            refusals.append(str(error))
            continue
        num_opened += 1
        assert {split: len(loaded.images) for split, loaded in splits.items()} == dataset.num_samples
    assert num_opened > 0
    assert len(refusals) > 100
    assert all(str(path) in refusal for refusal in refusals)
