"""Weights are taken from the requested place, checked, and carried over as documented."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from scripts.core.errors import DataError
from scripts.models.backbones import BACKBONES
from scripts.models.factory import build_model, new_model
from scripts.models.stem import transfer_kernels
from scripts.models.weights import (
    fetch_imagenet_weights,
    imagenet_entry,
    imagenet_weights_file,
    load_best_weights,
    read_state_dict,
)
from tests.conftest import TinyNetwork

NAMES = ("basophil", "eosinophil", "erythroblast", "granulocyte", "lymphocyte", "monocyte", "neutrophil", "platelet")
IMAGENET_CLASSES = imagenet_entry("resnet18").meta["categories"]

State = dict[str, torch.Tensor]


@cache
def published_state(name: str) -> State:
    """A state dict as torchvision writes it; only read it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model(name, weights=None).state_dict()


def load(
    folder: Path,
    state: State,
    name: str = "resnet18",
    *,
    file: str = "earlier.pth",
    stem: str = "adapted",
    class_names: Sequence[str] = NAMES,
    sides: tuple[int, int] = (28, 28),
) -> nn.Module:
    """Build a model from a state dict file in a folder."""
    torch.save(state, folder / file)
    weights = str(folder / file)
    return build_model(name, class_names=class_names, weights=weights, data_dir=folder, seed=3, stem=stem, sides=sides)


@pytest.fixture
def summary_of(caplog: pytest.LogCaptureFixture):
    """Call it to read what the last model's line in the log says about its weights."""
    caplog.set_level("INFO")

    def read() -> str:
        (found,) = re.findall(r"weights \S+ \((.*)\)$", caplog.messages[-1])
        return found

    return read


SUMMARIES = {
    ("resnet18", "adapted"): "7×7 stem transferred to 3×3, fc new, for 8 classes",
    ("resnet18", "stock"): "7×7 stem taken as it is, fc new, for 8 classes",
    ("densenet121", "adapted"): "7×7 stem transferred to 3×3, classifier new, for 8 classes",
    ("mobilenet_v3_large", "adapted"): "3×3 stem taken as it is, classifier.3 new, for 8 classes",
    ("efficientnet_b0", "adapted"): "3×3 stem taken as it is, classifier.1 new, for 8 classes",
    ("convnext_tiny", "adapted"): "4×4 stem transferred to 2×2, classifier.2 new, for 8 classes",
    ("swin_v2_t", "adapted"): "4×4 stem transferred to 2×2, head new, for 8 classes",
    ("swin_v2_t", "stock"): "4×4 stem taken as it is, head new, for 8 classes",
}


@pytest.mark.parametrize(("name", "stem"), SUMMARIES)
def test_a_published_stem_is_fitted_and_the_rest_copied(tmp_path, summary_of, name, stem):
    published, backbone = published_state(name), BACKBONES[name]
    model = load(tmp_path, published, name, stem=stem)
    state, new = model.state_dict(), new_model(name, 8, stem=stem, seed=3).state_dict()

    assert summary_of() == SUMMARIES[name, stem]
    kernels = f"{backbone.conv}.weight"
    assert torch.equal(state[kernels], transfer_kernels(published[kernels], state[kernels].shape[-1]))
    assert state[kernels].shape == new[kernels].shape
    for key, value in state.items():
        if key.startswith(f"{backbone.head}.") or key.endswith(("relative_coords_table", "relative_position_index")):
            assert torch.equal(value, new[key])
        elif key != kernels:
            assert torch.equal(value, published[key])


