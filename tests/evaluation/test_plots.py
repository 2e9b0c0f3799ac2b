"""The pictures: drawn, of the right size, readable, and the same every time."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from scripts.core.errors import StorageError
from scripts.evaluation.plots import (
    DPI,
    Caption,
    draw_confusion_matrix,
    draw_dataset_samples,
    draw_sample_predictions,
    draw_training_curves,
    save_figure,
)
from tests.evaluation.conftest import LONG_NAME, NAMES, toy_evaluation, toy_split, toy_training

PICTURES = ("samples", "curves", "matrix", "predictions")
CAPTION = Caption("Toy cells", "ResNet-18 Adapted", None)
NOTED = Caption("Toy cells", "ResNet-18 Adapted", "synthetic: no medical result")


def draw(name, caption=CAPTION):
    split, evaluation = toy_split(30, 3), toy_evaluation()
    if name == "samples":
        return draw_dataset_samples(split.images, split.labels, NAMES, caption)
    if name == "curves":
        return draw_training_curves(toy_training(), caption)
    if name == "matrix":
        return draw_confusion_matrix(evaluation.headline, caption, scores="with TTA")
    return draw_sample_predictions(split.images, evaluation, NAMES, caption)


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def frames_of(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_as_large_as_its_figure_and_not_blank(tmp_path, name):
    figure = draw(name)
    save_figure(figure, tmp_path / "picture.png")
    pixels = pixels_of(tmp_path / "picture.png")
    width, height = (round(inches * DPI) for inches in figure.get_size_inches())
    assert pixels.shape == (height, width, 3)
    assert len(set(pixels[::3, ::3].ravel().tolist())) > 50
    assert np.mean(pixels < 250) > 0.01
    # nothing runs over the edge
    for edge in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (edge == 255).all()


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_values_give_the_same_bytes_whatever_the_users_settings(tmp_path, name):
    save_figure(draw(name), tmp_path / "first.png")
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "savefig.facecolor": "black", "lines.linewidth": 9}):
        save_figure(draw(name), tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_drawing_needs_no_pyplot():
    code = "import sys, scripts.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_changes_no_setting():
    before = dict(mpl.rcParams)
    for name in PICTURES:
        draw(name)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_says_where_it_comes_from_and_shows_the_note(name):
    assert "Toy cells · ResNet-18 Adapted" in texts_of(draw(name))
    assert "synthetic: no medical result" not in texts_of(draw(name))
    assert "synthetic: no medical result" in texts_of(draw(name, NOTED))


def test_a_name_cannot_start_a_formula_or_break_a_line():
    split = toy_split(4, 2)
    figure = draw_dataset_samples(split.images, split.labels, ["$x_1$", "a\x00\nb"], CAPTION)
    assert r"\$x_1\$" in texts_of(figure)  # which matplotlib shows as $x_1$
    assert "a b" in texts_of(figure)
    assert len(figure.axes[0].images) == 4


def test_a_script_that_the_font_lacks_is_no_error(tmp_path):
    split = toy_split(4, 2)
    save_figure(draw_dataset_samples(split.images, split.labels, ["細胞", "x"], CAPTION), tmp_path / "p.png")
    assert pixels_of(tmp_path / "p.png").std() > 0


def test_a_picture_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        save_figure(draw("curves"), tmp_path / "missing" / "p.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_show_the_very_pixels_in_their_rows(tmp_path, channels):
    split = toy_split(6, 2, channels=channels)
    figure = draw_dataset_samples(split.images, split.labels, ["even", "odd"], CAPTION)
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    expected = [split.images[index] for index in (0, 2, 4, 1, 3, 5)]
    expected = [image if channels == 3 else np.stack([image] * 3, axis=-1) for image in expected]
    assert all(np.array_equal(one, other) for one, other in zip(shown, expected, strict=True))
    save_figure(figure, tmp_path / "p.png")
    left, right, bottom, top = (int(edge) for edge in figure.axes[0].images[0].get_extent())
    enlarged = np.repeat(np.repeat(expected[0], 3, axis=0), 3, axis=1)
    assert np.array_equal(pixels_of(tmp_path / "p.png")[top:bottom, left:right], enlarged)


def test_at_most_twelve_samples_of_a_class_from_its_first_to_its_last():
    split = toy_split(100, 1)
    figure = draw_dataset_samples(split.images, split.labels, ["all", "none"], CAPTION)
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    assert len(shown) == 12
    assert np.array_equal(shown[0], split.images[0])
    assert np.array_equal(shown[-1], split.images[99])
    assert "0 images" in texts_of(figure)


def test_of_very_many_classes_the_first_are_sampled_and_the_picture_says_so():
    split = toy_split(120, 40)
    figure = draw_dataset_samples(split.images, split.labels, [f"kind {index}" for index in range(40)], CAPTION)
    assert "120 images of 28 × 28 pixels, the first 30 of 40 classes" in texts_of(figure)
    assert "kind 29" in texts_of(figure)
    assert "kind 30" not in texts_of(figure)


def test_curves_mark_the_best_epoch():
    figure = draw_training_curves(toy_training(5, best_epoch=4), CAPTION)
    _, loss, accuracy, rate = figure.axes
    assert [line.get_label() for line in loss.lines[:2]] == ["training", "validation"]
    assert loss.lines[0].get_ydata() == pytest.approx([1.5, 0.75, 0.5, 0.375, 0.3])
    assert np.asarray(accuracy.lines[1].get_xydata()).tolist() == [[4, 0.9]]
    assert np.asarray(rate.lines[0].get_ydata())[0] == 0.008
    assert "◆ best: 90.00% in epoch 4" in texts_of(figure)
    assert "5 epochs, not stopped early" in texts_of(figure)


@pytest.mark.parametrize("num_epochs", [1, 2, 60])
def test_the_epoch_axis_has_whole_numbers_only(num_epochs):
    figure = draw_training_curves(toy_training(num_epochs, best_epoch=1), CAPTION)
    ticks = figure.axes[1].get_xticks()
    assert all(tick == round(tick) for tick in ticks)
    assert sum(1 <= tick <= num_epochs for tick in ticks) >= min(num_epochs, 3)


def test_the_matrix_shows_counts_and_shares():
    # of 15 images, 5 per class, the first two are taken for the next class
    figure = draw_confusion_matrix(toy_evaluation(num_images=15, wrong=2).plain, CAPTION, scores="without TTA")
    texts = texts_of(figure)
    assert texts.count("4") == 2
    assert texts.count("80.0") == 2
    assert texts.count("20.0") == 2
    assert texts.count("100.0") == 1
    assert any(text.startswith("13 of 15 test images right without TTA: 86.67% (95% interval ") for text in texts)
    assert texts.count("predicted class") == 2
    assert texts.count("immature granulocytes…") == 3
    assert LONG_NAME not in texts


def test_a_class_without_images_has_a_dash_for_its_shares():
    evaluation = toy_evaluation(num_images=2, wrong=0)
    assert texts_of(draw_confusion_matrix(evaluation.plain, CAPTION, scores="")).count("–") == 3


def test_errors_are_orange_and_hits_are_blue():
    figure = draw_confusion_matrix(toy_evaluation(num_images=15, wrong=2).plain, CAPTION, scores="")
    for panel in figure.axes[0].images:
        red, _, blue = np.moveaxis(np.asarray(panel.get_array()), -1, 0)
        assert (np.diag(blue) > np.diag(red)).all()
        assert red[0, 1] > blue[0, 1]
        assert red[1, 0] == blue[1, 0] == red[0, 2] == 1.0


@pytest.mark.parametrize("num_classes", [2, 14, 25, 70])
def test_the_matrix_holds_from_two_classes_to_very_many(tmp_path, num_classes):
    names = [f"a rather long name of kind {index}" for index in range(num_classes)]
    evaluation = toy_evaluation(num_images=2 * num_classes, names=names)
    save_figure(draw_confusion_matrix(evaluation.headline, CAPTION, scores="with TTA"), tmp_path / "p.png")
    height, width, _ = pixels_of(tmp_path / "p.png").shape
    assert height < 2000
    assert width < 3200


def test_names_that_shortening_makes_equal_are_numbered():
    names = ["very long common beginning of one", "very long common beginning of two"]
    texts = texts_of(draw_confusion_matrix(toy_evaluation(names=names).plain, CAPTION, scores=""))
    assert "0: very long common beginn…" in texts
    assert "1: very long common beginn…" in texts


def test_predictions_name_truth_guess_and_confidence_and_the_surest_errors_first():
    evaluation = toy_evaluation(num_images=30, wrong=4)
    images = toy_split(30, 3).images
    figure = draw_sample_predictions(images, evaluation, NAMES, CAPTION)
    texts = texts_of(figure)
    assert "✓  Right: 16 of 27, from each class in turn" in texts
    assert "✗  Wrong: 3 of 3, the most confident first" in texts
    assert "test images; 27 of 30 are right" in texts
    # of the wrong images 0, 1 and 2 the last is the surest; a platelet, it is taken for the first class
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    assert all(np.array_equal(shown[16 + place], images[index]) for place, index in enumerate((2, 1, 0)))
    assert f"✗ {evaluation.headline_scores[2].max():.1%}" in texts
    assert "true  platelet\npred. basophil" in texts
    # right and wrong differ in more than colour
    assert {frame.get_linestyle() for frame in frames_of(figure)[:16]} == {"-"}
    assert all(frame.get_linestyle() != "-" for frame in frames_of(figure)[16:])


@pytest.mark.parametrize(("wrong", "heading"), [(0, "✗  Wrong"), (13, "✓  Right")])
def test_a_group_without_images_is_left_out(wrong, heading):
    evaluation = toy_evaluation(num_images=12, wrong=wrong)
    figure = draw_sample_predictions(toy_split(12, 3).images, evaluation, NAMES, CAPTION)
    assert not any(text.startswith(heading) for text in texts_of(figure))
    assert len(frames_of(figure)) == 12


def test_right_predictions_take_turns_between_the_classes():
    evaluation = toy_evaluation(num_images=30, wrong=0)
    figure = draw_sample_predictions(toy_split(30, 3).images, evaluation, NAMES, CAPTION)
    shown = [text.split("\n")[0].removeprefix("true  ") for text in texts_of(figure) if text.startswith("true")]
    assert shown[:6] == ["basophil", "immature granul…", "platelet"] * 2


def test_large_grey_pictures_are_reduced_not_sampled():
    split = toy_split(12, 3, side=224, channels=1)
    figure = draw_sample_predictions(split.images, toy_evaluation(num_images=12), NAMES, CAPTION)
    assert {image.get_interpolation() for image in figure.axes[0].images} == {"antialiased"}
