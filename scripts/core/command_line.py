"""Turn a command line and the environment into a valid ``Config``, or report every problem at once."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from scripts.core.config import SETTINGS, Config, Setting
from scripts.core.errors import ConfigError
from scripts.core.resume import with_stored_settings

REPRODUCIBILITY_VARIABLE = "DOCKER_REPRODUCIBILITY_MODE"
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")
_NO_VALUE = object()

Check = Callable[[Config], Iterable[str]]


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises ``ConfigError`` for a wrong command line, instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print, as a sentence."""
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.")


class _HelpFormatter(argparse.HelpFormatter):
    """Show a value without the brackets of an optional one (``build_parser`` makes it optional only to argparse)."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return default_metavar if action.metavar is None else str(action.metavar)


def build_parser() -> ArgumentParser:
    """The parser of ``main.py``: a loop over the settings, so that flags and fields cannot disagree."""
    parser = ArgumentParser(
        prog="main.py",
        usage="main.py [--setting value ...]",
        formatter_class=lambda prog: _HelpFormatter(prog, max_help_position=32),
        description="Train an adapted ResNet-18 on a MedMNIST v2 set, evaluate it and report.",
        epilog=f"{REPRODUCIBILITY_VARIABLE}=TRUE in the environment does what --reproducible does.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for known in SETTINGS.values():
        name = known.metadata["group"]
        group = groups.get(name) or groups.setdefault(name, parser.add_argument_group(name))
        default = "" if known.kind is bool or known.default == "" else f" (default: {known.default})"
        about = f"{known.metadata['help']}{default}".replace("%", "%%")
        if known.kind is bool:
            group.add_argument(known.flag, action="store_true", help=about)
            continue
        choices = "|".join(map(str, known.metadata.get("choices", ())))
        metavar = known.metadata.get("metavar") or choices or known.kind.__name__.upper()
        # the value is optional to argparse only: a missing one is then reported with the other problems
        group.add_argument(known.flag, nargs="?", const=_NO_VALUE, metavar=metavar, help=about)
    return parser


def parse_command_line(
    argv: Sequence[str], environment: Mapping[str, str] = os.environ, *, checks: Iterable[Check] = ()
) -> Config:
    """Parse a command line.

    Args:
        argv: The command line without the program's name.
        environment: The variables, ``DOCKER_REPRODUCIBILITY_MODE`` among them.
        checks: Checks of other packages, such as whether a data set is known; each takes a Config and yields its
            problems. A setting that is already known to be wrong has its default there.

    Raises:
        ConfigError: The command line is wrong; the message has one line per problem.
        SystemExit: ``--help`` was given (code 0).
    """
    kept, problems = _filter_for_argparse(argv)
    given, unknown = build_parser().parse_known_args(kept)
    problems.extend(_unknown_problems(unknown, kept))
    values: dict[str, Any] = {}
    for name, text in vars(given).items():
        try:
            values[name] = _convert(SETTINGS[name], text)
        except ConfigError as error:
            problems.extend(error.problems)
    try:
        if _wants_reproducibility(environment):
            values["reproducible"] = True
        if "resume" in values:
            values = with_stored_settings(values)
    except ConfigError as error:
        problems.extend(error.problems)
        values.pop("resume", None)

    config, value_problems = _build(values)
    problems.extend(value_problems)
    for check in checks:
        problems.extend(check(config))
    if problems:
        raise ConfigError(*problems)
    return config


def _build(values: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The Config of ``values``; where some are wrong, one without them, and their problems."""
    try:
        return Config(**values), ()
    except ConfigError as error:
        wrong = {problem.split()[0].removeprefix("--") for problem in error.problems}
        return Config(**{name: value for name, value in values.items() if name not in wrong}), error.problems


def _filter_for_argparse(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """The arguments that argparse can parse, and a problem for each of the others, at which it would stop."""
    switches = {"--help", *(known.flag for known in SETTINGS.values() if known.kind is bool)}
    kept, problems = [], []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            problems.append(_unexpected(argument))
        elif equals and flag in switches:
            problems.append(f"{flag} takes no value, got {value!r}.")
        else:
            kept.append(argument)
    return kept, problems


def _unknown_problems(unknown: Sequence[str], argv: Sequence[str]) -> Iterator[str]:
    """One sentence for each unknown argument; in ``--epohcs 5`` the flag is unknown, and 5 is not another problem."""
    neighbours = set(pairwise(argv))
    for before, argument in zip(("", *unknown), unknown, strict=False):
        is_value = before.startswith("--") and "=" not in before and (before, argument) in neighbours
        if argument.startswith("--"):
            flag = argument.partition("=")[0]
            close = difflib.get_close_matches(flag, [known.flag for known in SETTINGS.values()], n=1)
            yield f"Unknown flag {flag!r}. " + (f"Did you mean {close[0]}?" if close else "See --help.")
        elif argument.startswith("-") or not is_value:
            yield _unexpected(argument)


def _unexpected(argument: str) -> str:
    return f"Unexpected argument {argument!r}: every setting is given as --name value."


def _convert(known: Setting, text: Any) -> Any:
    """Convert the text of a value to its setting's type."""
    if text is _NO_VALUE:
        raise ConfigError(f"{known.flag} needs a value.")
    if known.kind is bool or known.kind is str:
        return text
    if known.kind is Path:
        if not text:
            raise ConfigError(f"{known.flag} must be a path, got ''.")
        try:
            return Path(text).expanduser()
        except (RuntimeError, ValueError):
            raise ConfigError(f"{known.flag} must be a path, got {text!r}, whose user is not known here.") from None
    try:
        return known.kind(text)
    except ValueError:
        noun = "a whole number" if known.kind is int else "a number"
        raise ConfigError(f"{known.flag} must be {noun}, got {text!r}.") from None


def _wants_reproducibility(environment: Mapping[str, str]) -> bool:
    text = environment.get(REPRODUCIBILITY_VARIABLE, "")
    if (switch := text.strip().lower()) in (*_TRUE, *_FALSE):
        return switch in _TRUE
    raise ConfigError(
        f"{REPRODUCIBILITY_VARIABLE} in the environment must be one of {', '.join(_TRUE)} (on) or "
        f"{', '.join(filter(None, _FALSE))} (off), got {text!r}."
    )