def test_an_earlier_run_is_taken_as_it_is_whatever_its_backbone_and_stem(tmp_path, summary_of):
    for name, stem in SUMMARIES:
        earlier = new_model(name, 8, stem=stem, seed=1).state_dict()
        model = load(tmp_path, earlier, name, stem=stem)

        head, side = BACKBONES[name].head, earlier[f"{BACKBONES[name].conv}.weight"].shape[-1]
        assert summary_of() == f"{side}×{side} stem taken as it is, {head} kept (class names unknown)"
        assert all(torch.equal(value, earlier[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("stem", "large_side"), [("adapted", 64), ("stock", 224)])
def test_tables_of_other_windows_are_never_taken_from_a_file(tmp_path, stem, large_side):
    """At 28 pixels the window is 7, at 64 and with the published stem 8."""
    large = new_model("swin_v2_t", 8, stem=stem, seed=1, sides=(large_side, large_side)).state_dict()
    small = new_model("swin_v2_t", 8, seed=2).state_dict()
    model = load(tmp_path, large, "swin_v2_t").state_dict()
    again = load(tmp_path, small, "swin_v2_t", sides=(64, 64)).state_dict()

    tables = [key for key in small if key.endswith(("relative_coords_table", "relative_position_index"))]
    assert len(tables) == 24
    assert all(torch.equal(model[key], small[key]) for key in tables)
    assert all(again[key].shape == large[key].shape for key in tables)
    assert torch.equal(model["features.7.1.mlp.0.weight"], large["features.7.1.mlp.0.weight"])
    assert torch.equal(again["features.7.1.mlp.0.weight"], small["features.7.1.mlp.0.weight"])


@pytest.mark.usefixtures("tiny_network")
def test_no_weights_are_the_seeds_own(tmp_path):
    for stem in ("adapted", "stock"):
        built = build_model("resnet18", class_names="abcde", weights="none", data_dir=tmp_path, seed=3, stem=stem)
        expected = new_model("resnet18", 5, stem=stem, seed=3).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in built.state_dict().items())


@pytest.mark.usefixtures("tiny_network")
def test_a_3x3_stem_does_not_make_a_7x7_one(tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path, TinyNetwork(8, stem="adapted").state_dict(), stem="stock")

    assert str(caught.value) == (
        f"--weights {tmp_path / 'earlier.pth'} have the 3×3 stem of --stem adapted, which does not make the 7×7 one of "
        "--stem stock. Add --stem adapted, or take weights with a 7×7 stem."
    )


def test_patches_of_2x2_do_not_make_patches_of_4x4(tmp_path):
    with pytest.raises(DataError, match="have the 2×2 stem of --stem adapted, which does not make the 4×4 one"):
        load(tmp_path, new_model("convnext_tiny", 8, seed=1).state_dict(), "convnext_tiny", stem="stock")


@pytest.mark.usefixtures("tiny_network")
def test_a_run_with_the_7x7_stem_can_start_one_with_the_3x3_stem(tmp_path):
    earlier = TinyNetwork(8).state_dict()
    model = load(tmp_path, earlier).state_dict()

    assert torch.equal(model["conv1.weight"], transfer_kernels(earlier["conv1.weight"], 3))
    assert torch.equal(model["fc.weight"], earlier["fc.weight"])


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(("stem", "kernel"), [("adapted", 3), ("stock", 7)])
def test_a_stem_of_neither_kind_is_another_architecture(tmp_path, stem, kernel):
    with pytest.raises(DataError) as caught:
        load(tmp_path, TinyNetwork(8).state_dict() | {"conv1.weight": torch.zeros(64, 3, 5, 5)}, stem=stem)
    assert f"'conv1.weight' has shape (64, 3, 5, 5) instead of (64, 3, {kernel}, {kernel})" in str(caught.value)


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(
    ("stem", "number", "summary"),
    [("adapted", "2,376", "7×7 stem transferred to 3×3"), ("stock", "10,056", "7×7 stem taken as it is")],
)
def test_imagenets_weights_serve_both_stems(tmp_path, monkeypatch, caplog, stem, number, summary):
    torch.save(TinyNetwork(1000).state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr("scripts.models.factory.fetch_imagenet_weights", lambda *_: tmp_path / "resnet18.pth")
    with caplog.at_level("INFO"):
        build_model("resnet18", class_names=NAMES, weights="imagenet", data_dir=tmp_path, seed=0, stem=stem)

    assert caplog.messages == [
        f"model resnet18: {number} parameters, {stem} stem, weights imagenet ({summary}, fc new, for 8 classes)"
    ]


@pytest.mark.usefixtures("tiny_network")
def test_a_head_for_another_number_of_classes_stays_new(tmp_path, summary_of):
    model = load(tmp_path, TinyNetwork(9).state_dict())

    assert summary_of().endswith("fc new, for 8 classes")
    assert torch.equal(model.state_dict()["fc.weight"], new_model("resnet18", 8, seed=3).state_dict()["fc.weight"])


SWAPPED = (NAMES[1], NAMES[0], *NAMES[2:])


@pytest.mark.usefixtures("tiny_network")
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
def test_the_head_is_kept_for_the_same_class_names_only(tmp_path, summary_of, card, is_kept, summary):
    earlier = TinyNetwork(8, stem="adapted").state_dict()
    if card is not None:
        (tmp_path / "earlier.json").write_text(json.dumps(card), encoding="utf-8")
    state = load(tmp_path, earlier).state_dict()

    expected = earlier if is_kept else new_model("resnet18", 8, seed=3).state_dict()
    assert torch.equal(state["fc.weight"], expected["fc.weight"])
    assert torch.equal(state["fc.bias"], expected["fc.bias"])
    assert torch.equal(state["conv1.weight"], earlier["conv1.weight"])
    assert summary_of() == f"3×3 stem taken as it is, {summary}"


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(("names", "is_kept"), [(IMAGENET_CLASSES, True), (IMAGENET_CLASSES[::-1], False)])
def test_imagenets_own_head_is_kept_for_its_own_classes_only(tmp_path, monkeypatch, names, is_kept):
    imagenet = TinyNetwork(1000).state_dict()
    torch.save(imagenet, tmp_path / "resnet18.pth")
    monkeypatch.setattr("scripts.models.factory.fetch_imagenet_weights", lambda *_: tmp_path / "resnet18.pth")

    model = build_model("resnet18", class_names=names, weights="imagenet", data_dir=tmp_path, seed=1)

    assert torch.equal(model.state_dict()["fc.weight"], imagenet["fc.weight"]) is is_kept


def test_the_best_weights_are_read_back_completely(tmp_path):
    best, model = TinyNetwork(3), TinyNetwork(3)
    torch.save(best.state_dict(), tmp_path / "best_model.pth")

    load_best_weights(model, tmp_path / "best_model.pth")

    assert all(torch.equal(value, best.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("lost", ["fc.weight", "fc.bias", "bn1.num_batches_tracked", "conv1.weight"])
def test_best_weights_that_lack_a_tensor_are_refused(tmp_path, lost):
    state = TinyNetwork(3).state_dict()
    del state[lost]
    torch.save(state, tmp_path / "best_model.pth")
    model = TinyNetwork(3)
    before = model.state_dict()["fc.weight"].clone()

    with pytest.raises(DataError) as caught:
        load_best_weights(model, tmp_path / "best_model.pth")

    assert str(caught.value) == (
        f"The best weights {tmp_path / 'best_model.pth'} are not of this run's model: "
        f"1 tensors are missing, such as '{lost}'."
    )
    assert torch.equal(model.state_dict()["fc.weight"], before)


def test_best_weights_for_other_classes_or_missing_are_refused(tmp_path):
    torch.save(TinyNetwork(4).state_dict(), tmp_path / "best_model.pth")
    with pytest.raises(DataError, match=r"'fc.bias' has shape \(4,\) instead of \(3,\)"):
        load_best_weights(TinyNetwork(3), tmp_path / "best_model.pth")
    with pytest.raises(DataError, match="found nothing there"):
        load_best_weights(TinyNetwork(3), tmp_path / "missing.pth")


def test_files_without_batch_counters_are_taken(tmp_path):
    state = published_state("resnet18")
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}

    assert len(old) == 102
    load(tmp_path, old)


def test_the_old_names_in_torchvisions_densenet_file_are_taken(tmp_path):
    published = published_state("densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in published.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old

    state = load(tmp_path, old, "densenet121").state_dict()

    key = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(state[key], published[key])


def test_another_architecture_is_refused_with_its_first_difference(tmp_path):
    unexpected = {"features.0.weight": torch.zeros(3), **new_model("resnet18", 8, seed=0).state_dict()}
    del unexpected["layer1.0.conv1.weight"], unexpected["layer1.0.conv2.weight"]
    unexpected["layer2.0.conv1.weight"] = torch.zeros(1, 1)

    with pytest.raises(DataError) as caught:
        load(tmp_path, unexpected, file="vgg.pth")

    assert str(caught.value) == (
        f"--weights {tmp_path / 'vgg.pth'} are not those of a ResNet-18: 2 tensors are missing, such as "
        "'layer1.0.conv1.weight'; 1 are not part of one, such as 'features.0.weight'; 'layer2.0.conv1.weight' has "
        "shape (1, 1) instead of (128, 64, 3, 3). They must be torchvision's resnet18 or the best_model.pth of an "
        "earlier run with it."
    )


@pytest.mark.parametrize(
    ("name", "owner", "title"),
    [
        ("resnet18", "resnet34", "a ResNet-18"),
        ("resnet34", "resnet18", "a ResNet-34"),
        ("convnext_tiny", "swin_v2_t", "a ConvNeXt-Tiny"),
        ("efficientnet_v2_s", "efficientnet_b0", "an EfficientNetV2-S"),
    ],
)
def test_the_file_of_another_backbone_is_refused_by_name(tmp_path, name, owner, title):
    with pytest.raises(DataError) as caught:
        load(tmp_path, published_state(owner), name)

    message = str(caught.value)
    assert f" are not those of {title}: " in message
    assert message.endswith(f"They are those of {owner}: add --backbone {owner}, or take others.")


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
    with pytest.raises(DataError, match=r"must be the file of a state dict of the model, found nothing there\."):
        read_state_dict(tmp_path / "missing.pth")
    with pytest.raises(DataError, match=r"found a folder there\."):
        read_state_dict(tmp_path)


def test_torchvisions_address_carries_the_hash():
    assert imagenet_entry("resnet18").url.endswith("/resnet18-f37072fd.pth")
    assert imagenet_entry("resnet50") is get_model_weights("resnet50")["IMAGENET1K_V2"]


def test_the_cache_is_below_the_data_folder_unless_torch_home_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    url = imagenet_entry("resnet18").url
    assert imagenet_weights_file(url, tmp_path) == tmp_path / "weights" / "resnet18-f37072fd.pth"

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert imagenet_weights_file(url, tmp_path) == tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"


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
        path = fetch_imagenet_weights("resnet18", tmp_path, url=url)
        fetch_imagenet_weights("resnet18", tmp_path, url=url)
        assert len(requested) == 1

        path.write_bytes(b"damaged")  # in the cache: found, and replaced
        fetch_imagenet_weights("resnet18", tmp_path, url=url)

    assert len(requested) == 2
    assert path.read_bytes() == content


def test_weights_with_another_hash_are_refused_with_the_alternatives(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(b"something else") as (address, _), pytest.raises(DataError) as caught:
        fetch_imagenet_weights("resnet18", tmp_path, url=f"{address}/resnet18-00000000.pth")

    message = str(caught.value)
    assert "SHA-256 beginning with 00000000" in message
    assert str(tmp_path / "weights") in message
    assert "--weights none" in message
    assert "--weights PATH" in message
