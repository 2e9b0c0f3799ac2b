from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.command_line import ArgumentParser, build_parser, parse_command_line
from scripts.core.config import SETTINGS, Config
from scripts.core.errors import ConfigError
from scripts.core.recipes import RECIPES
from tests.core.test_config import CONTRACT

CHANGED = {
    "epochs": ("3", 3),
    "batch_size": ("7", 7),
    "lr": ("1e-3", 0.001),
    "seed": ("0", 0),
    "mixup_alpha": ("0", 0.0),
    "patience": ("2", 2),
    "monitor": ("auc", "auc"),
    "checkpoint_every": ("60", 60.0),
    "momentum": (".5", 0.5),
    "weight_decay": ("0.1", 0.1),
    "hflip": ("1", 1.0),
    "rotation_angle": ("45", 45),
    "jitter_val": ("0", 0.0),
    "dataset": ("pathmnist", "pathmnist"),
    "resolution": ("128", 128),
    "model_name": ("Mine, 2nd", "Mine, 2nd"),
    "num_workers": ("0", 0),
    "feed": ("streamed", "streamed"),
    "weights": ("none", "none"),
    "stem": ("stock", "stock"),
    "device": ("cuda:1", "cuda:1"),
    "precision": ("fp32", "fp32"),
    "data_dir": ("there", Path("there")),
    "output_dir": ("~/here", Path.home() / "here"),
    "lock_file": ("my.lock", Path("my.lock")),
    "track": ("mlflow", "mlflow"),
}
SWITCHES = ("no_tta", "reproducible", "no_process_guard")


def problems_of(*words: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_command_line(words, environment or {})
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def test_an_empty_command_line_is_the_contract():
    config = parse_command_line([], {})
    assert {name: getattr(config, name) for name in SETTINGS} == {
        name: default for name, (_, default) in CONTRACT.items()
    }


@pytest.mark.parametrize("name", [*CHANGED])
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_every_flag_sets_its_own_setting_and_no_other(name, form):
    text, value = CHANGED[name]
    words = [f"--{name}", text] if form == "two words" else [f"--{name}={text}"]
    config = parse_command_line(words, {})
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    assert [other for other in SETTINGS if getattr(config, other) != getattr(Config(), other)] == [name]


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_a_bare_flag(name):
    config = parse_command_line([f"--{name}"], {})
    assert [other for other in SETTINGS if getattr(config, other) != getattr(Config(), other)] == [name]
    assert getattr(config, name) is True
    assert problems_of(f"--{name}=False") == [f"--{name} takes no value, got 'False'."]


def test_all_problems_of_a_command_line_are_named_at_once():
    words = ["--epochs", "3.5", "--hflip", "1.5", "--lr", "nan", "--epohcs", "5", "--momentum", "inf", "--no_tta=yes"]
    words += ["--seed", "--weights=", "stray", "--batch_size=0", "--zzz=1"]
    assert problems_of(*words, environment={"DOCKER_REPRODUCIBILITY_MODE": "maybe"}) == [
        "--no_tta takes no value, got 'yes'.",
        "Unknown flag '--epohcs'. Did you mean --epochs?",
        "Unexpected argument 'stray': every setting is given as --name value.",
        "Unknown flag '--zzz'. See --help.",
        "--epochs must be a whole number, got '3.5'.",
        "--seed needs a value.",
        "DOCKER_REPRODUCIBILITY_MODE in the environment must be one of 1, true, yes (on) or 0, false, no (off), "
        "got 'maybe'.",
        "--batch_size must be at least 1, got 0.",
        "--lr must be a finite number, got nan.",
        "--momentum must be a finite number, got inf.",
        "--hflip must be at most 1, got 1.5.",
        "--weights must be 'imagenet', 'none', or a path, got ''.",
    ]


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--epochs"], ["--epochs needs a value."]),
        (["--lr", "--epochs", "3"], ["--lr needs a value."]),
        (["--epochs", "many"], ["--epochs must be a whole number, got 'many'."]),
        (["--epochs="], ["--epochs must be a whole number, got ''."]),
        (["--resolution", "32"], ["--resolution must be one of 28, 64, 128, 224, got 32."]),
        (["--resolution", "28px"], ["--resolution must be a whole number, got '28px'."]),
        (["--lr", "fast"], ["--lr must be a number, got 'fast'."]),
        (["--lr", "-0.5"], ["--lr must be above 0, got -0.5."]),
        (["--data_dir="], ["--data_dir must be a path, got ''."]),
        (["--data_dir", "a\0b"], [r"--data_dir must be a path without null characters, got 'a\x00b'."]),
        (
            ["--data_dir", "~nobody_of_that_name/x"],
            ["--data_dir must be a path, got '~nobody_of_that_name/x', whose user is not known here."],
        ),
        (["--epoch", "3"], ["Unknown flag '--epoch'. Did you mean --epochs?"]),
        (["--no_proc"], ["Unknown flag '--no_proc'. Did you mean --no_process_guard?"]),
        (["--batch-size=5"], ["Unknown flag '--batch-size'. Did you mean --batch_size?"]),
        (["--epohcs", "5"], ["Unknown flag '--epohcs'. Did you mean --epochs?"]),
        (
            ["--zzz", "--epochs", "3", "5"],
            ["Unknown flag '--zzz'. See --help.", "Unexpected argument '5': every setting is given as --name value."],
        ),
        (
            ["--zzz=1", "5"],
            ["Unknown flag '--zzz'. See --help.", "Unexpected argument '5': every setting is given as --name value."],
        ),
        (["-e", "--epochs=3"], ["Unexpected argument '-e': every setting is given as --name value."]),
        (
            ["--no_tta", "false"],
            ["Unexpected argument 'false': every setting is given as --name value."],
        ),
        (["--", "--epochs", "3"], ["Unexpected argument '--': every setting is given as --name value."]),
        (["--help=5", "--epochs=0"], ["--help takes no value, got '5'.", "--epochs must be at least 1, got 0."]),
    ],
)
def test_a_wrong_argument_gets_one_sentence(words, problems):
    assert problems_of(*words) == problems


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--track", "mlflow"], "mlflow"),
        (["--track", "tensorboard", "--track=mlflow"], "tensorboard,mlflow"),
        (["--track", "mlflow,tensorboard"], "mlflow,tensorboard"),
        (["--track", "none"], "none"),
    ],
)
def test_every_value_of_a_flag_that_may_be_repeated_is_taken(words, value):
    assert parse_command_line(words, {}).track == value


