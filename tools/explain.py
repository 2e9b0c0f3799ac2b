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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.errors import ConfigError, DataError, storage_errors
from scripts.core.files import write_bytes
from scripts.core.log import log
from scripts.core.optional import require_packages
from scripts.core.paths import slug
from tools.command import run_tool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scripts.evaluation.gradcam import GradCam
    from scripts.evaluation.inference import Predictor
    from scripts.trained_run import TrainedRun
    from tools.dataset_builder.decode import Recipe
    from tools.heatmaps import Panel

    Pixels = NDArray[np.uint8]

FOLDER = "explanations"  # in the run's folder, unless --output is given
DEFAULT_LIMIT = 64
MAX_LIMIT = 10_000
MAX_BATCH_SIZE = 16  # images that keep their activations for the gradients
ALL, PREDICTED = "all", "predicted"


@dataclass(frozen=True, slots=True)
class Source:
    """An image that can be read."""

    name: str
    read: Callable[[], Pixels]  # uint8 (H, W) or (H, W, 3), as the run's model takes it
    truth: str = ""  # the true class, where it is known


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_tool(explain, argv)


def explain(argv: Sequence[str]) -> None:
    """Explain the images of a command line, given without the program's name."""
    given = build_parser().parse_args(argv)
    require_packages("tools/explain.py", "captum")
    # imported here: it takes seconds, which --help and a wrong flag should not
    from scripts.core.system.device import device_problems, select_device
    from scripts.evaluation.gradcam import GradCam
    from scripts.trained_run import open_run

    run = open_run(given.run)
    if problems := list(device_problems(replace(run.config, device=given.device))):
        raise ConfigError(*problems)
    requested = _requested_classes(given.classes, run.class_names)
    output = given.output or run.paths.root / FOLDER
    if (output.is_dir() and any(output.iterdir())) or output.is_file():
        raise ConfigError(f"--output {output} exists already: remove it, or choose another folder.")
    found = list_sources(given.inputs, run, split=given.split, indices=given.indices)
    sources = [found[index * len(found) // given.limit] for index in range(given.limit)]
    if len(found) > given.limit:
        log.info(f"{given.limit:,} of {len(found):,} images, evenly spread: --limit sets the number")
    else:
        sources = found
    predictor = replace(run.predictor(select_device(given.device), tta=False), precision="fp32")
    cam = GradCam(predictor, run.image_size)
    log.info(f"Grad-CAM of {run.name}: {cam.description}")
    with new_folder(output) as folder:
        write_maps(folder, explanations(sources, run, predictor, cam, requested), run, cam)
    log.info(f"wrote {output}: {len(sources):,} images and sheet.png")


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
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="image files, folders of them, or .npz data sets")
    add("--output", type=Path, metavar="FOLDER", help=f"new folder for the files (default: RUN/{FOLDER})")
    add(
        "--classes",
        nargs="+",
        default=[PREDICTED],
        metavar="NAME",
        help=f"'{PREDICTED}' (default), '{ALL}', or names of classes",
    )
    add("--split", choices=("train", "val", "test"), default="test", help="of an .npz (default: test)")
    add("--indices", type=_indices, metavar="ROWS", help="rows of an .npz, such as 0-9,42 (default: all)")
    add(
        "--limit",
        type=_limit,
        default=DEFAULT_LIMIT,
        metavar="INT",
        help=f"images at most, evenly spread over those given (default: {DEFAULT_LIMIT})",
    )
    add("--device", default="auto", help="as for main.py (default: auto)")
    return parser


def list_sources(inputs: Sequence[Path], run: TrainedRun, *, split: str, indices: Sequence[int] | None) -> list[Source]:
    """List the images of files, folders and data sets; files are read later.

    Raises:
        ConfigError: There is no image, or ``indices`` are given without a data set.
        DataError: A path does not exist or cannot be read, or a data set does not fit the run.
    """
    from tools.prepared import recipe_of

    if indices is not None and not any(map(_is_npz, inputs)):
        raise ConfigError("--indices chooses rows of an .npz, and no INPUT is one.")
    recipe = None if all(map(_is_npz, inputs)) else recipe_of(run)
    found: list[Source] = []
    for path in inputs:
        if _is_npz(path):
            found += _rows_of(path, run, split, indices)
        elif recipe is not None:
            folder, files = (path, _images_below(path)) if path.is_dir() else (path.parent, [path])
            found += [Source(str(file.relative_to(folder)), partial(_read, file, recipe)) for file in files]
    if not found:
        raise DataError(f"There is no image in {', '.join(map(str, inputs))}.")
    return found


def explanations(
    sources: Sequence[Source], run: TrainedRun, predictor: Predictor, cam: GradCam, requested: Sequence[int] | str
) -> Iterator[tuple[Source, list[Panel]]]:
    """Yield each image with its panels: the image itself, then one for each class that is explained."""
    import numpy as np
    import torch

    from scripts.data_handler.memory import eval_batch_size

    device = next(predictor.model.parameters()).device
    batch_size = min(MAX_BATCH_SIZE, eval_batch_size(*run.image_size))
    remaining = iter(sources)
    while batch := list(islice(remaining, batch_size)):
        images = torch.from_numpy(np.stack([source.read() for source in batch])).to(device)
        scores = predictor(images)[0].cpu().double().numpy()
        chosen = [classes_to_explain(requested, row, run.task) for row in scores]
        pairs = [(row, index) for row, classes in enumerate(chosen) for index in classes]
        heats: list[NDArray[np.float32]] = []
        for start in range(0, len(pairs), batch_size):
            rows, classes = torch.tensor(pairs[start : start + batch_size], device=device).T
            heats.extend(cam(images[rows], classes).cpu().numpy())
        of_image = iter(heats)
        for source, image, row, classes in zip(batch, images.cpu().numpy(), scores, chosen, strict=True):
            maps = [next(of_image) for _ in classes]
            yield source, panels_of(source, image, row, dict(zip(classes, maps, strict=True)), run)


def classes_to_explain(requested: Sequence[int] | str, scores: NDArray[np.float64], task: str) -> list[int]:
    """The classes of an image, by their probabilities (K,); where no label is predicted, the most probable one."""
    from scripts.data_handler.registry import MULTI_LABEL, THRESHOLD

    if requested == ALL:
        return list(range(len(scores)))
    if requested != PREDICTED:
        return [int(index) for index in requested]
    positive = (scores > THRESHOLD).nonzero()[0].tolist() if task == MULTI_LABEL else []
    return positive or [int(scores.argmax())]


def panels_of(
    source: Source, image: Pixels, scores: NDArray[np.float64], heats: dict[int, NDArray[np.float32]], run: TrainedRun
) -> list[Panel]:
    """The image with its name and true class, and an overlay for each class with its probability."""
    from tools.heatmaps import Panel, enlarge, overlay

    panels = [Panel(enlarge(image), (source.name, f"true: {source.truth}" if source.truth else ""))]
    for index, heat in heats.items():
        note = "" if heat.any() else " · no place supports it"
        lines = (run.class_names[index], f"{scores[index]:.1%}{note}")
        panels.append(Panel(overlay(image, heat), lines))
    return panels


def write_maps(folder: Path, explained: Iterator[tuple[Source, list[Panel]]], run: TrainedRun, cam: GradCam) -> None:
    """Write a PNG for each image, and the sheet of the first of them."""
    from tqdm import tqdm

    from tools.heatmaps import CAVEATS, MAX_SHEET_PANELS, draw_panels, draw_sheet, png_bytes

    strips: list[Image.Image] = []
    num_images = num_panels = 0
    for source, panels in tqdm(explained, desc="explaining", unit="img", disable=None, leave=False):
        strip = draw_panels(panels)
        write_bytes(folder / f"{num_images:04d}_{slug(source.name)}.png", png_bytes(strip))
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
    write_bytes(folder / "sheet.png", png_bytes(draw_sheet(strips, f"Grad-CAM of {run.name}", lines)))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at ``path`` with everything written inside, or not at all."""
    with storage_errors(path, "make the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        inner = temporary / path.name  # of the usual permissions; mkdtemp makes folders private
        with storage_errors(path, "make the folder"):
            inner.mkdir()
        yield inner
        with storage_errors(path, "make the folder"):
            os.replace(inner, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rows_of(path: Path, run: TrainedRun, split: str, indices: Sequence[int] | None) -> Iterator[Source]:
    """The rows of a data set's split, with their true classes."""
    from scripts.data_handler.opening import open_dataset

    dataset = open_dataset(str(path), run.config.data_dir)
    size, is_grey = (dataset.height, dataset.width), dataset.channels == 1
    if (size, is_grey) != (run.image_size, run.is_grey):
        takes, has = (
            f"{width} × {height} pixels in {'grey' if grey else 'colour'}"
            for (height, width), grey in ((run.image_size, run.is_grey), (size, is_grey))
        )
        raise DataError(f"{run.paths.root} takes images of {takes}, but those of {path} have {has}.")
    data = dataset.load(split)
    if indices and (last := max(indices)) >= len(data.labels):
        raise ConfigError(f"--indices has the row {last:,}, but {path} has {len(data.labels):,} {split} images.")
    for row in range(len(data.labels)) if indices is None else indices:
        label = data.labels[row]
        held = [label] if data.labels.ndim == 1 else label.nonzero()[0]
        truth = ", ".join(dataset.class_names[index] for index in held) or "no label"
        yield Source(f"{path.stem} {split} #{row}", partial(data.images.__getitem__, row), truth)


def _images_below(folder: Path) -> list[Path]:
    """Files with the suffix of an image, at any depth below a folder, by name; hidden ones are skipped."""
    from tools.dataset_builder.listing import IMAGE_SUFFIXES

    def stop(error: OSError) -> None:
        raise DataError(f"Cannot read the folder {error.filename}: {error.strerror}.") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _read(path: Path, recipe: Recipe) -> Pixels:
    from tools.dataset_builder.decode import UnusableImageError
    from tools.prepared import prepare, read_content

    try:
        return prepare(read_content(path), recipe)
    except UnusableImageError as error:
        raise DataError(f"{path} cannot be used: {error}.") from error


def _requested_classes(names: Sequence[str], known: Sequence[str]) -> list[int] | str:
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
        if not (found := re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)):
            raise argparse.ArgumentTypeError(f"{text!r} must be rows and ranges of rows, such as 0-9,42")
        first, last = int(found[1]), int(found[2] or found[1])
        rows.extend(range(first, last + 1))
    return list(dict.fromkeys(rows))


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_LIMIT:,}, got {text!r}")
    return int(text)


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and not path.is_dir()


if __name__ == "__main__":
    sys.exit(main())
