"""Which image files there are, and what is said of each: from a folder per class, or from a CSV."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from scripts.core.errors import DataError
from scripts.data_handler.npz import MAX_CLASS_NAME_LENGTH, MAX_CLASSES, SPLITS
from tools.dataset_builder.words import counted, names, shown, some

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2"}
)
# a folder for each of these, and none for a class, is a set that somebody has split already
SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
COLUMNS = ("path", "label", "split", "group")
DELIMITERS = (",", ";", "\t")  # a spreadsheet writes ; where the comma stands in numbers
MAX_LISTING_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file and what is said of it."""

    name: str  # as the user knows the file: below the folder, or as the CSV has it; no two are equal
    path: Path
    label: str  # the class's name
    group: str = ""  # patient or slide; empty where none is known
    split: str = ""  # "train", "val" or "test"; empty where it is still to be drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All image files of a set, in an order that does not depend on the file system."""

    source: Path
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]  # in the order of the label values
    notes: tuple[str, ...] = ()  # what was left out as a matter of course
    warnings: tuple[str, ...] = ()  # what was left out and may be missed

    @property
    def is_split(self) -> bool:
        """Whether the splits are given."""
        return bool(self.entries and self.entries[0].split)


def list_images(source: Path, *, group_by_folder: bool = False) -> Listing:
    """What ``list_folder`` or ``list_csv`` finds, as ``source`` is a folder or a file."""
    return list_folder(source, group_by_folder=group_by_folder) if source.is_dir() else list_csv(source)


@dataclass(slots=True)
class _Omitted:
    """Paths below the folder that are no images of a class."""

    hidden: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    circular: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)  # images that lie in no class's folder
    empty: list[str] = field(default_factory=list)  # folders without an image


def list_folder(folder: Path, *, group_by_folder: bool = False) -> Listing:
    """The images in the sub-folders of ``folder``, whose names are the class names; see ``in_order``.

    Files may lie at any depth. Links are followed, unless they lead back to a folder they lie in. Files and folders
    whose names begin with a dot, and files that end like no image, are left out.

    Args:
        folder: A folder with one sub-folder per class.
        group_by_folder: Whether the folder next below a class's is a group, such as a patient; the same name below
            several classes is one group.

    Raises:
        DataError: A folder cannot be read, or there are no classes in it.
    """
    omitted, entries, subfolders = _Omitted(), [], 0
    class_folders = []
    for item in _visible(folder, omitted, ""):
        if _is_folder(item):
            class_folders.append(item)
        elif _is_image(item.name):
            omitted.outside.append(item.name)
        else:
            omitted.other.append(item.name)
    for class_folder in class_folders:
        label = unicodedata.normalize("NFC", class_folder.name)  # a Mac and a Linux machine then agree
        below = list(_images_below(Path(class_folder.path), class_folder.name, (_identity(folder),), omitted))
        if not below:
            omitted.empty.append(class_folder.name)
        for name, path in below:
            parts = unicodedata.normalize("NFC", name).split("/")
            subfolders += len(parts) > 2
            group = parts[1] if group_by_folder and len(parts) > 2 else ""
            entries.append(Entry(name, path, label, group))
    _refuse_split_folders(folder, {entry.label for entry in entries})
    folder_names = [item.name for item in class_folders if item.name not in omitted.empty]
    _check_class_names(folder, [unicodedata.normalize("NFC", name) for name in folder_names])
    entries.sort(key=lambda entry: (unicodedata.normalize("NFC", entry.name), entry.name))
    notes, warnings = _said_of(omitted)
    if subfolders and not group_by_folder:
        warnings = (
            *warnings,
            f"sub-folders of classes hold {counted(subfolders, 'image')}: if they stand for patients or slides, use "
            "--group_by_folder, so that none is split",
        )
    return Listing(
        source=folder,
        entries=tuple(entries),
        class_names=in_order({entry.label for entry in entries}),
        notes=notes,
        warnings=warnings,
    )


