"""Make a data set from your own images: a folder per class, or a CSV, becomes an ``.npz`` in MedMNIST's schema.

python tools/make_dataset.py cells cells.npz                           cells/<class>/*.jpg, at 28 × 28 pixels
python tools/make_dataset.py cells cells_224.npz --size 224 --crop 300          the middle 300 × 300 pixels of each
python tools/make_dataset.py scans.csv scans.npz --grey --split 0.6 0.2 0.2     path,label[,split][,group]
python main.py --dataset cells.npz                                     trains on it

Groups (patients, slides) and equal images are never divided over train, val and test. The same images, settings and
seed give the same bytes. See docs/own_images.md.

Exit codes: 0 done, 1 unexpected error, 2 command line, 3 images or CSV, 6 storage, and 129, 130 and 143 stopped by a
signal.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.config import MAX_SEED
from scripts.core.environment import PROJECT_ROOT
from scripts.core.errors import ConfigError, Interrupted, PipelineError
from scripts.core.log import log, screen_log
from scripts.core.system import stop_request
from tools.dataset_builder.request import Request

if TYPE_CHECKING:
    from tools.dataset_builder.build import Built
    from tools.dataset_builder.listing import Listing

MIN_SIZE, MAX_SIZE = 8, 1024  # pixels
MAX_CROP = 100_000  # pixels
MAX_WORKERS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    with screen_log():
        try:
            with stop_request() as stop:
                stop.advice = "Nothing was written."
                request = parse(sys.argv[1:] if argv is None else argv)
                built = run(request)
        except (PipelineError, Interrupted) as error:
            log.error(str(error))
            return error.exit_code
        log_result(request, built)
    return 0


def run(request: Request) -> Built:
    """List the images, make the file, and return what was written."""
    # imported here: it takes seconds, which --help and a wrong flag should not
    from tools.dataset_builder.build import build
    from tools.dataset_builder.listing import list_images

    listing = list_images(request.source, group_by_folder=request.group_by_folder)
    if problems := list(_image_problems(request, listing)):
        raise ConfigError(*problems)
    log.info(f"{len(listing.entries):,} images of {len(listing.class_names)} classes in {request.source}")
    for note in listing.notes:
        log.info(note)
    for warning in listing.warnings:
        log.warning(warning)
    if listing.is_split and request.split is not None:
        log.warning(f"--split has no effect: {request.source} gives the splits")
    return build(listing, request)


def log_result(request: Request, built: Built) -> None:
    """Log the table of images per class and split, and the next command."""
    for line in table(built):
        log.info(line)
    log.info(f"wrote {request.out}: {built.num_bytes:,} bytes, MD5 {built.md5}")
    if request.index is not None:
        log.info(f"wrote {request.index}: which image is which row")
    program = "main.py" if Path.cwd() == PROJECT_ROOT else str(PROJECT_ROOT / "main.py")
    log.info(f"next: {shlex.join(['python', program, '--dataset', str(request.out)])}")


def table(built: Built) -> list[str]:
    """Images per class and split, with each split's share, as aligned lines."""
    import pandas as pd

    counts = pd.DataFrame(built.counts, index=pd.Index(built.class_names, name="class"))
    totals = counts.sum()
    counts = pd.concat([counts, totals.to_frame("total").T]).assign(total=lambda frame: frame.sum(axis="columns"))
    texts = counts.map("{:,}".format)
    rows = [("class", *texts.columns), *texts.itertuples(), ("share", *(totals / totals.sum()).map("{:.1%}".format))]
    width = max(len(name) for name, *_ in rows)
    return [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells).rstrip() for name, *cells in rows]


def build_parser() -> ArgumentParser:
    """Make the parser of this program; values stay text, so that all wrong ones are reported at once."""
    parser = ArgumentParser(
        prog="make_dataset.py",
        usage="make_dataset.py FOLDER_OR_CSV OUT.npz [--setting value ...]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        description="Make an .npz in MedMNIST's schema from a folder per class, or from a CSV.",
        epilog="example:\n  python tools/make_dataset.py cells cells.npz --size 28 --crop 200\n"
        "  python main.py --dataset cells.npz",
        allow_abbrev=False,
    )
    cpus = min(4, os.cpu_count() or 1)
    add = parser.add_argument
    add("source", metavar="FOLDER_OR_CSV", help="folder with a subfolder per class, or CSV: path,label[,split][,group]")
    add("out", metavar="OUT.npz", help="the file to make")
    add("--size", default="28", metavar="PIXELS", help="side of the stored images (default: 28)")
    add("--crop", metavar="PIXELS", help="crop this square from the centre first (default: the largest possible)")
    share = ("TRAIN", "VAL", "TEST")
    add("--split", nargs=3, metavar=share, help="shares of the images (default: 0.7 0.1 0.2)")
    add("--grey", action="store_true", help="one channel instead of three")
    add("--seed", default="42", metavar="INT", help="seed of the splits (default: 42)")
    add("--group_by_folder", action="store_true", help="a folder below a class's folder is a group (patient, slide)")
    add("--skip_unreadable", action="store_true", help="leave out unusable files, instead of stopping")
    add("--skip_contradictions", action="store_true", help="leave out equal images in different classes")
    add("--drop_duplicates", action="store_true", help="keep one of equal images, instead of all in one split")
    add("--index", metavar="FILE.csv", help="also write a table of images and rows")
    add("--overwrite", action="store_true", help="replace OUT.npz, and the index, if they exist")
    add("--num_workers", default=str(cpus), metavar="INT", help=f"threads; no effect on the result (default: {cpus})")
    return parser


