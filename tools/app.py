"""Open a page on this computer that predicts an image which is dropped on it, with a trained model.

python tools/app.py outputs/RUN                          then open http://127.0.0.1:7860
python tools/app.py outputs/RUN --port 8000 --abstain 0.9

It needs the package gradio, and for Grad-CAM captum: pip install gradio captum. Nothing leaves this computer, and no
image is kept. It is no medical device. See docs/explain.md.

Exit codes: 0 done, 1 unexpected error, 2 command line, 3 weights, 6 storage, and 129, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import base64
import html
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.errors import ConfigError, storage_errors
from scripts.core.log import log
from scripts.core.optional import require_packages
from scripts.trained_run import TrainedRun, open_run
from tools.command import run_tool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scripts.evaluation.gradcam import GradCam
    from scripts.evaluation.inference import Predictor
    from tools.dataset_builder.decode import Recipe

HOST = "127.0.0.1"  # this computer only
DEFAULT_PORT, DEFAULT_ABSTAIN = 7860, 0.5
MAX_UPLOAD_MB = 32
MAX_SHOWN_CLASSES = 10
# Gradio would report to its makers, keep a history of the images in the browser, and use their servers
GRADIO_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# a second guard: the browser refuses every request to another computer
POLICY = (
    "<meta http-equiv='Content-Security-Policy' content=\"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: "
    'blob:">'
)
STYLE = """
.maps {display: flex; flex-wrap: wrap; gap: 12px; margin: 0}
.maps figure {flex: 1 1 120px; margin: 0; max-width: 224px}
.maps img {display: block; width: 100%; border-radius: 4px}
.verdict {font-size: 1.1rem; margin: 0 0 0.4rem 0}
.warning {border-left: 4px solid #c8500a; padding-left: 0.6rem}
"""
PURPOSE = (
    "For research and teaching. **This is no medical device**: do not use it for the diagnosis or the treatment of "
    "anyone. It always chooses among the classes that it knows, also for an image that shows none of them."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the page shows of an image."""

    sentence: str
    is_warning: bool = False
    probabilities: tuple[tuple[str, float], ...] = ()  # of the classes or labels, the most probable first
    maps: tuple[tuple[Image.Image, str], ...] = ()  # images with their captions


NO_IMAGE = Answer("No image yet.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A trained model with everything between the content of an image file and an answer."""

    run: TrainedRun
    predictor: Predictor
    cam: GradCam | None  # None where maps cannot be made
    recipe: Recipe
    temperature: float | None  # None if the run has none
    abstain: float

    def __call__(self, content: bytes) -> Answer:
        """Answer for the content of an image file; ``UnusableImageError`` says why it cannot be used."""
        import torch

        from tools.dataset_builder.decode import decode
        from tools.dataset_builder.reading import decoding

        with decoding():
            image = decode(content, self.recipe).pixels
        stored = torch.from_numpy(image)[None].to(next(self.predictor.model.parameters()).device)
        scores = self.calibrated(self.predictor(stored)[0].cpu().double().numpy())[0]
        order = scores.argsort(kind="stable")[::-1].tolist()
        sentence, is_warning = self._sentence(scores, order[0])
        probabilities = tuple((self.run.class_names[index], float(scores[index])) for index in order)
        return Answer(sentence, is_warning, probabilities, tuple(self._maps(image, stored, order[0])))

    def calibrated(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apply the temperature of the run, if it has one, to probabilities (N, K)."""
        from scripts.evaluation.calibration import apply_temperature

        return scores if self.temperature is None else apply_temperature(scores, self.temperature, self.run.task)

    def _sentence(self, scores: NDArray[np.float64], top: int) -> tuple[str, bool]:
        import numpy as np

        from scripts.data_handler.registry import MULTI_LABEL, THRESHOLD

        kind = "probability" if self.temperature is None else "calibrated probability"
        if self.run.task == MULTI_LABEL:
            is_chosen, confidence = scores > THRESHOLD, np.maximum(scores, 1 - scores).min()  # the least certain label
            doubt = f"Nothing is predicted: no {kind} of {self.abstain:.0%} for or against each label."
        else:
            is_chosen, confidence = np.arange(len(scores)) == top, scores[top]
            doubt = f"Nothing like the training images: no {kind} reaches {self.abstain:.0%}."
        if confidence < self.abstain:
            return doubt, True
        chosen = [f"{self.run.class_names[index]} ({scores[index]:.1%})" for index in np.flatnonzero(is_chosen)]
        return f"Predicted: {', '.join(chosen) or 'none of the labels'}.", False

    def _maps(self, image: NDArray[np.uint8], stored: Any, top: int) -> Iterator[tuple[Image.Image, str]]:
        import torch

        from tools.heatmaps import enlarge, overlay

        height, width = image.shape[:2]
        yield enlarge(image), f"As the network reads it: {width} × {height} pixels"
        if self.cam is not None:
            heat = self.cam(stored, torch.tensor([top], device=stored.device))[0].cpu().numpy()
            note = "Grad-CAM" if heat.any() else "Grad-CAM: no place supports it"
            yield overlay(image, heat), f"{note}, {self.run.class_names[top]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_tool(serve, argv)


def serve(argv: Sequence[str]) -> None:
    """Serve the page of a command line until a signal ends it."""
    given = build_parser().parse_args(argv)
    require_packages("tools/app.py", "gradio")
    run = open_run(given.run)
    _require_free_port(given.port)
    reader = make_reader(run, given.abstain)
    with opened_page(reader, given.port) as address:
        log.info(f"open {address} in a browser of this computer; Ctrl-C ends it")
        threading.Event().wait()


def build_parser() -> ArgumentParser:
    """Make the parser of this program."""
    parser = ArgumentParser(
        prog="app.py",
        usage="app.py RUN [--port INT] [--abstain BELOW]",
        description="Open a page on this computer that predicts an image which is dropped on it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished run")
    add("--port", type=_port, default=DEFAULT_PORT, metavar="INT", help=f"of the page (default: {DEFAULT_PORT})")
    help_of_abstain = f"probability below which nothing is predicted (default: {DEFAULT_ABSTAIN})"
    add("--abstain", type=_share, default=DEFAULT_ABSTAIN, metavar="BELOW", help=help_of_abstain)
    return parser


def make_reader(run: TrainedRun, abstain: float) -> Reader:
    """Load the model of a run, and log what the page cannot show.

    Raises:
        ConfigError: The run takes images that no image file becomes.
        DataError: The weights are missing, damaged, or of another model.
    """
    from scripts.core.system.device import select_device
    from scripts.evaluation.gradcam import GradCam
    from tools.inputs import recipe_of

    recipe = recipe_of(run)
    predictor = replace(run.predictor(select_device("auto"), tta=False), precision="fp32")
    cam = None
    try:
        require_packages("Grad-CAM", "captum")
        cam = GradCam(predictor, run.image_size)
    except ConfigError as error:  # the page is of use without maps
        log.warning(str(error))
    temperature = run.temperature(tta=False)
    if temperature is None:
        log.warning(f"{run.name} has no temperature, so its probabilities are not calibrated")
    return Reader(run=run, predictor=predictor, cam=cam, recipe=recipe, temperature=temperature, abstain=abstain)


@contextmanager
def opened_page(reader: Reader, port: int) -> Iterator[str]:
    """Serve the page while inside, at the address that is yielded; uploads are in a folder that is then removed."""
    with storage_errors(Path(tempfile.gettempdir()), "make a temporary folder"):
        uploads = tempfile.TemporaryDirectory(prefix="app_uploads_", ignore_cleanup_errors=True)
    earlier = tempfile.tempdir
    with uploads as folder:
        os.environ |= GRADIO_SETTINGS | {"GRADIO_TEMP_DIR": folder}
        tempfile.tempdir = folder  # of the files that Gradio makes elsewhere
        page = build_page(reader)
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                max_file_size=f"{MAX_UPLOAD_MB}mb",
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                head=POLICY,
                css=STYLE,
                theme=_theme(),
            )
            yield address
        finally:
            page.close(verbose=False)
            tempfile.tempdir = earlier


def build_page(reader: Reader) -> Any:
    """Make the page, a ``gradio.Blocks``."""
    import gradio

    from tools.dataset_builder.decode import UnusableImageError

    run, title = reader.run, str(reader.run.card["dataset"].get("title", ""))
    note = str(run.card["dataset"].get("note") or "")
    heading = f"# {_plain(title or run.name)}\n{_plain(run.name)}"
    with gradio.Blocks(title=f"{run.name} – prediction", analytics_enabled=False) as page:
        gradio.Markdown("\n\n".join(filter(None, (heading, PURPOSE, _plain(note)))))
        with gradio.Row():
            with gradio.Column():
                label = f"Drop an image here, {MAX_UPLOAD_MB} MB at most. It is not kept."
                upload = gradio.File(label=label, height=160)
                shown = gradio.HTML(label="Maps")
            with gradio.Column():
                sentence = gradio.HTML(_verdict(NO_IMAGE), label="Result")
                label = "Probabilities" if reader.temperature is None else "Calibrated probabilities"
                scores = gradio.Label(label=label, num_top_classes=MAX_SHOWN_CLASSES, show_heading=False)
        gradio.Markdown("\n".join(f"- {line}" for line in remarks(reader)))

        def respond(path: str | None) -> tuple[str, dict[str, float] | None, str]:
            if path is None:
                return _verdict(NO_IMAGE), None, ""
            try:
                answer = reader(_read_once(Path(path)))
            except UnusableImageError as error:
                answer = Answer(f"This file cannot be used: {error}.", is_warning=True)
            return _verdict(answer), dict(answer.probabilities) or None, _figures(answer)

        upload.change(respond, upload, [sentence, scores, shown], api_visibility="private")
    return page


def _theme() -> Any:
    """A theme whose fonts are those of the computer; the usual one loads them from the network."""
    import gradio

    return gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"], primary_hue="blue")


def _read_once(path: Path) -> bytes:
    """Read an upload, and remove it with the folder that Gradio made for it."""
    from tools.dataset_builder.reading import read_content

    try:
        return read_content(path)
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


def _verdict(answer: Answer) -> str:
    kind = "verdict warning" if answer.is_warning else "verdict"
    return f"<p class='{kind}' role='status'>{html.escape(answer.sentence)}</p>"


def _figures(answer: Answer) -> str:
    """The images of an answer, inside of the page itself: no file is written."""
    from tools.heatmaps import png_bytes

    figures = (
        f"<figure><img alt='{html.escape(caption)}' src='data:image/png;base64,"
        f"{base64.b64encode(png_bytes(image)).decode()}'><figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in answer.maps
    )
    return f"<div class='maps'>{''.join(figures)}</div>" if answer.maps else ""


def remarks(reader: Reader) -> Iterator[str]:
    """What a reader of an answer must know, in sentences."""
    from tools.heatmaps import CAVEATS

    recipe = reader.recipe
    crop = f"central square of {recipe.crop} pixels" if recipe.crop else "largest central square"
    yield f"Of an image, the {crop} is scaled to {recipe.size} × {recipe.size} pixels."
    if reader.run.card.get("preparation") is None:
        yield "This is a **guess**, which may be wrong: the run does not record how its images were made."
    if reader.temperature is None:
        yield "The probabilities are **not calibrated**: this run has no temperature."
    else:
        yield f"The temperature {reader.temperature:.2f}, fitted on validation images, calibrates the probabilities."
    yield "A high probability does not show that an image is like the training images."
    if reader.cam is None:
        yield "There is no Grad-CAM map; the messages of tools/app.py say why."
    else:
        yield from CAVEATS


def _plain(text: str) -> str:
    """``text`` without a meaning in Markdown."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()<>#+-.!|~" else letter for letter in text)


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"--port {port} cannot be opened: {reason}. Choose another.") from error


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65,535, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return share


if __name__ == "__main__":
    sys.exit(main())
