"""Grad-CAM finds what decides a class, with trained weights only, and makes maps of every backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.core.errors import ConfigError
from scripts.data_handler.augmentation import normalise, to_float
from scripts.data_handler.tasks import MULTI_LABEL_TASK, SINGLE_LABEL_TASK, Task
from scripts.evaluation.gradcam import GradCam
from scripts.evaluation.inference import Predictor
from scripts.models.backbones import BACKBONES
from scripts.models.factory import new_model

pytest.importorskip("captum", reason="Grad-CAM needs captum")

SIDE, PATCH = 28, 10  # pixels
Order = Callable[[Tensor], Tensor]
MEAN = STD = (0.5, 0.5, 0.5)


def striped_patches(count: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Black and white noise with one patch of stripes in a random place, whose direction is the class.

    Noise and patch have the same mean and spread, so nothing but the stripes shows where the patch is.

    Returns:
        uint8 images (N, H, W), classes (N,), and the rows and columns of the patches' corners (N, 2).
    """
    random = np.random.default_rng(seed)
    images = random.integers(0, 2, (count, SIDE, SIDE))
    labels = random.integers(0, 2, count)
    corners = random.integers(0, SIDE - PATCH + 1, (count, 2))
    for image, label, (row, column) in zip(images, labels, corners, strict=True):
        stripes = np.tile((np.arange(PATCH) // 2 + random.integers(2)) % 2, (PATCH, 1))
        image[row : row + PATCH, column : column + PATCH] = stripes if label else stripes.T
    return torch.from_numpy((images * 255).astype(np.uint8)), torch.from_numpy(labels), corners


def small_network() -> nn.Sequential:
    def stage(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()]

    features = nn.Sequential(*stage(3, 16), nn.MaxPool2d(2), *stage(16, 32), nn.MaxPool2d(2), *stage(32, 32))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


def predictor_of(model: nn.Module, *, task: Task = SINGLE_LABEL_TASK, precision: str = "fp32") -> Predictor:
    return Predictor(model=model.eval(), mean=MEAN, std=STD, task=task, precision=precision)


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    """A small network that knows the direction of the stripes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_network()
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(40):
            images, labels, _ = striped_patches(64, seed=1 + step)
            optimiser.zero_grad()
            F.cross_entropy(model(normalise(to_float(images), MEAN, STD)), labels).backward()
            optimiser.step()
    return model


def share_in_patch(model: nn.Module) -> float:
    """The share of new images in which the maximum of the true class's map is inside of the patch."""
    images, labels, corners = striped_patches(200, seed=0)
    heat = GradCam(predictor_of(model), (SIDE, SIDE))(images, labels).flatten(1).numpy()
    peaks = np.stack(np.unravel_index(heat.argmax(axis=1), (SIDE, SIDE)), axis=1)
    return float(((corners <= peaks) & (peaks < corners + PATCH)).all(axis=1).mean())


def test_the_maximum_is_in_the_patch_that_decides_the_class(trained: nn.Sequential):
    images, labels, _ = striped_patches(200, seed=0)
    assert (predictor_of(trained)(images)[0].argmax(dim=1) == labels).float().mean() > 0.95
    assert share_in_patch(trained) >= 0.95


def test_with_randomised_weights_it_is_not(trained: nn.Sequential):
    shares = []
    for seed in range(5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = copy.deepcopy(trained)
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                    module.reset_parameters()
        shares.append(share_in_patch(model))
    assert np.mean(shares) < 0.5


def test_a_map_is_the_formula_of_the_paper(trained: nn.Sequential):
    images, labels, _ = striped_patches(4, seed=3)
    maps = trained[0](normalise(to_float(images), MEAN, STD)).detach().requires_grad_()
    scores = trained[1:](maps)[torch.arange(4), labels]
    (gradients,) = torch.autograd.grad(scores.sum(), maps)
    heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, (SIDE, SIDE), mode="bilinear")[:, 0].detach()

    cam = GradCam(predictor_of(trained), (SIDE, SIDE))
    assert (cam.layer, cam.shape) == ("0", (32, 7, 7))
    torch.testing.assert_close(cam(images, labels), heat / heat.amax((1, 2), keepdim=True))


def test_a_class_that_no_place_supports_has_a_map_of_zeros(trained: nn.Sequential):
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.get_parameter("3.weight")[0] = -1  # every feature speaks against class 0
    images, _, _ = striped_patches(3, seed=0)
    assert (GradCam(predictor_of(model), (SIDE, SIDE))(images, torch.zeros(3, dtype=torch.int64)) == 0).all()


def test_a_run_in_bf16_is_explained_in_fp32(trained: nn.Sequential):
    images, labels, _ = striped_patches(3, seed=0)
    of_precision = [GradCam(predictor_of(trained, precision=name), (SIDE, SIDE)) for name in ("fp32", "bf16")]
    assert torch.equal(*(cam(images, labels) for cam in of_precision))
    assert torch.equal(*(cam.probabilities(images) for cam in of_precision))


def test_the_labels_of_one_image_are_explained_one_by_one(trained: nn.Sequential):
    cam = GradCam(predictor_of(trained, task=MULTI_LABEL_TASK), (SIDE, SIDE))
    images, _, _ = striped_patches(1, seed=0)
    first, second = cam(images[[0, 0]], torch.tensor([0, 1]))
    assert not torch.equal(first, second)
    assert torch.equal(cam(images, torch.tensor([1]))[0], second)
    torch.testing.assert_close(cam.probabilities(images), trained(normalise(to_float(images), MEAN, STD)).sigmoid())


def test_the_network_is_left_as_it_was(trained: nn.Sequential):
    model = copy.deepcopy(trained)
    model.zero_grad()
    images, labels, _ = striped_patches(3, seed=0)
    GradCam(predictor_of(model), (SIDE, SIDE))(images, labels)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Rearranged(nn.Module):
    """A network whose feature maps leave their layer in another order, as those of a transformer do."""

    def __init__(
        self, network: nn.Sequential, to: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.features, self.head, self.order, self.back = network[0], network[1:], _Function(to), back

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.back(self.order(self.features(images))))


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


def with_class_token(maps: Tensor) -> Tensor:
    tokens = maps.flatten(2).transpose(1, 2)
    return torch.cat((torch.ones_like(tokens[:, :1]), tokens), dim=1)


def without_class_token(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (7, 7))


@pytest.mark.parametrize(
    ("to", "back"),
    [
        (lambda maps: maps.permute(0, 2, 3, 1), lambda maps: maps.permute(0, 3, 1, 2)),
        (with_class_token, without_class_token),
    ],
    ids=["channels last", "tokens"],
)
def test_the_order_of_the_feature_maps_makes_no_difference(trained: nn.Sequential, to, back):
    images, labels, _ = striped_patches(5, seed=0)
    cam = GradCam(predictor_of(Rearranged(trained, to, back)), (SIDE, SIDE))
    assert (cam.layer, cam.shape) == ("order", (32, 7, 7))
    torch.testing.assert_close(cam(images, labels), GradCam(predictor_of(trained), (SIDE, SIDE))(images, labels))


def test_a_network_without_feature_maps_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    with pytest.raises(ConfigError, match="this network has none"):
        GradCam(predictor_of(model), (SIDE, SIDE))


def test_images_need_not_be_square(trained: nn.Sequential):
    cam = GradCam(predictor_of(trained), (20, 40))
    heat = cam(torch.randint(0, 256, (2, 20, 40), dtype=torch.uint8), torch.tensor([0, 1]))
    assert (cam.shape, heat.shape) == ((32, 5, 10), (2, 20, 40))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_explained(name: str):
    cam = GradCam(predictor_of(new_model(name, 3, seed=0)), (SIDE, SIDE))
    images = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    heat = cam(images, torch.tensor([0, 2]))

    assert heat.shape == (2, SIDE, SIDE)
    assert heat.isfinite().all()
    assert set(heat.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert heat.min() >= 0
    assert cam.shape[1:] >= (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv4_conv_small", "vit_tiny_patch16_224"])
def test_models_of_timm_are_explained(name: str):
    pytest.importorskip("timm", reason="timm is not installed")
    cam = GradCam(predictor_of(new_model(f"timm/{name}", 3, seed=0)), (SIDE, SIDE))
    heat = cam(torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8), torch.tensor([1]))
    assert heat.shape == (1, SIDE, SIDE)
    assert heat.isfinite().all()
