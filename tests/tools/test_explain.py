"""tools/explain.py writes an image beside its overlays, and a sheet; what it cannot do it says in one sentence."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.core.errors import DataError, StorageError
from scripts.evaluation.gradcam import GradCam
from scripts.trained_run import open_run
from tests.conftest import FinishedRun, tiny_backbone, write_npz
from tools import explain, heatmaps

Call = Callable[..., tuple[int, str, str]]

needs_captum = pytest.mark.skipif(find_spec("captum") is None, reason="Grad-CAM needs captum")


@pytest.fixture
def call(finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Explains inputs with the tiny network's run, into the folder "maps"."""

    def explain_images(*argv: str | Path, run: Path | None = None) -> tuple[int, str, str]:
        arguments = [run or finished_run.paths.root, *argv, "--output", tmp_path / "maps"]
        code = explain.main([*map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    with tiny_backbone():
        yield explain_images


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Five files of 40 × 40 pixels in two folders, and one that is no image."""
    random = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/3.jpg", "b/4.bmp", "b/5.png"):
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photographs" / "notes.txt").write_text("not an image", encoding="utf-8")
    return tmp_path / "photographs"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@needs_captum
def test_a_folder_becomes_a_file_for_each_image_and_a_sheet(call: Call, photographs: Path, tmp_path: Path):
    code, out, err = call(photographs)
    assert (code, err) == (0, "")
    assert "layer bn1, 64 maps of 2 × 2" in out
    assert all(line in out for line in heatmaps.CAVEATS)
    of_images = [f"000{number}_{number + 1}.png" for number in range(5)]
    assert names_in(tmp_path / "maps") == [*of_images, "sheet.png"]
    for path in (tmp_path / "maps").iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.width > 2 * heatmaps.PANEL_SIDE
            assert image.height > heatmaps.PANEL_SIDE


@needs_captum
def test_without_output_the_files_are_in_the_runs_folder(finished_run: FinishedRun, photographs: Path, tmp_path: Path):
    paths = finished_run.copy_to(tmp_path / "copy")
    with tiny_backbone():
        assert explain.main([str(paths.root), str(photographs / "a" / "1.png")]) == 0
    assert names_in(paths.root / "explanations") == ["0000_1.png", "sheet.png"]


@needs_captum
def test_each_class_that_is_requested_has_an_overlay(call: Call, photographs: Path, tmp_path: Path):
    widths = []
    for classes in (["predicted"], ["dark", "bright"], ["all"]):
        assert call(photographs / "a" / "1.png", "--classes", *classes)[0] == 0
        with Image.open(tmp_path / "maps" / "0000_1.png") as image:
            widths.append(image.width)
        for path in (tmp_path / "maps").iterdir():
            path.unlink()
    panel = widths[1] - widths[0]
    assert panel > heatmaps.PANEL_SIDE
    assert np.diff(widths).tolist() == [panel, panel]


@needs_captum
def test_the_rows_of_a_data_set_are_chosen(call: Call, finished_run: FinishedRun, tmp_path: Path):
    code, _, err = call(finished_run.dataset, "--split", "val", "--indices", "3,0-1")
    assert (code, err) == (0, "")
    assert names_in(tmp_path / "maps") == ["0000_image_0.png", "0001_image_1.png", "0002_image_3.png", "sheet.png"]


@needs_captum
def test_of_many_images_an_even_choice_is_explained_and_the_rest_counted(
    call: Call, finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heatmaps, "MAX_SHEET_PANELS", 4)
    code, out, _ = call(finished_run.dataset, "--limit", "4")
    assert code == 0
    assert "4 of 24 images, evenly spread: --limit sets the number" in out
    assert "sheet.png shows 2 images and leaves out 2" in out
    assert names_in(tmp_path / "maps")[:4] == [
        "0000_image_0.png",
        "0001_image_6.png",
        "0002_image_12.png",
        "0003_image_18.png",
    ]


@needs_captum
def test_the_true_class_of_a_data_set_is_written_below_the_image(finished_run: FinishedRun):
    from tools.inputs import open_inputs

    run = open_run(finished_run.paths.root)
    found = list(explain.examples(open_inputs([finished_run.dataset], [run]), [1, 2, 3], run))
    assert [(example.name, example.truth) for example in found] == [
        ("image 1", "medium"),
        ("image 2", "bright"),
        ("image 3", "dark"),
    ]


def test_the_classes_of_an_image():
    of_image = explain.classes_to_explain
    scores = np.array([0.2, 0.6, 0.7])
    assert of_image("predicted", scores, "multi-class") == [2]
    assert of_image("predicted", scores, "multi-label, binary-class") == [1, 2]
    assert of_image("predicted", scores / 2, "multi-label, binary-class") == [2]
    assert of_image("all", scores, "multi-class") == [0, 1, 2]
    assert of_image([0], scores, "multi-class") == [0]


class ToyCam:
    """Gives each image a map of its own mean, stronger for later classes."""

    device = torch.device("cpu")

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(3)[images.flatten(1)[:, 0].long() % 3]

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        strength = images.float().mean(dim=(1, 2, 3)) / 255 * (classes + 1) / 3
        return strength[:, None, None].expand(-1, 12, 12)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("requested", ["all", "predicted", [2, 0]])
def test_each_image_has_the_maps_of_its_own_pixels_and_classes(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, batch_size: int, requested: explain.Requested
):
    monkeypatch.setattr(explain, "MAX_BATCH_SIZE", batch_size)
    run = open_run(finished_run.paths.root)
    shades = [40, 110, 180, 251]  # their remainders by 3, which the toy predicts, are 1, 2, 0 and 2
    given = [explain.Example(f"{shade}.png", np.full((12, 12, 3), shade, np.uint8), "") for shade in shades]
    found = explain.explanations(iter(given), run, cast(GradCam, ToyCam()), requested)

    for (example, panels), shade in zip(found, shades, strict=True):
        classes = {"all": [0, 1, 2], "predicted": [shade % 3]}.get(str(requested), [2, 0])
        assert example.name == f"{shade}.png"
        assert [panel.lines[0] for panel in panels[1:]] == [run.class_names[index] for index in classes]
        for panel, index in zip(panels[1:], classes, strict=True):
            heat = np.full((12, 12), shade / 255 * (index + 1) / 3, np.float32)
            expected = np.asarray(heatmaps.overlay(example.image, heat), dtype=int)
            assert np.abs(np.asarray(panel.image, dtype=int) - expected).max() <= 1


def test_an_overlay_is_the_grey_image_with_colour_where_the_map_is_high():
    image = np.full((28, 28, 3), (200, 100, 0), dtype=np.uint8)
    heat = np.zeros((28, 28), dtype=np.float32)
    heat[:, 14:] = 1
    shown = np.asarray(heatmaps.overlay(image, heat))
    assert shown.shape == (224, 224, 3)
    assert (shown[:, :100] == shown[:, :100, :1]).all()
    assert (shown[:, -100:] != shown[:, -100:, :1]).any(axis=2).all()
    assert np.asarray(heatmaps.enlarge(image)).tolist() == np.full((224, 224, 3), (200, 100, 0)).tolist()


def test_many_panels_are_divided_evenly_over_rows():
    panel = heatmaps.Panel(Image.new("RGB", (224, 224)), ("a name that is much too long for the width of a panel",))
    sizes = [heatmaps.draw_panels([panel] * count).size for count in (1, 8, 9)]
    assert sizes[0][0] == 224
    assert sizes[1] == (8 * 224 + 7 * heatmaps.GAP, sizes[0][1])
    assert sizes[2][0] == 5 * 224 + 4 * heatmaps.GAP
    assert sizes[2][1] > 2 * sizes[0][1]


def bomb() -> bytes:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    return stream.getvalue()


@needs_captum
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"\x89PNG\r\n\x1a\n broken", "not an image"), (bomb(), "more than 89,478,485 pixels")],
    ids=["empty", "damaged", "bomb"],
)
def test_an_unusable_file_is_named_and_nothing_is_left(call: Call, photographs: Path, tmp_path: Path, content, reason):
    (photographs / "c.png").write_bytes(content)
    code, _, err = call(photographs)
    assert (code, err.count("\n")) == (3, 1)
    assert "c.png" in err
    assert reason in err
    assert names_in(tmp_path) == ["photographs"]


@needs_captum
def test_unusable_files_are_skipped_on_request(call: Call, photographs: Path, tmp_path: Path):
    (photographs / "a" / "2.png").write_bytes(b"")
    code, _, err = call(photographs)
    assert (code, err.endswith("leave them out with --skip_unreadable.\n")) == (3, True)
    code, out, err = call(photographs, "--skip_unreadable")
    assert (code, err.count("\n")) == (0, 1)
    assert "1 of 5 images cannot be used: " in err
    assert "maps: 4 images and sheet.png" in out
    assert names_in(tmp_path / "maps") == ["0000_1.png", "0001_3.png", "0002_4.png", "0003_5.png", "sheet.png"]


@needs_captum
def test_a_file_of_16_bits_is_explained(call: Call, tmp_path: Path):
    Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    code, out, _ = call(tmp_path / "deep.png")
    assert code == 0
    assert "of 16 bits, divided by 257: 1 of 1 images" in out


@needs_captum
def test_images_of_another_size_are_refused(call: Call, tmp_path: Path):
    code, _, err = call(write_npz(tmp_path / "large.npz", side=20, classes=3))
    assert (code, err.count("\n")) == (3, 1)
    assert "20 × 20 pixels" in err


@needs_captum
@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nothing.png"], 2, "INPUT nothing.png does not exist."),
        (["empty"], 3, "There is no image in empty."),
        ([".", "--classes", "drak"], 2, "Did you mean 'dark'?"),
        ([".", "--limit", "0"], 2, "must be a whole number from 1 to 10,000, got '0'"),
        (["a.png", "--indices", "7"], 2, "--indices has 7, but there are 1 images: count from 0."),
        (["a.png", "--indices", "1-"], 2, "must be rows and ranges of rows, such as 0-9,42"),
        (["a.png", "--indices", "5-2"], 2, "must be rows and ranges of rows, such as 0-9,42"),
        (["a.png", "--device", "tpu"], 2, "--device must be"),
        ([], 2, "INPUT"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
    found, _, err = call(*argv)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert names_in(tmp_path) == ["a.png", "empty"]


@needs_captum
def test_a_folder_with_files_is_not_written_into(call: Call, photographs: Path, tmp_path: Path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "mine.txt").write_text("mine", encoding="utf-8")
    code, _, err = call(photographs)
    assert code == 2
    assert "exists already" in err
    assert names_in(tmp_path / "maps") == ["mine.txt"]


@contextmanager
def small_files() -> Iterator[None]:
    """Inside, a file of this process cannot have more than 1,000 bytes."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


@needs_captum
def test_where_files_cannot_be_written_the_output_is_named_and_nothing_is_left(
    call: Call, photographs: Path, tmp_path: Path
):
    with small_files():
        code, _, err = call(photographs)
    assert code == 6
    assert err.startswith(f"error: Cannot write the folder at {tmp_path / 'maps'}. The file would exceed the size")
    assert err.count("\n") == 1
    assert names_in(tmp_path) == ["photographs"]


def test_parents_that_a_failed_command_made_are_removed_and_others_kept(tmp_path: Path):
    def write(output: Path, *, fail: bool) -> None:
        with explain.new_folder(output) as folder:
            (folder / "a.png").touch()
            if fail:
                raise DataError("an empty image")

    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError):
        write(tmp_path / "mine" / "x" / "y" / "z", fail=True)
    assert names_in(tmp_path / "mine") == []
    with pytest.raises(StorageError, match="File name too long"):
        write(tmp_path / "mine" / "x" / ("y" * 300) / "z", fail=False)
    assert names_in(tmp_path / "mine") == []
    write(tmp_path / "mine" / "x" / "y" / "z", fail=False)
    assert names_in(tmp_path / "mine" / "x" / "y") == ["z"]
    assert names_in(tmp_path / "mine" / "x" / "y" / "z") == ["a.png"]


def test_what_is_not_a_finished_run_is_refused(
    call: Call, finished_run: FinishedRun, photographs: Path, tmp_path: Path
):
    code, _, err = call(photographs, run=tmp_path)
    assert (code, "is not the folder of a run" in err) == (2, True)
    paths = finished_run.copy_to(tmp_path / "copy")
    paths.summary.unlink()
    code, _, err = call(photographs, run=paths.root)
    assert (code, "is not finished" in err) == (2, True)


def test_a_missing_captum_is_named_with_the_command(call: Call, photographs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scripts.core.optional.find_spec", lambda _: None)
    code, _, err = call(photographs)
    assert code == 2
    assert "needs the package captum" in err
    assert err.endswith("Install it: pip install captum\n")
