from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import FrozenInstanceError, replace
from math import inf, nan
from pathlib import Path

import pytest

from scripts.core.config import SETTINGS, Config, default_lock_file
from scripts.core.environment import PROJECT_ROOT
from scripts.core.errors import ConfigError

# copied from the specification, so that a default cannot change by accident
CONTRACT = {
    "recipe": (str, "seed"),
    "backbone": (str, "resnet18"),
    "track": (str, "none"),
    "dropout": (float, 0.0),
    "optimizer": (str, "sgd"),
    "schedule": (str, "cosine"),
    "warmup_epochs": (float, 0.0),
    "nesterov": (bool, False),
    "decay_params": (str, "all"),
    "label_smoothing": (float, 0.0),
    "class_weights": (str, "none"),
    "ema_decay": (float, 0.0),
    "grad_clip": (float, 0.0),
    "train_layers": (str, "all"),
    "cutmix_alpha": (float, 0.0),
    "symmetries": (str, "flip"),
    "rotation_prob": (float, 1.0),
    "translate": (int, 0),
    "scale": (float, 0.0),
    "erasing": (float, 0.0),
    "epochs": (int, 60),
    "batch_size": (int, 128),
    "lr": (float, 0.008),
    "seed": (int, 42),
    "mixup_alpha": (float, 0.002),
    "patience": (int, 15),
    "monitor": (str, "auto"),
    "checkpoint_every": (float, 30.0),
    "momentum": (float, 0.9),
    "weight_decay": (float, 5e-4),
    "no_tta": (bool, False),
    "hflip": (float, 0.5),
    "rotation_angle": (int, 10),
    "jitter_val": (float, 0.2),
    "dataset": (str, "bloodmnist"),
    "resolution": (int, 28),
    "model_name": (str, "ResNet-18 Adapted"),
    "num_workers": (int, 4),
    "feed": (str, "auto"),
    "weights": (str, "imagenet"),
    "stem": (str, "auto"),
    "device": (str, "auto"),
    "precision": (str, "auto"),
    "resume": (str, ""),
    "reproducible": (bool, False),
    "data_dir": (Path, Path("dataset")),
    "output_dir": (Path, Path("outputs")),
    "lock_file": (Path, Path(tempfile.gettempdir()) / f"medmnist_training_{os.getuid()}.lock"),
    "no_process_guard": (bool, False),
}


@pytest.mark.parametrize(("name", "kind", "default"), [(name, *rest) for name, rest in CONTRACT.items()])
def test_every_setting_has_the_type_and_default_of_the_contract(name, kind, default):
    value = getattr(Config(), name)
    assert SETTINGS[name].kind is kind
    assert type(value) is (type(default) if kind is Path else kind)
    assert value == default
    assert SETTINGS[name].default == default


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs a --momentum above 0; turn it off with --no_nesterov."),
        ({"warmup_epochs": 3.0, "epochs": 3}, "--warmup_epochs must be below --epochs (3), got 3."),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, problem):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert caught.value.problems == (problem,)
    assert Config(nesterov=True, momentum=0.0, optimizer="adamw").nesterov  # has no effect there


def test_there_are_no_settings_beside_the_contract():
    assert SETTINGS.keys() == CONTRACT.keys()


