"""Weights are taken from the requested place, checked, and carried over as documented."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from scripts.core.errors import DataError
from scripts.models import factory
from scripts.models.factory import build_model
from scripts.models.resnet import STEMS, adapted_resnet18, stock_resnet18, transfer_stem
from scripts.models.weights import (
    IMAGENET_CLASSES,
    IMAGENET_URL,
    fetch_imagenet_weights,
    imagenet_weights_file,
    load_best_weights,
    load_weights,
    read_state_dict,
)

NAMES = ("basophil", "eosinophil", "erythroblast", "granulocyte", "lymphocyte", "monocyte", "neutrophil", "platelet")


def toy_network(num_classes: int, *, stem: str = "adapted", seed: int) -> nn.Sequential:
    """A network of a few parameters with a stem, a batch normalisation and an ``fc`` of ResNet-18's names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv1 = nn.Conv2d(3, 64, STEMS[stem].kernel, bias=False)
        return nn.Sequential(OrderedDict(conv1=conv1, bn1=nn.BatchNorm2d(64), fc=nn.Linear(64, num_classes)))


@pytest.fixture
def _toy_backbone(monkeypatch):
    monkeypatch.setattr(factory, "BACKBONES", {"resnet18": toy_network})


def load(model: nn.Module, state: dict[str, torch.Tensor], *, origin: str) -> str:
    """Load weights of the same class names."""
    return load_weights(model, state, class_names=NAMES, earlier_names=NAMES, origin=origin)


@pytest.fixture(scope="module")
def torchvision_state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet18(weights=None).state_dict()


def test_a_7x7_stem_is_transferred_and_the_rest_copied(torchvision_state):
    model = adapted_resnet18(8, seed=0)
    new_head = model.fc.weight.clone()

    summary = load(model, torchvision_state, origin="resnet18.pth")

    assert summary == "7×7 stem transferred to 3×3, fc new, for 8 classes"
    assert torch.equal(model.conv1.weight, transfer_stem(torchvision_state["conv1.weight"]))
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], torchvision_state["layer4.1.conv2.weight"])
    assert torch.equal(model.fc.weight, new_head)
    assert torchvision_state["conv1.weight"].shape == (64, 3, 7, 7)  # the caller's is left as it was


def test_a_stock_model_takes_torchvisions_stem_as_it_is(torchvision_state):
    model = stock_resnet18(8, seed=1)
    new_head = model.fc.weight.clone()

    summary = load(model, torchvision_state, origin="resnet18.pth")

    assert summary == "7×7 stem taken as it is, fc new, for 8 classes"
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in torchvision_state.items() if name[:3] != "fc.")
    assert torch.equal(model.fc.weight, new_head)


@pytest.mark.usefixtures("_toy_backbone")
def test_a_3x3_stem_does_not_make_a_7x7_one(tmp_path):
    torch.save(toy_network(8, seed=1).state_dict(), tmp_path / "best_model.pth")
    weights = str(tmp_path / "best_model.pth")

    with pytest.raises(DataError) as caught:
        build_model(class_names=NAMES, weights=weights, data_dir=tmp_path, seed=0, stem="stock")

    assert str(caught.value) == (
        f"--weights {weights} have the 3×3 stem of --stem adapted, which does not make the 7×7 one of --stem stock. "
        "Add --stem adapted, or take weights with a 7×7 stem."
    )


@pytest.mark.usefixtures("_toy_backbone")
def test_a_run_with_the_7x7_stem_can_start_one_with_the_3x3_stem(tmp_path):
    earlier = toy_network(8, stem="stock", seed=1)
    torch.save(earlier.state_dict(), tmp_path / "best_model.pth")

    model = build_model(
        class_names=NAMES, weights=str(tmp_path / "best_model.pth"), data_dir=tmp_path, seed=0, stem="adapted"
    )

    assert torch.equal(model.state_dict()["conv1.weight"], transfer_stem(earlier.state_dict()["conv1.weight"]))
    assert torch.equal(model.state_dict()["fc.weight"], earlier.state_dict()["fc.weight"])


@pytest.mark.parametrize("builder", [adapted_resnet18, stock_resnet18])
def test_a_stem_of_neither_kind_is_another_architecture(builder):
    unexpected = builder(8, seed=0).state_dict() | {"conv1.weight": torch.zeros(64, 3, 5, 5)}
    kernel = builder(8, seed=0).conv1.kernel_size[0]
    with pytest.raises(DataError) as caught:
        load(builder(8, seed=0), unexpected, origin="five.pth")
    assert f"'conv1.weight' has shape (64, 3, 5, 5) instead of (64, 3, {kernel}, {kernel})" in str(caught.value)


@pytest.mark.parametrize(
    ("stem", "summary"), [("adapted", "7×7 stem transferred to 3×3"), ("stock", "7×7 stem taken as it is")]
)
def test_imagenets_weights_serve_both_stems(tmp_path, monkeypatch, torchvision_state, caplog, stem, summary):
    torch.save(torchvision_state, tmp_path / "resnet18.pth")
    monkeypatch.setattr("scripts.models.factory.fetch_imagenet_weights", lambda _: tmp_path / "resnet18.pth")
    with caplog.at_level("INFO"):
        build_model(class_names=NAMES, weights="imagenet", data_dir=tmp_path, seed=0, stem=stem)

    number = {"adapted": "11,172,936", "stock": "11,180,616"}[stem]
    assert caplog.messages == [
        f"model resnet18: {number} parameters, {stem} stem, weights imagenet ({summary}, fc new, for 8 classes)"
    ]


