"""Show where a trained model sees its evidence: Grad-CAM heat maps of images, as PNG files and one sheet.

python tools/explain.py outputs/RUN slide.png                                 one image, its predicted class
python tools/explain.py outputs/RUN photographs --classes all --output maps   every class, into the folder maps
python tools/explain.py outputs/RUN cells.npz --indices 0-9,42                rows of the test split

It needs the package captum: pip install captum. See docs/explain.md for what such a map can and cannot show.

Exit codes: 0 done, 1 unexpected error, 2 command line, 3 images or weights, 6 storage, and 129, 130 and 143 stopped by
a signal.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.config import Config
from scripts.core.errors import ConfigError, storage_errors
from scripts.core.log import log
from scripts.core.optional import require_packages
from scripts.core.paths import slug
from scripts.core.system.device import device_problems, select_device
from scripts.trained_run import TrainedRun, open_run
from tools.command import run_tool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scripts.evaluation.gradcam import GradCam
    from tools.heatmaps import Panel
    from tools.inputs import Inputs

    Pixels = NDArray[np.uint8]

FOLDER = "explanations"  # in the run's folder, unless --output is given
DEFAULT_LIMIT, MAX_LIMIT = 64, 10_000  # images
MAX_BATCH_SIZE = 16  # images that keep their activations for the gradients
ALL, PREDICTED = "all", "predicted"

Requested = Sequence[int] | str  # ALL, PREDICTED, or indices of classes


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An image to explain."""

    name: str
    image: Pixels  # (H, W) or (H, W, 3), as the run's model takes it
    truth: str  # the true class or labels; "" where they are not known


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_tool(explain, argv)


def explain(argv: Sequence[str]) -> None:
    """Explain the images of a command line, given without the program's name."""
    given = build_parser().parse_args(argv)
    require_packages("tools/explain.py", "captum")
    run = open_run(given.run)
    requested = requested_classes(given.classes, run.class_names)
    output = given.output or run.paths.root / FOLDER
    if problems := list(_problems(given, output)):
        raise ConfigError(*problems)
    # imported here: it takes seconds, which --help and a wrong flag should not
    from scripts.evaluation.gradcam import GradCam
    from tools.dataset_builder.messages import count_of
    from tools.inputs import open_inputs

    inputs = open_inputs(given.inputs, [run], split=given.split, skip_unreadable=given.skip_unreadable)
    rows = choose_rows(inputs, given.rows, given.limit)
    cam = GradCam(run.predictor(select_device(given.device), tta=False), run.image_size)
    log.info(f"Grad-CAM of {run.name}: {cam.description}")
    with new_folder(output) as folder:
        num_images = write_maps(folder, explanations(examples(inputs, rows, run), run, cam, requested), run, cam)
    log.info(f"wrote {output}: {count_of(num_images, 'image')} and sheet.png")


def build_parser() -> ArgumentParser:
    """Make the parser of this program."""
    parser = ArgumentParser(
        prog="explain.py",
        usage="explain.py RUN INPUT... [--setting value ...]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        description="Show where a trained model sees its evidence: Grad-CAM heat maps as PNG files and one sheet.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished run")
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="image files, folders, a CSV of paths, or an .npz")
    add("--output", type=Path, metavar="FOLDER", help=f"new folder for the files (default: RUN/{FOLDER})")
    help_of_classes = f"'{PREDICTED}' (default), '{ALL}', or names of classes"
    add("--classes", nargs="+", default=[PREDICTED], metavar="NAME", help=help_of_classes)
    add("--split", choices=("train", "val", "test"), help="of an .npz (default: test), or of a CSV with that column")
    add("--indices", type=_indices, dest="rows", metavar="ROWS", help="these images only, such as 0-9,42")
    help_of_limit = f"images at most, evenly spread over those given (default: {DEFAULT_LIMIT})"
    add("--limit", type=_limit, default=DEFAULT_LIMIT, metavar="INT", help=help_of_limit)
    add("--skip_unreadable", action="store_true", help="leave out unusable image files, instead of stopping")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser


