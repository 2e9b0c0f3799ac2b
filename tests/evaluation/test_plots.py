"""The pictures: drawn, of the right size, readable, and the same every time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import datetime

import matplotlib as mpl
import numpy as np
import openpyxl
import pytest
from matplotlib.patches import Rectangle
from PIL import Image
from scripts.evaluation.page import DPI, RIGHT_COLOUR, WRONG_COLOUR, Caption, save_figure
from sklearn.metrics import auc as area_under

from scripts.core.config import Config
from scripts.core.errors import StorageError
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.label_plots import draw_label_curves, draw_label_figures, draw_label_predictions
from scripts.evaluation.metrics import EvaluationResult, compute_metrics
from scripts.evaluation.plots import (
    draw_confusion_matrix,
    draw_dataset_samples,
    draw_sample_predictions,
    draw_training_curves,
)
from scripts.evaluation.workbook import write_workbook
from tests.evaluation.conftest import (
    LONG_NAME,
    NAMES,
    toy_dataset,
    toy_evaluation,
    toy_label_evaluation,
    toy_label_split,
    toy_split,
    toy_training,
)

PICTURES = ("samples", "curves", "matrix", "predictions", "label samples", "ROC", "label figures", "label predictions")
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
    if name == "predictions":
        return draw_sample_predictions(split.images, evaluation, NAMES, caption)
    of_labels = toy_label_split(30, 3)
    if name == "label samples":
        return draw_dataset_samples(of_labels.images, of_labels.labels, NAMES, caption)
    if name == "ROC":
        return draw_label_curves(toy_label_evaluation(), caption)
    if name == "label figures":
        return draw_label_figures(toy_label_evaluation(), caption)
    return draw_label_predictions(of_labels.images, toy_label_evaluation(), NAMES, caption)


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def workbook_with(picture, dataset):
    """A toy workbook with one picture, as it is read back."""
    write_workbook(
        picture.with_suffix(".xlsx"),
        caption=CAPTION,
        config=Config(),
        dataset=dataset,
        training=toy_training(),
        evaluation=toy_evaluation(),
        environment={},
        figures={"Picture": picture},
        finished=datetime(2026, 1, 31),
    )
    return openpyxl.load_workbook(picture.with_suffix(".xlsx"))


def frames_of(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_as_large_as_its_figure_and_not_blank(tmp_path, name):
    figure = draw(name)
    save_figure(figure, tmp_path / "picture.png")
    pixels = pixels_of(tmp_path / "picture.png")
    width, height = (round(inches * DPI) for inches in figure.get_size_inches())
    assert pixels.shape == pytest.approx((height, width, 3), abs=1)  # a point has fractions of a pixel
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


@pytest.mark.parametrize("num_images", [4, 12, 30])
def test_samples_leave_no_more_room_on_the_right_than_the_margin(tmp_path, num_images):
    split = toy_split(num_images, 2, side=12, width=20)
    figure = draw_dataset_samples(split.images, split.labels, ["an even number", "an odd number"], NOTED)
    save_figure(figure, tmp_path / "p.png")
    used = np.flatnonzero((pixels_of(tmp_path / "p.png") < 250).any(axis=(0, 2)))
    # beyond the margin of 48 there is the gap of 8 after an image, or what the heading was estimated too wide
    assert 48 <= round(figure.get_size_inches()[0] * DPI) - used[-1] - 1 <= 48 + 60


def test_a_narrow_picture_of_samples_still_has_its_heading_in_full(tmp_path):
    split, note = toy_split(2, 2), "synthetic: no medical result, and a note that is rather long"
    figure = draw_dataset_samples(split.images, split.labels, ["a", "b"], Caption("A data set", "A network", note))
    assert {"A data set · A network", "2 images of 28 × 28 pixels", note} <= set(texts_of(figure))
    save_figure(figure, tmp_path / "p.png")
    assert (pixels_of(tmp_path / "p.png")[:, -24:] == 255).all()


def test_a_very_long_heading_makes_no_wider_picture_than_twelve_samples_do():
    widths = []
    for num_images, title in ((24, "Toy cells"), (2, "A very long title " * 20)):
        split = toy_split(num_images, 2)
        figure = draw_dataset_samples(split.images, split.labels, ["a", "b"], Caption(title, "ResNet-18", None))
        widths.append(figure.get_size_inches()[0])
    # the counts "12 images" and "1 images" differ by one letter of 7.5 points
    assert widths[0] - widths[1] == pytest.approx(7.5 / 72 * 0.57, abs=1 / DPI)


def test_sizes_read_width_by_height_in_the_picture_and_the_workbook(tmp_path):
    split = toy_split(6, 3, side=12, width=20)
    figure = draw_dataset_samples(split.images, split.labels, NAMES, CAPTION)
    assert "6 images of 20 × 12 pixels" in texts_of(figure)
    save_figure(figure, tmp_path / "p.png")
    book = workbook_with(tmp_path / "p.png", dataclasses.replace(toy_dataset(), height=12, width=20))
    facts = {row[0]: row[1] for row in book["Summary"].iter_rows(min_row=10, max_col=2, values_only=True)}
    assert facts["Image size, width × height"] == "20 × 12, RGB"
    # a small picture is not blown up
    extent = book["Figures"]._images[0].anchor.ext
    height, width, _ = pixels_of(tmp_path / "p.png").shape
    assert width < 1000
    assert (extent.width // 9525, extent.height // 9525) == (width, height)  # English Metric Units per pixel


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


@pytest.mark.parametrize(("num_epochs", "best"), [(1, 1.0), (1, 0.0), (3, 1.0), (3, 0.0), (3, 0.98)])
def test_the_accuracy_axis_names_nothing_impossible(num_epochs, best):
    axes = draw_training_curves(toy_training(num_epochs, best_epoch=1, best=best), CAPTION).axes[2]
    lowest, highest = axes.get_ylim()
    ticks = axes.get_yticks()
    assert len(ticks) >= 3
    assert 0 <= ticks.min() <= ticks.max() <= 1
    # a possible extreme is named, lies inside, and has little beyond it
    assert lowest < best < highest
    assert best not in {0, 1} or best in ticks
    assert -0.1 * (highest - lowest) < lowest
    assert highest < 1 + 0.1 * (highest - lowest)


@pytest.mark.parametrize("val_loss", [1.49, 1.51])
@pytest.mark.parametrize("num_epochs", [1, 3])
def test_no_point_of_a_curve_lies_on_the_upper_edge_or_is_cut(num_epochs, val_loss):
    # the training loss of the first epoch is 1.5: two points near each other and far from zero
    figure = draw_training_curves(toy_training(num_epochs, best_epoch=1, val_loss=val_loss), CAPTION)
    for axes in figure.axes[1:]:
        edge = axes.get_window_extent().y1
        curves = [line for line in axes.lines if line.get_marker() in ("o", "D")]
        assert curves
        for line in curves:
            points = axes.transData.transform(line.get_xydata())
            assert points[:, 1].max() < edge - 10
            assert not line.get_clip_on()  # as at the lower edge, where a rate of zero lies


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


def test_numbers_of_columns_are_those_of_the_rows():
    # in two lines the names differ, in one line only the last does
    names = [*(f"a very long class name that differs late {index}" for index in range(10)), "platelet"]
    texts = texts_of(draw_confusion_matrix(toy_evaluation(names=names).plain, CAPTION, scores=""))
    for index in range(10):
        assert texts.count(f"{index}: a very long class name\nthat differs late {index}") == 1
        assert texts.count(f"{index}: a very long class name…") == 2
    assert texts.count("10: platelet") == 3


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


def test_samples_of_several_labels_show_an_image_in_the_row_of_each():
    split = toy_label_split(6, 3)  # images 0 and 5 have two labels
    figure = draw_dataset_samples(split.images, split.labels, NAMES, CAPTION)
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    expected = [split.images[index] for index in (0, 3, 5, 0, 1, 4, 2, 5)]
    assert all(np.array_equal(one, other) for one, other in zip(shown, expected, strict=True))
    assert "6 images of 28 × 28 pixels, in the row of each of their labels" in texts_of(figure)
    assert [text for text in texts_of(figure) if text[0].isdigit() and text.endswith(" images")] == [
        "3 images",
        "3 images",
        "2 images",
    ]


def test_each_label_has_its_curve_with_its_auc_and_its_images():
    evaluation = toy_label_evaluation(wrong=6)
    _, *panels = draw_label_curves(evaluation, CAPTION).axes
    texts = texts_of(draw_label_curves(evaluation, CAPTION))
    assert len(panels) == 3
    for index, (panel, figures) in enumerate(zip(panels, evaluation.headline.per_class, strict=True)):
        _, curve = panel.lines
        false_alarms, found = np.transpose(curve.get_xydata())
        # the area under the drawn curve is the AUC that stands above it
        assert area_under(false_alarms, found) == pytest.approx(figures.auc, abs=1e-12)
        assert f"AUC {figures.auc:.3f} · {figures.support:,} images" in texts
        assert curve.get_color() == RIGHT_COLOUR
        assert (false_alarms[-1], found[-1]) == (1, 1)
        assert bool(panel.get_ylabel()) == (index == 0)
    auc = evaluation.headline.auc
    assert f"30 test images with TTA; mean AUC {auc.value:.3f} (95% interval {auc.low:.3f} to {auc.high:.3f})" in texts


def test_a_label_without_a_curve_says_why():
    evaluation = toy_label_evaluation(num_images=2, wrong=0)  # image 0 has the first two labels, image 1 the second
    _, first, second, third = draw_label_curves(evaluation, CAPTION).axes
    assert len(first.lines) == 2
    assert (len(second.lines), second.texts[0].get_text()) == (0, "every image\nhas this label")
    assert (len(third.lines), third.texts[0].get_text()) == (0, "no image\nhas this label")
    assert "AUC undefined · 0 images" in texts_of(draw_label_curves(evaluation, CAPTION))


def test_where_no_label_varies_the_mean_is_called_undefined():
    evaluation = toy_label_evaluation(num_images=1, wrong=0, tta=False)
    for draw_it in (draw_label_curves, draw_label_figures):
        assert "1 test image without TTA; the mean AUC is undefined" in texts_of(draw_it(evaluation, CAPTION))


def test_the_figures_of_labels_lie_where_they_belong_and_are_written_beside():
    evaluation = toy_label_evaluation(wrong=6)
    figure = draw_label_figures(evaluation, CAPTION)
    page, metrics = figure.axes[0], evaluation.headline
    points = [line for line in page.lines if line.get_marker() == "o"]
    values = [getattr(one, name) for name in ("auc", "precision", "recall", "f1") for one in metrics.per_class]
    assert len(points) == len(values) == 12
    stems = [line for line in page.lines if line.get_marker() != "o" and line.get_color() == RIGHT_COLOUR]
    for stem, point, value in zip(stems, points, values, strict=True):
        (beginning, height), end = np.asarray(stem.get_xydata())
        assert end.tolist() == [pytest.approx(beginning + 230 * value), height]
        assert np.asarray(point.get_xydata()).tolist() == [end.tolist()]
        assert f"{value:.3f}" in texts_of(figure)
    assert f"mean {metrics.auc.value:.3f}" in texts_of(figure)
    assert f"mean {metrics.macro_f1.value:.3f}" in texts_of(figure)


def test_an_undefined_figure_of_a_label_has_a_dash_and_no_point():
    figure = draw_label_figures(toy_label_evaluation(num_images=2, wrong=0), CAPTION)
    # of the third label nothing is defined; of the second, which every image has, all but the AUC
    assert texts_of(figure).count("–") == 4 + 1
    assert sum(line.get_marker() == "o" for line in figure.axes[0].lines) == 12 - 5


@pytest.mark.parametrize("num_labels", [2, 14, 70])
def test_the_pictures_of_labels_hold_from_two_to_very_many(tmp_path, num_labels):
    names = [f"a rather long name of label {index}" for index in range(num_labels)]
    evaluation = toy_label_evaluation(num_images=2 * num_labels, names=names)
    for draw_it, most in ((draw_label_curves, 30), (draw_label_figures, 60)):
        figure = draw_it(evaluation, CAPTION)
        save_figure(figure, tmp_path / "p.png")
        height, width, _ = pixels_of(tmp_path / "p.png").shape
        assert height < 2800
        assert width < 2200
        said = any(text.endswith(f"; the first {most} of 70 labels") for text in texts_of(figure))
        assert said == (num_labels > most)


def test_predictions_of_labels_tell_the_found_the_missed_and_the_false_ones():
    images, evaluation = toy_label_split(30, 3).images, toy_label_evaluation(wrong=3)
    figure = draw_label_predictions(images, evaluation, NAMES, CAPTION)
    texts = texts_of(figure)
    assert "✓  Right in every label: 16 of 28, from each label in turn" in texts
    assert "✗  Wrong in some: 2 of 2, the most confident first" in texts
    assert any(text.startswith("test images; 28 of 30 are right in every label · ✓ true and pred") for text in texts)
    # image 0 has the first two labels and was given the last two; image 1 the second, and was given the third
    assert texts[-5:] == [
        "✗ platelet 90%",
        "○ basophil 20%",
        "✓ immature granul… 90%",
        "✗ platelet 90%",
        "○ immature granul… 20%",
    ]
    colours = [text.get_color() for text in figure.axes[0].texts[-5:]]
    assert colours == [WRONG_COLOUR, WRONG_COLOUR, RIGHT_COLOUR, WRONG_COLOUR, WRONG_COLOUR]
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    assert all(np.array_equal(shown[16 + place], images[place]) for place in range(2))


def test_of_many_labels_of_an_image_the_first_are_told_and_the_rest_counted():
    names = [f"label {index}" for index in range(8)]
    rows = np.ones((2, 8), dtype=np.int64)
    rows[1] = 0
    scores = np.where(rows == 1, 0.7, 0.1)
    metrics = compute_metrics(rows, scores, task=MULTI_LABEL, class_names=names, seed=1, resamples=5)
    evaluation = EvaluationResult(labels=rows, plain_scores=scores, tta_scores=None, plain=metrics, tta=None, views=())
    texts = texts_of(draw_label_predictions(toy_split(2, 2).images, evaluation, names, CAPTION))
    assert texts[-6:] == [*(f"✓ label {index} 70%" for index in range(4)), "and 4 more", "no label, none predicted"]
