"""2D networks turned into networks for volumes: compared with single 3D convolutions and with the 2D network itself."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.models.backbones import BACKBONES, build_published, find_backbone
from scripts.models.stem import fit_to_images
from scripts.models.volumes import CONVOLUTIONS, VolumeConv, thirds, to_volumes

CONVOLUTIONAL = [name for name in BACKBONES if name != "swin_v2_t"]


def random_conv(seed: int) -> tuple[nn.Conv2d, Tensor]:
    """A convolution of random size, stride, padding, dilation and groups, and volumes for it."""
    torch.manual_seed(seed)

    def choose(*values: int) -> int:
        return values[int(torch.randint(len(values), ()))]

    kernel, groups = choose(1, 2, 3, 4, 5, 7), choose(1, 1, 2, 6)
    channels, outputs = groups * choose(1, 2, 3), groups * choose(1, 2, 4, 5)
    conv = nn.Conv2d(
        channels,
        outputs,
        kernel,
        stride=choose(1, 2, 3),
        padding=choose(0, kernel // 2),
        dilation=choose(1, 2) if kernel <= 3 else 1,
        groups=groups,
        bias=bool(choose(0, 1)),
    )
    return conv.double(), torch.randn(2, channels, choose(9, 10), choose(8, 11), choose(7, 12), dtype=torch.float64)


def as_one_kernel(conv: nn.Conv2d) -> Tensor:
    """The k × k × k kernels that are zero but for their centre slice, from the formula of the paper."""
    outputs, inputs, k, _ = conv.weight.shape
    dense = torch.zeros(outputs, inputs, k, k, k, dtype=conv.weight.dtype)
    groups = conv.groups if conv.groups > 1 else outputs
    q, r = divmod(groups, 3)
    axial, coronal = q + (r >= 1), q + (r == 2)
    centre = (k - 1) // 2
    for channel in range(outputs):
        group = channel * groups // outputs
        kernel = conv.weight.detach()[channel]
        if group < axial:
            dense[channel, :, centre] = kernel
        elif group < axial + coronal:
            dense[channel, :, :, centre] = kernel
        else:
            dense[channel, :, :, :, centre] = kernel
    return dense


@pytest.mark.parametrize("seed", range(60))
def test_acs_equals_one_convolution_with_flat_kernels(seed: int):
    conv, volumes = random_conv(seed)
    expected = F.conv3d(
        volumes, as_one_kernel(conv), conv.bias, conv.stride[0], conv.padding[0], conv.dilation[0], conv.groups
    )
    found = VolumeConv(conv, "acs")(volumes)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("count", "parts"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (64, (22, 21, 21))])
def test_output_channels_are_divided_as_in_the_paper(count: int, parts: tuple[int, int, int]):
    assert thirds(count) == parts


@pytest.mark.parametrize(("kind", "kernel", "stride"), [*itertools.product(CONVOLUTIONS, (1, 3, 7), (1, 2))])
def test_volumes_that_are_constant_in_depth_give_what_the_image_gives(kind: str, kernel: int, stride: int):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, kernel, stride, padding=kernel // 2).double()
    images = torch.randn(2, 3, 14, 14, dtype=torch.float64)
    expected = conv(images)
    found = VolumeConv(conv, kind)(images.unsqueeze(2).expand(-1, -1, 28, -1, -1))
    middle = found[:, :, found.shape[2] // 2]
    own = slice(0, thirds(6)[0]) if kind == "acs" and kernel > 1 else slice(None)  # the axial kernels of acs
    torch.testing.assert_close(middle[:, own], expected[:, own])


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_grey_volume_gives_what_three_equal_channels_give(kind: str):
    torch.manual_seed(0)
    conv = VolumeConv(nn.Conv2d(3, 5, 3, padding=1), kind)
    grey = torch.randn(2, 1, 6, 6, 6)
    torch.testing.assert_close(conv(grey), conv(grey.expand(-1, 3, -1, -1, -1)))


def small_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_published(name, 4)
    fit_to_images(model, find_backbone(name), "adapted", (28, 28), new=True)
    return model


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_convolutional_backbone_takes_volumes(name: str, kind: str):
    with torch.device("meta"):
        model = small_network(name)
        to_volumes(model, kind)
        assert model(torch.zeros(2, 1, 28, 28, 28)).shape == (2, 4)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_large"])
@pytest.mark.parametrize("kind", ["acs", "2.5d"])
def test_a_2d_state_dict_fits_unchanged(name: str, kind: str):
    with torch.device("meta"):
        image_network, volume_network = small_network(name), small_network(name)
        to_volumes(volume_network, kind)
    own, other = image_network.state_dict(), volume_network.state_dict()
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in other.items()}


def test_an_inflated_network_gives_the_logits_of_the_2d_network_on_constant_volumes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()
    ).eval()
    images = torch.randn(4, 3, 10, 10)
    expected = model(images)
    to_volumes(model, "3d")
    depth = 200  # so that the two planes at the border hardly count
    found = model(images.unsqueeze(2).expand(-1, -1, depth, -1, -1))
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / depth)


def test_what_is_not_convolutional_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="attends to the places of an image"):
        to_volumes(small_network("swin_v2_t"), "acs")
    with pytest.raises(ValueError, match="has no counterpart for volumes"):
        VolumeConv(nn.Conv2d(3, 4, (3, 1)), "acs")
