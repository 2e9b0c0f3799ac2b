"""List the image files of a data set with their class, group and split: from a folder per class, or from a CSV."""

from __future__ import annotations

import io
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd

from scripts.core.errors import DataError
from scripts.data_handler.npz import MAX_CLASS_NAME_LENGTH, MAX_CLASSES, SPLITS
from tools.dataset_builder.messages import count_of, join_names, join_some, printable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2"}
)
# folders with these names only, and none of a class, are splits, not classes
SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
COLUMNS = ("path", "label", "split", "group")
DELIMITERS = (",", ";", "\t")  # spreadsheets write ; in countries with a decimal comma
MAX_LISTING_BYTES = 1 << 30

# why paths below a folder are skipped
HIDDEN = "skipped hidden files and folders"
OTHER = "skipped files without the suffix of an image"
CIRCULAR = "skipped links that lead back to a folder that contains them"
OUTSIDE = "skipped images outside the classes' folders"
EMPTY = "folders without an image are not classes"
Skipped = dict[str, list[str]]  # paths by reason


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file with its class, group and split."""

    name: str  # path below the folder, or as written in the CSV; unique
    path: Path
    label: str  # the class's name
    group: str = ""  # patient or slide; empty where none is known
    split: str = ""  # "train", "val" or "test"; empty where the splits are not given


@dataclass(frozen=True, slots=True)
class Listing:
    """All image files of a set, in an order that does not depend on the file system."""

    source: Path
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]  # in the order of the label values
    notes: tuple[str, ...] = ()  # what was skipped on purpose
    warnings: tuple[str, ...] = ()  # what was skipped and may be missed

    @property
    def is_split(self) -> bool:
        """Whether the splits are given."""
        return bool(self.entries and self.entries[0].split)


def list_images(source: Path, *, group_by_folder: bool = False) -> Listing:
    """Call ``list_folder`` or ``list_csv``, as ``source`` is a folder or a file."""
    return list_folder(source, group_by_folder=group_by_folder) if source.is_dir() else list_csv(source)


def list_folder(folder: Path, *, group_by_folder: bool = False) -> Listing:
    """List the images in the subfolders of ``folder``, whose names are the class names; see ``in_order``.

    Files may be at any depth. Links are followed, unless they lead back to a folder that contains them. Hidden files
    and folders, and files without the suffix of an image, are skipped.

    Args:
        folder: A folder with one subfolder per class.
        group_by_folder: Whether a folder directly below a class's folder is a group, such as a patient; the same name
            below several classes is one group.

    Raises:
        DataError: A folder cannot be read, or it has no classes.
    """
    skipped: Skipped = defaultdict(list)
    images, entries, num_nested = images_below(folder, skipped), [], 0
    skipped[OUTSIDE] = [name for name, _ in images if "/" not in name]
    images = [image for image in images if "/" in image[0]]
    for name, path in images:
        label, *folders, _ = normalized(name).split("/")
        num_nested += bool(folders)
        entries.append(Entry(name, path, label, folders[0] if group_by_folder and folders else ""))
    labels = {entry.label for entry in entries}
    if len(labels) > 1 and {label.lower() for label in labels} <= SPLIT_FOLDERS:
        _refuse(
            folder,
            f"its folders {', '.join(sorted(labels))} look like splits, not classes; use a folder per class, or a CSV "
            "with the columns path,label,split",
        )
    _check_class_names(folder, [normalized(name) for name in dict.fromkeys(name.split("/")[0] for name, _ in images)])
    notes, warnings = describe_skipped(skipped, HIDDEN, OTHER), describe_skipped(skipped, CIRCULAR, OUTSIDE, EMPTY)
    if num_nested and not group_by_folder:
        warnings.append(
            f"{count_of(num_nested, 'image')} in subfolders of the classes: if these are patients or slides, use "
            "--group_by_folder, so that none is divided over the splits"
        )
    return Listing(folder, tuple(entries), in_order(labels), tuple(notes), tuple(warnings))


def images_below(folder: Path, skipped: Skipped) -> list[tuple[str, Path]]:
    """The name below ``folder`` and the path of each image at any depth, in an order that the names alone decide.

    What is skipped is added to ``skipped``. ``DataError`` if a folder cannot be read.
    """
    return sorted(_images_below(folder, "", (), skipped), key=lambda image: (normalized(image[0]), image[0]))


def normalized(name: str) -> str:
    """The name with composed characters."""
    return unicodedata.normalize("NFC", name)  # macOS and Linux then agree


def _images_below(
    folder: Path, name: str, ancestors: tuple[tuple[int, int], ...], skipped: Skipped
) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each image at any depth below a folder, which has the name "" if it is the topmost."""
    try:
        status = folder.stat()
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"Cannot read the folder {printable(folder)}: {error.strerror or error}.") from error
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        skipped[CIRCULAR].append(name)
        return
    for item in items:
        inner = f"{name}/{item.name}" if name else item.name
        if item.name.startswith("."):
            skipped[HIDDEN].append(inner)
        elif _is_folder(item):
            images = list(_images_below(Path(item.path), inner, (*ancestors, identity), skipped))
            yield from images
            if not (images or name):
                skipped[EMPTY].append(inner)
        elif _suffix(item.name) not in IMAGE_SUFFIXES:
            skipped[OTHER].append(inner)
        else:
            yield inner, Path(item.path)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself: an error is reported when it is read
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a name, which may not be a valid path)


