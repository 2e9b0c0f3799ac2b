"""Exported files predict what the model predicts, or are not written; the card beside them is valid for any names."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from medmnist.info import INFO

from scripts.core.errors import DataError, PipelineError
from scripts.data_handler.augmentation import normalise, to_float
from scripts.data_handler.dataset import Split
from scripts.data_handler.registry import BINARY, DATASET_REGISTRY, MULTI_CLASS, MULTI_LABEL
from scripts.data_handler.tasks import SINGLE_LABEL_TASK
from scripts.evaluation.inference import Predictor
from scripts.models.backbones import BACKBONES
from scripts.models.factory import new_model
from scripts.trained_run import TrainedRun, open_run
from tests.conftest import PROJECT_ROOT, FinishedRun, InProcess, coloured_squares, tiny_backbone, write_npz
from tools import export
from tools.exporter import card, checking, conversion

CPU = torch.device("cpu")


def exported(run: Path, *flags: str) -> int:
    """Export a run of the tiny network, and return the exit code."""
    with tiny_backbone():
        return export.main([str(run), *flags])


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0]


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def all_files(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of the tiny network with all three files."""
    root = finished_run.copy_to(tmp_path_factory.mktemp("all_files")).root
    assert exported(root, "--int8", "--accept_loss") == 0
    assert exported(root, "--format", "torch") == 0
    return open_run(root)


