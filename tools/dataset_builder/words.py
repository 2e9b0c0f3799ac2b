"""How names and numbers are put into messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts.data_handler.npz import MAX_SHOWN


def shown(name: object) -> str:
    """A name from a disk or a CSV, safe to print: what is no character of a line is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(name)
    )


def some(parts: Sequence[str], separator: str = ", ") -> str:
    """The first of many, and how many more there are."""
    more = len(parts) - MAX_SHOWN
    return separator.join(parts[:MAX_SHOWN]) + (f"{separator}and {more:,} more" if more > 0 else "")


def names(found: Iterable[object]) -> str:
    """Some of many names."""
    return some([shown(name) for name in found])


def counted(count: int, noun: str) -> str:
    """A number of things, such as "1 image" and "2 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def are(count: int, noun: str) -> str:
    """The beginning of a sentence about a number of things, such as "1 image is" and "2 images are"."""
    return f"{counted(count, noun)} {'is' if count == 1 else 'are'}"
