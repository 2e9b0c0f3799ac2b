"""The figures: drawn, readable, of a sensible size, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends import backend_agg
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import auc as area_under

from scripts.core.errors import StorageError
from scripts.data_handler.registry import MULTI_CLASS, MULTI_LABEL
from scripts.evaluation import style
from scripts.evaluation.image_grids import draw_dataset_samples, draw_predictions
from scripts.evaluation.label_plots import draw_label_curves, draw_label_figures
from scripts.evaluation.plots import draw_confusion_matrix, draw_training_curves
from scripts.evaluation.run_report import largest_confusions
from scripts.evaluation.style import RIGHT_COLOUR, WRONG_COLOUR, Caption, save_figure, short_names
from scripts.evaluation.trust_plots import draw_reliability, draw_risk_coverage
from tests.evaluation.conftest import (
    LONG_NAME,
    NAMES,
    evaluation_of,
    toy_evaluation,
    toy_label_evaluation,
    toy_label_split,
    toy_split,
    toy_training,
)

CAPTION = Caption("Toy cells", "ResNet-18 Adapted", None)
NOTED = Caption("Toy cells", "ResNet-18 Adapted", "synthetic: no medical result")
SPLIT, LABEL_SPLIT = toy_split(30, 3), toy_label_split(30, 3)
EVALUATION, LABEL_EVALUATION = toy_evaluation(), toy_label_evaluation()
DRAWINGS = {
    "samples": lambda caption: draw_dataset_samples(SPLIT.images, SPLIT.labels, NAMES, caption),
    "curves": lambda caption: draw_training_curves(toy_training(), caption),
    "matrix": lambda caption: draw_confusion_matrix(EVALUATION.variants[-1], caption),
    "predictions": lambda caption: draw_predictions(SPLIT.images, EVALUATION, NAMES, caption),
    "ROC": lambda caption: draw_label_curves(LABEL_EVALUATION, caption),
    "label figures": lambda caption: draw_label_figures(LABEL_EVALUATION, caption),
    "reliability": lambda caption: draw_reliability(EVALUATION, MULTI_CLASS, caption),
    "risk": lambda caption: draw_risk_coverage(EVALUATION, MULTI_CLASS, caption),
    "label reliability": lambda caption: draw_reliability(LABEL_EVALUATION, MULTI_LABEL, caption),
    "label predictions": lambda caption: draw_predictions(LABEL_SPLIT.images, LABEL_EVALUATION, NAMES, caption),
}


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def shown_in(figure):
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def saved(figure, folder):
    """The pixels of a figure's file."""
    save_figure(figure, folder / "figure.png")
    with Image.open(folder / "figure.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_keeps_a_margin_and_the_same_values_give_the_same_bytes(tmp_path, name):
    pixels = saved(DRAWINGS[name](NOTED), tmp_path)
    first = (tmp_path / "figure.png").read_bytes()
    assert np.mean(pixels < 250) > 0.01
    for edge in (pixels[:30], pixels[-30:], pixels[:, :30], pixels[:, -30:]):
        assert (edge == 255).all()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "savefig.facecolor": "black", "lines.linewidth": 9}):
        saved(DRAWINGS[name](NOTED), tmp_path)
    assert (tmp_path / "figure.png").read_bytes() == first


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_says_where_it_comes_from_and_changes_nothing_global(name):
    before, open_figures = dict(mpl.rcParams), plt.get_fignums()
    plain, noted = texts_of(DRAWINGS[name](CAPTION)), texts_of(DRAWINGS[name](NOTED))
    assert "Toy cells · ResNet-18 Adapted" in plain
    assert ("synthetic: no medical result" in plain, "synthetic: no medical result" in noted) == (False, True)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_figures  # seaborn imports pyplot; nothing is drawn through it


def test_a_name_cannot_start_a_formula_or_break_a_line(tmp_path):
    split = toy_split(4, 2)
    figure = draw_dataset_samples(split.images, split.labels, ["$x_1$", "a\x00\nb"], CAPTION)
    assert {"$x_1$", "a b"} <= set(texts_of(figure))
    assert len(figure.axes[0].images) == 4
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    saved(figure, tmp_path)


def test_characters_that_no_font_has_become_class_numbers_and_escapes_never_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "font_with", lambda character: style.FONT if character.isascii() else None)
    assert short_names(["日本", "Blood"], width=20, lines=1) == ["class 0", "Blood"]
    figure = draw_dataset_samples(SPLIT.images, SPLIT.labels, ["日本", "b", "c"], Caption("日", "x", None))
    saved(figure, tmp_path)  # a glyph that is missing is a warning, and so an error
    assert {"class 0", r"\u65e5 \xb7 x"} <= set(texts_of(figure))


