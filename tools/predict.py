"""Predict the classes of images with a finished run, or with several whose probabilities are averaged.

python tools/predict.py RUN cells/new --output predictions.csv     every image below a folder
python tools/predict.py RUN a.png b.jpg                            image files; the result goes to the screen
python tools/predict.py RUN scans.csv --tta --calibrated           a CSV of paths: path[,label]
python tools/predict.py RUN data.npz --split val                   a split of an .npz in MedMNIST's schema
python tools/predict.py RUN_1 RUN_2 cells/new --abstain 0.9        two runs together; unsure predictions are left out

Images are prepared as those of the training were. With labels (a folder per class, the column label, an .npz) every
metric is computed with its 95 % interval. See docs/predict.md.

Exit codes: 0 done, 1 unexpected error, 2 command line, 3 images or weights, 6 storage, and 129, 130 and 143 stopped by
a signal.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.config import Config
from scripts.core.errors import ConfigError
from scripts.core.paths import RunPaths
from scripts.core.system.device import device_problems
from scripts.trained_run import TrainedRun, open_run
from tools.command import run_tool

OUTPUT_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A valid command line."""

    runs: tuple[TrainedRun, ...]
    inputs: tuple[Path, ...]
    split: str | None
    output: Path | None  # None for the screen
    metrics: Path | None  # where to write the metrics; None for nowhere
    tta: bool
    calibrated: bool
    abstain: float | None  # predictions whose probability is below are left out; None for none
    skip_unreadable: bool
    device: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; standard output is for the predictions."""
    return run_tool(work, argv, messages_to=sys.stderr)


def work(argv: Sequence[str]) -> None:
    """Predict what a command line requests."""
    request = parse(argv)
    # imported here: it takes seconds, which --help and a wrong flag should not
    from tools.prediction.predicting import predict

    predict(request)


def build_parser() -> ArgumentParser:
    """Make the parser of this program."""
    parser = ArgumentParser(
        prog="predict.py",
        usage="predict.py RUN [RUN ...] INPUT [INPUT ...] [--setting value ...]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        description="Predict the classes of images with a finished run, or with several whose probabilities are "
        "averaged.",
        epilog="example:\n  python tools/predict.py outputs/20260131_221500_cells_resnet18 cells/new --output new.csv",
        allow_abbrev=False,
    )
    add = parser.add_argument
    help_of_paths = "folders of finished runs, then image files, folders, a CSV: path[,label], or an .npz"
    add("paths", nargs="+", metavar="RUN INPUT", help=help_of_paths)
    add("--output", type=Path, metavar="FILE", help="where to write: .csv, or .jsonl for JSON lines (default: screen)")
    add("--metrics", type=Path, metavar="FILE.json", help="also write the metrics, which need labels")
    add("--split", choices=("train", "val", "test"), help="of an .npz (default: test), or of a CSV with that column")
    add("--tta", action="store_true", help="average over the views of test-time augmentation")
    add("--calibrated", action="store_true", help="divide the logits by the temperature fitted on the validation split")
    add("--abstain", type=_share, metavar="BELOW", help="make no prediction whose probability is below this")
    add("--skip_unreadable", action="store_true", help="leave out unusable image files, instead of stopping")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser


def parse(argv: Sequence[str]) -> Request:
    """Parse a command line and open its runs.

    Raises:
        ConfigError: Every problem of the command line, one per line.
        DataError: A run is damaged.
        SystemExit: ``--help`` was given (code 0).
    """
    values = vars(build_parser().parse_intermixed_args(argv))
    paths = [Path(os.path.expanduser(text)) for text in values.pop("paths")]  # noqa: PTH111 (never raises)
    is_run = [_is_run(path) for path in paths]
    num_runs = max(1, (*is_run, False).index(False))  # the first path must be a run; if it is not, open_run says why
    runs, inputs = tuple(map(open_run, paths[:num_runs])), tuple(paths[num_runs:])
    request = Request(runs=runs, inputs=inputs, **values)
    if problems := list(_problems(request)):
        raise ConfigError(*problems)
    return request


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return share


def _is_run(path: Path) -> bool:
    return os.path.isfile(RunPaths(path).config)  # noqa: PTH113 (never raises)


def _problems(request: Request) -> Iterator[str]:
    if not request.inputs:
        yield "Give at least one INPUT after the runs: image files, folders, a CSV of paths, or an .npz."
    for path in request.inputs:
        if not os.path.exists(path):  # noqa: PTH110 (never raises, unlike Path's)
            yield f"INPUT {path} does not exist."
        elif _is_run(path):
            yield f"{path} is the folder of a run: give all runs before the inputs."
    for flag, target, suffixes in (
        ("--output", request.output, OUTPUT_SUFFIXES),
        ("--metrics", request.metrics, (".json",)),
    ):
        if target is not None:
            yield from _target_problems(flag, target, suffixes, request.inputs)
    yield from _run_problems(request)
    try:
        yield from device_problems(Config(device=request.device))
    except ConfigError as error:
        yield from error.problems


def _target_problems(flag: str, target: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> Iterator[str]:
    if target.suffix not in suffixes:
        yield f"{flag} must end in {' or '.join(suffixes)}, got {target}."
    elif os.path.isdir(target):  # noqa: PTH112
        yield f"{flag} {target} is a folder; give the name of a file."
    elif not os.path.isdir(target.parent):  # noqa: PTH112
        yield f"{flag} {target}: there is no folder {target.parent}; make it first."
    elif any(os.path.realpath(target) == os.path.realpath(path) for path in inputs):
        yield f"{flag} {target} would replace an input: choose another name."


def _run_problems(request: Request) -> Iterator[str]:
    """Yield why the runs cannot predict together, or not in the requested way."""
    first, *others = request.runs
    for run in others:
        if (run.task, run.class_names) != (first.task, first.class_names):
            yield f"{run.name} cannot be averaged with {first.name}: their classes or tasks differ."
    for run in request.runs:
        if request.tta and run.config.no_tta:
            yield f"--tta: {run.name} was trained for one view only. Leave --tta out."
        if request.calibrated and run.temperature(tta=request.tta) is None:
            yield f"--calibrated: {run.name} has no temperature, as runs of earlier versions. Leave --calibrated out."


if __name__ == "__main__":
    sys.exit(main())
