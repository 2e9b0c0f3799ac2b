"""``report.html``: complete, small, harmless whatever a class is called, and the same bytes for the same values."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree.ElementTree import TreeBuilder

import numpy as np
import pytest
from PIL import Image

from scripts.core.command_line import parse_command_line
from scripts.core.config import Config
from scripts.data_handler.dataset import Split
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.evaluation import html_report, thumbnails
from scripts.evaluation.calibration import MAX_TEMPERATURE
from scripts.evaluation.html_report import choose_images, image_outcomes, repeat_arguments, short_names
from scripts.evaluation.thumbnails import COLUMNS, PER_SHEET, pack_sprites
from scripts.evaluation.trust import measure_trust
from tests.evaluation.conftest import (
    NAMES,
    TOY_DUPLICATES,
    evaluation_of,
    toy_dataset,
    toy_evaluation,
    toy_label_evaluation,
    toy_label_split,
    toy_report,
    toy_split,
    toy_training,
)

MAX_BYTES = 15_000_000
HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>\u2028",
    "<!-- \udcff \x07 {{ 7 * 7 }}",
)
NOTE = "synthetic <b>data</b>: no medical result"
VOID = {"meta", "link", "input"}  # elements without an end tag
TRUST_TABLE = "Smaller is better, except for the temperature"


def text_of(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


class Page(HTMLParser):
    """The tags of a page with their attributes, its tree, its text, and the values that its script reads."""

    def __init__(self, report: Any) -> None:
        super().__init__()
        (path,) = html_report.write_html_report(report)
        assert path == report.paths.root / "report.html"
        self.content = path.read_bytes()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.builder = "", list[str](), TreeBuilder()
        self.feed(self.content.decode())
        self.tree: Any = self.builder.close()  # what its methods find may be None only to the type checker
        self.text = " ".join(self.text.split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.builder.start(tag, dict(attrs))
        if tag in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag):
        self.builder.end(tag)

    def handle_data(self, data):
        self.builder.data(data)
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.text += data

    def array(self, name: str, kind: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(self.data["images"][name]), kind)

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.tags if (value := attributes.get(name)) is not None]

    def classed(self, name: str) -> list[Any]:
        return [one for one in self.tree.iter() if name in one.get("class", "").split()]

    def table(self, caption: str) -> dict[str, dict[str, str]]:
        """The cells of a table by the heading of their row and those of their column."""
        (table,) = [one for one in self.tree.iter("table") if text_of(one.find("caption")) == caption]
        headings = [
            [text for cell in row for text in [text_of(cell)] * int(cell.get("colspan", 1))]
            for row in table.find("thead")
        ]
        columns = [" / ".join(filter(None, parts)) for parts in zip(*headings, strict=True)]
        return {
            text_of(row[0]): dict(zip(columns[1:], map(text_of, row[1:]), strict=True)) for row in table.find("tbody")
        }

    def diagram(self, label: str) -> Any:
        (found,) = [one for one in self.classed("diagram") if one.get("aria-label", "").startswith(label)]
        return found


def points_of(line: Any) -> list[tuple[float, ...]]:
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_the_page_refers_to_nothing_outside_of_its_run_folder(tmp_path):
    report = toy_report(tmp_path, dataset=toy_dataset(note=NOTE))
    (report.paths.reports / "scores [1] @tta #2.csv").write_text("0,1")
    page = Page(report)
    addresses = [*page.attributes("src"), *page.attributes("href"), *re.findall(r"url\((.*?)\)", page.content.decode())]
    outside = [one for one in addresses if not one.startswith(("#", "data:"))]
    assert sorted(outside) == ["models/best_model.json", "reports/scores%20%5B1%5D%20%40tta%20%232.csv"]
    assert NOTE in page.text


def test_only_the_scripts_of_the_page_itself_may_run(tmp_path):
    page = Page(toy_report(tmp_path))
    (policy,) = [one["content"] for tag, one in page.tags if tag == "meta" and "http-equiv" in one]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy


def test_the_same_values_give_the_same_bytes(tmp_path):
    first, second = toy_report(tmp_path / "a"), toy_report(tmp_path / "b")
    assert Page(first).content == Page(replace(second, paths=first.paths)).content


def test_the_page_shows_every_figure_with_its_interval(tmp_path):
    report = toy_report(tmp_path)
    page = Page(report)
    for variant in report.evaluation.variants:
        accuracy, auc = variant.metrics.accuracy, variant.metrics.auc
        assert f"{accuracy.value:.2%}" in page.text
        assert f"{accuracy.low:.2%} – {accuracy.high:.2%}" in page.text
        assert f"{auc.value:.4f}" in page.text
        assert f"{variant.trust.calibration.before.ece:.4f}" in page.text
        assert f"{variant.trust.calibration.after.nll:.4f}" in page.text
        assert f"{variant.trust.risk_coverage.area:.4f}" in page.text
    assert f"{report.evaluation.majority_class_accuracy:.2%}" in page.text
    assert page.data["confusion"] == report.evaluation.headline.confusion.tolist()
    assert page.data["history"]["train_loss"] == [1.5, 0.75, 0.5]
    assert page.data["history"]["val_auc"] == [None, 0.75, 0.75]


def test_each_figure_of_trust_is_under_the_headings_of_its_variant_and_its_state(tmp_path):
    report: Any = toy_report(tmp_path)
    columns: dict[str, list[str]] = {}
    for title, trust, temperature in (
        ("With TTA", report.evaluation.tta_trust, "0.800"),
        ("Without TTA", report.evaluation.plain_trust, "1.500"),
    ):
        before, after = (
            [f"{one.ece:.4f}", f"{one.nll:.4f}", f"{one.brier:.4f}"]
            for one in (trust.calibration.before, trust.calibration.after)
        )
        columns[f"{title} / Before"] = [*before, "1", f"{trust.risk_coverage.area:.4f}"]
        columns[f"{title} / Calibrated"] = [*after, temperature, "–"]
    table = Page(report).table(TRUST_TABLE)
    assert [*table][-2:] == ["Temperature", "Area under risk and coverage"]
    assert {column: [row[column] for row in table.values()] for column in table["Temperature"]} == columns


def test_a_temperature_at_a_bound_of_the_search_is_marked(tmp_path):
    evaluation = toy_evaluation(tta=False)
    trust = measure_trust(evaluation.labels, evaluation.plain_scores, MAX_TEMPERATURE, MULTI_CLASS)
    table = Page(toy_report(tmp_path, evaluation=replace(evaluation, plain_trust=trust))).table(TRUST_TABLE)
    assert table["Temperature"]["Without TTA / Calibrated"] == "20.000 (at the bound of the search)"


def test_the_cards_show_each_variant_by_its_name_the_one_with_tta_first(tmp_path):
    report: Any = toy_report(tmp_path)
    shown = [[text_of(part) for part in one[:2]] for one in Page(report).classed("figure")]
    tta, plain = report.evaluation.tta, report.evaluation.plain
    assert [name for name, _ in shown] == ["With TTA", "Without TTA"] * len(tta.estimates)
    assert shown[:4] == [
        ["With TTA", f"{tta.accuracy.value:.2%}"],
        ["Without TTA", f"{plain.accuracy.value:.2%}"],
        ["With TTA", f"{tta.auc.value:.4f}"],
        ["Without TTA", f"{plain.auc.value:.4f}"],
    ]


def test_the_figures_of_a_class_are_under_the_headings_of_their_variant(tmp_path):
    report: Any = toy_report(tmp_path)
    table = Page(report).table("Figures of each class; select a heading to sort, a name to see its images")
    for title, metrics in (("With TTA", report.evaluation.tta), ("Without TTA", report.evaluation.plain)):
        for one in metrics.per_class:
            for heading, value in {
                "Precision": one.precision,
                "Recall": one.recall,
                "F1": one.f1,
                "AUC": one.auc,
            }.items():
                assert float(table[one.name][f"{title} / {heading}"]) == pytest.approx(value, abs=5.1e-5)


def test_the_points_of_reliability_are_at_the_confidence_and_the_accuracy_of_their_bins(tmp_path):
    report: Any = toy_report(tmp_path)
    page = Page(report)
    for title, trust in (("With TTA", report.evaluation.tta_trust), ("Without TTA", report.evaluation.plain_trust)):
        for state, metrics in (
            ("as predicted", trust.calibration.before),
            ("calibrated", trust.calibration.after),
        ):
            bins, drawn = metrics.reliability, page.diagram(f"Reliability {title}, {state}")
            filled = bins.counts > 0
            expected = list(zip(1000 * bins.confidence[filled], 1000 - 1000 * bins.accuracy[filled], strict=True))
            circles = [(float(one.get("cx")), float(one.get("cy"))) for one in drawn.iter("circle")]
            assert np.array(circles) == pytest.approx(np.array(expected), abs=0.51)
            assert points_of(drawn.find("polyline")) == circles
            rows = page.table(f"{title}, {state}").values()
            listed = [[float(row[name][:-1]) for name in ("Mean confidence", "Accuracy")] for row in rows]
            shares = 100 * np.stack([bins.confidence[filled], bins.accuracy[filled]], axis=1)
            assert np.array(listed) == pytest.approx(shares, abs=0.0051)
            figure = [one for one in page.tree.iter("figcaption") if text_of(one).startswith(f"{title}, {state} ")]
            assert [text_of(one) for one in figure] == [f"{title}, {state} ECE {metrics.ece:.4f}"]


def test_the_curves_of_risk_rise_with_it_and_have_the_names_of_their_variants(tmp_path):
    report: Any = toy_report(tmp_path)
    page = Page(report)
    drawn, table = page.diagram("Risk over coverage"), page.table("Risk at each coverage")
    coverages = np.arange(1, 201) / 200
    curves = {"With TTA": report.evaluation.tta_trust, "Without TTA": report.evaluation.plain_trust}
    highest = max(one.risk_coverage.risks.max() for one in curves.values())
    assert text_of(drawn.find("text")) == f"{highest:.1%}"
    assert [text_of(one) for one in page.classed("legend")[0]] == [*curves]
    for number, (line, (title, trust)) in enumerate(zip(drawn.iter("polyline"), curves.items(), strict=True)):
        risks = trust.risk_coverage.at(coverages)
        expected = np.stack([1000 * coverages, 1000 - 1000 * risks / highest], axis=1)
        assert np.array(points_of(line)) == pytest.approx(expected, abs=0.51)
        assert f"line-{number}" in line.get("class").split()
        assert {row: cells[title] for row, cells in table.items()} == {
            f"{percent}%": f"{trust.risk_coverage.at(np.array([percent / 100]))[0]:.2%}" for percent in range(5, 101, 5)
        }


@pytest.mark.parametrize(
    ("test", "train_val", "expected"),
    [
        (1, 0, ["Images are also in another split: 1 of test also in train. Figures on such images are too good."]),
        (0, 3, ["Images are also in another split: 3 of val also in train. Figures on such images are too good."]),
        (0, 0, []),
    ],
)
def test_only_duplicates_in_another_split_are_a_warning(tmp_path, test, train_val, expected):
    across = {"train_val": train_val, "train_test": test, "val_test": 0}
    page = Page(toy_report(tmp_path, duplicates=replace(TOY_DUPLICATES, across=across)))
    assert [text for one in page.classed("note") if "split" in (text := text_of(one))] == expected
    facts = {text_of(fact[0]): text_of(fact[1]) for fact in page.classed("facts")[0]}
    assert facts["Duplicate images"].startswith("2 in train equal to an earlier one")


def test_an_ordinal_task_has_two_cards_more(tmp_path):
    dataset, evaluation = toy_dataset(task=ORDINAL), toy_evaluation(task=ORDINAL)
    page = Page(toy_report(tmp_path, dataset=dataset, evaluation=evaluation))
    assert "Quadratic-weighted kappa" in page.text
    assert "Mean absolute error, classes" in page.text


def test_the_script_gets_the_truth_the_prediction_and_the_probabilities_of_each_image(tmp_path):
    report = toy_report(tmp_path)
    page, evaluation = Page(report), report.evaluation
    scores = evaluation.variants[-1].scores
    assert page.array("index", "<u4").tolist() == list(range(30))
    assert page.array("truth", "<u4").tolist() == evaluation.labels.tolist()
    assert page.array("predicted", "<u4").tolist() == evaluation.headline.predictions.tolist()
    assert page.array("right", "u1").tolist() == [0] * 3 + [1] * 27
    assert page.array("confidence", "<f4") == pytest.approx(scores.max(axis=1))
    classes = page.array("classes", "<u4").reshape(30, 3)
    shown = page.array("scores", "<u2").reshape(30, 3) / 65535
    assert shown == pytest.approx(np.take_along_axis(scores, classes.astype(np.int64), axis=1), abs=1e-5)
    assert (np.diff(shown) <= 0).all()


def test_of_many_classes_the_largest_probabilities_are_kept_and_the_largest_confusions_listed(tmp_path):
    names = tuple(f"species {number}" for number in range(300))
    evaluation = toy_evaluation(num_images=400, names=names, wrong=40, tta=False)
    page = Page(toy_report(tmp_path, dataset=toy_dataset(names=names), evaluation=evaluation))
    assert page.data["confusion"] is None
    assert page.data["images"]["kept"] == 15
    assert page.data["names"] == list(names)
    assert "Largest confusions" in page.text
    shown = [(one["data-true"], one["data-predicted"]) for _, one in page.tags if "data-predicted" in one]
    assert set(shown) == {(str(number), str(number + 1)) for number in range(40)}


def test_several_labels_have_counts_instead_of_a_matrix(tmp_path):
    report = toy_report(
        tmp_path, dataset=toy_dataset(task=MULTI_LABEL), evaluation=toy_label_evaluation(), test=toy_label_split(30, 3)
    )
    page, evaluation = Page(report), report.evaluation
    assert page.data["confusion"] is None
    assert not any(one.get("id") == "confusions" for _, one in page.tags)
    bits = np.unpackbits(page.array("truth", "u1").reshape(30, 1), axis=1, count=3, bitorder="little")
    assert bits.tolist() == evaluation.labels.tolist()
    bits = np.unpackbits(page.array("predicted", "u1").reshape(30, 1), axis=1, count=3, bitorder="little")
    assert bits.tolist() == evaluation.headline.predictions.tolist()
    titles = [one["aria-label"] for _, one in page.tags if "data-predicted" in one]
    (_, _), (missed, found) = evaluation.headline.confusion[0].tolist()
    assert titles[:2] == [f"{NAMES[0]}: show {found} images, found", f"{NAMES[0]}: show {missed} images, missed"]


def test_confidence_of_several_labels_is_that_of_the_worst_wrong_or_the_least_certain_label(tmp_path):
    labels = np.array([[1, 0], [1, 0], [0, 1]])
    scores = np.array([[0.9, 0.2], [0.3, 0.6], [0.4, 0.95]])
    evaluation = evaluation_of(labels, scores, names=("a", "b"), task=MULTI_LABEL)
    dataset = toy_dataset(names=("a", "b"), task=MULTI_LABEL)
    confidence, right = image_outcomes(toy_report(tmp_path, dataset=dataset, evaluation=evaluation))
    assert right.tolist() == [True, False, True]
    assert confidence == pytest.approx([0.8, 0.7, 0.6])


def test_a_test_split_of_one_image_has_a_page(tmp_path):
    names = ("a", "b")
    evaluation = toy_evaluation(num_images=1, names=names, task=BINARY, wrong=0)
    page = Page(toy_report(tmp_path, dataset=toy_dataset(names=names, task=BINARY), evaluation=evaluation))
    assert "Every image of this split is of class 'a': AUC is undefined." in page.text
    assert "No image is predicted wrong." in page.text
    assert b"nan" not in page.content.split(b"<style>")[1].split(b"</style>")[1].lower()


@pytest.mark.parametrize("task", [ORDINAL, MULTI_LABEL])
def test_hostile_names_are_text_and_nothing_else(tmp_path, task):
    evaluation = toy_evaluation(names=HOSTILE) if task == ORDINAL else toy_label_evaluation(names=HOSTILE)
    dataset = replace(toy_dataset(names=HOSTILE, task=task, note="</style>\udcff"), source="bytes \udcff.npz")
    environment = {"device": '"><script>', "cuda": "\udcff", "packages": {"<i>": None}}
    page = Page(toy_report(tmp_path, dataset=dataset, evaluation=evaluation, environment=environment))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not {"img", "i>"} & {tag for tag, _ in page.tags}
    assert page.data["names"] == short_names(HOSTILE)
    assert page.data["names"][0] == HOSTILE[0]
    assert HOSTILE[0] in page.text
    assert "49" not in page.data["names"][2]


def test_names_are_one_line_and_shorter_where_there_are_many():
    assert short_names(("a\n b", "", "c" * 200)) == ["a b", "class 1", "c" * 119 + "…"]
    assert sum(map(len, short_names(("x" * 100,) * 20_000))) <= html_report.NAME_CHARACTERS


@pytest.mark.parametrize("side", [28, 64])
def test_the_page_of_a_large_test_split_is_below_15_mb(tmp_path, side):
    evaluation = toy_evaluation(num_images=25_000, wrong=2000)
    test = Split(toy_split(25_000, 1, side=side).images, evaluation.labels)
    page = Page(toy_report(tmp_path, dataset=toy_dataset(side=side), evaluation=evaluation, test=test))
    assert len(page.content) < MAX_BYTES
    right = page.array("right", "u1")
    assert len(right) == html_report.MAX_IMAGES
    assert (right == 0).sum() == 1999
    assert "all 1,999 wrong ones and 18,001 of the 23,001 right ones, evenly spaced" in page.text
    assert page.data["sprites"]["count"] == html_report.MAX_IMAGES


def test_of_very_many_errors_the_most_confident_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "MAX_IMAGES", 20)
    report = toy_report(tmp_path, evaluation=toy_evaluation(num_images=60, wrong=30, tta=False))
    chosen, (confidence, right) = choose_images(report), image_outcomes(report)
    wrong = chosen[~right[chosen]]
    assert (len(chosen), len(wrong)) == (20, 15)
    assert set(wrong) == set(np.flatnonzero(~right)[np.argsort(-confidence[~right])][:15])
    assert "the 15 most confident of 30 wrong ones and 5 of the 30 right ones" in Page(report).text


def test_if_all_are_wrong_the_page_is_filled_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "MAX_IMAGES", 20)
    report = toy_report(tmp_path, evaluation=toy_evaluation(num_images=60, wrong=60, tta=False))
    assert len(choose_images(report)) == 20


def test_of_very_many_epochs_the_best_is_among_those_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "MAX_EPOCH_ROWS", 5)
    page = Page(toy_report(tmp_path, training=toy_training(100, best_epoch=42)))
    assert page.data["history"]["epoch"] == [1, 25, 42, 50, 75, 100]
    assert page.data["bestEpoch"] == 42


def test_the_smallest_f1_are_listed_where_there_are_too_many_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "MAX_CLASS_ROWS", 2)
    page = Page(toy_report(tmp_path, evaluation=toy_evaluation(wrong=1, tta=False)))
    assert "The 2 of 3 classes with the smallest F1" in page.text
    shown = [one["data-true"] for _, one in page.tags if "data-true" in one and "data-predicted" not in one]
    assert shown == ["0", "1"]


def test_settings_that_differ_from_the_recipe_are_marked(tmp_path):
    config = Config(recipe="strong", epochs=12, patience=12, lr=0.1, schedule="onecycle", nesterov=True, seed=7)
    rows = {row["flag"]: row for row in html_report._settings(config)}
    assert not rows["--lr"]["differs"]
    assert rows["--ema_decay"] | {"help": ""} == {
        "flag": "--ema_decay",
        "value": "0.0",
        "usual": "0.99",
        "differs": True,
        "group": "training",
        "help": "",
    }
    assert rows["--seed"]["differs"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--recipe", "strong", "--epochs", "7", "--no_nesterov", "--dataset", "own set's.npz"],
        ["--backbone", "convnext_tiny", "--no_tta", "--model_name", "a 'quoted' name", "--device", "cuda:1"],
        ["--recipe", "strong", "--patience", "31", "--output_dir=-out", "--reproducible"],
    ],
)
def test_the_command_to_train_again_has_the_same_settings(tmp_path, argv):
    config = parse_command_line(argv, {})
    source = config.dataset if config.is_dataset_path else "generated"
    report = toy_report(tmp_path, config=config, dataset=replace(toy_dataset(), source=source))
    assert parse_command_line(repeat_arguments(report), {}) == config


def test_the_commands_name_the_run_folder_as_a_shell_reads_it(tmp_path):
    page = Page(toy_report(tmp_path / "my runs"))
    assert re.search(r"python tools/predict\.py '/.*my runs/20260131_221500_toy_resnet18' IMAGES", page.text)
    assert "python main.py --resume '/" in page.text
    assert "python tools/export.py '/" in page.text
    assert "python tools/explain.py '/" in page.text


@pytest.mark.parametrize("channels", [1, 3])
def test_small_thumbnails_keep_every_pixel(channels):
    images = toy_split(PER_SHEET + 3, 2, side=12, width=10, channels=channels).images
    chosen = np.arange(2, len(images))
    sprites = pack_sprites(images, chosen, max_bytes=10_000_000)
    assert (sprites.lossless, sprites.width, sprites.height, sprites.count) == (True, 10, 12, PER_SHEET + 1)
    first, second = (np.asarray(Image.open(io.BytesIO(sheet))) for sheet in sprites.sheets)
    row, column = divmod(77, COLUMNS)
    assert np.array_equal(first[12 * row : 12 * row + 12, 10 * column : 10 * column + 10], images[79])
    assert np.array_equal(second[:12, :10], images[-1])


def test_large_images_become_thumbnails_of_their_shape():
    sprites = pack_sprites(toy_split(3, 2, side=224, width=112).images, np.arange(3), max_bytes=10_000_000)
    assert (sprites.lossless, sprites.width, sprites.height) == (False, 28, 56)


def test_thumbnails_become_worse_until_they_fit(monkeypatch):
    monkeypatch.setattr(thumbnails, "PER_SHEET", 16)
    images, kinds = toy_split(40, 2, side=40).images, []
    for max_bytes in (200_000, 90_000, 30_000, 1):
        sprites = pack_sprites(images, np.arange(40), max_bytes=max_bytes)
        kinds.append((sprites.media_type, sprites.width))
        assert sum(map(len, sprites.sheets)) <= max_bytes or max_bytes == 1
    assert kinds[:2] == [("image/png", 40), ("image/jpeg", 40)]
    assert 20 < kinds[2][1] < 40
    assert kinds[3] == ("image/jpeg", thumbnails.QUALITIES[-1][0])
