"""How names and numbers are written in messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts.data_handler.npz import MAX_SHOWN


def printable(name: object) -> str:
    """Escape the characters of a file or column name that are not printable."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(name)
    )


def join_some(parts: Sequence[str], separator: str = ", ") -> str:
    """Join the first parts, and say how many more there are."""
    more = len(parts) - MAX_SHOWN
    return separator.join(parts[:MAX_SHOWN]) + (f"{separator}and {more:,} more" if more > 0 else "")


def join_names(names: Iterable[object]) -> str:
    """Join the first of many names, each made printable."""
    return join_some([printable(name) for name in names])


def count_of(number: int, noun: str) -> str:
    """Write a number and its noun, such as "1 image" and "2 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def count_are(number: int, noun: str) -> str:
    """Write the start of a sentence, such as "1 image is" and "2 images are"."""
    return f"{count_of(number, noun)} {'is' if number == 1 else 'are'}"
