"""Export the model of a finished run to one file that works without this program.

python tools/export.py RUN                    RUN/export/model.onnx, for onnxruntime; needs no PyTorch to be used
python tools/export.py RUN --int8             also model_int8.onnx: a quarter of the size, faster, less exact
python tools/export.py RUN --format torch     RUN/export/model.pt2, for torch.export.load

The file takes uint8 images (N, H, W, 3), or (N, H, W) of a grey set, and gives float32 probabilities (N, K):
normalisation and softmax or sigmoid are inside. It is compared with the trained model on the test images of the run
before it is kept, and a model card, README.md, is written beside it. See docs/export.md.

Exit codes: 0 done, 1 unexpected error or a file that predicts differently, 2 command line, 3 data or weights, or too
much accuracy lost to 8 bits, 6 storage, and 129, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.errors import ConfigError, DataError, PipelineError, StorageError, storage_errors
from scripts.core.files import file_digest, replace_atomically
from scripts.core.log import log
from scripts.core.optional import require_packages
from scripts.trained_run import TrainedRun, open_run
from tools.command import run_tool

if TYPE_CHECKING:
    from scripts.evaluation.inference import Predictor
    from tools.exporter.checking import Check, Reference

PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch": ()}
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
INT8_FILE, FACTS_FILE = "model_int8.onnx", "export.json"
MAX_DIFFERENCE = 1e-3  # of probabilities, in fp32; rounding alone gives less than 1e-5
MAX_INT8_LOSS = 0.01  # of accuracy on the test split, unless --accept_loss is given
NUM_CALIBRATION = 512  # validation images, at most, that set the ranges of 8-bit integers


@dataclass(frozen=True)
class Request:
    """The command line."""

    run: Path
    format: str
    int8: bool
    accept_loss: bool
    unchecked: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_tool(lambda argv: export(parse(argv)), argv)


def parse(argv: Sequence[str]) -> Request:
    """Parse a command line.

    Raises:
        ConfigError: It is wrong, or a package that it needs is missing.
        SystemExit: ``--help`` was given (code 0).
    """
    parser = ArgumentParser(
        prog="export.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Export the model of a finished run to RUN/export, with a model card.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a finished run")
    add("--format", choices=tuple(FILES), default="onnx", help="kind of file (default: onnx)")
    add("--int8", action="store_true", help="also write an ONNX file that computes with 8-bit integers")
    add(
        "--accept_loss",
        action="store_true",
        help=f"write it even if it loses over {100 * MAX_INT8_LOSS:g} points of accuracy",
    )
    add("--unchecked", action="store_true", help="do not compare the file with the model; needs no test images")
    request = Request(**vars(parser.parse_args(argv)))
    problems = []
    if request.int8 and request.format != "onnx":
        problems.append("--int8 is for --format onnx; leave one of them out.")
    if request.int8 and request.unchecked:
        problems.append("--int8 cannot be used with --unchecked: its ranges and its loss are measured on the data.")
    if request.accept_loss and not request.int8:
        problems.append("--accept_loss is for --int8: other files must not lose anything.")
    if problems:
        raise ConfigError(*problems)
    require_packages(f"tools/export.py --format {request.format}", *PACKAGES[request.format])
    return request


def export(request: Request) -> None:
    """Convert, check and write the files of a command line.

    Raises:
        DataError: The data or weights are missing or damaged, or 8-bit integers lose too much accuracy.
        PipelineError: The network cannot be converted, or the file predicts differently.
        StorageError: A file cannot be written.
    """
    # imported here: it takes seconds, which --help and a wrong flag should not
    import torch

    from tools.exporter import checking, conversion

    run = open_run(request.run)
    predictor = replace(run.predictor(torch.device("cpu"), tta=False), precision="fp32")
    reference = None if request.unchecked else predict_test_split(run, predictor, int8=request.int8)
    convert, runner = {
        "onnx": (conversion.to_onnx, checking.run_onnx),
        "torch": (conversion.to_torch, checking.run_torch),
    }[request.format]
    name, facts = FILES[request.format], describe(run)
    log.info("converting %s; a large network takes a minute", run.config.backbone)
    content = convert(conversion.as_module(predictor), run.image_size if run.is_grey else (*run.image_size, 3), facts)
    check = None
    if reference is not None:
        check = checking.check(runner(content), reference)
        require_equal(name, check)
    keep(run, name, content, check)
    if not request.int8 or reference is None:
        return

    val = run.dataset.load("val").images  # not the test split, which measures; and smaller than the training split
    val = val[:: math.ceil(len(val) / NUM_CALIBRATION)]
    log.info("choosing the ranges of 8-bit integers on %d validation images", len(val))
    batches = (val[start : start + reference.batch_size] for start in range(0, len(val), reference.batch_size))
    content = conversion.to_int8(content, batches, facts)
    check = checking.check(checking.run_onnx(content), reference)
    require_small_loss(check, is_accepted=request.accept_loss)
    keep(run, INT8_FILE, content, check)


def predict_test_split(run: TrainedRun, predictor: Predictor, *, int8: bool) -> Reference:
    """Predict the test split of the run with the trained model; ``DataError`` if the data are not there."""
    from scripts.data_handler.memory import eval_batch_size
    from tools.exporter.checking import predict_reference

    try:
        split = run.dataset.load("test")
    except DataError as error:
        flag = "--unchecked instead of --int8" if int8 else "--unchecked"
        raise DataError(f"{error} {flag} exports without the data, and so without a check.") from error
    return predict_reference(predictor, split, task=run.task, batch_size=eval_batch_size(*run.image_size))


def describe(run: TrainedRun) -> dict[str, str]:
    """What a user of the file needs to know, as its metadata."""
    data = run.card["dataset"]
    facts = {
        "class_names": json.dumps(run.class_names),
        "task": run.task,
        "decision": run.card["decision"],
        "model_name": run.config.model_name,
        "run": run.name,
        "dataset": data["title"],
        "dataset_md5": data["md5"],
        "note": data["note"] or "",
    }
    if (temperature := run.temperature(tta=False)) is not None:
        facts["temperature"] = str(temperature)
    return {name: text.encode("utf-8", "backslashreplace").decode() for name, text in facts.items()}


def require_equal(name: str, check: Check) -> None:
    """Raise ``PipelineError`` if a file predicts anything else than the trained model, beyond rounding."""
    if check.num_changed or not check.max_difference <= MAX_DIFFERENCE:  # "not above" is true for NaN
        raise PipelineError(
            f"{name} was not written: it decides {check.num_changed:,} of {check.num_images:,} test images otherwise "
            f"than the trained model, and probabilities differ by up to {check.max_difference:.1e} (allowed: none, and "
            f"{MAX_DIFFERENCE:g}). Try another version of PyTorch or onnxruntime."
        )


def require_small_loss(check: Check, *, is_accepted: bool) -> None:
    """Raise ``DataError`` if 8-bit integers cost more accuracy than is allowed, unless that ``is_accepted``."""
    loss = check.reference_accuracy - check.accuracy
    change = f"accuracy {check.reference_accuracy:.4f} before and {check.accuracy:.4f} after, on the test split"
    log.info("8-bit integers: %s", change)
    if loss > MAX_INT8_LOSS and not is_accepted:
        raise DataError(
            f"{INT8_FILE} was not written: it loses {100 * loss:.2f} points of accuracy, and {100 * MAX_INT8_LOSS:g} "
            f"are allowed ({change}). --accept_loss writes it nevertheless."
        )


def keep(run: TrainedRun, name: str, content: bytes, check: Check | None) -> None:
    """Write a checked file, its entry in ``export.json``, and the model card about all files of the same weights."""
    from tools.exporter.card import render_card

    folder = run.paths.root / "export"
    weights = file_digest(run.paths.best_model, "md5")
    entry = {
        "bytes": len(content),
        "torch": version("torch"),
        "weights_md5": weights,
        "check": None if check is None else asdict(check),
    }
    files = {**_earlier_files(folder, weights), name: entry}
    facts = json.dumps(files, indent=2, allow_nan=False) + "\n"
    write_together(folder, {"README.md": render_card(run, files).encode(), FACTS_FILE: facts.encode(), name: content})
    if check is None:
        log.warning("wrote %s (%.1f MB), which was not compared with the model", folder / name, len(content) / 1e6)
        return
    ties = f" except {check.num_ties} ties" if check.num_ties else ""
    log.info("wrote %s (%.1f MB) and its README.md", folder / name, len(content) / 1e6)
    log.info(
        "on %s test images: decisions changed %d%s, largest difference of probabilities %.1e, accuracy %.4f, %s "
        "images per second on this CPU",
        *(f"{check.num_images:,}", check.num_changed, ties, check.max_difference, check.accuracy),
        f"{check.images_per_second:,.0f}",
    )


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by name, the last one first; a full disk leaves all of them as they were.

    Raises:
        StorageError: The folder cannot be made, or a file cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"Cannot make the folder {folder}: it is a file. Rename or remove it.")
    with storage_errors(folder, "make the folder"):
        folder.mkdir(exist_ok=True)
    with ExitStack() as renames:  # all of them once everything is on the disk
        for name, content in contents.items():
            stream = renames.enter_context(replace_atomically(folder / name, needed_bytes=len(content)))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())


def _earlier_files(folder: Path, weights_md5: str) -> dict[str, Any]:
    """The entries of files that are there and have the same weights."""
    try:
        stored = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        return {
            name: entry
            for name, entry in stored.items()
            if name in (*FILES.values(), INT8_FILE) and entry["weights_md5"] == weights_md5 and (folder / name).exists()
        }
    except (OSError, ValueError, AttributeError, TypeError, KeyError):  # no such file yet, or a damaged one
        return {}


if __name__ == "__main__":
    sys.exit(main())
