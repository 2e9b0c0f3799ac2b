"""tools/app.py answers for a dropped image, keeps none, and stays on this computer."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scripts.data_handler.registry import MULTI_LABEL
from scripts.trained_run import TrainedRun, open_run
from tests.conftest import PROJECT_ROOT, FinishedRun, tiny_backbone
from tools import app
from tools.dataset_builder.decode import UnusableImageError

CHROMIUM = "/usr/bin/chromium"


def png(level: int, side: int = 12) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def run_with(finished_run: FinishedRun, tmp_path: Path) -> Callable[[object], TrainedRun]:
    """Opens a copy of the tiny network's run whose best_model.json has this calibration."""

    def change(calibration: object) -> TrainedRun:
        paths = finished_run.copy_to(tmp_path)
        card = json.loads(paths.best_model_card.read_text(encoding="utf-8")) | {"calibration": calibration}
        paths.best_model_card.write_text(json.dumps(card), encoding="utf-8")
        return open_run(paths.root)

    return change


def reader_of(run: TrainedRun, abstain: float = 0.0) -> app.Reader:
    with tiny_backbone():
        return app.make_reader(run, abstain)


def test_the_probabilities_are_calibrated_by_the_temperature_of_the_run(run_with):
    run = run_with({"plain": 2.0, "tta": None})
    calibrated = dict(reader_of(run)(png(200)).probabilities)
    run.card["calibration"] = None
    plain = dict(reader_of(run)(png(200)).probabilities)

    roots = {name: score**0.5 for name, score in plain.items()}
    assert calibrated == pytest.approx({name: root / sum(roots.values()) for name, root in roots.items()})
    assert list(calibrated.values()) == sorted(calibrated.values(), reverse=True)
    assert max(calibrated.values()) < max(plain.values())


def test_below_the_threshold_nothing_is_predicted(run_with):
    run = run_with({"plain": 2.0, "tta": None})
    top = reader_of(run)(png(200)).probabilities[0][1]
    answer = reader_of(run, abstain=top + 1e-6)(png(200))
    assert answer.sentence.startswith("Nothing like the training images: no calibrated probability reaches")
    assert answer.is_warning
    answer = reader_of(run, abstain=top)(png(200))
    assert answer.sentence == f"Predicted: {answer.probabilities[0][0]} ({top:.1%})."
    assert not answer.is_warning


@pytest.mark.parametrize(
    ("scores", "abstain", "sentence"),
    [
        ([0.05, 0.03, 0.1], 0.5, "Predicted: none of the labels."),
        ([0.05, 0.9, 0.6], 0.5, "Predicted: medium (90.0%), bright (60.0%)."),
        ([0.05, 0.9, 0.6], 0.7, "Nothing is predicted: no probability of 70% for or against each label."),
        ([0.05, 0.9, 0.1], 0.7, "Predicted: medium (90.0%)."),
    ],
)
def test_several_labels_are_those_above_the_threshold_unless_one_is_uncertain(
    finished_run: FinishedRun, scores, abstain, sentence
):
    run = open_run(finished_run.paths.root)
    labels = dataclasses.replace(run, card=run.card | {"task": MULTI_LABEL, "calibration": None})
    reader = reader_of(labels, abstain)
    with torch.no_grad():  # these probabilities for any image
        last: Any = reader.predictor.model.get_submodule("fc")
        last.weight.zero_()
        last.bias.copy_(torch.tensor(scores).logit())
    answer = reader(png(200))
    assert answer.sentence == sentence
    assert answer.is_warning == sentence.startswith("Nothing")


def test_the_page_says_whether_probabilities_are_calibrated_and_images_prepared_alike(run_with):
    run = run_with({"plain": 2.0, "tta": None})
    assert "The temperature 2.00, fitted on validation images" in " ".join(app.remarks(reader_of(run)))
    assert "This is a **guess**" in " ".join(app.remarks(reader_of(run)))
    run.card["calibration"] = None
    assert "**not calibrated**" in " ".join(app.remarks(reader_of(run)))


@pytest.mark.skipif(find_spec("captum") is None, reason="Grad-CAM needs captum")
def test_an_image_is_shown_beside_its_map(finished_run: FinishedRun):
    answer = reader_of(open_run(finished_run.paths.root))(png(200, side=50))
    (image, caption), (overlay, of_class) = answer.maps
    assert caption == "As the network reads it: 12 × 12 pixels"
    assert answer.probabilities[0][0] in of_class
    assert image.size == overlay.size