@pytest.mark.parametrize("value", ["wandb", "", "none,mlflow", "mlflow,", "Tensorboard"])
def test_an_unknown_tracker_is_refused_with_the_choices(value):
    assert problems_of("--track", "mlflow", "--track", value) == [
        "--track must be tensorboard, mlflow, both (give the flag twice), or none, got " + repr(f"mlflow,{value}") + "."
    ]
    assert problems_of("--track", "mlflow", "--track") == ["--track needs a value."]


def test_the_last_of_a_repeated_flag_counts():
    assert parse_command_line(["--epochs", "3", "--epochs", "4"], {}).epochs == 4


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "True", "yes", "YES", " true "])
def test_the_environment_switches_reproducibility_mode_on(text):
    assert parse_command_line([], {"DOCKER_REPRODUCIBILITY_MODE": text}).reproducible is True


@pytest.mark.parametrize("text", ["0", "false", "FALSE", "no", "No", ""])
def test_the_environment_leaves_reproducibility_mode_off_and_the_flag_still_counts(text):
    environment = {"DOCKER_REPRODUCIBILITY_MODE": text}
    assert parse_command_line([], environment).reproducible is False
    assert parse_command_line(["--reproducible"], environment).reproducible is True


def test_the_environment_is_part_of_what_is_checked():
    assert problems_of("--precision=bf16", environment={"DOCKER_REPRODUCIBILITY_MODE": "1"}) == [
        "--precision bf16 cannot be used with --reproducible, which computes in fp32; drop one."
    ]


def test_the_checks_of_other_packages_are_made_too_and_see_defaults_in_place_of_wrong_values():
    seen = []

    def check(config: Config) -> list[str]:
        seen.append(config)
        return [f"Unknown data set {config.dataset!r}."]

    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--epochs=0", "--dataset=x", "--lr=quick"], {}, checks=(check,))
    assert caught.value.problems == (
        "--lr must be a number, got 'quick'.",
        "--epochs must be at least 1, got 0.",
        "Unknown data set 'x'.",
    )
    assert seen == [Config(dataset="x")]


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["--help"], {})
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, (kind, default) in CONTRACT.items():
        assert f"--{name} " in shown
        # argparse may break a long path, but nothing else, at a hyphen
        assert kind is bool or name in ("lock_file", "resume") or f"(default: {default}" in shown, name


def test_help_shows_what_a_recipe_sets_beside_the_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], {})
    shown = " ".join(capsys.readouterr().out.split())
    strong = RECIPES["strong"].settings(Config().epochs)
    assert f"(default: 0.008; strong: {strong['lr']})" in shown
    assert "(strong: True; off: --no_nesterov)" in shown


def test_help_shows_the_choices_whether_they_are_words_or_numbers(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], {})
    shown = capsys.readouterr().out
    assert "--resolution 28|64|128|224 " in shown
    assert "--stem auto|adapted|stock " in shown


def test_the_parser_and_the_config_cannot_disagree():
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert flags == {f"--{name}" for name in SETTINGS} | {"-h", "--help", "--no_nesterov"}


FLAGS = st.sampled_from([known.flag for known in SETTINGS.values()] + ["--unknown", "--epoch", "-x", "--", ""])
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "~", "~x", "auto", "bf16", "cuda:0", "none", "1e999", "0x10", "1_0", "\udcff", "9" * 5000]),
)
WORDS = st.one_of(
    FLAGS.map(lambda flag: [flag]),
    VALUES.map(lambda value: [value]),
    st.tuples(FLAGS, VALUES).map(list),
    st.tuples(FLAGS, VALUES).map(lambda pair: ["=".join(pair)]),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(WORDS, max_size=6).map(lambda groups: [word for group in groups for word in group]),
    st.dictionaries(st.just("DOCKER_REPRODUCIBILITY_MODE"), VALUES),
)
def test_any_command_line_gives_a_config_or_an_explained_refusal(words, environment):
    asks_for_help = any(word.startswith("-h") for word in words) or "--help" in words
    try:
        config = parse_command_line(words, environment)
    except ConfigError as error:
        problems = error.problems
    except SystemExit:
        problems = ("Help was requested.",) if asks_for_help else ()
    else:
        assert config == Config(**{name: getattr(config, name) for name in SETTINGS})
        return
    assert problems
    assert all(problem.endswith((".", "?")) for problem in problems)


def test_a_tools_parser_raises_what_argparse_would_print_as_a_sentence():
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--side", type=int)
    with pytest.raises(ConfigError) as caught:
        parser.parse_args(["--side", "wide"])
    assert caught.value.problems == ("Argument --side: invalid int value: 'wide'.",)