def test_a_text_falls_back_to_a_font_that_has_its_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "font_with", lambda one: "DejaVu Sans Mono" if one == "細" else style.FONT)
    figure = draw_dataset_samples(SPLIT.images, SPLIT.labels, ["細", "b", "c"], CAPTION)
    for text in figure.findobj(Text):
        style._choose_fonts(text)
    families = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    assert families["細"] == [style.FONT, "DejaVu Sans Mono"]
    assert families["b"] == [style.FONT]


def test_the_fonts_are_searched_for_a_character_and_boxes_for_everything_are_none():
    assert style.font_with("x") == style.FONT
    assert style.font_with("\U000fffff") is None  # of a private plane, which only a font of last resort has


def test_a_figure_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        save_figure(DRAWINGS["curves"](CAPTION), tmp_path / "missing" / "p.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_show_the_very_pixels_in_their_rows(tmp_path, channels):
    split = toy_split(6, 2, channels=channels)
    figure = draw_dataset_samples(split.images, split.labels, ["even", "odd"], CAPTION)
    expected = [split.images[index] for index in (0, 2, 4, 1, 3, 5)]
    expected = [image if channels == 3 else np.stack([image] * 3, axis=-1) for image in expected]
    assert all(np.array_equal(one, other) for one, other in zip(shown_in(figure), expected, strict=True))
    pixels, enlarged = saved(figure, tmp_path), np.kron(expected[0], np.ones((3, 3, 1), np.uint8))
    corners = np.argwhere((pixels[:-83, :-83] == enlarged[0, 0]).all(axis=-1))
    assert any(np.array_equal(pixels[y : y + 84, x : x + 84], enlarged) for y, x in corners)


def test_at_most_twelve_samples_of_a_class_from_its_first_to_its_last():
    split = toy_split(100, 1)
    figure = draw_dataset_samples(split.images, split.labels, ["all", "none"], CAPTION)
    shown = shown_in(figure)
    assert len(shown) == 12
    assert np.array_equal(shown[0], split.images[0])
    assert np.array_equal(shown[-1], split.images[99])
    assert "0 images" in texts_of(figure)


def test_of_very_many_classes_the_first_are_sampled_and_the_figure_says_so():
    split = toy_split(120, 40, side=12, width=20)
    figure = draw_dataset_samples(split.images, split.labels, [f"kind {index}" for index in range(40)], CAPTION)
    assert "120 images of 20 × 12 pixels, the first 30 of 40 classes" in texts_of(figure)
    assert "kind 29" in texts_of(figure)
    assert "kind 30" not in texts_of(figure)


def test_samples_of_several_labels_show_an_image_in_the_row_of_each():
    split = toy_label_split(6, 3)  # images 0 and 5 have two labels
    figure = draw_dataset_samples(split.images, split.labels, NAMES, CAPTION)
    expected = [split.images[index] for index in (0, 3, 5, 0, 1, 4, 2, 5)]
    assert all(np.array_equal(one, other) for one, other in zip(shown_in(figure), expected, strict=True))
    assert "6 images of 28 × 28 pixels, in the row of each of their labels" in texts_of(figure)
    assert [text for text in texts_of(figure) if text[0].isdigit() and text.endswith(" images")] == [
        "3 images",
        "3 images",
        "2 images",
    ]


def test_curves_mark_the_best_epoch():
    figure = draw_training_curves(toy_training(5, best_epoch=4), CAPTION)
    loss, accuracy, rate = figure.axes
    assert [line.get_label() for line in loss.lines[:2]] == ["training", "validation"]
    assert loss.lines[0].get_ydata() == pytest.approx([1.5, 0.75, 0.5, 0.375, 0.3])
    assert np.asarray(accuracy.lines[1].get_xydata()).tolist() == [[4, 0.9]]
    assert np.asarray(rate.lines[0].get_ydata())[0] == 0.008
    assert {"◆ best: 90.00% in epoch 4", "5 epochs, not stopped early"} <= set(texts_of(figure))


@pytest.mark.parametrize(
    ("monitor", "title", "best"),
    [("auc", "Validation AUC", "◆ best: 0.7500 in epoch 2"), ("loss", "Validation loss", "◆ best: 0.6250 in epoch 2")],
)
def test_the_panel_shows_the_monitored_figure(monitor, title, best):
    assert {title, best} <= set(texts_of(draw_training_curves(toy_training(monitor=monitor), CAPTION)))


def test_a_monitored_figure_that_no_epoch_has_is_called_undefined(tmp_path):
    figure = draw_training_curves(toy_training(1, best_epoch=1, monitor="auc"), CAPTION)
    assert "undefined in every epoch" in texts_of(figure)
    saved(figure, tmp_path)


def test_of_one_epoch_both_losses_are_seen_even_where_they_are_equal():
    figure = draw_training_curves(toy_training(1, best_epoch=1, val_loss=1.5), CAPTION)
    training, validation = figure.axes[0].lines[:2]
    assert [np.asarray(line.get_xydata()).tolist() for line in (training, validation)] == [[[1, 1.5]]] * 2
    assert training.get_markersize() > 1.5 * validation.get_markersize()
    assert training.get_markerfacecolor() == "none"


@pytest.mark.parametrize("num_epochs", [1, 2, 60])
def test_the_epoch_axis_has_whole_numbers_only(num_epochs):
    ticks = draw_training_curves(toy_training(num_epochs, best_epoch=1), CAPTION).axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)
    assert sum(1 <= tick <= num_epochs for tick in ticks) >= min(num_epochs, 3)