def parse(argv: Sequence[str]) -> Request:
    """Parse a command line.

    Raises:
        ConfigError: Every problem of the command line, one per line.
        SystemExit: ``--help`` was given (code 0).
    """
    parser = build_parser()
    given, unexpected = parser.parse_known_args(argv)
    unknown = [argument.partition("=")[0] for argument in unexpected if argument.startswith("-")]
    if unknown:  # the value of one may have been taken for a path, so checking the rest is of no use
        raise ConfigError(*(_unknown_flag(flag, parser) for flag in unknown))
    problems = [f"Unexpected argument {argument!r}: give one FOLDER_OR_CSV and one OUT.npz." for argument in unexpected]

    values = vars(given)
    for name, convert, *arguments in (
        ("source", _path, "FOLDER_OR_CSV"),
        ("out", _path, "OUT.npz"),
        ("index", _path, "--index"),
        ("size", _whole_number, "--size", MIN_SIZE, MAX_SIZE),
        ("crop", _whole_number, "--crop", MIN_SIZE, MAX_CROP),
        ("split", _shares, "--split"),
        ("seed", _whole_number, "--seed", 0, MAX_SEED),
        ("num_workers", _whole_number, "--num_workers", 1, MAX_WORKERS),
    ):
        text, values[name] = values[name], None
        if text is not None:
            try:
                values[name] = convert(text, *arguments)  # type: ignore[operator]
            except ConfigError as error:
                problems.extend(error.problems)
    request = Request(**values)
    problems.extend(_path_problems(request))
    if problems:
        raise ConfigError(*problems)
    return request


def _unknown_flag(flag: str, parser: argparse.ArgumentParser) -> str:
    flags = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(flag, flags, n=1)
    return f"Unknown flag {flag!r}. " + (f"Did you mean {close[0]}?" if close else "See --help.")


def _path(text: str, name: str) -> Path:
    if not text or "\0" in text:
        raise ConfigError(f"{name} must be a path, got {text!r}.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name} must be a path, got {text!r}, whose user is not known here.") from None


def _whole_number(text: str, flag: str, minimum: int, maximum: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"{flag} must be a whole number, got {text!r}.") from None
    if not minimum <= number <= maximum:
        raise ConfigError(f"{flag} must be from {minimum} to {maximum}, got {number}.")
    return number


def _shares(texts: Sequence[str], flag: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(text) for text in texts)
    except ValueError:
        shares = ()
    # "not above 0" is true for NaN too
    if not shares or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ConfigError(
            f"{flag} must be three shares above 0 whose sum is 1, such as 0.7 0.1 0.2, got {' '.join(texts)}."
        )
    return shares


def _path_problems(request: Request) -> Iterator[str]:
    """Yield what is wrong with the paths; None stands for those that are wrong already."""
    source = request.source
    if source is not None:
        if not os.path.exists(source):  # noqa: PTH110 (never raises, unlike Path's)
            yield f"FOLDER_OR_CSV {source} does not exist."
        elif request.group_by_folder and not os.path.isdir(source):  # noqa: PTH112
            yield f"--group_by_folder is for folders; the groups of {source} are in its column group."
    for name, path, suffix in (("OUT.npz", request.out, ".npz"), ("--index", request.index, ".csv")):
        if path is not None:
            yield from _target_problems(name, path, suffix, request.overwrite)
            # folders are refused above
            if source is not None and not os.path.isdir(path) and _is_same(path, source):  # noqa: PTH112
                yield f"{name} {path} would replace the CSV that is read: choose another name."


def _image_problems(request: Request, listing: Listing) -> Iterator[str]:
    """Yield which of the files to be written is an image that is read."""
    for name, path in (("OUT.npz", request.out), ("--index", request.index)):
        if path is None or not os.path.lexists(path):
            continue
        if image := next((entry.name for entry in listing.entries if _is_same(path, entry.path)), None):
            yield f"{name} {path} would replace the image {image!r} that is read: choose another name."


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file, also through links."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121 (a path of a user may be of any kind)
    except OSError:  # one does not exist, or cannot be accessed
        return os.path.realpath(one) == os.path.realpath(other)


def _target_problems(name: str, path: Path, suffix: str, overwrite: bool) -> Iterator[str]:
    if path.suffix != suffix:
        yield f"{name} must end in {suffix}, got {path}."
    elif os.path.isdir(path):  # noqa: PTH112
        yield f"{name} {path} is a folder; give the name of a file."
    elif not os.path.isdir(path.parent):  # noqa: PTH112
        yield f"{name} {path}: there is no folder {path.parent}; make it first."
    elif os.path.lexists(path) and not overwrite:
        yield f"{name} {path} exists already: choose another name, or replace it with --overwrite."


if __name__ == "__main__":
    sys.exit(main())
