"""The adapted ResNet-18 keeps small images large, and torchvision's names; the stock one is torchvision's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from scripts.models.factory import BACKBONES, build_model
from scripts.models.resnet import STEMS, adapted_resnet18, build_resnet18, stock_resnet18


@pytest.mark.parametrize(("builder", "number"), [(adapted_resnet18, 11_172_936), (stock_resnet18, 11_180_616)])
def test_it_has_the_documented_number_of_parameters(builder, number):
    assert sum(parameter.numel() for parameter in builder(8, seed=0).parameters()) == number


def test_its_names_are_torchvisions():
    assert list(adapted_resnet18(1000, seed=0).state_dict()) == list(resnet18(weights=None).state_dict())


def test_the_stock_one_is_torchvisions_bit_for_bit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = resnet18(weights=None, num_classes=9).eval()
    model = build_resnet18(9, stem="stock", seed=7).eval()
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))

    assert str(model) == str(expected)
    assert list(model.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))


def sides_of_stages(stem: str, side: int) -> list[int]:
    """The side of what each of the four stages gives for an image of ``side`` pixels."""
    model, sides = build_resnet18(8, stem=stem, seed=0).eval(), []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    return sides


def test_the_adapted_stem_is_one_convolution():
    model = adapted_resnet18(8, seed=0)
    assert isinstance(model.maxpool, nn.Identity)
    assert model.conv1.bias is None


@pytest.mark.parametrize(
    ("stem", "side", "sides"),
    [
        ("adapted", 28, [28, 14, 7, 4]),
        ("adapted", 64, [64, 32, 16, 8]),
        ("stock", 64, [16, 8, 4, 2]),
        ("stock", 128, [32, 16, 8, 4]),
        ("stock", 224, [56, 28, 14, 7]),
    ],
)
def test_the_stages_see_what_the_stem_keeps_of_an_image(stem, side, sides):
    assert sides_of_stages(stem, side) == sides


@pytest.mark.parametrize("stem", STEMS)
def test_the_last_stage_is_a_single_point_up_to_the_stems_reduction_and_not_beyond(stem):
    reduction = STEMS[stem].reduction
    assert sides_of_stages(stem, reduction)[-1] == 1
    assert sides_of_stages(stem, reduction + 1)[-1] == 2


@pytest.mark.parametrize(("stem", "side"), [("adapted", 28), ("adapted", 64), ("stock", 128), ("stock", 224)])
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_loss_reaches_every_weight(name, stem, side):
    model = BACKBONES[name](7, stem=stem, seed=0)
    logits = model(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    F.cross_entropy(logits, torch.arange(2)).backward()

    assert logits.shape == (2, 7)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    orphans = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert not orphans


@pytest.mark.parametrize("stem", STEMS)
def test_the_seed_makes_the_weights_and_leaves_the_global_generator_alone(stem):
    before = torch.random.get_rng_state()
    first, second, other = (build_resnet18(8, stem=stem, seed=seed).state_dict() for seed in (1, 1, 2))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(("stem", "builder"), [("adapted", adapted_resnet18), ("stock", stock_resnet18)])
def test_no_weights_are_the_seeds_own(tmp_path, stem, builder):
    built = build_model(class_names="abcde", weights="none", data_dir=tmp_path, seed=3, stem=stem).state_dict()
    expected = builder(5, seed=3).state_dict()

    assert list(built) == list(expected)
    assert all(torch.equal(built[name], expected[name]) for name in expected)