def _visible(folder: Path, omitted: _Omitted, above: str) -> Iterator[os.DirEntry[str]]:
    """What lies in ``folder`` and is not hidden, sorted by name."""
    try:
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"Cannot read the folder {shown(folder)}: {error.strerror or error}.") from error
    for item in items:
        if item.name.startswith("."):
            omitted.hidden.append(above + item.name)
        else:
            yield item


def _images_below(
    folder: Path, name: str, ancestors: tuple[tuple[int, int], ...], omitted: _Omitted
) -> Iterator[tuple[str, Path]]:
    """Name and path of each image at any depth below ``folder``."""
    identity = _identity(folder)
    if identity in ancestors:
        omitted.circular.append(name)
        return
    for item in _visible(folder, omitted, f"{name}/"):
        inner = f"{name}/{item.name}"
        if _is_folder(item):
            yield from _images_below(Path(item.path), inner, (*ancestors, identity), omitted)
        elif _is_image(item.name):
            yield inner, Path(item.path)
        else:
            omitted.other.append(inner)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself: reading it will say so
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"Cannot read the folder {shown(folder)}: {error.strerror or error}.") from error
    return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (a name, which may be no path)


def _said_of(omitted: _Omitted) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One sentence for each kind of thing that was left out: notes, and warnings."""
    notes, warnings = [], []
    if omitted.hidden:
        notes.append(f"hidden files and folders were left out: {names(omitted.hidden)}")
    if omitted.other:
        kinds = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in omitted.other)  # noqa: PTH122
        endings = names(f"{kind} × {count:,}" for kind, count in sorted(kinds.items()))
        notes.append(f"files that end like no image were left out: {endings}")
    if omitted.circular:
        warnings.append(f"links that lead back to a folder they lie in were not followed: {names(omitted.circular)}")
    if omitted.outside:
        warnings.append(f"images that lie in no class's folder were left out: {names(omitted.outside)}")
    if omitted.empty:
        warnings.append(f"folders without an image are no class: {names(omitted.empty)}")
    return tuple(notes), tuple(warnings)


def _refuse_split_folders(folder: Path, labels: set[str]) -> None:
    if len(labels) > 1 and {label.lower() for label in labels} <= SPLIT_FOLDERS:
        raise DataError(
            f"Cannot use {shown(folder)}: its folders {', '.join(sorted(labels))} look like splits, not classes; "
            "needed is a folder per class, or a CSV with the columns path,label,split."
        )


def list_csv(path: Path) -> Listing:
    """The images that a CSV names in its columns ``path`` and ``label``, and perhaps ``split`` and ``group``.

    Paths are relative to the CSV's folder, or absolute; for the class names see ``in_order``. The rows' order matters
    only where the splits are given: it is then that of the images in their splits.

    Raises:
        DataError: The file cannot be read, or rows of it make no sense; the message names the first of them.
    """
    rows, delimiter = _parsed(path)
    header = [name.strip().lower() for name in rows[0]]
    places = {column: header.index(column) for column in COLUMNS if column in header}
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        # a path may begin or end with a blank; the other columns are words
        cells = {column: row[place] if place < len(row) else "" for column, place in places.items()}
        entry = Entry(
            name=cells["path"],
            path=path.parent / cells["path"],
            label=unicodedata.normalize("NFC", cells["label"].strip()),
            group=unicodedata.normalize("NFC", cells.get("group", "").strip()),
            split=cells.get("split", "").strip().lower(),
        )
        problems.extend(f"row {number} {problem}" for problem in _row_problems(entry, entries, row, header))
        entries.setdefault(entry.name, entry)
    problems.extend(_split_problems(entries.values()))
    if problems:
        _refuse(path, f"{some(problems, '; ')}")
    labels = {entry.label for entry in entries.values()}
    class_names = in_order(labels)
    _check_class_names(path, class_names)
    listed = list(entries.values())
    if not listed[0].split:
        listed.sort(key=lambda entry: entry.name)
    unused = [shown(name) for place, name in enumerate(rows[0]) if place not in places.values()]
    notes = [f"columns of {path.name} that have no meaning here: {some(unused)}"] if unused else []
    if delimiter != ",":
        notes.append(f"{path.name} has its columns divided by {delimiter!r}")
    return Listing(source=path, entries=tuple(listed), class_names=class_names, notes=tuple(notes))


def _parsed(path: Path) -> tuple[list[list[str]], str]:
    """The rows of a CSV, whose first one has the columns that are needed, and what divides them."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_LISTING_BYTES + 1)
    except OSError as error:
        raise DataError(f"Cannot read {shown(path)}: {error.strerror or error}.") from error
    if len(content) > MAX_LISTING_BYTES:
        _refuse(path, f"it has more than {MAX_LISTING_BYTES:,} bytes, which no list of images needs")
    try:
        text = content.decode("utf-8-sig")  # spreadsheets begin UTF-8 with a mark
    except UnicodeDecodeError as error:
        _refuse(path, f"byte {error.start:,} is not UTF-8; save it as CSV in UTF-8")
    for delimiter in DELIMITERS:
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as error:
            _refuse(path, f"it is no CSV ({error})")
        if rows and {"path", "label"} <= {cell.strip().lower() for cell in rows[0]}:
            break
    else:
        beginning = text.lstrip()[:80].partition("\n")[0].rstrip()
        _refuse(path, f"its first line is {shown(beginning)!r}; needed is path,label[,split][,group]")
    doubled = [name for name, count in Counter(cell.strip().lower() for cell in rows[0]).items() if count > 1]
    if set(doubled) & set(COLUMNS):
        _refuse(path, f"it has the column {doubled[0]} more than once")
    return rows, delimiter


