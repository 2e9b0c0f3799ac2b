import dataclasses

import pytest
from medmnist.info import INFO, __version__

from scripts.core.config import Config
from scripts.data_handler.registry import DATASET_REGISTRY, VOLUMES, dataset_problems
from tests.conftest import PROJECT_ROOT

OFFICIAL_2D = [key for key in INFO if not key.endswith("3d")]
CHOICES = (
    "Choose one of: pathmnist, chestmnist, dermamnist, octmnist, pneumoniamnist, retinamnist, breastmnist, "
    "bloodmnist, tissuemnist, organamnist, organcmnist, organsmnist, synthblood, or the path of an .npz file."
)


SIZES = (28, 64, 128, 224)
# listed explicitly: everything else shows a part of a body, whose left is not its right
ORIENTATION_FREE = {"bloodmnist", "pathmnist", "dermamnist", "tissuemnist"}


def problems_of(name: str, resolution: int = 28) -> list[str]:
    return list(dataset_problems(Config(dataset=name, resolution=resolution)))


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", OFFICIAL_2D)
def test_every_file_has_the_official_checksum_address_and_name(key, size):
    info, official, ending = DATASET_REGISTRY[key], INFO[key], "" if size == 28 else f"_{size}"
    assert info.md5s[size] == official[f"MD5{ending}"]
    assert info.url(size) == official[f"url{ending}"]
    assert info.file_name(size) == f"{key}{ending}.npz"


@pytest.mark.parametrize("key", OFFICIAL_2D)
def test_every_published_size_is_there_and_no_other(key):
    published = {28, *(int(name.removeprefix("MD5_")) for name in INFO[key] if name.startswith("MD5_"))}
    assert set(DATASET_REGISTRY[key].md5s) == published == set(SIZES)


def test_the_sets_without_a_left_and_a_right_are_those_four():
    assert {key for key, info in DATASET_REGISTRY.items() if info.orientation_free} == ORIENTATION_FREE


def test_where_a_class_is_a_side_there_is_a_left_and_a_right():
    for key, info in DATASET_REGISTRY.items():
        names_a_side = any(name.endswith(("-left", "-right")) for name in info.class_names)
        assert not (names_a_side and info.orientation_free), key


def test_the_volumes_are_the_official_ones():
    assert list(VOLUMES) == [key for key in INFO if key.endswith("3d")]


def test_the_registry_cannot_be_changed():
    info = DATASET_REGISTRY["bloodmnist"]
    with pytest.raises(TypeError):
        DATASET_REGISTRY["mine"] = info  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.files_url = "http://127.0.0.1"  # type: ignore[misc]
    with pytest.raises(TypeError):
        info.num_samples["train"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        info.md5s[28] = "0" * 32  # type: ignore[index]


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
        (
            "organmnist3d",
            "--dataset organmnist3d is a set of 3D volumes at every --resolution; only 2D images are supported. ",
        ),
        (
            "OrganMNIST3D",
            "--dataset OrganMNIST3D is a set of 3D volumes at every --resolution; only 2D images are supported. ",
        ),
        (
            "synapsemnist3d_64",
            "--dataset synapsemnist3d_64 is a set of 3D volumes at every --resolution; only 2D images are supported. ",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_choices(name, beginning):
    assert problems_of(name) == [beginning + CHOICES]


@pytest.mark.parametrize("key", VOLUMES)
def test_volumes_are_refused_at_their_larger_size_too(key):
    assert problems_of(key, 64) == [
        f"--dataset {key} is a set of 3D volumes at every --resolution; only 2D images are supported. {CHOICES}"
    ]


@pytest.mark.parametrize("size", SIZES)
def test_the_sets_are_accepted_at_every_published_size(size):
    assert problems_of("bloodmnist", size) == problems_of("organsmnist", size) == []


@pytest.mark.parametrize(
    ("name", "what"),
    [("synthblood", "--dataset synthblood"), ("cells.npz", "a file of your own")],
)
def test_a_set_of_one_size_has_no_resolution_to_choose(name, what):
    assert problems_of(name, 64) == [
        f"--resolution 64 cannot be used with {what}: only the MedMNIST sets are published in several sizes. Leave "
        "--resolution out, and the images are taken as they are."
    ]
    assert problems_of(name, 28) == []


@pytest.mark.parametrize("name", ["bloodmnist_64", "BloodMNIST_64"])
def test_the_name_of_a_file_is_understood_as_a_set_and_its_resolution(name):
    assert problems_of(name) == [f"Unknown --dataset {name!r}. Did you mean --dataset bloodmnist --resolution 64?"]


DOCUMENTED = (PROJECT_ROOT / "docs/datasets.md").read_text()


@pytest.mark.parametrize("key", OFFICIAL_2D)
def test_the_documentation_states_the_facts_of_the_registry(key):
    info = DATASET_REGISTRY[key]
    counts = [info.num_samples[split] for split in ("train", "val", "test")]
    facts: list[str] = [
        f"`{key}`",
        info.title,
        info.task,
        str(len(info.class_names)),
        "grey" if info.channels == 1 else "RGB",
        " / ".join(f"{count:,}" for count in counts),
        "free" if info.orientation_free else "fixed",
        str(INFO[key]["license"]),
    ]
    megabytes: list[str] = [f"{sum(counts) * size**2 * info.channels / 1e6:,.1f}" for size in SIZES]
    for cells in (facts, [f"`{key}`", f"{sum(counts):,}", *megabytes]):
        assert f"| {' | '.join(cells)} |\n" in DOCUMENTED


def test_the_documentation_names_the_volumes():
    assert all(f"`{key}`" in DOCUMENTED for key in VOLUMES)