@pytest.fixture
def copied(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run that has exported nothing."""
    return finished_run.copy_to(tmp_path).root


@pytest.fixture
def onnx_by_copy(monkeypatch: pytest.MonkeyPatch, all_files: TrainedRun) -> None:
    """Take the file that was converted before instead of converting again, which takes seconds."""
    content = (all_files.paths.root / "export" / "model.onnx").read_bytes()
    monkeypatch.setattr(conversion, "to_onnx", lambda *_: content)


def reference(run: TrainedRun, images: np.ndarray) -> np.ndarray:
    with tiny_backbone():
        return run.predictor(CPU, tta=False)(torch.from_numpy(images))[0].numpy()


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_files_predict_what_the_model_predicts_for_any_number_of_images(all_files, count):
    images = all_files.dataset.load("test").images[:count]
    folder, expected = all_files.paths.root / "export", reference(all_files, images)
    from_torch = torch.export.load(folder / "model.pt2").module()(torch.from_numpy(images))

    assert expected.std() > 0.05
    for found in (run_onnx(folder / "model.onnx", images), from_torch.detach().numpy()):
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-5


def test_a_resnet_is_exported_with_the_decisions_of_its_report(finished_resnet_run: FinishedRun, tmp_path, capsys):
    root = finished_resnet_run.copy_to(tmp_path).root
    assert export.main([str(root)]) == 0

    (report,) = (root / "reports").glob("*@plain.csv")
    scores = np.loadtxt(report, delimiter=",")[:, 1:]
    found = run_onnx(root / "export" / "model.onnx", open_run(root).dataset.load("test").images)
    assert np.abs(found - scores).max() < 1e-4
    assert (found.argmax(1) == scores.argmax(1)).all()
    assert "on 24 test images: decisions changed 0, largest difference of probabilities" in capsys.readouterr().out


@pytest.fixture(scope="module")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """An exported run of the tiny network, of one epoch, on grey images with two labels."""
    folder = tmp_path_factory.mktemp("labels_run")
    images: dict[str, Any] = {
        f"{split}_images": coloured_squares(n, channels=1)[0] for split, n in (("train", 48), ("test", 24))
    }
    bright = {split: labels for split, n in (("train", 48), ("val", 16), ("test", 24)) for labels in [np.arange(n) % 2]}
    labels: dict[str, Any] = {
        f"{split}_labels": np.stack([values, 1 - values], 1).astype(np.uint8) for split, values in bright.items()
    }
    names = np.array(["bright", "dark"])
    dataset = write_npz(folder / "cells.npz", channels=1, class_names=names, **images, **labels)
    run = InProcess(folder)
    with tiny_backbone():
        done = run("--dataset", dataset, "--weights", "none", "--epochs", "1", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert exported(run.run_folder()) == 0
    return open_run(run.run_folder())


def test_a_grey_run_with_several_labels_takes_grey_images_and_gives_sigmoids(labels_run: TrainedRun):
    test, folder = labels_run.dataset.load("test").images, labels_run.paths.root / "export"
    found = run_onnx(folder / "model.onnx", test)
    assert test.shape == (24, 12, 12)
    assert np.abs(found - reference(labels_run, test)).max() < 1e-5
    assert "sigmoid, label by label" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_metadata_say_what_the_columns_are_and_where_the_model_comes_from(all_files):
    folder = all_files.paths.root / "export"
    for name in ("model.onnx", "model_int8.onnx"):
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        found = session.get_modelmeta()
        assert found.custom_metadata_map == export.describe(all_files), name
        assert found.producer_name
    extra = {"description.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)

    facts = json.loads(extra["description.json"])
    assert json.loads(facts["class_names"]) == ["dark", "medium", "bright"]
    assert (facts["task"], facts["run"]) == ("multi-class", all_files.name)
    assert facts["dataset_md5"] == all_files.dataset.md5


def test_no_file_names_a_folder_of_this_machine(all_files, finished_run):
    folder = all_files.paths.root / "export"
    for name in names_in(folder):
        content = (folder / name).read_bytes()
        assert not [place for place in (PROJECT_ROOT, finished_run.dataset.parent) if str(place).encode() in content]


def test_a_file_that_predicts_differently_is_not_written(copied, monkeypatch, capsys):
    monkeypatch.setattr(conversion, "to_float", lambda images: images.permute(0, 3, 1, 2).float() / 256)
    assert exported(copied) == 1
    assert names_in(copied / "export") == []
    assert "model.onnx was not written: it decides" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "model", "file", "changed", "ties"),
    [
        (MULTI_CLASS, [[0.6, 0.4], [0.2, 0.8]], [[0.6, 0.4], [0.2, 0.8]], 0, 0),
        (MULTI_CLASS, [[0.6, 0.4], [0.2, 0.8]], [[0.4, 0.6], [0.2, 0.8]], 1, 0),
        (MULTI_CLASS, [[0.500001, 0.499999], [0.2, 0.8]], [[0.4, 0.6], [0.2, 0.8]], 0, 1),
        (BINARY, [[0.499999, 0.500001], [0.2, 0.8]], [[0.5, 0.5], [0.8, 0.2]], 1, 1),
        (MULTI_LABEL, [[0.500001, 0.9], [0.500001, 0.9]], [[0.499999, 0.9], [0.499999, 0.1]], 1, 1),
    ],
)
def test_a_changed_decision_is_a_tie_only_where_the_model_itself_is_undecided(task, model, file, changed, ties):
    labels = np.zeros((2, 2) if task == MULTI_LABEL else 2, np.int64)
    split = Split(np.zeros((2, 4, 4), np.uint8), labels)
    expected = checking.Reference(split=split, task=task, batch_size=2, scores=np.array(model))
    found = checking.check(lambda _: np.array(file, np.float32), expected)
    assert (found.num_changed, found.num_ties, found.num_images) == (changed, ties, 2)


def test_ties_are_allowed_and_nan_is_not():
    same = checking.Check(
        num_images=9,
        max_difference=1e-7,
        num_changed=0,
        num_ties=2,
        accuracy=1,
        reference_accuracy=1,
        images_per_second=1,
    )
    export.require_equal("model.onnx", same)
    for wrong in ({"num_changed": 1}, {"max_difference": 0.1}, {"max_difference": np.nan}):
        with pytest.raises(PipelineError, match=r"model\.onnx was not written"):
            export.require_equal("model.onnx", dataclasses.replace(same, **wrong))


def test_8_bit_integers_are_smaller_and_their_ranges_come_from_validation_images(
    copied, finished_run, monkeypatch, capsys, onnx_by_copy
):
    seen: list[np.ndarray] = []
    to_int8 = conversion.to_int8

    def spy(model, batches, facts):
        seen.extend(batches)
        return to_int8(model, seen, facts)

    monkeypatch.setattr(conversion, "to_int8", spy)
    assert exported(copied, "--int8", "--accept_loss") == 0

    assert (np.concatenate(seen) == np.load(finished_run.dataset)["val_images"]).all()
    assert re.search(r"accuracy \d\.\d{4} before and \d\.\d{4} after", capsys.readouterr().out)
    assert names_in(copied / "export") == ["README.md", "export.json", "model.onnx", "model_int8.onnx"]
    fp32, int8 = ((copied / "export" / name).stat().st_size for name in ("model.onnx", "model_int8.onnx"))
    assert int8 < fp32
    assert_quantised(copied / "export" / "model_int8.onnx")


def assert_quantised(path: Path) -> None:
    """Assert that the file computes in 8 bits, with weights of 7 bits and a scale for each output channel."""
    graph = onnx.load(path).graph
    values = {part.name: onnx.numpy_helper.to_array(part) for part in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    kinds = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        inputs, weights = (made_by[name] for name in node.input[:2])
        assert inputs.op_type == weights.op_type == "DequantizeLinear"
        integers, scales = (values[name] for name in weights.input[:2])
        (axis,) = (attribute.i for attribute in weights.attribute if attribute.name == "axis")
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() == 64
        assert scales.shape == (integers.shape[axis],)
        assert len(np.unique(scales)) > 1
        kinds.append(node.op_type)
    assert kinds == ["Conv", "Gemm"]


def test_8_bit_integers_that_lose_too_much_are_refused_unless_accepted(copied, monkeypatch, capsys, onnx_by_copy):
    monkeypatch.setattr(export, "MAX_INT8_LOSS", -1)
    assert exported(copied, "--int8") == 3

    error = capsys.readouterr().err
    assert re.search(r"model_int8\.onnx was not written: it loses -?\d+\.\d\d points of accuracy, and -100 are", error)
    assert names_in(copied / "export") == ["README.md", "export.json", "model.onnx"]
    assert "model_int8" not in (copied / "export" / "README.md").read_text(encoding="utf-8")
    assert exported(copied, "--int8", "--accept_loss") == 0
    assert "| `model_int8.onnx` |" in (copied / "export" / "README.md").read_text(encoding="utf-8")


def test_the_card_forgets_files_of_other_weights(copied, onnx_by_copy):
    assert exported(copied) == 0
    facts = json.loads((copied / "export" / "export.json").read_text(encoding="utf-8"))
    other = {"model.pt2": facts["model.onnx"] | {"weights_md5": "0" * 32}, "model_int8.onnx": facts["model.onnx"]}
    (copied / "export" / "model.pt2").write_bytes(b"of other weights")
    (copied / "export" / "export.json").write_text(json.dumps(other), encoding="utf-8")
    assert exported(copied) == 0
    assert list(json.loads((copied / "export" / "export.json").read_text(encoding="utf-8"))) == ["model.onnx"]


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_a_full_disk_leaves_the_files_of_the_earlier_export(copied, monkeypatch, capsys, onnx_by_copy, fitting):
    synced: list[int] = []

    def fill_disk(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > fitting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fill_disk)
        assert exported(copied) == 6
        assert names_in(copied / "export") == []
    assert "The disk is full: free some space" in capsys.readouterr().err

    assert exported(copied) == 0
    earlier = {path: path.read_bytes() for path in (copied / "export").iterdir()}
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fill_disk)
        synced.clear()
        assert exported(copied, "--unchecked") == 6
    assert {path: path.read_bytes() for path in (copied / "export").iterdir()} == earlier


def test_a_damaged_summary_leaves_no_model_without_a_card(copied, capsys, onnx_by_copy):
    (copied / "summary.json").write_text("{}", encoding="utf-8")
    assert exported(copied) == 3
    assert names_in(copied / "export") == []
    assert "summary.json is damaged" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_to_be_removed(copied, capsys, onnx_by_copy):
    (copied / "export").write_text("notes", encoding="utf-8")
    assert exported(copied) == 6
    assert "export: it is a file. Rename or remove it." in capsys.readouterr().err
    assert (copied / "export").read_text(encoding="utf-8") == "notes"


def move_data(run: Path, finished_run: FinishedRun, folder: Path) -> None:
    """Let the settings of a run name data that are not there."""
    config = run / "config.json"
    moved = config.read_text(encoding="utf-8").replace(str(finished_run.dataset), str(folder / "gone.npz"))
    config.write_text(moved, encoding="utf-8")


def test_without_the_data_it_exports_unchecked_only(copied, finished_run, tmp_path, capsys, onnx_by_copy):
    move_data(copied, finished_run, tmp_path)

    assert exported(copied) == 3
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("--unchecked exports without the data, and so without a check.")
    assert names_in(copied / "export") == []
    assert exported(copied, "--unchecked") == 0
    assert "was not compared with the model" in capsys.readouterr().err
    text = (copied / "export" / "README.md").read_text(encoding="utf-8")
    assert "| not compared |" in text
    assert "was compared" not in text


def test_without_the_data_the_advice_for_8_bit_integers_is_possible(copied, finished_run, tmp_path, capsys):
    move_data(copied, finished_run, tmp_path)
    assert exported(copied, "--int8") == 3
    assert "--unchecked instead of --int8 exports without the data" in capsys.readouterr().err


def test_a_run_that_cannot_be_exported_is_refused_in_one_sentence(copied, tmp_path, capsys):
    (copied / "models" / "best_model.pth").write_bytes(b"damaged")
    assert exported(copied) == 3
    (copied / "summary.json").unlink()
    assert exported(copied) == 2
    assert exported(tmp_path / "nowhere") == 2
    damaged, unfinished, nowhere = capsys.readouterr().err.splitlines()
    assert "best_model.pth" in damaged
    assert "is not finished" in unfinished
    assert "is not the folder of a run: it does not exist" in nowhere


def test_a_network_that_pytorch_cannot_convert_is_one_sentence(copied, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no shape\nmore lines")

    monkeypatch.setattr(torch.export, "export", fail)
    assert exported(copied, "--format", "torch") == 1
    assert re.search(r"PyTorch \S+ cannot convert this network to torch\.export: no shape$", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "torch", "--int8"], "--int8 is for --format onnx; leave one of them out."),
        (["--int8", "--unchecked"], "--int8 cannot be used with --unchecked"),
        (["--accept_loss"], "--accept_loss is for --int8"),
        (["--format", "jpeg"], "Argument --format: invalid choice"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(tmp_path, capsys, flags, message):
    assert export.main([str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scripts.core.optional.find_spec", lambda name: None if name.startswith("onnx") else name)
    assert export.main([str(tmp_path)]) == 2
    assert "Install them: pip install onnx onnxruntime onnxscript" in capsys.readouterr().err
    assert export.main([str(tmp_path), "--format", "torch"]) == 2
    assert "pip" not in capsys.readouterr().err


def test_help_imports_nothing_slow():
    program = "from tools import export\ntry: export.main(['--help'])\nexcept SystemExit: pass\n"
    program += "import sys; print('slow:', *{'torch', 'numpy', 'jinja2', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "slow:", done.stderr


def test_the_card_has_the_figures_of_the_report_as_model_hubs_read_them(all_files):
    path = all_files.paths.root / "export" / "README.md"
    hub, plain = ModelCard.load(path), all_files.summary["test"]["plain"]
    results = {result.metric_type: result for result in hub.data.eval_results}

    assert (hub.data.pipeline_tag, hub.data.library_name) == ("image-classification", "onnx")
    assert results["accuracy"].metric_value == pytest.approx(plain["accuracy"]["value"], abs=5e-5)
    assert results["roc_auc"].metric_args["low"] == pytest.approx(plain["auc"]["low"], abs=5e-5)
    assert results["f1"].dataset_split == "test"
    text = path.read_text(encoding="utf-8")
    for name in ("model.onnx", "model_int8.onnx", "model.pt2"):
        assert f"| `{name}` |" in text
    for part in (
        "## Intended use",
        "was compared with the trained model",
        "Diagnosis",
        "not known to the program",
        "commit `",
        "seed 42",
        '"dark", "medium"',
    ):
        assert part in text
    assert "\n\n\n" not in text


HOSTILE = ("a: 'b' \"c\"", "---\n# x", "| {{ 7 * 7 }} | `", "\u2028\x85\x7f\ud800", "<b>\t😀\\u0041", "&amp; - [x](y)")


def test_hostile_names_break_neither_yaml_nor_markdown(all_files):
    name = "".join(HOSTILE)
    changed = dataclasses.replace(
        all_files,
        card=all_files.card
        | {"class_names": HOSTILE, "dataset": {"key": name, "title": name, "md5": "0", "note": name}},
        config=dataclasses.replace(all_files.config, model_name='It\'s: "a" {{ 7 * 7 }} #1'),
    )
    text = card.render_card(changed, {})
    text.encode()
    (dataset,) = yaml.safe_load(text.split("---\n", 2)[1])["datasets"]
    (model,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"]

    assert dataset == name
    assert model["name"] == 'It\'s: "a" {{ 7 * 7 }} #1'
    assert "49" not in text.split("## Figures")[0]
    listed = re.search("```json\n(.*)\n```", text)
    assert listed is not None
    assert json.loads(listed[1]) == list(HOSTILE)
    assert export.describe(changed)["note"].encode()


def test_undefined_figures_are_left_out(all_files):
    nothing = {"value": None, "low": None, "high": None}
    test = all_files.summary["test"]
    summary = all_files.summary | {"test": test | {"plain": test["plain"] | {"auc": nothing}}}
    text = card.render_card(dataclasses.replace(all_files, summary=summary), {})
    assert yaml.safe_load(text.split("---\n", 2)[1])["metrics"] == ["accuracy", "f1", "balanced_accuracy"]


def test_a_damaged_summary_is_an_error_with_an_explanation(all_files):
    with pytest.raises(DataError, match=r"summary\.json is damaged"):
        card.render_card(dataclasses.replace(all_files, summary={}), {})


@pytest.mark.parametrize("key", DATASET_REGISTRY)
def test_the_licence_of_published_data_is_the_official_one(all_files, key):
    of_set = dataclasses.replace(all_files, config=dataclasses.replace(all_files.config, dataset=key))
    assert card.licence_of(of_set) == INFO[key]["license"]
    assert f"Licence of the data: {INFO[key]['license']}," in card.render_card(of_set, {})


def test_the_card_of_a_synthetic_set_says_so(all_files):
    of_set = dataclasses.replace(all_files, config=dataclasses.replace(all_files.config, dataset="synthblood"))
    text = card.render_card(of_set, {})
    assert "They show no real cells" in text
    assert "synthetic-data" in yaml.safe_load(text.split("---\n", 2)[1])["tags"]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_lines_use_the_file_without_pytorch(all_files, finished_run, tmp_path):
    documented, _ = python_blocks(PROJECT_ROOT / "docs" / "export.md")
    on_card, _ = python_blocks(all_files.paths.root / "export" / "README.md")
    shutil.copy(all_files.paths.root / "export" / "model.onnx", tmp_path)
    shutil.copy(finished_run.dataset, tmp_path / "cells.npz")
    assert sum(1 for line in documented.splitlines() if line) <= 10

    report = "\nimport sys; print('torch' in sys.modules)"
    for program, count in ((documented, 5), (on_card, 4)):
        done = subprocess.run(
            [sys.executable, "-c", program + report], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        *lines, has_torch = done.stdout.splitlines()
        assert (len(lines), has_torch) == (count, "False"), done.stderr
        assert all(line.startswith(("dark", "medium", "bright")) for line in lines)


def test_the_documented_lines_name_all_labels_that_are_predicted(labels_run, tmp_path):
    folder, stored = labels_run.paths.root / "export", labels_run.dataset.load("test").images
    shutil.copy(folder / "model.onnx", tmp_path)
    np.savez(tmp_path / "cells.npz", test_images=stored)
    loading, of_labels = python_blocks(PROJECT_ROOT / "docs" / "export.md")
    (on_card,) = python_blocks(folder / "README.md")
    programs = (loading + of_labels, stored[:5]), (on_card, np.zeros((4, 12, 12), np.uint8))
    for program, images in programs:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        scores = run_onnx(folder / "model.onnx", images)
        expected = [
            str([name for name, score in zip(("bright", "dark"), row, strict=True) if score > 0.5]) for row in scores
        ]
        assert done.stdout.splitlines()[-len(images) :] == expected


def test_the_card_says_once_what_was_chosen_and_escapes_nothing_in_code(labels_run):
    text = (labels_run.paths.root / "export" / "README.md").read_text(encoding="utf-8")
    assert "\\" not in "".join(re.findall("`[^`\n]+`", text))
    assert f"- run {card.as_markdown(labels_run.name)}\n" in text
    assert "epochs: 1 of at most 1; the best one, 1, by validation auc" in text
    (settings,) = re.findall("- other settings that differ from the defaults: (.*)", text)
    assert re.findall("`([^`]+)`", settings) == ["dataset", "weights"]


def untrained(backbone: str) -> Predictor:
    """A network of 8 classes without training whose outputs differ from image to image nevertheless."""
    torch.manual_seed(0)
    model = new_model(backbone, 8, seed=0).train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # its statistics are those of all images that it has seen
    predictor = Predictor(model=model, task=SINGLE_LABEL_TASK, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = torch.randint(0, 256, (16, 28, 28, 3), dtype=torch.uint8)
    predictor(images)
    head: Any = model.eval().get_submodule(BACKBONES[backbone].head)
    with torch.no_grad():
        inputs = normalise(to_float(images))
        head.weight.div_(model(inputs).std())
        head.bias.sub_(model(inputs).mean(dim=0))
    return predictor


QUICK = ("resnet18", "mobilenet_v3_large")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]


@pytest.mark.parametrize("backbone", CASES)
def test_every_backbone_is_exported_to_onnx_and_torch(backbone):
    predictor = untrained(backbone)
    images = torch.randint(0, 256, (3, 28, 28, 3), dtype=torch.uint8)
    expected = predictor(images)[0].numpy()
    module = conversion.as_module(predictor)

    assert expected.std(axis=0).max() > 0.01
    from_onnx = checking.run_onnx(conversion.to_onnx(module, (28, 28, 3), {}))
    program = checking.run_torch(conversion.to_torch(module, (28, 28, 3), {}))
    for run in (from_onnx, program):
        assert np.abs(run(images.numpy()) - expected).max() < 1e-4
        assert np.abs(run(images.numpy()[:1]) - expected[:1]).max() < 1e-4
