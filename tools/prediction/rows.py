"""Predictions as rows of a CSV or as JSON lines, written as they come."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from scripts.core.errors import storage_errors
from scripts.core.files import replace_atomically

SEPARATOR = "; "  # of several labels in a cell of a CSV
SCREEN = Path("standard output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The prediction of one image."""

    name: str | int
    label: Sequence[str] | None  # the true class, or the true labels; None where unknown
    predicted: Sequence[str]  # the predicted class, or labels; none if abstained
    abstained: bool
    probabilities: Sequence[float]  # of every class or label


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the rows have."""

    naming: str  # "path" or "index"
    class_names: Sequence[str]
    has_label: bool
    can_abstain: bool
    is_multi_label: bool

    @property
    def leading(self) -> list[str]:
        """Names of the columns before those of the classes."""
        return [self.naming, *["label"] * self.has_label, "predicted", *["abstained"] * self.can_abstain]

    @property
    def header(self) -> list[str]:
        """Names of all columns of a CSV; a class that is named as a column before is called otherwise."""
        taken = self.leading
        return [*taken, *(f"class {name}" if name in taken else name for name in self.class_names)]

    def values(self, row: Row) -> dict[str, Any]:
        """The values of the leading columns; lists for several labels, None for no prediction."""

        def one_or_all(names: Sequence[str]) -> Any:
            return list(names) if self.is_multi_label else names[0]

        return {
            self.naming: row.name,
            **({} if row.label is None else {"label": one_or_all(row.label)}),
            "predicted": None if row.abstained else one_or_all(row.predicted),
            **({"abstained": row.abstained} if self.can_abstain else {}),
        }


class CsvWriter:
    """Writes a header, and one line per row; probabilities are read back as the same numbers."""

    def __init__(self, stream: TextIO, columns: Columns) -> None:
        self._writer, self._columns = csv.writer(stream, lineterminator="\n"), columns
        self._writer.writerow(columns.header)

    def write(self, row: Row) -> None:
        """Write a row."""
        values = self._columns.values(row)
        self._writer.writerow([*map(self._cell, values.values()), *row.probabilities])

    @staticmethod
    def _cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "" if value is None else SEPARATOR.join(value) if isinstance(value, list) else str(value)


class JsonLinesWriter:
    """Writes one JSON object per row and line."""

    def __init__(self, stream: TextIO, columns: Columns) -> None:
        self._stream, self._columns = stream, columns

    def write(self, row: Row) -> None:
        """Write a row."""
        probabilities = dict(zip(self._columns.class_names, row.probabilities, strict=True))
        values = self._columns.values(row) | {"probabilities": probabilities}
        self._stream.write(json.dumps(values, allow_nan=False) + "\n")


@contextmanager
def open_writer(output: Path | None, columns: Columns) -> Iterator[CsvWriter | JsonLinesWriter]:
    """Open a file, or the screen for None; it gets the rows once all of them are written.

    Raises:
        StorageError: The rows cannot be stored.
    """
    with replace_atomically(output) if output else _screen() as stream:
        # a path may have bytes that are no text
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        yield (JsonLinesWriter if output and output.suffix == ".jsonl" else CsvWriter)(text, columns)
        text.flush()
        text.detach()


@contextmanager
def _screen() -> Iterator[IO[bytes]]:
    """A temporary file that is copied to standard output at the end."""
    with (
        storage_errors(Path(tempfile.gettempdir()), "store the predictions"),
        tempfile.TemporaryFile() as stream,
    ):
        yield stream
        stream.seek(0)
        sys.stdout.flush()
        with storage_errors(SCREEN, "print the predictions"):
            try:
                shutil.copyfileobj(stream, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # the reader, such as head, has enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
