import dataclasses

import pytest
from medmnist.info import INFO, __version__

from scripts.core.config import Config
from scripts.data_handler.registry import DATASET_REGISTRY, VOLUMES, dataset_problems

OFFICIAL_2D = [key for key in INFO if not key.endswith("3d")]
CHOICES = (
    "Choose one of: pathmnist, chestmnist, dermamnist, octmnist, pneumoniamnist, retinamnist, breastmnist, "
    "bloodmnist, tissuemnist, organamnist, organcmnist, organsmnist, synthblood, or the path of an .npz file."
)


def problems_of(name: str) -> list[str]:
    return list(dataset_problems(Config(dataset=name)))


def test_the_registry_has_the_twelve_2d_sets_in_the_official_order():
    assert __version__ == "3.0.2"
    assert list(DATASET_REGISTRY) == OFFICIAL_2D
    assert len(OFFICIAL_2D) == 12


@pytest.mark.parametrize("key", OFFICIAL_2D)
def test_every_fact_is_the_official_one(key):
    info, official = DATASET_REGISTRY[key], INFO[key]
    assert info.key == key
    assert info.title == official["python_class"]
    assert info.task == official["task"]
    assert info.channels == official["n_channels"]
    assert {str(index): name for index, name in enumerate(info.class_names)} == official["label"]
    assert dict(info.num_samples) == official["n_samples"]
    assert info.md5 == official["MD5"]
    assert info.url == official["url"]


def test_the_volumes_are_the_official_ones():
    assert list(VOLUMES) == [key for key in INFO if key.endswith("3d")]


def test_the_registry_cannot_be_changed():
    info = DATASET_REGISTRY["bloodmnist"]
    with pytest.raises(TypeError):
        DATASET_REGISTRY["mine"] = info  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.md5 = "0" * 32  # type: ignore[misc]
    with pytest.raises(TypeError):
        info.num_samples["train"] = 1  # type: ignore[index]


@pytest.mark.parametrize("name", OFFICIAL_2D)
def test_all_twelve_sets_are_accepted(name):
    assert problems_of(name) == []


@pytest.mark.parametrize("name", ["synthblood", "mine.npz", "folder/chestmnist", "./bloodmnst"])
def test_what_is_drawn_or_named_by_path_is_accepted(name):
    assert problems_of(name) == []


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("bloodmnst", "Unknown --dataset 'bloodmnst'. Did you mean 'bloodmnist'? "),
        ("BloodMNIST", "Unknown --dataset 'BloodMNIST'. Did you mean 'bloodmnist'? "),
        ("synthblod", "Unknown --dataset 'synthblod'. Did you mean 'synthblood'? "),
        ("zzz", "Unknown --dataset 'zzz'. "),
        ("", "Unknown --dataset ''. "),
        ("organmnist3d", "--dataset organmnist3d is a set of 3D volumes; only 2D images are supported. "),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_choices(name, beginning):
    assert problems_of(name) == [beginning + CHOICES]
