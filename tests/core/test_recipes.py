"""Recipes: what they set, that flags win over them, and what a run records of them."""

from __future__ import annotations

import pytest

from scripts.core.command_line import parse_command_line
from scripts.core.config import SETTINGS, Config
from scripts.core.errors import ConfigError
from scripts.core.recipes import RECIPES

STRONG = RECIPES["strong"].settings(Config().epochs)


def test_the_seed_recipe_is_the_defaults():
    assert parse_command_line([], {}) == parse_command_line(["--recipe", "seed"], {}) == Config()
    assert RECIPES["seed"].settings(60) == {}


@pytest.mark.parametrize("epochs", [1, 2, 12, 60, 500])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_configuration_at_any_number_of_epochs(name, epochs):
    config = parse_command_line(["--recipe", name, "--epochs", str(epochs)], {})
    assert {setting: getattr(config, setting) for setting in RECIPES[name].settings(epochs)} == RECIPES[name].settings(
        epochs
    )
    assert config.overridden == {}


def test_every_recipe_says_where_it_comes_from_and_sets_known_settings():
    for recipe in RECIPES.values():
        assert recipe.source
        assert recipe.effect
        assert recipe.settings(60).keys() <= SETTINGS.keys() - {"recipe", "epochs", "seed", "dataset"}


@pytest.mark.parametrize("words", [["--lr", "0.5", "--recipe", "strong"], ["--recipe", "strong", "--lr=0.5"]])
def test_flags_win_over_a_recipe_wherever_they_stand(words):
    config = parse_command_line([*words, "--no_nesterov", "--symmetries", "flip"], {})
    assert (config.lr, config.nesterov, config.symmetries) == (0.5, False, "flip")
    assert config.schedule == STRONG["schedule"]
    assert config.overridden == {
        "lr": {"recipe": STRONG["lr"], "applied": 0.5},
        "nesterov": {"recipe": True, "applied": False},
        "symmetries": {"recipe": "all", "applied": "flip"},
    }


def test_settings_that_a_recipe_leaves_at_their_defaults_can_be_overridden_too():
    seed = parse_command_line(["--optimizer", "adamw", "--label_smoothing", "0.2", "--seed", "7", "--epochs", "3"], {})
    assert seed.overridden == {
        "optimizer": {"recipe": "sgd", "applied": "adamw"},
        "label_smoothing": {"recipe": 0.0, "applied": 0.2},
    }
    strong = parse_command_line(["--recipe", "strong", "--erasing", "0.5"], {})
    assert strong.overridden == {"erasing": {"recipe": 0.0, "applied": 0.5}}


def test_a_recipe_with_one_cycle_never_stops_before_the_rate_falls():
    for recipe in RECIPES.values():
        settings = recipe.settings(60)
        assert settings.get("schedule") != "onecycle" or settings["patience"] >= 60


def test_an_unknown_recipe_is_reported_with_the_other_problems():
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--recipe", "stronk", "--lr", "-1"], {})
    assert sorted(problem.split()[0] for problem in caught.value.problems) == ["--lr", "--recipe"]


@pytest.mark.parametrize("epochs", ["0", "-5", "2000000"])
def test_a_wrong_number_of_epochs_is_one_problem_with_any_recipe(epochs):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--recipe", "strong", "--epochs", epochs], {})
    assert [problem.split()[0] for problem in caught.value.problems] == ["--epochs"]


def test_a_default_given_as_a_flag_wins_too():
    assert parse_command_line(["--recipe", "strong", "--lr", "0.008"], {}).lr == 0.008
