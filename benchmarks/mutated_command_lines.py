"""Mutated command lines: each gives a valid ``Config``, or a refusal that names every wrong value."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import Any

from scripts.core.command_line import parse_command_line
from scripts.core.config import SETTINGS, Config, Setting
from scripts.core.errors import ConfigError
from scripts.core.system.device import device_problems
from scripts.data_handler import dataset_problems
from scripts.data_handler.registry import DATASET_REGISTRY
from scripts.models.backbones import BACKBONES, backbone_problems

CHECKS = (backbone_problems, dataset_problems, device_problems)


def prepare(_folder: Path) -> None:
    """Import what a requested GPU imports."""
    with contextlib.suppress(ConfigError):
        parse_command_line(["--device", "cuda:99"], {}, checks=[device_problems])


def fuzz_command_line(chance: random.Random, _folder: Path) -> str:
    """Parse a mutated command line; where the validity of its parts is known, check the result against it."""
    if chance.random() < 0.5:
        return _fuzz_known(chance)
    argv = _wild_argv(chance)
    environment = {"DOCKER_REPRODUCIBILITY_MODE": chance.choice(_WILD_VALUES)} if chance.random() < 0.1 else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = parse_command_line(argv, environment, checks=CHECKS)
    except ConfigError as error:
        _require_sentences(error, argv)
        return "refused"
    except SystemExit as leaving:
        if leaving.code != 0 or not any(argument.startswith("-h") or argument == "--help" for argument in argv):
            raise
        return "helped"
    if config != Config(**{name: getattr(config, name) for name in SETTINGS}):
        raise AssertionError(f"{argv} gave a Config that cannot be made")
    return "valid"


def _fuzz_known(chance: random.Random) -> str:
    """Parse a line of settings that are each known to be valid or not."""
    names = chance.sample(sorted(set(SETTINGS) - {"resume"}), chance.randrange(0, 9))
    argv, expected, wrong = list[str](), dict[str, Any](), list[str]()
    if chance.random() < 0.2:
        argv.append(chance.choice(["stray", "5", "-e"]))
        wrong.append(repr(argv[0]))
    for name in names:
        known = SETTINGS[name]
        if chance.random() < 0.7:
            text, expected[name] = _valid_value(known, chance)
        else:
            text = _invalid_value(known, chance)
            wrong.append(known.flag)
        if known.kind is bool:
            argv.append(known.flag + (f"={text}" if text else ""))
        elif chance.random() < 0.5:
            argv += [known.flag, text]
        else:
            argv.append(f"{known.flag}={text}")
    if chance.random() < 0.2:
        argv.append(chance.choice(["--epohcs=5", "--oops", "--batch-size=3", "--no_tt"]))
        wrong.append(repr(argv[-1].partition("=")[0]))
    if expected.get("precision") == "bf16" and expected.get("reproducible"):
        wrong.append("--precision")
    warmup, epochs = (expected.get(name, SETTINGS[name].default) for name in ("warmup_epochs", "epochs"))
    if not wrong and warmup >= epochs:
        wrong.append("--warmup_epochs")
    if expected.get("resolution", 28) != 28 and expected.get("dataset") in ("synthblood", "own/cells.npz"):
        wrong.append("--resolution")  # of sets that have one size
    return _compare(argv, expected, wrong)


def _compare(argv: list[str], expected: dict[str, Any], wrong: list[str]) -> str:
    try:
        config = parse_command_line(argv, {}, checks=CHECKS)
    except ConfigError as error:
        _require_sentences(error, argv)
        missing = [thing for thing in wrong if not any(thing in problem for problem in error.problems)]
        if missing or not wrong:
            raise AssertionError(f"{argv}: {missing} not named in {error.problems}") from error
        return "refused"
    found = {name: getattr(config, name) for name in expected}
    if wrong or found != expected:
        raise AssertionError(f"{argv} gave {found}, expected {expected} and complaints about {wrong}")
    return "valid"


def _require_sentences(error: ConfigError, argv: list[str]) -> None:
    if not error.problems or not all(problem.endswith((".", "?")) for problem in error.problems):
        raise AssertionError(f"{argv} gave {error.problems}")


def _valid_value(known: Setting, chance: random.Random) -> tuple[str, Any]:
    """A text that the setting accepts, and its value."""
    limits = known.metadata
    if known.kind is bool:
        return "", True
    if known.kind is int and "choices" in limits:
        number = chance.choice(limits["choices"])
        return str(number), number
    if known.kind is int:
        number = chance.randint(limits["ge"], min(limits["le"], limits["ge"] + 300))
        return str(number), number
    if known.kind is float:
        low, high = limits.get("ge", limits.get("gt", 0.0)), min(limits.get("le", limits.get("lt", 3)), 3)
        fraction = low + (high - low) * chance.uniform(0.01, 0.99)
        return repr(fraction), fraction
    if known.kind is Path:
        text = chance.choice(["data", "a b/c", "ünï", "../x", "/nowhere/at/all"])
        return text, Path(text)
    examples = {
        "dataset": ["synthblood", "own/cells.npz", *DATASET_REGISTRY],
        "backbone": [*BACKBONES],
        "model_name": ["ResNet-18 Adapted", "My net!", "né 2"],
        "weights": ["imagenet", "none", "some/weights.pth"],
        "device": ["auto", "cpu"],
        "track": ["none", "tensorboard", "mlflow,tensorboard"],
    }
    text = chance.choice([*limits.get("choices", ()), *examples.get(known.name, ())])
    return text, text


def _invalid_value(known: Setting, chance: random.Random) -> str:
    """A text that the setting refuses."""
    limits = known.metadata
    if known.kind is bool:
        return chance.choice(["yes", "False", "1"])
    if known.kind in (int, float):
        wrong = ["", "many", "1,5", "nan", "inf", "--", "0x10", "1e999", "1" + "0" * 400]
        wrong += ["3.5", "1e3"] if known.kind is int else []
        wrong += ["0", "32", "-28"] if "choices" in limits else []
        wrong += [str(limits["ge"] - 1)] if "ge" in limits else []
        wrong += [str(limits["le"] + 1)] if "le" in limits else []
        wrong += [str(limits["gt"])] if "gt" in limits else []
        wrong += [str(limits["lt"])] if "lt" in limits else []
        return chance.choice(wrong)
    if known.kind is Path:
        return chance.choice(["", "a\0b", "~nobody_of_that_name/x"])
    examples = {
        "dataset": ["bloodmnits", "", "organmnist3d", "BloodMNIST", "bloodmnist_64"],
        "backbone": ["resnet19", "", "ResNet18", "timm/no_such_network", "resnet18;"],
        "model_name": ["!!!", "a\nb", "x" * 101, "\udcff1"],
        "weights": [""],
        "device": ["gpu", "cuda:x", "CPU", "", "cpu:0", "cuda:999"],
    }
    return chance.choice(examples.get(known.name, ["", "other", "AUTO", " auto"]))


_WILD_VALUES = (
    *("", "0", "-1", "1", "3.5", "-0.5", "nan", "-inf", "1e400", "9" * 5000),
    *("True", "auto", "cuda:0", "cuda:99", "mps", "bf16", "none", "synthblood", "chestmnist", "x.npz"),
    *("/", ".", "~", "~nobody_of_that_name", "../" * 2000, "x" * 5000, "\n", "a\0b", "\udcff", "é\u202e"),
    *("%s", "{}", "--", "-", "-h", "-5", "=", "--="),
)


def _wild_argv(chance: random.Random) -> list[str]:
    """Flags, parts of flags and values in any order and form."""
    flags = [known.flag for known in SETTINGS.values()]
    argv = []
    for _ in range(chance.randrange(0, 9)):
        flag, value = chance.choice(flags), chance.choice(_WILD_VALUES)
        kind = chance.random()
        if kind < 0.1:
            flag = flag[: chance.randrange(len(flag) + 1)]
        elif kind < 0.2:
            at, other = chance.randrange(len(flag)), [45, 61, 95, 0, 233, 0xDCFF, chance.randrange(32, 127)]
            flag = flag[:at] + chr(chance.choice(other)) + flag[at + 1 :]
        argv += chance.choice([[flag], [value], [flag, value], [flag, value], [f"{flag}={value}"], [f"{flag}={value}"]])
    chance.shuffle(argv)
    return argv
