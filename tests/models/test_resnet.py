"""The adapted ResNet-18 keeps small pictures large, and torchvision's names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from scripts.models.factory import BACKBONES, build_model
from scripts.models.resnet import adapted_resnet18


def test_it_has_the_documented_number_of_parameters():
    assert sum(parameter.numel() for parameter in adapted_resnet18(8, seed=0).parameters()) == 11_172_936


def test_its_names_are_torchvisions():
    assert list(adapted_resnet18(1000, seed=0).state_dict()) == list(resnet18(weights=None).state_dict())


def test_the_stages_see_28_pixels():
    model = adapted_resnet18(8, seed=0).eval()
    sides = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: sides.update({name: out.shape[-1]}))

    with torch.no_grad():
        model(torch.zeros(1, 3, 28, 28))

    assert sides == {"layer1": 28, "layer2": 14, "layer3": 7, "layer4": 4}
    assert isinstance(model.maxpool, nn.Identity)
    assert model.conv1.bias is None


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_loss_reaches_every_weight(name):
    model = BACKBONES[name](7, seed=0)
    logits = model(torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)))
    F.cross_entropy(logits, torch.arange(4)).backward()

    assert logits.shape == (4, 7)
    orphans = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not orphans


def test_the_seed_makes_the_weights_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (adapted_resnet18(8, seed=seed).state_dict() for seed in (1, 1, 2))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_no_weights_are_the_seeds_own(tmp_path):
    built = build_model(num_classes=5, weights="none", data_dir=tmp_path, seed=3).state_dict()
    expected = adapted_resnet18(5, seed=3).state_dict()

    assert all(torch.equal(built[name], expected[name]) for name in expected)
