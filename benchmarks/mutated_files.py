"""Mutated ``.npz`` files: every one opens as a valid data set or is refused as data, in bounded time and memory."""

from __future__ import annotations

import io
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import DataError
from scripts.data_handler.opening import open_dataset

ADDRESS_SPACE_BYTES = 1 << 30  # beyond what the worker has at its start
BOMB_BYTES = 3 << 29  # what an honest bomb unpacks to: more than the worker may have


def prepare(folder: Path) -> None:
    """Make and import whatever is needed once, then limit the memory."""
    _honest_bomb()
    check_file(random.Random(0), folder)  # noqa: S311 (no secret)
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check_file(chance: random.Random, folder: Path) -> str:
    """Open a mutated file and read all of it."""
    path = folder / "mutated.npz"
    path.write_bytes(
        chance.choice([_change_bytes, _change_header, _change_directory, _change_sizes, _make_bomb])(chance)
    )
    try:
        dataset = open_dataset(str(path), folder)
        splits = {name: dataset.load(name) for name in ("train", "val", "test")}
    except DataError as error:
        if str(path) not in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:300]}") from error
        return "refused"
    for name, split in splits.items():
        shape = (dataset.num_samples[name], dataset.height, dataset.width, *((3,) if dataset.channels == 3 else ()))
        if split.images.shape != shape or split.images.dtype != np.uint8 or split.labels.shape != shape[:1]:
            raise AssertionError(f"{name} has images {split.images.shape} and labels {split.labels.shape}")
        if not (0 <= split.labels.min() <= split.labels.max() < len(dataset.class_names)):
            raise AssertionError(f"{name} has labels out of range")
    return "valid"


def _arrays(chance: random.Random) -> dict[str, Any]:
    """A small valid data set: grey or RGB, with class names or without."""
    shape, num_classes = ((5, 6, 3), (5, 6))[chance.randrange(2)], chance.choice([2, 3])
    arrays: dict[str, Any] = {}
    for split, count in {"train": 6, "val": 3, "test": 4}.items():
        arrays[f"{split}_images"] = np.arange(count * np.prod(shape), dtype=np.uint8).reshape(count, *shape)
        arrays[f"{split}_labels"] = (np.arange(count) % num_classes).astype(np.uint8)[:, None]
    if chance.random() < 0.5:
        arrays["class_names"] = np.array([f"kind {number}" for number in range(num_classes)])
    return arrays


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _members(chance: random.Random) -> dict[str, bytes]:
    return {f"{key}.npy": _npy(array) for key, array in _arrays(chance).items()}