def choose_rows(inputs: Inputs, rows: Sequence[int] | None, limit: int) -> list[int]:
    """The numbers of the images to explain, in order: those requested, evenly thinned out to the limit."""
    chosen = range(inputs.num_images) if rows is None else rows
    if chosen[-1] >= inputs.num_images:
        raise ConfigError(f"--indices has {chosen[-1]:,}, but there are {inputs.num_images:,} images: count from 0.")
    if len(chosen) > limit:
        log.info(f"{limit:,} of {len(chosen):,} images, evenly spread: --limit sets the number")
        return [chosen[number * len(chosen) // limit] for number in range(limit)]
    return list(chosen)


def examples(inputs: Inputs, rows: Sequence[int], run: TrainedRun) -> Iterator[Example]:
    """Read the images of these rows, which are in order."""
    for batch in inputs.select(rows).batches(MAX_BATCH_SIZE):
        for number, name in enumerate(batch.names):
            truth = ""
            if batch.labels is not None:
                label = batch.labels[number]
                held = label.nonzero()[0] if label.ndim else [label]
                truth = ", ".join(run.class_names[index] for index in held) or "no label"
            shown = f"image {name}" if inputs.naming == "index" else str(name)
            yield Example(shown, batch.images[0][number], truth)


def explanations(
    found: Iterator[Example], run: TrainedRun, cam: GradCam, requested: Requested
) -> Iterator[tuple[Example, list[Panel]]]:
    """Yield each image with its panels: the image itself, then one for each class that is explained."""
    import numpy as np
    import torch

    from scripts.data_handler.memory import eval_batch_size

    batch_size = min(MAX_BATCH_SIZE, eval_batch_size(*run.image_size))
    while batch := list(islice(found, batch_size)):
        images = torch.from_numpy(np.stack([example.image for example in batch])).to(cam.device)
        scores = cam.probabilities(images).cpu().double().numpy()
        chosen = [classes_to_explain(requested, row, run.task) for row in scores]
        pairs = [(row, index) for row, classes in enumerate(chosen) for index in classes]
        heats: list[NDArray[np.float32]] = []
        for start in range(0, len(pairs), batch_size):
            rows, classes = torch.tensor(pairs[start : start + batch_size], device=cam.device).T
            heats.extend(cam(images[rows], classes).cpu().numpy())
        of_pairs = dict(zip(pairs, heats, strict=True))
        for number, example in enumerate(batch):
            of_classes = {index: of_pairs[number, index] for index in chosen[number]}
            yield example, panels_of(example, scores[number], of_classes, run)


def classes_to_explain(requested: Requested, scores: NDArray[np.float64], task: str) -> list[int]:
    """The classes of an image, by their probabilities (K,); where no label is predicted, the most probable one."""
    from scripts.data_handler.registry import MULTI_LABEL, THRESHOLD

    if requested == ALL:
        return list(range(len(scores)))
    if requested != PREDICTED:
        return [index for index in requested if isinstance(index, int)]
    positive = (scores > THRESHOLD).nonzero()[0].tolist() if task == MULTI_LABEL else []
    return positive or [int(scores.argmax())]


def panels_of(
    example: Example, scores: NDArray[np.float64], heats: Mapping[int, NDArray[np.float32]], run: TrainedRun
) -> list[Panel]:
    """The image with its name and true class, and an overlay for each class with its probability."""
    from tools.heatmaps import Panel, enlarge, overlay

    name = "/".join(Path(example.name).parts[-2:])
    panels = [Panel(enlarge(example.image), (name, f"true: {example.truth}" if example.truth else ""))]
    for index, heat in heats.items():
        note = "" if heat.any() else " · no place supports it"
        panels.append(Panel(overlay(example.image, heat), (run.class_names[index], f"{scores[index]:.1%}{note}")))
    return panels


def write_maps(folder: Path, explained: Iterator[tuple[Example, list[Panel]]], run: TrainedRun, cam: GradCam) -> int:
    """Write a PNG for each image, and the sheet of the first of them; return the number of images."""
    from tqdm import tqdm

    from tools.heatmaps import CAVEATS, MAX_SHEET_PANELS, draw_panels, draw_sheet, png_bytes

    strips: list[Image.Image] = []
    num_images = num_panels = 0
    for example, panels in tqdm(explained, desc="explaining", unit="img", disable=None, leave=False):
        strip = draw_panels(panels)
        (folder / f"{num_images:04d}_{slug(Path(example.name).stem)}.png").write_bytes(png_bytes(strip))
        num_images += 1
        num_panels += len(panels)
        if num_panels <= MAX_SHEET_PANELS or not strips:
            strips.append(strip)
    lines = [cam.description, *CAVEATS]
    if left_out := num_images - len(strips):
        lines.append(f"{left_out:,} more images have files of their own, and are not on this sheet.")
        log.info(f"sheet.png shows {len(strips):,} images and leaves out {left_out:,}")
    for line in CAVEATS:
        log.info(line)
    (folder / "sheet.png").write_bytes(png_bytes(draw_sheet(strips, f"Grad-CAM of {run.name}", lines)))
    return num_images


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at ``path`` with everything written inside, or not at all.

    Raises:
        StorageError: A folder cannot be made, or the caller has met an ``OSError``.
    """
    missing = [parent for parent in path.parents if not os.path.lexists(parent)]  # the nearest to the folder first
    with ExitStack() as stack, storage_errors(path, "write the folder"):
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            stack.callback(_remove_if_empty, parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        inner = temporary / path.name  # of the usual permissions; mkdtemp makes folders private
        inner.mkdir()
        yield inner
        os.replace(inner, path)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it has the new folder, or files of another program
        folder.rmdir()


def requested_classes(names: Sequence[str], known: Sequence[str]) -> Requested:
    """Read ``--classes``; ``ConfigError`` for names of no class."""
    if list(names) in ([ALL], [PREDICTED]):
        return names[0]
    problems = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            problems.append(f"--classes {name!r} is none of {', '.join(known)}.{hint}")
    if problems:
        raise ConfigError(*problems)
    return [known.index(name) for name in dict.fromkeys(names)]


def _indices(text: str) -> list[int]:
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + MAX_LIMIT:
            raise argparse.ArgumentTypeError(f"{text!r} must be rows and ranges of rows, such as 0-9,42")
        rows.extend(range(first, last + 1))
    return sorted(set(rows))


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_LIMIT:,}, got {text!r}")
    return int(text)


def _problems(given: argparse.Namespace, output: Path) -> Iterator[str]:
    for path in given.inputs:
        if not os.path.exists(path):  # noqa: PTH110 (never raises, unlike Path's)
            yield f"INPUT {path} does not exist."
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        yield f"--output {output} exists already: remove it, or choose another folder."
    try:
        yield from device_problems(Config(device=given.device))
    except ConfigError as error:
        yield from error.problems


if __name__ == "__main__":
    sys.exit(main())