def describe_skipped(skipped: Skipped, *kinds: str) -> list[str]:
    """One sentence for each of these reasons for which something was skipped."""
    return [f"{kind}: {_describe(kind, skipped[kind])}" for kind in kinds if skipped[kind]]


def _describe(kind: str, names: Sequence[str]) -> str:
    if kind != OTHER:
        return join_names(names)
    kinds = Counter(_suffix(name) or "no suffix" for name in names)
    return join_names(f"{suffix} × {count:,}" for suffix, count in sorted(kinds.items()))


def list_csv(path: Path) -> Listing:
    """List the images in a CSV with the columns ``path`` and ``label``, and optionally ``split`` and ``group``.

    Paths are relative to the CSV's folder, or absolute; for the class names see ``in_order``. The order of the rows
    matters only where the splits are given: the images of each split are then in this order.

    Raises:
        DataError: The file cannot be read, or some rows are wrong; the message names the first of them.
    """
    table, notes = read_table(path, ("path", "label"))
    class_names = in_order(set(table["label"]))
    _check_class_names(path, class_names)
    if not table["split"].iloc[0]:
        table = table.sort_values("path")
    rows = table.itertuples(index=False)
    entries = tuple(Entry(name, path.parent / name, label, group, split) for name, label, split, group in rows)
    return Listing(path, entries, class_names, tuple(notes))


