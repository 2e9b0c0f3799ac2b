"""Models of timm are built, adapted to small images, started from files, and refused, as torchvision's are."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.core.config import Config
from scripts.core.errors import DataError
from scripts.models.backbones import backbone_problems, find_backbone
from scripts.models.factory import build_model, head_name, new_model, normalisation, outline, refusal
from scripts.models.stem import fit_to_images, stem_layers, transfer_kernels, window_of
from tests.conftest import PROJECT_ROOT, InProcess, Npz

timm = pytest.importorskip("timm")

SMALL = (28, 28)
# a small model of each kind, its stem at 28 pixels, its head
KINDS = {
    "timm/test_resnet": ("3x3, stride 1, no max-pool", "fc"),
    "timm/test_vit": ("2x2, stride 2", "head"),
    "timm/convnext_atto": ("2x2, stride 2", "head.fc"),
    "timm/test_efficientnet": ("3x3, stride 1", "classifier"),
}


def problems(name: str) -> list[str]:
    return list(backbone_problems(Config(backbone=name)))


@pytest.mark.parametrize("name", KINDS)
def test_a_model_trains_on_small_images(name):
    layers, head = KINDS[name]
    model = new_model(name, 7, seed=0)
    logits = model(torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)))
    F.cross_entropy(logits, torch.arange(2)).backward()

    assert problems(name) == []
    assert logits.shape == (2, 7)
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert stem_layers(model, find_backbone(name)) == layers
    assert head_name(name) == head


@pytest.mark.parametrize(
    ("name", "side", "grid", "window"),
    [
        ("timm/vit_tiny_patch16_224", 28, 14, None),
        ("timm/vit_tiny_patch16_224", 64, 16, None),
        ("timm/swin_tiny_patch4_window7_224", 28, 14, 7),
        ("timm/swinv2_tiny_window8_256", 28, 14, 7),
        ("timm/swinv2_tiny_window8_256", 64, 16, 8),
    ],
)
def test_a_transformer_sees_14_patches_of_a_side_or_more(name, side, grid, window):
    model = outline(name, stem="adapted", sides=(side, side))

    assert model.get_submodule("patch_embed").grid_size == (grid, grid)
    assert refusal(model, 2, (side, side)) is None
    assert window_of(model) == window


def test_a_transformer_with_the_stock_stem_keeps_its_patches_at_any_size():
    model = outline("timm/vit_tiny_patch16_224", stem="stock", sides=(128, 96))

    assert model.get_submodule("patch_embed").patch_size == (16, 16)
    assert model.get_submodule("patch_embed").grid_size == (8, 6)
    assert refusal(model, 2, (128, 96)) is None


@pytest.mark.parametrize("name", KINDS)
def test_published_weights_are_fitted_to_small_images(tmp_path, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        published = timm.create_model(name.removeprefix("timm/"), pretrained=False)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    options = {"class_names": "abc", "data_dir": tmp_path, "seed": 1}

    model = build_model(name, weights=str(tmp_path / "published.pth"), **options)
    torch.save(model.state_dict(), tmp_path / "best_model.pth")
    again = build_model(name, weights=str(tmp_path / "best_model.pth"), **options | {"seed": 2})

    before, state = published.state_dict(), model.state_dict()
    backbone = find_backbone(name)
    changed = [key for key, value in state.items() if not torch.equal(value, before[key])]
    heads = {f"{backbone.head}.weight", f"{backbone.head}.bias"}
    kernels = f"{backbone.conv}.weight"
    resampled = {kernels} if state[kernels].shape != before[kernels].shape else set()
    assert set(changed) - {"pos_embed"} == heads | resampled
    if not backbone.resizes:
        side = state[kernels].shape[-1]
        assert torch.equal(state[kernels], transfer_kernels(before[kernels], side))
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(("stem", "sides"), [("adapted", (56, 56)), ("stock", SMALL)])
def test_a_transformers_own_weights_of_another_size_or_stem_are_refused_with_the_reason(tmp_path, stem, sides):
    torch.save(new_model("timm/test_vit", 2, seed=0, sides=SMALL).state_dict(), tmp_path / "best_model.pth")
    arguments = {
        "class_names": ("a", "b"),
        "weights": str(tmp_path / "best_model.pth"),
        "data_dir": tmp_path,
        "seed": 0,
    }
    assert build_model("timm/test_vit", sides=SMALL, **arguments)
    with pytest.raises(DataError, match="They fit images of one size and one --stem"):
        build_model("timm/test_vit", stem=stem, sides=sides, **arguments)


def test_smaller_patches_answer_to_an_image_as_the_published_ones_to_a_larger_one():
    """timm resamples patch kernels so that they keep their products with enlarged images (Beyer et al., CVPR 2023)."""
    published = new_model("timm/test_vit", 2, stem="stock", seed=0, sides=(224, 224)).get_submodule("patch_embed")
    model = new_model("timm/test_vit", 2, stem="stock", seed=0, sides=(224, 224))
    fit_to_images(model, find_backbone("timm/test_vit"), "adapted", SMALL, new=False)
    images = F.interpolate(torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(0)), SMALL, mode="bicubic")
    with torch.no_grad():
        ideal = published(F.interpolate(images, (224, 224), mode="bilinear", antialias=True)).flatten()
        ours = model.get_submodule("patch_embed")(images).flatten()

    correlation = float(torch.corrcoef(torch.stack((ideal, ours)))[0, 1])
    gain = float((ideal * ours).sum() / (ideal * ideal).sum())
    assert correlation > 0.95  # measured: 0.969
    assert 0.9 < gain < 1.1


def test_a_model_without_a_stem_to_adapt_is_used_as_it_is(in_process: InProcess, make_npz: Npz, monkeypatch):
    monkeypatch.setattr("scripts.pipeline.train_model", lambda *_: 1 / 0)
    done = in_process("--backbone", "timm/vgg11", "--dataset", make_npz(side=32), "--weights", "none")

    assert not find_backbone("timm/vgg11").is_adaptable
    assert (
        "stem stock (3x3, stride 1): the first layers of vgg11 cannot be adapted, so they stay as published"
        in done.stdout
    )
    assert "the model is named vgg11, " in done.stdout


def test_too_small_images_for_a_model_that_cannot_be_adapted_end_with_2(in_process: InProcess, make_npz: Npz):
    done = in_process("--backbone", "timm/mixer_s32_224", "--dataset", make_npz(), "--weights", "none")

    assert done.returncode == 2
    assert "timm/mixer_s32_224 cannot be trained on images of 12 × 12 pixels and the stock stem (" in done.stderr


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("timm/convnext_ato", f"is not a model of timm {timm.__version__}. Did you mean timm/convnext_atto?"),
        ("timm/resnet10t.no_such_tag", "cannot be used: Invalid pretrained tag (no_such_tag) for resnet10t."),
        ("timm/deit_tiny_distilled_patch16_224", "cannot be used: it does not end in one layer for the classes."),
    ],
)
def test_models_that_timm_does_not_have_are_refused(name, part):
    assert problems(name) == [f"--backbone {name} {part}"]


def test_images_are_normalised_as_the_model_expects():
    assert normalisation("timm/test_resnet") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation("timm/resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_run_normalises_images_as_its_card_says(in_process: InProcess, make_npz: Npz, monkeypatch):
    scores: list[np.ndarray] = []
    monkeypatch.setattr("scripts.pipeline.report", lambda *args: scores.append(args[2].plain_scores))
    path = make_npz()
    settings = ("--weights", "none", "--epochs", "1", "--batch_size", "16", "--precision", "fp32")
    assert in_process("--backbone", "timm/test_resnet", "--dataset", path, *settings).returncode == 0

    models = in_process.run_folder() / "models"
    card = json.loads((models / "best_model.json").read_text(encoding="utf-8"))
    model = new_model("timm/test_resnet", 2, seed=0, sides=(12, 12)).eval()
    model.load_state_dict(torch.load(models / "best_model.pth", weights_only=True))
    mean, std = (torch.tensor(card["normalisation"][name]) for name in ("mean", "std"))
    with np.load(path) as data, torch.inference_mode():
        inputs = ((torch.from_numpy(data["test_images"]) / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = model(inputs).softmax(1).numpy()
    assert card["normalisation"]["mean"] == [0.5, 0.5, 0.5]
    np.testing.assert_allclose(scores[0], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["timm/mixer_s32_224", "timm/test_resnet"])
def test_weights_that_timm_cannot_load_are_refused_with_the_alternatives(tmp_path, monkeypatch, name):
    """There are none for the first; without network those of the second cannot be downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        build_model(name, class_names="ab", weights="imagenet", data_dir=tmp_path, seed=0)

    message = str(caught.value)
    assert message.startswith(f"--weights imagenet: timm cannot load the weights of {name} (")
    assert message.endswith("start without them (--weights none) or from a file of your own (--weights PATH).")


def test_timms_own_weights_are_adapted_to_small_images(tmp_path, monkeypatch):
    create = timm.create_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        published = create("convnext_atto", pretrained=False).state_dict()
    torch.save(published, tmp_path / "hub.pth")
    monkeypatch.setattr(  # as if timm had downloaded the file
        timm, "create_model", partial(create, pretrained_cfg_overlay={"file": str(tmp_path / "hub.pth")})
    )
    model = build_model("timm/convnext_atto", class_names="abc", weights="imagenet", data_dir=tmp_path, seed=1)

    state = model.state_dict()
    assert torch.equal(state["stem.0.weight"], transfer_kernels(published["stem.0.weight"], 2))
    assert torch.equal(state["stages.3.blocks.1.mlp.fc1.weight"], published["stages.3.blocks.1.mlp.fc1.weight"])
    assert state["head.fc.weight"].shape == (3, 320)


def test_timm_is_not_imported_unless_one_of_its_models_is_named():
    program = (
        "import sys, main; main.main(['--backbone', 'resnet19'])\n"
        "from scripts.models import factory\n"
        "factory.new_model('resnet18', 2, seed=0)\n"
        "print('timm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT_ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"