def test_without_captum_there_is_no_map_and_the_log_says_why(finished_run: FinishedRun, monkeypatch, caplog):
    monkeypatch.setattr("scripts.core.optional.find_spec", lambda _: None)
    reader = reader_of(open_run(finished_run.paths.root))
    assert len(reader(png(200)).maps) == 1
    assert "pip install captum" in caplog.text
    assert "There is no Grad-CAM map" in " ".join(app.remarks(reader))


def test_an_unusable_file_is_not_answered_for(finished_run: FinishedRun):
    reader = reader_of(open_run(finished_run.paths.root))
    with pytest.raises(UnusableImageError, match="not an image of a known format"):
        reader(b"no image")
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    with pytest.raises(UnusableImageError, match="pixels"):
        reader(stream.getvalue())


@pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs gradio")
def test_a_wrong_command_line_is_refused_in_one_sentence(finished_run: FinishedRun, tmp_path: Path, capsys):
    root = str(finished_run.paths.root)
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for argv, message in (
            ([root, "--port", port], f"--port {port} cannot be opened: address already in use"),
            ([root, "--port", "0"], "must be a whole number from 1 to 65,535"),
            ([root, "--abstain", "50"], "must be a number from 0 to 1, got '50'"),
            ([str(tmp_path)], "is not the folder of a run"),
        ):
            assert app.main(argv) == 2
            err = capsys.readouterr().err
            assert message in err
            assert err.count("\n") == 1


def test_a_missing_gradio_is_named_with_the_command(finished_run: FinishedRun, monkeypatch, capsys):
    monkeypatch.setattr("scripts.core.optional.find_spec", lambda _: None)
    assert app.main([str(finished_run.paths.root)]) == 2
    assert "Install it: pip install gradio" in capsys.readouterr().err


@pytest.fixture
def page(finished_resnet_run: FinishedRun, tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    """The address of a running page, the folder of its temporary files, and its process."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    with socket.socket() as probe:
        probe.bind((app.HOST, 0))
        port = str(probe.getsockname()[1])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, str(PROJECT_ROOT / "tools" / "app.py"), str(finished_resnet_run.paths.root)]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*command, "--port", port], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("in a browser of this computer" in line for line in process.stdout), "the page did not open"
        yield f"http://{app.HOST}:{port}/", temporary, process
    finally:
        process.kill()
        process.communicate()


def test_the_server_refuses_files_above_the_limit_that_the_page_states(finished_run: FinishedRun, monkeypatch):
    launched: dict[str, object] = {}

    class Page:
        def launch(self, **settings: object) -> tuple[None, str, None]:
            launched.update(settings)
            return None, "address", None

        def close(self, *, verbose: bool) -> None:
            """Do nothing."""

    for name in (*app.GRADIO_SETTINGS, "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.setattr(app, "build_page", lambda _: Page())
    monkeypatch.setattr(app, "_theme", lambda: None)
    with app.opened_page(reader_of(open_run(finished_run.paths.root)), 7860) as address:
        assert address == "address"
    assert launched["max_file_size"] == f"{app.MAX_UPLOAD_MB}mb"
    assert (launched["server_name"], launched["share"]) == ("127.0.0.1", False)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_in_a_browser_an_image_is_answered_for_and_nothing_is_kept(page, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    address, temporary, process = page
    files = {"image.png": png(200, side=60), "broken.png": b"no image"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    requests: list[str] = []
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.extend([message.text] if message.type == "error" else []))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(address)
        tab.wait_for_selector("text=no medical device")
        upload = tab.wait_for_selector("input[type=file]", state="attached")
        upload.set_input_files(tmp_path / "image.png")
        tab.wait_for_selector("text=/Predicted: (dark|medium|bright)|Nothing like the training images/", timeout=60_000)
        tab.wait_for_selector(".maps img")
        assert bytes_below(temporary) == 0
        tab.click("button[aria-label='Clear']")
        tab.wait_for_selector("text=No image yet.")
        tab.wait_for_selector("input[type=file]", state="attached").set_input_files(tmp_path / "broken.png")
        tab.wait_for_selector("text=This file cannot be used: it is not an image of a known format.", timeout=60_000)
        browser.close()
    assert complaints == []
    assert requests
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert bytes_below(temporary) == 0

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert list(temporary.glob("app_uploads_*")) == []
