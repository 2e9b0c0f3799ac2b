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
from scripts.core.recipes import RECIPES, with_recipe
from scripts.core.resume import with_stored_settings

REPRODUCIBILITY_VARIABLE = "DOCKER_REPRODUCIBILITY_MODE"
_ON, _OFF = ("1", "true", "yes"), ("0", "false", "no")
_NO_VALUE = object()
_NOUNS = {int: "a whole number", float: "a number", Path: "a path"}

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
        description="Train an adapted ResNet-18, or another backbone, on a MedMNIST v2 set, evaluate it and report.",
        epilog=f"{REPRODUCIBILITY_VARIABLE}=TRUE in the environment does what --reproducible does.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    names = dict.fromkeys(known.metadata["group"] for known in SETTINGS.values())
    groups = {name: parser.add_argument_group(name) for name in names}
    of_recipes = {name: recipe.settings(SETTINGS["epochs"].default) for name, recipe in RECIPES.items()}
    for known in SETTINGS.values():
        group = groups[known.metadata["group"]]
        default = "" if known.kind is bool or known.default == "" else f"default: {known.default}"
        in_recipes = [f"{name}: {values[known.name]}" for name, values in of_recipes.items() if known.name in values]
        # where a recipe turns a switch on, a flag must be able to turn it off
        negative = f"--no_{known.name}" if known.kind is bool and in_recipes else ""
        values_in_words = "; ".join(filter(None, (default, *in_recipes, negative and f"off: {negative}")))
        about = f"{known.metadata['help']}{values_in_words and f' ({values_in_words})'}".replace("%", "%%")
        if known.kind is bool:
            group.add_argument(known.flag, action="store_true", help=about)
            if negative:
                group.add_argument(negative, dest=known.name, action="store_false", help=argparse.SUPPRESS)
            continue
        choices = "|".join(map(str, known.metadata.get("choices", ())))
        metavar = known.metadata.get("metavar") or choices or known.kind.__name__.upper()
        # the value is optional to argparse only: a missing one is then reported with the other problems
        action = "append" if known.metadata.get("repeatable") else "store"
        group.add_argument(known.flag, action=action, nargs="?", const=_NO_VALUE, metavar=metavar, help=about)
    return parser


def parse_command_line(
    argv: Sequence[str], environment: Mapping[str, str] = os.environ, *, checks: Iterable[Check] = ()
) -> Config:
    """Parse a command line, given without the program's name.

    ``checks`` yield problems of a Config in which settings that are already known to be wrong have their defaults.

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
        else:
            known, epochs = SETTINGS["epochs"], values.get("epochs", 0)
            is_valid = known.metadata["ge"] <= epochs <= known.metadata["le"]  # else it is a problem of its own
            values = with_recipe(values, epochs=epochs if is_valid else known.default)
    except ConfigError as error:
        problems.extend(error.problems)
        values.pop("resume", None)
    try:
        config = Config(**values)
    except ConfigError as error:
        problems.extend(error.problems)
        wrong = {problem.split()[0].removeprefix("--") for problem in error.problems}
        config = Config(**{name: value for name, value in values.items() if name not in wrong})
    for check in checks:
        problems.extend(check(config))
    if problems:
        raise ConfigError(*problems)
    return config


def _filter_for_argparse(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """The arguments that argparse can parse, and a problem for each of the others, at which it would stop."""
    switches = {"--help"}
    for known in SETTINGS.values():
        if known.kind is bool:
            switches |= {known.flag, f"--no_{known.name}"}
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
    """Convert the text of a value, or the texts of a repeatable flag, to its setting's type."""
    texts = text if isinstance(text, list) else [text]
    if _NO_VALUE in texts:
        raise ConfigError(f"{known.flag} needs a value.")
    text = ",".join(texts) if known.metadata.get("repeatable") else text
    if known.kind is Path and not text:
        raise ConfigError(f"{known.flag} must be a path, got ''.")
    try:
        value = known.kind(text)
        return value.expanduser() if isinstance(value, Path) else value
    except (RuntimeError, ValueError):
        unknown_user = ", whose user is not known here" if known.kind is Path else ""
        raise ConfigError(f"{known.flag} must be {_NOUNS[known.kind]}, got {text!r}{unknown_user}.") from None


def _wants_reproducibility(environment: Mapping[str, str]) -> bool:
    text = environment.get(REPRODUCIBILITY_VARIABLE, "")
    if (switch := text.strip().lower()) in ("", *_ON, *_OFF):
        return switch in _ON
    allowed = f"{', '.join(_ON)} (on) or {', '.join(_OFF)} (off)"
    raise ConfigError(f"{REPRODUCIBILITY_VARIABLE} in the environment must be one of {allowed}, got {text!r}.")