def _zip(members: dict[str, bytes], chance: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _edit(content: bytes, chance: random.Random) -> bytes:
    """Flip, set, remove, insert, copy or cut off a few bytes."""
    edited = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        if not edited:
            break
        at = chance.randrange(len(edited))
        kind = chance.randrange(6)
        if kind == 0:
            edited[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            edited[at] = chance.choice(b"0123456789()[]{}<|,'LOU\x00\xff")
        elif kind == 2:
            del edited[at : at + chance.choice([1, 3, 50, 1000])]
        elif kind == 3:
            edited[at:at] = chance.choice([chance.randbytes(3), b"9" * 50, b"(" * 150, b"-" * 2000, b"O", bytes(70)])
        elif kind == 4:
            edited[at : at + 30] = edited[chance.randrange(len(edited)) :][:30]
        elif chance.random() < 0.3:
            del edited[at:]
    return bytes(edited)


def _change_bytes(chance: random.Random) -> bytes:
    """Change bytes anywhere in the file."""
    return _edit(_zip(_members(chance), chance), chance)


def _change_header(chance: random.Random) -> bytes:
    """Change an array's header; the zip's checksums are those of the changed header."""
    members = _members(chance)
    name = chance.choice(list(members))
    content = members[name]
    length = 10 + int.from_bytes(content[8:10], "little")
    header = content[:length]
    if chance.random() < 0.5:
        old, new = chance.choice(_HEADER_CHANGES)
        changed = header[10:].replace(old, new)
        header = header[:8] + struct.pack("<H", len(changed)) + changed
    else:
        header = _edit(header, chance)
    members[name] = header + content[length:]
    return _zip(members, chance)


_HEADER_CHANGES = (
    (b"|u1", b"|O"),
    (b"|u1", b"|O8"),
    (b"|u1", b"<U99999999"),
    (b"|u1", b"|V0"),
    (b"|u1", b"<f8"),
    (b"|u1", b"|b1"),
    (b"|u1", b"<m8[ns]"),
    (b"'|u1'", b"[('a', '|u1')]"),
    (b"'|u1'", b"('|u1', (2, 3))"),
    (b"'|u1'", b"None"),
    (b"False", b"True"),
    (b"False", b"'no'"),
    (b"(", b"(99999999999999999999, "),
    (b"(", b"(-1, "),
    (b"(", b"(True, "),
    (b"(", b"(1.5, "),
    (b"(", b"(" * 90),
    (b"(", b"(0, "),
    (b")", b", 2, 2, 2, 2)"),
    (b"'shape'", b"'shape': (1, 1), 'shape'"),
    (b"'shape'", b"'form'"),
    (b"{", b"{'more': 1, "),
    (b"{", b"__import__('os').getpid() or {"),
    (b"\n", b" " * 5000 + b"\n"),
    (b"{", b"{" * 500),
)


def _change_directory(chance: random.Random) -> bytes:
    """Change fields of the zip directory, of its end record or of a local header."""
    content = bytearray(_zip(_members(chance), chance))
    start, end = content.rindex(b"PK\x05\x06"), len(content)
    entries = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"]
    locals_ = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x03\x04"]
    for _ in range(chance.choice([1, 1, 2, 3])):
        base, fields = chance.choice(
            [
                (
                    chance.choice(entries),
                    ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)),
                ),
                (chance.choice(locals_), ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
                (start, ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
            ]
        )
        at, width = chance.choice(fields)
        value = chance.choice(
            [0, 1, 2, 8, 12, 14, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, chance.randrange(end), chance.getrandbits(8 * width)]
        )
        content[base + at : base + at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(content)


def _change_sizes(chance: random.Random) -> bytes:
    """Change arrays so that they disagree, are of another kind or are missing; add members with odd names."""
    arrays = _arrays(chance)
    for _ in range(chance.choice([1, 1, 2])):
        key = chance.choice([key for key, array in arrays.items() if array is not None])
        arrays[key] = chance.choice(_ARRAY_CHANGES)(arrays[key])
    members = {f"{key}.npy": _npy(array) for key, array in arrays.items() if array is not None}
    if chance.random() < 0.1 and members:
        name = chance.choice(list(members))
        members[chance.choice([name.removesuffix(".npy"), name.upper(), f"./{name}", f"../{name}", "x" * 60000])] = b""
    return _zip(members, chance)


_ARRAY_CHANGES: tuple[Callable[[Any], Any], ...] = (
    lambda _: None,
    lambda array: array[:0],
    lambda array: array[:1],
    lambda array: array[..., :1],
    lambda array: array[None],
    lambda array: array.ravel(),
    lambda array: np.concatenate([array, array]),
    lambda array: np.asfortranarray(array),
    lambda array: array.astype("U3"),
    lambda array: np.array(array.tolist(), dtype=object).astype("S3"),
    lambda array: np.zeros(array.shape, np.float64) * np.nan,
    lambda array: np.zeros(array.shape, np.int64) - 1,
    lambda array: np.full(array.shape, 2**63 - 1, np.int64),
    lambda array: np.full(array.shape, 2**64 - 1, np.uint64),
    lambda array: np.zeros(array.shape, ">i2"),
    lambda array: np.zeros(array.shape, bool),
    lambda array: np.zeros(array.shape, "datetime64[s]"),
    lambda array: np.zeros(array.shape, [("a", "u1"), ("b", "u1")]),
    lambda _: np.zeros((), np.uint8),
    lambda _: np.full(3, "\x00"),
    lambda _: np.array(["same", "same"]),
    lambda _: np.array(["a\nb", "=1+1", ""]),
    lambda _: np.zeros((0, 0, 0, 3), np.uint8),
    lambda _: np.zeros((1200, 1), np.uint16) + np.arange(1200, dtype=np.uint16)[:, None],
)


def _make_bomb(chance: random.Random) -> bytes:
    """Make a small file that claims much: falsely, by sharing bytes, or truly."""
    members = _members(chance)
    kind = chance.random()
    if kind < 0.01:
        return _honest_bomb()
    if kind < 0.05:  # very many arrays
        return _zip(members | {f"{number}.npy": b"" for number in range(chance.choice([1000, 20000]))}, chance)
    if kind < 0.10:  # 30 MB of zeros, correctly declared
        members["train_images.npy"] = _npy(np.zeros((30_000_000 // 90, 5, 6, 3), np.uint8))
        members["train_labels.npy"] = _npy(np.zeros((30_000_000 // 90, 1), np.uint8))
        return _zip(members, chance)
    if kind < 0.55:  # a header that claims more than there is
        name = chance.choice(list(members))
        many = chance.choice([10**3, 10**6, 10**9, 10**12, 10**15, 2**31, 2**32 + 4, 2**63])
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({many}, 5, 6, 3), }}\n".encode()
        members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(chance.choice([0, 90, 9000]))
        return _zip(members, chance)
    content = bytearray(_zip(members, chance))
    entries = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"]
    if kind < 0.8:  # a directory that claims more than there is
        at = chance.choice(entries)
        size = chance.choice([10**6, 10**9, 2**32 - 2, 2**32 - 1])
        content[at + 24 : at + 28] = size.to_bytes(4, "little")
        content[at + 20 : at + 24] = chance.choice([content[at + 20 : at + 24], size.to_bytes(4, "little")])
        return bytes(content)
    for at in entries:  # all arrays share the bytes of one
        content[at + 42 : at + 46] = content[entries[0] + 42 : entries[0] + 46]
    return bytes(content)


@cache
def _honest_bomb() -> bytes:
    """A valid file that is small, and whose images need more memory than the worker may have."""
    members = _members(random.Random(1))  # noqa: S311 (no secret)
    count = BOMB_BYTES // 90
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 5, 6, 3), }}\n".encode()
    members["train_labels.npy"] = _npy(np.zeros((count, 1), np.uint8))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            if name != "train_images.npy":
                archive.writestr(name, content)
        with archive.open("train_images.npy", "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
            left = count * 90
            while left:
                left -= member.write(bytes(min(left, 1 << 24)))
    return stream.getvalue()
