"""Optional packages: which are missing, and the command that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from scripts.core.errors import ConfigError


def missing_packages(purpose: str, *packages: str) -> Iterator[str]:
    """One sentence if ``purpose`` needs packages that are not installed.

    >>> next(missing_packages("tools/app.py", "gradio2"))
    'tools/app.py needs the package gradio2, which is not installed here. Install it: pip install gradio2'
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        what, verb, pronoun = ("packages", "are", "them") if len(missing) > 1 else ("package", "is", "it")
        names, command = " and ".join(missing), f"pip install {' '.join(missing)}"
        yield f"{purpose} needs the {what} {names}, which {verb} not installed here. Install {pronoun}: {command}"


def require_packages(purpose: str, *packages: str) -> None:
    """Raise ``ConfigError`` with the pip command if ``purpose`` needs packages that are not installed."""
    if problems := list(missing_packages(purpose, *packages)):
        raise ConfigError(*problems)