def test_every_setting_explains_itself():
    assert all(known.metadata["help"].endswith(".") and known.metadata["group"] for known in SETTINGS.values())


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("epochs", 0, "--epochs must be at least 1, got 0."),
        ("epochs", 1_000_001, "--epochs must be at most 1000000, got 1000001."),
        ("epochs", 3.0, "--epochs must be a whole number, got 3.0."),
        ("epochs", True, "--epochs must be a whole number, got True."),
        ("batch_size", 0, "--batch_size must be at least 1, got 0."),
        ("lr", 0.0, "--lr must be above 0, got 0."),
        ("lr", nan, "--lr must be a finite number, got nan."),
        ("lr", inf, "--lr must be a finite number, got inf."),
        ("lr", -inf, "--lr must be a finite number, got -inf."),
        ("lr", "0.1", "--lr must be a finite number, got '0.1'."),
        ("momentum", 1.0, "--momentum must be below 1, got 1."),
        ("momentum", -0.1, "--momentum must be at least 0, got -0.1."),
        ("weight_decay", -1e-9, "--weight_decay must be at least 0, got -1e-09."),
        ("patience", 0, "--patience must be at least 1, got 0."),
        ("mixup_alpha", -0.002, "--mixup_alpha must be at least 0, got -0.002."),
        ("seed", -1, "--seed must be at least 0, got -1."),
        ("seed", 2**32, "--seed must be at most 4294967295, got 4294967296."),
        ("hflip", 1.5, "--hflip must be at most 1, got 1.5."),
        ("rotation_angle", 181, "--rotation_angle must be at most 180, got 181."),
        ("jitter_val", 1.1, "--jitter_val must be at most 1, got 1.1."),
        ("no_tta", "yes", "--no_tta must be True or False, got 'yes'."),
        ("num_workers", -1, "--num_workers must be at least 0, got -1."),
        ("feed", "disk", "--feed must be one of auto, resident, streamed, got 'disk'."),
        ("resolution", 32, "--resolution must be one of 28, 64, 128, 224, got 32."),
        ("resolution", "64", "--resolution must be a whole number, got '64'."),
        ("stem", "small", "--stem must be one of auto, adapted, stock, got 'small'."),
        ("precision", "fp16", "--precision must be one of auto, fp32, bf16, got 'fp16'."),
        ("device", "gpu", "--device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'."),
        ("device", "cuda:", "--device must be auto, cpu, cuda, cuda:N or mps, got 'cuda:'."),
        ("weights", "", "--weights must be 'imagenet', 'none', or a path, got ''."),
        (
            "model_name",
            "...",
            "--model_name must be 1 to 100 printable characters with a letter or a digit among them, got '...'.",
        ),
        (
            "model_name",
            "a\udcff",
            r"--model_name must be 1 to 100 printable characters with a letter or a digit among them, got 'a\udcff'.",
        ),
        (
            "model_name",
            "a\nb",
            r"--model_name must be 1 to 100 printable characters with a letter or a digit among them, got 'a\nb'.",
        ),
        ("data_dir", "dataset", "--data_dir must be a path, got 'dataset'."),
        ("output_dir", Path("a\0b"), r"--output_dir must be a path without null characters, got 'a\x00b'."),
    ],
)
def test_a_value_out_of_its_limits_is_named_with_what_is_allowed(name, value, problem):
    with pytest.raises(ConfigError) as caught:
        Config(**{name: value})
    assert caught.value.problems == (problem,)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1),
        ("epochs", 1_000_000),
        ("momentum", 0),
        ("mixup_alpha", 0.0),
        ("weight_decay", 0),
        ("seed", 0),
        ("seed", 2**32 - 1),
        ("hflip", 0),
        ("hflip", 1.0),
        ("rotation_angle", 180),
        ("resolution", 224),
        ("stem", "stock"),
        ("num_workers", 0),
        ("device", "cuda:3"),
        ("device", "mps"),
        ("model_name", "é 1"),
    ],
)
def test_the_limits_themselves_are_allowed(name, value):
    assert getattr(Config(**{name: value}), name) == value


def test_a_number_beyond_the_floats_is_refused_like_infinity():
    with pytest.raises(ConfigError, match=r"^--lr must be a finite number, got 10+\.$"):
        Config(lr=10**400)


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Config(feed="disk", batch_size=0, weight_decay=nan, lr=0.0)
    assert str(caught.value).splitlines() == [
        "--batch_size must be at least 1, got 0.",
        "--lr must be above 0, got 0.",
        "--weight_decay must be a finite number, got nan.",
        "--feed must be one of auto, resident, streamed, got 'disk'.",
    ]


def test_bf16_and_reproducibility_mode_exclude_each_other():
    with pytest.raises(ConfigError) as caught:
        Config(precision="bf16", reproducible=True)
    assert str(caught.value) == (
        "--precision bf16 cannot be used with --reproducible, which computes in fp32; drop one."
    )


def test_a_config_is_frozen_and_a_copy_is_checked_again():
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.epochs = 5  # type: ignore[misc]
    assert replace(config, epochs=5).epochs == 5
    with pytest.raises(ConfigError, match="--epochs must be at least 1, got 0"):
        replace(config, epochs=0)


def test_a_config_is_json_in_the_order_of_its_declaration():
    values = Config(output_dir=Path("elsewhere")).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert list(values) == list(SETTINGS)
    assert values["output_dir"] == "elsewhere"
    assert values["lr"] == 0.008


@pytest.mark.parametrize(
    ("dataset", "is_path", "part"),
    [
        ("bloodmnist", False, "bloodmnist"),
        ("synthblood", False, "synthblood"),
        ("cells.npz", True, "cells"),
        ("data/cells.v2.npz", True, "cells.v2"),
        ("data/cells", True, "cells"),
    ],
)
def test_a_data_set_is_a_path_where_it_looks_like_one(dataset, is_path, part):
    config = Config(dataset=dataset)
    assert config.is_dataset_path is is_path
    assert config.dataset_part == part


@pytest.mark.parametrize(
    ("dataset", "resolution", "part"),
    [
        ("bloodmnist", 28, "bloodmnist"),
        ("bloodmnist", 64, "bloodmnist_64"),
        ("organamnist", 224, "organamnist_224"),
        ("cells.npz", 64, "cells"),
    ],
)
def test_the_run_folder_names_the_resolution_where_it_is_not_the_usual_one(dataset, resolution, part):
    assert Config(dataset=dataset, resolution=resolution).dataset_part == part


def test_the_run_folder_is_named_after_the_model_only_where_the_user_named_it():
    assert Config().model_part == "resnet18"
    assert Config(model_name="Mine").model_part == "Mine"


def test_importing_the_core_and_the_entry_point_imports_nothing_slow():
    program = (
        "import sys, main; "
        "print(sorted({'torch', 'numpy', 'psutil', 'matplotlib', 'pandas', 'requests'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_without_any_temp_folder_the_lock_is_at_home(monkeypatch):
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_lock_file() == Path(f"/home/somebody/medmnist_training_{os.getuid()}.lock")