@pytest.mark.parametrize(("num_epochs", "best"), [(1, 1.0), (1, 0.0), (3, 1.0), (3, 0.0), (3, 0.98)])
def test_the_accuracy_axis_names_nothing_impossible(num_epochs, best):
    axes = draw_training_curves(toy_training(num_epochs, best_epoch=1, best=best), CAPTION).axes[1]
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
    figure.draw_without_rendering()
    for axes in figure.axes:
        curves = [line for line in axes.lines if line.get_marker() in ("o", "s", "D")]
        assert curves
        for line in curves:
            points = axes.transData.transform(line.get_xydata())
            assert points[:, 1].max() < axes.get_window_extent().y1 - 10
            assert not line.get_clip_on()  # as at the lower edge, where a rate of zero lies


def matrix(evaluation):
    return draw_confusion_matrix(evaluation.variants[0], CAPTION)


def test_the_matrix_shows_counts_and_shares():
    # of 15 images, 5 per class, the first two are predicted as the next class
    texts = texts_of(matrix(toy_evaluation(num_images=15, wrong=2)))
    assert [texts.count(number) for number in ("4", "80.0", "20.0", "100.0")] == [2, 2, 2, 1]
    assert any(text.startswith("13 of 15 test images right without TTA: 86.67% (95% interval ") for text in texts)
    assert texts.count("predicted class") == 2
    assert texts.count("immature granulocytes…") == 3
    assert LONG_NAME not in texts


def test_a_class_without_images_has_a_dash_for_its_shares():
    assert texts_of(matrix(toy_evaluation(num_images=2, wrong=0))).count("–") == 3