@pytest.mark.parametrize(
    ("builder", "stem"), [(adapted_resnet18, "3×3 stem"), (stock_resnet18, "7×7 stem")], ids=["adapted", "stock"]
)
def test_an_earlier_run_is_taken_as_it_is(tmp_path, builder, stem):
    earlier, model = builder(8, seed=1), builder(8, seed=2)
    torch.save(earlier.state_dict(), tmp_path / "best_model.pth")

    summary = load(model, read_state_dict(tmp_path / "best_model.pth"), origin="best_model.pth")

    assert summary == f"{stem} taken as it is, fc kept (same class names)"
    assert all(torch.equal(value, earlier.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_head_for_another_number_of_classes_stays_new():
    model = toy_network(8, seed=2)
    new_head = model.state_dict()["fc.weight"].clone()

    assert load(model, toy_network(9, seed=1).state_dict(), origin="x").endswith("fc new, for 8 classes")
    assert torch.equal(model.state_dict()["fc.weight"], new_head)


SWAPPED = (NAMES[1], NAMES[0], *NAMES[2:])


@pytest.mark.parametrize(
    ("card", "is_kept", "summary"),
    [
        ({"class_names": NAMES}, True, "fc kept (same class names)"),
        ({"class_names": SWAPPED}, False, "fc new, for 8 classes with other names"),
        ({"class_names": NAMES[:7]}, False, "fc new, for 8 classes with other names"),
        ({"class_names": 8}, True, "fc kept (class names unknown)"),
        ({"stem": "adapted"}, True, "fc kept (class names unknown)"),
        ([], True, "fc kept (class names unknown)"),
        (None, True, "fc kept (class names unknown)"),
    ],
)
@pytest.mark.usefixtures("_toy_backbone")
def test_fc_is_kept_for_the_same_class_names_only(tmp_path, caplog, card, is_kept, summary):
    earlier = toy_network(8, seed=1)
    torch.save(earlier.state_dict(), tmp_path / "best_model.pth")
    if card is not None:
        (tmp_path / "best_model.json").write_text(json.dumps(card), encoding="utf-8")
    weights = str(tmp_path / "best_model.pth")
    with caplog.at_level("INFO"):
        model = build_model(class_names=NAMES, weights=weights, data_dir=tmp_path, seed=2)

    state, new = model.state_dict(), toy_network(8, seed=2).state_dict()
    expected = earlier.state_dict() if is_kept else new
    assert torch.equal(state["fc.weight"], expected["fc.weight"])
    assert torch.equal(state["fc.bias"], expected["fc.bias"])
    assert torch.equal(state["conv1.weight"], earlier.state_dict()["conv1.weight"])
    assert caplog.messages[-1].endswith(f"weights {weights} (3×3 stem taken as it is, {summary})")


@pytest.mark.parametrize(("names", "is_kept"), [(IMAGENET_CLASSES, True), (IMAGENET_CLASSES[::-1], False)])
@pytest.mark.usefixtures("_toy_backbone")
def test_imagenets_own_fc_is_kept_for_its_own_classes_only(tmp_path, monkeypatch, names, is_kept):
    imagenet = toy_network(1000, seed=0).state_dict()
    torch.save(imagenet, tmp_path / "resnet18.pth")
    monkeypatch.setattr("scripts.models.factory.fetch_imagenet_weights", lambda _: tmp_path / "resnet18.pth")

    model = build_model(class_names=names, weights="imagenet", data_dir=tmp_path, seed=1)

    assert torch.equal(model.state_dict()["fc.weight"], imagenet["fc.weight"]) is is_kept


def test_the_best_weights_are_read_back_completely(tmp_path):
    best, model = toy_network(3, seed=1), toy_network(3, seed=2)
    torch.save(best.state_dict(), tmp_path / "best_model.pth")

    load_best_weights(model, tmp_path / "best_model.pth")

    assert all(torch.equal(value, best.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("lost", ["fc.weight", "fc.bias", "bn1.num_batches_tracked", "conv1.weight"])
def test_best_weights_that_lack_a_tensor_are_refused(tmp_path, lost):
    state = toy_network(3, seed=1).state_dict()
    del state[lost]
    torch.save(state, tmp_path / "best_model.pth")
    model = toy_network(3, seed=2)
    before = model.state_dict()["fc.weight"].clone()

    with pytest.raises(DataError) as caught:
        load_best_weights(model, tmp_path / "best_model.pth")

    assert str(caught.value) == (
        f"The best weights {tmp_path / 'best_model.pth'} are not of this run's model: "
        f"1 tensors are missing, such as '{lost}'."
    )
    assert torch.equal(model.state_dict()["fc.weight"], before)


def test_best_weights_for_other_classes_or_missing_are_refused(tmp_path):
    torch.save(toy_network(4, seed=1).state_dict(), tmp_path / "best_model.pth")
    with pytest.raises(DataError, match=r"'fc.bias' has shape \(4,\) instead of \(3,\)"):
        load_best_weights(toy_network(3, seed=2), tmp_path / "best_model.pth")
    with pytest.raises(DataError, match="found nothing there"):
        load_best_weights(toy_network(3, seed=2), tmp_path / "missing.pth")


def test_files_without_batch_counters_are_taken(torchvision_state):
    old = {name: value for name, value in torchvision_state.items() if not name.endswith("num_batches_tracked")}

    assert len(old) == 102
    load(adapted_resnet18(8, seed=0), old, origin="old.pth")


def test_another_architecture_is_refused_with_its_first_difference():
    unexpected = {"features.0.weight": torch.zeros(3), **adapted_resnet18(8, seed=0).state_dict()}
    del unexpected["layer1.0.conv1.weight"], unexpected["layer1.0.conv2.weight"]
    unexpected["layer2.0.conv1.weight"] = torch.zeros(1, 1)

    with pytest.raises(DataError) as caught:
        load(adapted_resnet18(8, seed=0), unexpected, origin="vgg.pth")

    assert str(caught.value) == (
        "--weights vgg.pth are not those of a ResNet-18: 2 tensors are missing, such as 'layer1.0.conv1.weight'; "
        "1 are not part of one, such as 'features.0.weight'; 'layer2.0.conv1.weight' has shape (1, 1) instead of "
        "(128, 64, 3, 3). They must be torchvision's resnet18 (7×7 stem) or the best_model.pth of an earlier run "
        "(of either stem)."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read: it is empty. "),
        (b"junk", "cannot be read: it is not a PyTorch file. "),
        (b"<html><body>Please log in</body></html>", "cannot be read: it is not a PyTorch file. "),
        (b"101\n", "cannot be read: it is not a PyTorch file. "),
        (pickle.dumps({"a": 1}, protocol=4) + b"and more", "cannot be read: it is damaged, or holds other Python"),
        ({"fc.bias": torch.zeros(2, device="meta")}, "holds 'fc.bias' as a tensor without plain numbers"),
        ({"fc.bias": torch.zeros(2).to_sparse()}, "holds 'fc.bias' as a tensor without plain numbers"),
        ({"epoch": 3}, "must hold a state dict, that is tensors by name, got a dictionary whose 'epoch' is int."),
        ([torch.zeros(1)], "must hold a state dict, that is tensors by name, got list."),
        (Path("anything"), "cannot be read: it is cut short, damaged, or holds other Python objects than tensors"),
        ({"fc.bias": torch.tensor([float("nan")])}, "holds values in 'fc.bias' that are not finite"),
    ],
)
def test_files_other_than_state_dicts_are_refused(tmp_path, content, reason):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)

    with pytest.raises(DataError) as caught:
        read_state_dict(path)

    assert str(caught.value).startswith(f"--weights {path} ")
    assert reason in str(caught.value)


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.bias": torch.zeros(100_000)}, path)
    path.write_bytes(path.read_bytes()[:200_000])

    with pytest.raises(DataError, match="cannot be read: it is cut short"):
        read_state_dict(path)


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"must be the file of a ResNet-18 state dict, found nothing there\."):
        read_state_dict(tmp_path / "missing.pth")
    with pytest.raises(DataError, match=r"found a folder there\."):
        read_state_dict(tmp_path)


def test_torchvisions_address_carries_the_hash():
    assert ResNet18_Weights.IMAGENET1K_V1.url == IMAGENET_URL
    assert IMAGENET_URL.endswith("/resnet18-f37072fd.pth")


def test_the_cache_is_below_the_data_folder_unless_torch_home_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    assert imagenet_weights_file(tmp_path) == tmp_path / "weights" / "resnet18-f37072fd.pth"

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert imagenet_weights_file(tmp_path) == tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"


@contextmanager
def served(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that answers every request with ``content``; gives its address and the requested paths."""
    requested: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_imagenet_weights_are_downloaded_once_and_checked_every_time(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = b"weights of a network"
    digest = hashlib.sha256(content).hexdigest()[:8]
    with served(content) as (address, requested):
        url = f"{address}/resnet18-{digest}.pth"
        path = fetch_imagenet_weights(tmp_path, url=url)
        fetch_imagenet_weights(tmp_path, url=url)
        assert len(requested) == 1

        path.write_bytes(b"damaged")  # in the cache: found, and replaced
        fetch_imagenet_weights(tmp_path, url=url)

    assert len(requested) == 2
    assert path.read_bytes() == content


def test_weights_with_another_hash_are_refused_with_the_alternatives(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(b"something else") as (address, _), pytest.raises(DataError) as caught:
        fetch_imagenet_weights(tmp_path, url=f"{address}/resnet18-00000000.pth")

    message = str(caught.value)
    assert "SHA-256 beginning with 00000000" in message
    assert str(tmp_path / "weights") in message
    assert "--weights none" in message
    assert "--weights PATH" in message