def read_table(path: Path, required: Collection[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read ``COLUMNS`` of a CSV as text, where the ``required`` ones must be there, and the others may be.

    Returns:
        A table, whose rows are numbered as in a spreadsheet, with empty text in a column that is not there; and what is
        unusual about the file.

    Raises:
        DataError: The file cannot be read, or some rows are wrong; the message names the first of them.
    """
    text = _read_text(path)
    cells, delimiter = _parse(path, text, required)
    header, body = cells.iloc[0].str.strip().str.lower().tolist(), cells.iloc[1:]
    unused = [printable(name) for name in cells.iloc[0] if name.strip() and name.strip().lower() not in COLUMNS]
    body = body[body.apply(lambda column: column.str.strip() != "").any(axis="columns")]
    columns = {name: body[header.index(name)].to_numpy() if name in header else "" for name in COLUMNS}
    table = pd.DataFrame(columns, index=body.index + 1, dtype=str)  # rows are numbered as in a spreadsheet
    # a path may begin or end with a blank
    table = table.assign(
        label=table["label"].str.strip().str.normalize("NFC"),
        group=table["group"].str.strip().str.normalize("NFC"),
        split=table["split"].str.strip().str.lower(),
    )
    if problems := _row_problems(table, is_labelled="label" in header):
        _refuse(path, join_some(problems, "; "))
    notes = [f"ignored columns of {path.name}: {join_some(unused)}"] if unused else []
    if delimiter != ",":
        notes.append(f"the columns of {path.name} are separated by {delimiter!r}")
    return table, notes


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_LISTING_BYTES + 1)
    except OSError as error:
        raise DataError(f"Cannot read {printable(path)}: {error.strerror or error}.") from error
    if len(content) > MAX_LISTING_BYTES:
        _refuse(path, f"it has more than {MAX_LISTING_BYTES:,} bytes, which no list of images needs")
    try:
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        _refuse(path, f"byte {error.start:,} is not UTF-8; save it as CSV in UTF-8")


def _parse(path: Path, text: str, required: Collection[str]) -> tuple[pd.DataFrame, str]:
    """Parse a CSV into text cells, the header in row 0, and return its delimiter too."""

    def read(separator: str, num_rows: int | None = None) -> pd.DataFrame:
        stream = io.StringIO(text, newline="")
        # the Python engine is strict about quotes, unlike pandas' own
        return pd.read_csv(
            stream,
            sep=separator,
            nrows=num_rows,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            engine="python",
        )

    try:
        for delimiter in DELIMITERS:
            first_row = read(delimiter, 1).to_numpy().ravel()
            columns = [str(cell).strip().lower() for cell in first_row]
            if set(required) <= set(columns):
                break
        else:
            raise pd.errors.EmptyDataError
        if doubled := next((name for name in COLUMNS if columns.count(name) > 1), None):
            _refuse(path, f"it has the column {doubled} more than once")
        return read(delimiter).fillna(""), delimiter  # short rows have missing cells
    except pd.errors.EmptyDataError:
        beginning = text.lstrip()[:80].partition("\n")[0].rstrip()
        columns = [name if name in required else f"[{name}]" for name in COLUMNS]
        _refuse(path, f"its first line is {printable(beginning)!r}, not {','.join(columns).replace(',[', '[,')}")
    except pd.errors.ParserError as error:
        _refuse(path, f"it is not a valid CSV: {error} (write a path with a comma in quotes)")


def _row_problems(table: pd.DataFrame, *, is_labelled: bool) -> list[str]:
    """Write one sentence for each wrong cell, in the order of the rows, and one for incomplete splits."""
    paths, splits = table["path"], table["split"]
    no_path = (paths.str.strip() == "") | paths.str.contains("\0", regex=False)
    again, unknown = paths[paths.duplicated() & ~no_path], splits[~splits.isin(["", *SPLITS])]
    found = [
        *((row, "has no path") for row in table.index[no_path]),
        *((row, f"names {printable(path)} again") for row, path in again.items()),
        *((row, "has no label") for row in table.index[(table["label"] == "") & is_labelled]),
        *((row, f"has the split {printable(s)!r}; allowed are {', '.join(SPLITS)}") for row, s in unknown.items()),
    ]
    problems = [f"row {row} {problem}" for row, problem in sorted(found, key=lambda item: item[0])]
    if 0 < (without := int((splits == "").sum())) < len(table):
        problems.append(f"{without:,} of {len(table):,} rows have no split; give one in all rows or in none")
    return problems


def in_order(labels: Collection[str]) -> tuple[str, ...]:
    """Sort class names as text, or, if all of them are whole numbers, as numbers."""
    if all(label.isascii() and label.isdigit() and len(label) < 10 for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _check_class_names(source: Path, class_names: Sequence[str]) -> None:
    """Refuse what ``scripts.data_handler.npz`` would refuse, in terms of the folder or CSV."""
    wrong = [
        name for name in class_names if not name.strip() or not name.isprintable() or len(name) > MAX_CLASS_NAME_LENGTH
    ]
    if wrong:
        _refuse(
            source,
            f"class names must be printable and have at most {MAX_CLASS_NAME_LENGTH} characters, unlike: "
            f"{join_names(name[:40] for name in wrong)}",
        )
    if twice := [name for name, count in Counter(class_names).items() if count > 1]:
        _refuse(source, f"class names must differ, but these are there twice: {join_names(twice)}")
    if not 2 <= len(class_names) <= MAX_CLASSES:
        found = join_names(class_names) if len(class_names) == 1 else f"{len(class_names):,}"
        _refuse(source, f"it needs images of 2 to {MAX_CLASSES} classes, found: {found if class_names else 'none'}")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"Cannot use {printable(path)}: {reason}.")