def test_wrong_cells_are_orange_and_right_ones_blue():
    for axes in matrix(toy_evaluation(num_images=15, wrong=2)).axes:
        axes.figure.draw_without_rendering()
        blue, orange = (mesh.get_facecolor().reshape(3, 3, 4) for mesh in axes.collections)
        assert (blue[..., 3].astype(bool) == np.eye(3, dtype=bool)).all()  # each masked where the other is drawn
        assert (orange[..., 3].astype(bool) == ~np.eye(3, dtype=bool)).all()
        assert (np.diagonal(blue[..., 2]) > np.diagonal(blue[..., 0])).all()
        assert orange[0, 1, 0] > orange[0, 1, 2]
        assert orange[1, 0, :3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("num_classes", [2, 14, 25, 70, 150])
def test_the_matrix_holds_from_two_classes_to_very_many(tmp_path, num_classes):
    names = [f"a rather long name of kind {index}" for index in range(num_classes)]
    height, width, _ = saved(matrix(toy_evaluation(num_images=2 * num_classes, names=names)), tmp_path).shape
    assert height < 2100
    assert width < 3200


def test_beyond_a_hundred_classes_the_largest_confusions_are_drawn():
    names = [f"class {index}" for index in range(101)]
    evaluation = toy_evaluation(num_images=202, names=names, wrong=102, tta=False)  # twice 0 → 1
    texts = texts_of(matrix(evaluation))
    assert any(text.endswith("; the 30 largest confusions of 101 classes") for text in texts)
    assert {"class 0 → class 1", "2 · 100.0%", "1 · 50.0%"} <= set(texts)
    first = largest_confusions(evaluation.plain, 1).iloc[0]
    assert (first["true"], first["predicted"], first["images"], first["share"]) == (0, 1, 2, 1.0)
    without_errors = toy_evaluation(num_images=202, names=names, wrong=0)
    assert "no image is predicted wrong" in texts_of(matrix(without_errors))


def test_a_large_matrix_is_not_rendered_for_each_of_its_tick_labels(monkeypatch):
    def render(*_):
        raise AssertionError("an image of the whole figure, which is 14 MB")

    monkeypatch.setattr(backend_agg, "RendererAgg", render)
    left, right = matrix(toy_evaluation(num_images=200, names=[f"class {index}" for index in range(100)])).axes
    for axes in (left, right):
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            assert labels == [str(number) for number in range(0, 100, 10)]


def test_names_that_shortening_makes_equal_are_numbered():
    names = ["very long common beginning of one", "very long common beginning of two"]
    texts = texts_of(matrix(toy_evaluation(names=names)))
    assert {"0: very long common beginn…", "1: very long common beginn…"} <= set(texts)


def test_numbers_of_columns_are_those_of_the_rows():
    # in two lines the names differ, in one line only the last does
    names = [*(f"a very long class name that differs late {index}" for index in range(10)), "platelet"]
    texts = texts_of(matrix(toy_evaluation(names=names)))
    for index in range(10):
        assert texts.count(f"{index}: a very long class name\nthat differs late {index}") == 1
        assert texts.count(f"{index}: a very long class name…") == 2
    assert texts.count("10: platelet") == 3


def test_predictions_name_row_truth_guess_and_confidence_and_the_most_confident_errors_first():
    evaluation = toy_evaluation(num_images=30, wrong=4)
    figure = draw_predictions(SPLIT.images, evaluation, NAMES, CAPTION)
    texts = texts_of(figure)
    assert "✓  Right: 16 of 27, from each class in turn" in texts
    assert "✗  Wrong: 3 of 3, the most confident first" in texts
    assert "test images with TTA; 27 of 30 are right" in texts
    # of the wrong images 0, 1 and 2 the last has the highest confidence; a platelet, predicted as the first class
    shown = shown_in(figure)
    assert all(np.array_equal(shown[16 + place], SPLIT.images[index]) for place, index in enumerate((2, 1, 0)))
    wrong = texts.index("test #2")
    confidence = f"✗ {evaluation.variants[-1].scores[2].max():.1%}"
    assert texts[wrong : wrong + 4] == ["test #2", "true  platelet", "pred. basophil", confidence]
    # right and wrong differ in more than colour
    frames = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert {frame.get_linestyle() for frame in frames[:16]} == {"-"}
    assert all(frame.get_linestyle() != "-" for frame in frames[16:])


def test_predictions_without_tta_say_so():
    texts = texts_of(draw_predictions(SPLIT.images, toy_evaluation(tta=False), NAMES, CAPTION))
    assert "test images without TTA; 26 of 30 are right" in texts


@pytest.mark.parametrize(("wrong", "heading"), [(0, "✗  Wrong"), (13, "✓  Right")])
def test_a_group_without_images_is_left_out(wrong, heading):
    evaluation = toy_evaluation(num_images=12, wrong=wrong)
    figure = draw_predictions(toy_split(12, 3).images, evaluation, NAMES, CAPTION)
    assert not any(text.startswith(heading) for text in texts_of(figure))
    assert len(figure.axes[0].images) == 12


def test_right_predictions_take_turns_between_the_classes():
    texts = texts_of(draw_predictions(SPLIT.images, toy_evaluation(wrong=0), NAMES, CAPTION))
    shown = [text.removeprefix("true  ") for text in texts if text.startswith("true  ")]
    assert shown[:6] == ["basophil", "immature granul…", "platelet"] * 2


def test_large_grey_images_are_reduced_not_sampled():
    split = toy_split(12, 3, side=224, channels=1)
    figure = draw_predictions(split.images, toy_evaluation(num_images=12), NAMES, CAPTION)
    assert {image.get_interpolation() for image in figure.axes[0].images} == {"antialiased"}


def test_each_label_has_the_curve_of_the_metrics_with_its_auc_and_its_images():
    evaluation = toy_label_evaluation(wrong=6)
    figure = draw_label_curves(evaluation, CAPTION)
    metrics, texts = evaluation.headline, texts_of(figure)
    assert len(figure.axes) == 3
    for index, (panel, figures, curve) in enumerate(
        zip(figure.axes, metrics.per_class, metrics.roc_curves, strict=True)
    ):
        assert curve is not None
        line = panel.lines[1]
        assert np.array_equal(np.transpose(line.get_xydata()), [curve.false_positive_rate, curve.true_positive_rate])
        # the area under the drawn curve is the AUC that stands above it
        assert area_under(*np.transpose(line.get_xydata())) == pytest.approx(figures.auc, abs=1e-12)
        assert f"AUC {figures.auc:.3f} · {figures.support:,} images" in texts
        assert line.get_color() == RIGHT_COLOUR
        assert bool(panel.get_ylabel()) == (index == 0)
    auc = metrics.auc
    assert f"30 test images with TTA; mean AUC {auc.value:.3f} (95% interval {auc.low:.3f} to {auc.high:.3f})" in texts


def test_a_label_without_a_curve_says_why():
    evaluation = toy_label_evaluation(num_images=2, wrong=0)  # image 0 has the first two labels, image 1 the second
    figure = draw_label_curves(evaluation, CAPTION)
    assert [len(axes.lines) for axes in figure.axes] == [2, 0, 0]
    assert {"every image\nhas this label", "no image\nhas this label", "AUC undefined · 0 images"} <= set(
        texts_of(figure)
    )


def test_where_no_label_varies_the_mean_is_called_undefined(tmp_path):
    evaluation = toy_label_evaluation(num_images=1, wrong=0, tta=False)
    for draw in (draw_label_curves, draw_label_figures):
        figure = draw(evaluation, CAPTION)
        assert "1 test image without TTA; the mean AUC is undefined" in texts_of(figure)
        saved(figure, tmp_path)


def test_the_figures_of_labels_lie_where_they_belong_and_are_written_beside():
    evaluation = toy_label_evaluation(wrong=6)
    figure, metrics = draw_label_figures(evaluation, CAPTION), evaluation.headline
    for axes, name in zip(figure.axes, ("auc", "precision", "recall", "f1"), strict=True):
        values = [getattr(of_class, name) for of_class in metrics.per_class]
        points = np.concatenate([np.ma.getdata(dots.get_offsets()) for dots in axes.collections[1:]])
        assert points == pytest.approx(np.transpose([values, range(3)]))
        assert {f"{value:.3f}" for value in values} <= set(texts_of(figure))
    assert {f"mean {metrics.auc.value:.3f}", f"mean {metrics.macro_f1.value:.3f}"} <= set(texts_of(figure))


def test_an_undefined_figure_of_a_label_has_a_dash_and_no_point():
    figure = draw_label_figures(toy_label_evaluation(num_images=2, wrong=0), CAPTION)
    # of the third label nothing is defined; of the second, which every image has, all but the AUC
    assert texts_of(figure).count("–") == 4 + 1
    points = [np.ma.getdata(dots.get_offsets()) for axes in figure.axes for dots in axes.collections[1:]]
    assert np.isfinite(np.concatenate(points)).all(axis=1).sum() == 12 - 5


@pytest.mark.parametrize("num_labels", [2, 14, 70])
def test_the_figures_of_labels_hold_from_two_to_very_many(tmp_path, num_labels):
    names = [f"a rather long name of label {index}" for index in range(num_labels)]
    evaluation = toy_label_evaluation(num_images=2 * num_labels, names=names)
    for draw, most in ((draw_label_curves, 30), (draw_label_figures, 60)):
        figure = draw(evaluation, CAPTION)
        height, width, _ = saved(figure, tmp_path).shape
        assert height < 2900
        assert width < 2200
        is_cut = any(text.endswith(f"; the first {most} of 70 labels") for text in texts_of(figure))
        assert is_cut == (num_labels > most)


def test_predictions_of_labels_name_the_found_the_missed_and_the_false_ones():
    evaluation = toy_label_evaluation(wrong=3)
    figure = draw_predictions(LABEL_SPLIT.images, evaluation, NAMES, CAPTION)
    texts = texts_of(figure)
    assert "✓  Right in every label: 16 of 28, from each label in turn" in texts
    assert "✗  Wrong in some: 2 of 2, the most confident first" in texts
    assert any(
        text.startswith("test images with TTA; 28 of 30 are right in every label · ✓ true and") for text in texts
    )
    # image 0 has the first two labels, predicted are the last two; image 1 has the second, predicted is the third
    lines = [(text.get_text(), text.get_color()) for text in figure.axes[0].texts[-7:]]
    assert lines[1:4] + lines[5:] == [
        ("✗ platelet 90%", WRONG_COLOUR),
        ("○ basophil 20%", WRONG_COLOUR),
        ("✓ immature granul… 90%", RIGHT_COLOUR),
        ("✗ platelet 90%", WRONG_COLOUR),
        ("○ immature granul… 20%", WRONG_COLOUR),
    ]
    assert [lines[0][0], lines[4][0]] == ["test #0", "test #1"]
    shown = shown_in(figure)
    assert all(np.array_equal(shown[16 + place], LABEL_SPLIT.images[place]) for place in range(2))


def test_of_many_labels_of_an_image_the_first_are_named_and_the_rest_counted():
    names = [f"label {index}" for index in range(8)]
    rows = np.ones((2, 8), dtype=np.int64)
    rows[1] = 0
    scores = np.where(rows == 1, 0.7, 0.1)
    evaluation = evaluation_of(rows, scores, names=names, task=MULTI_LABEL)
    figure = draw_predictions(toy_split(2, 2).images, evaluation, names, CAPTION)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[-7:-2] == [*(f"✓ label {index} 70%" for index in range(4)), "and 4 more"]
    assert texts[-2:] == ["test #1", "no label, none predicted"]


def test_the_variants_are_listed_in_one_place():
    keys = [(one.key, one.title, one.phrase) for one in EVALUATION.variants]
    assert keys == [("plain", "Without TTA", "without TTA"), ("tta", "With TTA", "with TTA")]
    assert [one.key for one in replace(EVALUATION, tta=None, tta_scores=None).variants] == ["plain"]


def test_the_reliability_diagram_shows_every_filled_bin_and_its_share(tmp_path):
    figure = draw_reliability(EVALUATION, MULTI_CLASS, CAPTION)
    found = [variant.trust.calibration for variant in EVALUATION.variants]
    parts = [part for calibration in found for part in (calibration.before, calibration.after)]
    above, below = figure.axes[:4], figure.axes[4:]
    for axes, shares, metrics in zip(above, below, parts, strict=True):
        bins, filled = metrics.reliability, metrics.reliability.counts > 0
        assert np.array_equal(axes.lines[1].get_xydata(), np.stack([bins.confidence, bins.accuracy], axis=1)[filled])
        heights = [bar.get_height() for bar in shares.patches if isinstance(bar, Rectangle)]
        assert heights == pytest.approx(bins.counts / 30)
    titles = [axes.get_title(loc="left") for axes in above]
    assert titles == ["Without TTA", "Without TTA, calibrated", "With TTA", "With TTA, calibrated"]
    texts = texts_of(figure)
    assert f"temperature 1.50 · ECE {parts[1].ece:.3f} · NLL {parts[1].nll:.3f}" in texts
    assert "30 test images, 15 bins of confidence; temperature from the validation split" in texts
    assert any(text.startswith("90 label decisions") for text in texts_of(DRAWINGS["label reliability"](CAPTION)))


def test_the_risk_is_drawn_over_the_coverage_with_the_area_of_each_variant():
    figure = draw_risk_coverage(EVALUATION, MULTI_CLASS, CAPTION)
    (axes,) = figure.axes
    for line, variant in zip(axes.lines[::2], EVALUATION.variants, strict=True):
        curve = variant.trust.risk_coverage
        assert np.array_equal(line.get_xdata(), np.arange(1, 31) / 30)
        assert np.array_equal(line.get_ydata(), curve.risks)
        assert line.get_label() == f"{variant.phrase}, area {curve.area:.4f}"
    assert {"13.3%", "10.0%"} <= set(texts_of(figure))
    assert axes.lines[0].get_linestyle() != axes.lines[2].get_linestyle()


def test_a_curve_of_very_many_decisions_has_a_bounded_number_of_points():
    many = toy_evaluation(num_images=2500, tta=False)
    points = np.asarray(draw_risk_coverage(many, MULTI_CLASS, CAPTION).axes[0].lines[0].get_xydata())
    assert len(points) == 1000
    assert points[-1].tolist() == [1, many.plain_trust.risk_coverage.risks[-1]]


@pytest.mark.parametrize("num_images", [1, 30])
def test_predictions_without_an_error_have_figures_of_trust_too(tmp_path, num_images):
    perfect = toy_evaluation(num_images=num_images, wrong=0)
    for draw in (draw_reliability, draw_risk_coverage):
        saved(draw(perfect, MULTI_CLASS, CAPTION), tmp_path)
