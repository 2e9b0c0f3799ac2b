"""``report.html`` in Debian's Chromium: filters, keys, the matrix and the curves work, and nothing is requested."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.data_handler.dataset import Split
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.html_report import write_html_report
from tests.evaluation.conftest import (
    evaluation_of,
    toy_dataset,
    toy_evaluation,
    toy_label_evaluation,
    toy_label_split,
    toy_report,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

# labels cycle through three classes; the first four of 30 images are predicted as the next class, ever more surely
NAMES = ("basophil", "eosinophil", "platelet")
COLOURS = np.random.default_rng(1).integers(256, size=(30, 3), dtype=np.uint8)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Call it to write a toy report and open it; at the end the page must have neither complained nor requested."""
    requests: list[str] = []
    messages: list[str] = []
    pages = []

    def open_page(report: Any, width: int = 1280, scheme: str = "light") -> Any:
        (path,) = write_html_report(report)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        pages.append(page)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.goto(path.as_uri())
        requests.remove(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == []


@pytest.fixture
def page(open_report: Open, tmp_path: Path) -> Any:
    """The report of a toy run in which every image is of one colour of its own."""
    images = np.broadcast_to(COLOURS[:, np.newaxis, np.newaxis], (30, 28, 28, 3))
    evaluation = toy_evaluation(names=NAMES, tta=False)
    dataset = toy_dataset(names=NAMES)
    report = toy_report(tmp_path, dataset=dataset, evaluation=evaluation, test=Split(images, evaluation.labels))
    return open_report(report)


def shown(page: Any) -> list[int]:
    """The images in the gallery, in their order."""
    return [int(one) for one in page.locator(".thumb").evaluate_all("all => all.map(one => one.dataset.image)")]


def test_the_gallery_is_filtered_by_both_classes_and_the_outcome(page):
    assert len(shown(page)) == 30
    page.select_option("#filter-true", label="eosinophil")
    assert set(shown(page)) == set(range(1, 30, 3))
    page.select_option("#filter-predicted", label="platelet")
    assert shown(page) == [1]
    page.select_option("#filter-outcome", "right")
    assert shown(page) == []
    assert page.inner_text("#gallery-status") == "No image on this page is like that."
    page.click("#filters button")
    page.wait_for_function("document.querySelectorAll('.thumb').length === 30")
    page.select_option("#filter-outcome", "wrong")
    assert set(shown(page)) == {0, 1, 2, 3}
    assert page.inner_text("#gallery-status") == "4 images, 4 of them wrong."


@pytest.mark.slow
def test_the_gallery_is_sorted_by_confidence(page):
    assert shown(page) == [3, 2, 1, 0, *range(29, 3, -1)]  # the wrong ones first
    page.select_option("#order", "most")
    assert shown(page) == list(range(29, -1, -1))
    page.select_option("#order", "least")
    assert shown(page) == list(range(30))


@pytest.mark.slow
def test_every_thumbnail_shows_its_own_image(page):
    page.select_option("#order", "index")
    for index in (0, 7, 29):
        pixels = np.asarray(Image.open(io.BytesIO(page.locator(".thumb").nth(index).screenshot())).convert("RGB"))
        assert pixels[len(pixels) // 2, pixels.shape[1] // 2].tolist() == COLOURS[index].tolist()


def test_a_click_shows_the_probabilities_of_the_image(page):
    page.click("[data-image='3']")
    detail = page.inner_text("#detail")
    assert "Test image 3" in detail
    assert "✗ wrong" in detail
    assert "True: basophil" in detail
    assert "Predicted: eosinophil" in detail
    scores = toy_evaluation(names=NAMES).plain_scores[3]
    assert page.locator("#detail td").all_inner_texts() == [f"{score:.2%}" for score in np.sort(scores)[::-1]]
    assert page.get_attribute("[data-image='3']", "aria-current") == "true"


@pytest.mark.slow
def test_the_gallery_works_by_keyboard(page):
    page.focus("#filters button")
    page.keyboard.press("Tab")
    focused = "document.activeElement.dataset.image"
    assert page.evaluate(focused) == "3"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "2"
    assert "Test image 2" in page.inner_text("#detail")
    columns = page.evaluate(
        "[...document.querySelectorAll('.thumb')].filter((one, at, all) => one.offsetTop === all[0].offsetTop).length"
    )
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == str(shown(page)[1 + columns])
    page.keyboard.press("End")
    assert page.evaluate(focused) == "4"
    page.keyboard.press("Home")
    assert page.evaluate(focused) == "3"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#gallery')") is None


def test_a_cell_of_the_matrix_opens_its_images(page):
    cells = page.locator("#matrix .cell")
    assert cells.all_inner_texts() == ["8", "2", "0", "0", "9", "1", "1", "0", "9"]
    cells.nth(1).click()
    assert set(shown(page)) == {0, 3}
    assert page.locator("#filter-true").input_value() == "0"
    assert page.locator("#filter-predicted").input_value() == "1"
    assert page.evaluate("document.activeElement.dataset.image") == "3"
    assert "Test image 3" in page.inner_text("#detail")


@pytest.mark.slow
def test_the_matrix_works_by_keyboard_and_says_what_a_cell_is(page):
    page.focus("#matrix .cell[tabindex='0']")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expected = "True eosinophil, predicted platelet: 1 image, 10.0% of the true class"
    assert page.inner_text("#matrix-status") == expected
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == expected
    page.keyboard.press("Enter")
    assert shown(page) == [1]
    page.check("input[value=share]")
    assert page.locator("#matrix .cell").first.inner_text() == "80.0"


@pytest.mark.slow
def test_the_curves_show_values_by_pointer_and_by_keyboard(page):
    loss = page.locator(".chart").first
    assert loss.get_attribute("aria-valuetext") == "Epoch 2 (best): Training 0.7500, Validation 0.6250"
    loss.focus()
    page.keyboard.press("ArrowRight")
    assert loss.get_attribute("aria-valuetext") == "Epoch 3: Training 0.5000, Validation 0.4167"
    loss.hover(position={"x": 60, "y": 50})
    assert page.locator(".reading").first.inner_text() == "Epoch 1: Training 1.5000, Validation 1.2500"
    accuracy = page.locator(".chart").nth(1)
    accuracy.focus()
    page.keyboard.press("Home")
    assert accuracy.get_attribute("aria-valuetext") == "Epoch 1: Accuracy 50.00%, AUC undefined"


@pytest.mark.slow
def test_tables_are_sorted_by_their_headings(page):
    recall = page.locator("#classes th", has_text="Recall").first
    recall.locator("button").click()
    assert recall.get_attribute("aria-sort") == "descending"
    names = page.locator("#classes tbody th")
    assert names.all_inner_texts() == ["eosinophil", "platelet", "basophil"]
    recall.locator("button").click()
    assert names.all_inner_texts()[0] == "basophil"
    names.first.locator("button").click()
    assert set(shown(page)) == set(range(0, 30, 3))


@pytest.mark.slow
def test_settings_that_differ_are_shown_first_and_the_others_on_demand(page):
    rows = page.locator("#settings tbody tr:visible th")
    assert "--lr" in rows.all_inner_texts()
    assert "--momentum" not in rows.all_inner_texts()
    page.uncheck("#only-different")
    assert "--momentum" in rows.all_inner_texts()


@pytest.mark.slow
def test_a_command_is_copied_or_selected(page):
    button = page.locator(".copy").nth(1)
    button.click()
    page.wait_for_function("[...document.querySelectorAll('.copy')][1].textContent !== 'Copy'")
    assert button.inner_text() in ("Copied", "Selected")


@pytest.mark.slow
def test_many_images_are_in_pages(open_report, tmp_path):
    page = open_report(toy_report(tmp_path, evaluation=toy_evaluation(num_images=400)))
    assert page.inner_text("#page") == "Page 1 of 3"
    assert len(shown(page)) == 160
    page.click("#next-page")
    page.click("#next-page")
    assert len(shown(page)) == 80
    assert page.get_attribute("#next-page", "aria-disabled") == "true"


def test_the_focus_stays_on_the_button_of_the_last_page(open_report, tmp_path):
    page = open_report(toy_report(tmp_path, evaluation=toy_evaluation(num_images=400)))
    page.focus("#next-page")
    for number in (2, 3, 3):
        page.keyboard.press("Enter")
        assert page.inner_text("#page") == f"Page {number} of 3"
        assert page.evaluate("document.activeElement.id") == "next-page"
    assert page.get_attribute("#next-page", "aria-disabled") == "true"
    assert page.get_attribute("#previous-page", "aria-disabled") == "false"


def test_the_gallery_has_one_tab_stop_after_a_click_and_an_arrow_key(page):
    stops = "[...document.querySelectorAll('.thumb')].filter(one => one.tabIndex === 0).map(one => one.dataset.image)"
    page.click("[data-image='1']")
    assert page.evaluate(stops) == ["1"]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(stops) == ["0"]


@pytest.mark.slow
def test_counts_of_a_label_open_their_images(open_report, tmp_path):
    evaluation = toy_label_evaluation(names=NAMES, tta=False)
    dataset, test = toy_dataset(names=NAMES, task=MULTI_LABEL), toy_label_split(30, 3)
    page = open_report(toy_report(tmp_path, dataset=dataset, evaluation=evaluation, test=test))
    labels, predictions = evaluation.labels[:, 1], evaluation.plain.predictions[:, 1]
    for title, of_kind in {
        "missed": (labels == 1) & (predictions == 0),
        "falsely predicted": (labels == 0) & (predictions == 1),
        "rightly absent": (labels == 0) & (predictions == 0),
        "found": (labels == 1) & (predictions == 1),
    }.items():
        page.click(f"[aria-label^='eosinophil: show'][aria-label$='images, {title}']")
        assert set(shown(page)) == set(np.flatnonzero(of_kind))
    page.click("#filters button")
    page.click("[data-image='0']")
    assert "True: basophil, eosinophil" in page.inner_text("#detail")
    assert "Predicted: eosinophil, platelet" in page.inner_text("#detail")


@pytest.mark.slow
def test_probabilities_beyond_the_largest_are_named_as_such(open_report, tmp_path):
    names = tuple(f"species {number}" for number in range(101))
    scores = np.tile(np.linspace(1, 2, 101), (3, 1))
    evaluation = evaluation_of(
        np.array([0, 100, 50]), scores / scores.sum(axis=1, keepdims=True), names=names, task="multi-class"
    )
    page = open_report(toy_report(tmp_path, dataset=toy_dataset(names=names), evaluation=evaluation))
    page.click("[data-image='0']")
    rows = page.locator("#detail tbody tr").all_inner_texts()
    assert len(rows) == 16
    assert rows[-1].split("\n\t") == ["species 0 (true)", "not among the 15 largest"]
    page.click("#confusions [data-true='50']")
    assert shown(page) == [2]


@pytest.mark.slow
def test_hostile_names_run_no_script(open_report, tmp_path):
    names = ("</script><script>alert(1)</script>", "\"'><img src=x onerror=alert(2)>", "<svg onload=alert(3)> \udcff")
    dataset = replace(
        toy_dataset(names=names, note="<script>alert(4)</script>"), title="</title><script>alert(5)</script>"
    )
    page = open_report(toy_report(tmp_path, dataset=dataset, evaluation=toy_evaluation(names=names)))
    page.click("[data-image='0']")
    assert f"True: {names[0]}" in page.inner_text("#detail")
    assert page.locator("#matrix tbody th").nth(1).inner_text() == names[1]
    assert "<script>alert(4)</script>" in page.inner_text("header")


@pytest.mark.slow
def test_dark_and_light_follow_the_system(open_report, tmp_path):
    levels = {}
    for scheme in ("light", "dark"):
        page = open_report(toy_report(tmp_path), scheme=scheme)
        colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        texts = page.evaluate(colours)
        levels[scheme] = [sum(int(part) for part in text[4:-1].split(",")) for text in texts]
    assert levels["light"][0] > 600 > 200 > levels["light"][1]
    assert levels["dark"][0] < 200 < 600 < levels["dark"][1]


@pytest.mark.slow
def test_controls_are_not_printed(page):
    page.emulate_media(media="print")
    assert not any(page.locator(one).first.is_visible() for one in ("nav", ".controls", "#detail", ".copy", ".reading"))
    assert page.locator("#matrix .cell").first.is_visible()


@pytest.mark.slow
def test_the_page_fits_a_narrow_screen(open_report, tmp_path):
    page = open_report(toy_report(tmp_path), width=400)
    page.click("[data-image='0']")
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_long_unbroken_names_do_not_widen_the_page(open_report, tmp_path):
    names = tuple(f"klasse {number} {'x' * 100}" for number in range(130))
    evaluation = toy_evaluation(num_images=60, names=names, tta=False)  # a note names the classes without images
    page = open_report(toy_report(tmp_path, dataset=toy_dataset(names=names), evaluation=evaluation), width=360)
    page.click("[data-image='0']")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_table_of_risks_fits_a_narrow_screen(open_report, tmp_path):
    page = open_report(toy_report(tmp_path), width=360)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    outside = page.locator("table").evaluate_all(
        "all => all.filter(one => !one.closest('.scroll, #detail')).map(one => one.caption.textContent)"
    )
    assert outside == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_every_control_has_a_name(page):
    controls = "button, select, input, .chart, [role=img], [role=region]"
    unnamed = page.locator(controls).evaluate_all("""all => all
        .filter(one => !(one.getAttribute("aria-label") || one.textContent.trim() || one.closest("label")))
        .map(one => one.outerHTML)""")
    assert unnamed == []
    assert page.locator("table:not(:has(caption))").count() == 0
