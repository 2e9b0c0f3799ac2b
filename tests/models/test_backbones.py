"""Every backbone trains at 28 pixels with its adapted stem, saves, reloads, and is refused or suggested by name."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model, get_model_weights

from benchmarks.backbones import giga_products
from scripts.core.config import DEFAULT_MODEL_NAME, SETTINGS, Config
from scripts.core.resume import names_backbone
from scripts.models.backbones import BACKBONES, STEMS, backbone_problems, default_model_name, find_backbone
from scripts.models.factory import head_name, new_model, normalisation, outline, refusal, set_dropout
from scripts.models.stem import fit_to_images
from tests.conftest import InProcess, Npz

REQUIRED = [
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "swin_v2_t",
]
SMALL = (28, 28)


def test_the_backbones_of_the_contract_are_there():
    assert list(BACKBONES) == REQUIRED


@pytest.mark.parametrize("name", BACKBONES)
def test_the_loss_reaches_every_weight(name):
    model = new_model(name, 7, seed=0)
    logits = model(torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)))
    F.cross_entropy(logits, torch.arange(2)).backward()

    assert logits.shape == (2, 7)
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", BACKBONES)
def test_its_names_are_torchvisions(name, stem):
    with torch.device("meta"):
        published = get_model(name, num_classes=5)
    ours = outline(name, stem=stem, sides=SMALL, num_classes=5)
    assert list(ours.state_dict()) == list(published.state_dict())
    if stem == "stock":
        assert str(ours) == str(published)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_record_names_the_layers_that_it_is_about(name):
    backbone, model = BACKBONES[name], outline(name, stem="stock", sides=SMALL, num_classes=5)
    convolutions = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    linear = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = model.get_submodule(backbone.head)

    assert convolutions[0] == backbone.conv
    assert head_name(name) == linear[-1] == backbone.head
    assert isinstance(head, nn.Linear)
    assert head.out_features == 5
    pools = [key for key, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    assert pools == ([backbone.pool] if backbone.pool else [])


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
@pytest.mark.parametrize("stem", STEMS)
def test_the_seed_makes_the_weights_and_leaves_the_global_generator_alone(name, stem):
    before = torch.random.get_rng_state()
    first, second, other = (new_model(name, 3, stem=stem, seed=seed).state_dict() for seed in (1, 1, 2))
    refusal(outline(name, stem=stem, sides=SMALL), 2, SMALL)

    backbone = BACKBONES[name]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key in (f"{backbone.conv}.weight", f"{backbone.head}.weight"):
        assert not torch.equal(first[key], other[key])


def test_the_stock_one_is_torchvisions_bit_for_bit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = get_model("resnet18", num_classes=9).state_dict()
    ours = new_model("resnet18", 9, stem="stock", seed=7).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", BACKBONES)
def test_new_kernels_are_drawn_as_the_published_ones_are(name):
    """Their standard deviation follows the published rule; where it depends on the side, it is that of the new side."""
    backbone = BACKBONES[name]
    ours = new_model(name, 2, seed=0).get_submodule(backbone.conv)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        published = get_model(name, num_classes=2).get_submodule(backbone.conv)
    assert isinstance(ours, nn.Conv2d)
    assert isinstance(published, nn.Conv2d)

    ratio = 1.0 if name == "convnext_tiny" else published.kernel_size[0] / ours.kernel_size[0]
    assert float(ours.weight.detach().std() / published.weight.detach().std()) == pytest.approx(ratio, rel=0.1)


# as the comment beside MAX_ADAPTED_SIDE and the documentation state them
@pytest.mark.parametrize(
    ("stem", "side", "giga"),
    [
        ("adapted", 28, 0.46),
        ("adapted", 64, 2.2),
        ("adapted", 128, 8.9),
        ("stock", 28, 0.034),
        ("stock", 128, 0.59),
        ("stock", 224, 1.8),
    ],
)
def test_the_costs_are_those_that_are_documented(stem, side, giga):
    model = outline("resnet18", stem=stem, sides=(side, side), num_classes=8)
    assert float(f"{giga_products(model, side):.2g}") == giga


@pytest.mark.parametrize(("stem", "number"), [("adapted", 11_172_936), ("stock", 11_180_616)])
def test_a_resnet18_has_the_documented_number_of_parameters(stem, number):
    model = outline("resnet18", stem=stem, sides=SMALL, num_classes=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.parametrize("name", BACKBONES)
def test_images_are_normalised_as_the_published_weights_expect(name):
    assert normalisation(name) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    url = get_model_weights(name)[BACKBONES[name].weights].url
    assert len(url.rpartition("-")[2].removesuffix(".pth")) == 8


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", []),
        ("densenet121", []),
        ("mobilenet_v3_large", ["classifier.2"]),
        ("efficientnet_b0", ["classifier.0"]),
        ("efficientnet_v2_s", ["classifier.0"]),
        ("convnext_tiny", []),
        ("swin_v2_t", []),
    ],
)
def test_dropout_is_the_backbones_own_layer_or_a_hook_and_no_name_changes(name, layers):
    plain, model = (outline(name, stem="adapted", sides=SMALL) for _ in range(2))
    set_dropout(model, find_backbone(name), 0.35)

    changed = [key for key, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p == 0.35]
    assert changed == layers
    assert list(model.state_dict()) == list(plain.state_dict())
    assert len(model.get_submodule(head_name(name))._forward_pre_hooks) == (0 if layers else 1)


@pytest.mark.parametrize("is_copy", [False, True])
def test_dropout_drops_inputs_of_the_head_in_training_only(is_copy):
    model = new_model("resnet18", 4, seed=0)
    seen: list[torch.Tensor] = []
    set_dropout(model, find_backbone("resnet18"), 0.5)
    model = copy.deepcopy(model) if is_copy else model  # as the average of weights is
    model.get_submodule("fc").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for is_training in (True, False):
            model.train(is_training)(images)

    dropped = [float((inputs == 0).float().mean()) for inputs in seen]
    assert 0.35 < dropped[0] < 0.75
    assert dropped[1] < 0.3


def test_without_dropout_a_backbone_stays_as_its_authors_made_it():
    model = outline("efficientnet_b0", stem="adapted", sides=SMALL)
    set_dropout(model, find_backbone("efficientnet_b0"), 0)
    classifier = model.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    assert classifier[0].p == 0.2


def test_what_a_model_cannot_train_on_is_found_before_training():
    resnet = outline("resnet18", stem="adapted", sides=(8, 8))
    assert refusal(resnet, 2, (8, 8)) is None
    assert "more than 1 value per channel" in str(refusal(resnet, 1, (8, 8)))
    assert refusal(resnet, 1, (9, 9)) is None
    assert "Kernel size" in str(refusal(outline("convnext_tiny", stem="stock", sides=SMALL), 2, SMALL))


def test_the_help_names_every_backbone():
    about = SETTINGS["backbone"].metadata["help"]
    assert about.startswith(f"Architecture: {', '.join(BACKBONES)}, or 'timm/NAME'")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_default_name_is_recognised_as_that_of_its_backbone(name):
    for stem in STEMS:
        assert names_backbone(default_model_name(BACKBONES[name], stem), name)


def test_models_are_named_after_their_backbone():
    assert default_model_name(BACKBONES["resnet18"], "adapted") == DEFAULT_MODEL_NAME
    assert default_model_name(BACKBONES["convnext_tiny"], "adapted") == "ConvNeXt-Tiny Adapted"
    assert default_model_name(BACKBONES["swin_v2_t"], "stock") == "SwinV2-T"
    assert len({backbone.title for backbone in BACKBONES.values()}) == len(BACKBONES)


def problems(name: str) -> list[str]:
    return list(backbone_problems(Config(backbone=name)))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_accepted(name):
    assert problems(name) == []


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet-18", " Did you mean resnet18?"),
        ("convnext", " Did you mean convnext_tiny?"),
        ("swin_v2", " Did you mean swin_v2_t?"),
        ("ResNet18", " Did you mean resnet18?"),
        ("zzz", ""),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, suggestion):
    assert problems(name) == [
        f"--backbone must be one of {', '.join(BACKBONES)}, or timm/NAME, got {name!r}.{suggestion}"
    ]


def test_a_wrong_name_ends_with_2_beside_the_other_problems(in_process: InProcess):
    done = in_process("--backbone", "resnet19", "--dataset", "bloodmist")

    assert done.returncode == 2
    assert "got 'resnet19'. Did you mean resnet18?" in done.stderr
    assert "bloodmist" in done.stderr


def test_without_timm_its_models_end_with_2_and_the_pip_command(in_process: InProcess, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("scripts.core.optional.find_spec", lambda name: None if name == "timm" else find_spec(name))
    done = in_process("--backbone", "timm/resnet10t", "--dataset", "synthblood")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --backbone timm/resnet10t needs the package timm, which is not installed here. Install it: pip install "
        "timm\n"
    )


@pytest.mark.usefixtures("no_reports")
def test_images_that_a_backbone_cannot_process_end_with_2(in_process: InProcess, make_npz: Npz):
    done = in_process("--backbone", "densenet121", "--dataset", make_npz(side=6), "--weights", "none")

    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: --backbone densenet121 cannot be trained on images of 6 × 6 pixels and the adapted stem ("
    )


def test_fitting_is_a_matter_of_the_stem_alone():
    """The stock stem leaves a model of torchvision alone, whatever the size of the images."""
    with torch.device("meta"):
        model = get_model("swin_v2_t", num_classes=3)
    before = str(model)
    fit_to_images(model, BACKBONES["swin_v2_t"], "stock", SMALL, new=False)
    assert str(model) == before