def _row_problems(entry: Entry, earlier: dict[str, Entry], row: list[str], header: list[str]) -> Iterator[str]:
    if len(row) > len(header):
        yield f"has {len(row)} cells, the first line {len(header)} (a path with a comma stands in quotes)"
    if not entry.name.strip() or "\0" in entry.name:
        yield "has no path"
    elif entry.name in earlier:
        yield f"names {shown(entry.name)} again"
    if not entry.label:
        yield "has no label"
    if entry.split and entry.split not in SPLITS:
        yield f"has the split {shown(entry.split)!r}; allowed are {', '.join(SPLITS)}"


def _split_problems(entries: Iterable[Entry]) -> Iterator[str]:
    given = Counter(entry.split for entry in entries)
    without = given.pop("", 0)
    if without and given:
        total = without + sum(given.values())
        yield f"{without:,} of {total:,} rows have no split; needed is one in all rows or in none"


def in_order(labels: Collection[str]) -> tuple[str, ...]:
    """Class names by the alphabet, or, if all of them are whole numbers, by these."""
    if all(label.isascii() and label.isdigit() and len(label) < 10 for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _check_class_names(source: Path, class_names: Sequence[str]) -> None:
    """Refuse what ``scripts.data_handler.npz`` would refuse, in words about the folder or CSV."""
    wrong = [
        name for name in class_names if not name.strip() or not name.isprintable() or len(name) > MAX_CLASS_NAME_LENGTH
    ]
    if wrong:
        _refuse(
            source,
            f"class names must be printable and have at most {MAX_CLASS_NAME_LENGTH} characters, which these do not: "
            f"{names(name[:40] for name in wrong)}",
        )
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        _refuse(source, f"class names must differ, but these are there twice: {names(twice)}")
    if not 2 <= len(class_names) <= MAX_CLASSES:
        found = names(class_names) if len(class_names) == 1 else f"{len(class_names):,}"
        _refuse(source, f"needed are images of 2 to {MAX_CLASSES} classes, found: {found if class_names else 'none'}")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"Cannot use {shown(path)}: {reason}.")
