"""Whether a data set can be trained on this machine, and how its images would be fed; nothing is trained or written.

python tools/check_memory.py pathmnist --resolution 224             a set of the registry, downloaded or not
python tools/check_memory.py path/to/own.npz --batch_size 64        a file of your own
python tools/check_memory.py pathmnist --device cuda --feed resident --data_dir /scratch/dataset

Takes every setting of main.py after the data set and answers by the same functions as a run, from the file's headers or
the registry's facts. Exit codes: 0 it can be trained, 2 command line, 3 it cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import parse_command_line
from scripts.core.config import Config
from scripts.core.errors import DataError, PipelineError, StorageError
from scripts.core.system.device import device_problems, select_device
from scripts.data_handler.memory import (
    SHARED_MEMORY,
    ImageSizes,
    free_shared_memory,
    megabytes,
    plan_memory,
    workers_that_fit,
)
from scripts.data_handler.registry import dataset_problems

HELP_WORDS = frozenset({"-h", "--help"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What is needed, what there is, and whether it suffices."""

    lines: tuple[tuple[str, str], ...]  # heading and sentence
    problem: str  # why it cannot be trained; empty where it can


def main(words: Sequence[str] | None = None) -> int:
    """Answer one command line and return its exit code."""
    words = sys.argv[1:] if words is None else words
    if HELP_WORDS & set(words):
        print(__doc__)
        return 0
    try:
        # a data set without a flag before it, as for a question about nothing else
        given = ["--dataset", *words] if words and not words[0].startswith("-") else words
        config = parse_command_line(given, checks=(dataset_problems, device_problems))
        answer = examine(config)
    except PipelineError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return DataError.exit_code if isinstance(error, StorageError) else error.exit_code
    for heading, text in answer.lines:
        print(f"{heading:12s}{text}")
    if answer.problem:
        print(f"error: {answer.problem}", file=sys.stderr)
        return DataError.exit_code
    return 0


def examine(config: Config) -> Answer:
    """The answer for a data set with the settings of a run.

    Raises:
        DataError: The file is no data set, or its labels alone do not fit into memory.
    """
    # here rather than above: NumPy takes longer to import than --help should
    from scripts.data_handler.opening import preview_dataset
    from scripts.data_handler.unpacked import bytes_to_write, require_space, require_writable

    outlook = preview_dataset(config.dataset, config.data_dir, config.resolution)
    lines = [("data set", f"{config.dataset}: {outlook.source}"), ("images", _described(outlook.images))]
    problem, to_write = "", bytes_to_write(outlook.files)
    folder = next((file.path.parent for file in outlook.files.values()), None)
    try:
        plan = plan_memory(config.feed, outlook.images, select_device(config.device))
        lines += [("memory", plan.figures), ("feed", f"{plan.feed}: {plan.reason}")]
        if outlook.download is not None:
            require_writable(outlook.download.parent)
        if folder is not None and plan.feed == "streamed":
            require_space(folder, to_write)
    except (DataError, StorageError) as error:
        problem = str(error)
    if folder is not None:
        more = "" if outlook.download is None else "; the download comes on top of that"
        lines.append(("streamed", _conversion(to_write, folder) + more))
    lines.append(("workers", _workers(config, outlook.images)))
    lines.append(("verdict", "it cannot be trained" if problem else "it can be trained"))
    return Answer(tuple(lines), problem)


def _described(images: ImageSizes) -> str:
    splits = ", ".join(
        f"{split} {megabytes(count * images.image_bytes)}" for split, count in images.num_samples.items()
    )
    shape = f"{images.width} × {images.height} × {images.channels}"
    return f"{sum(images.num_samples.values()):,} of {shape} bytes: {splits}"


def _conversion(to_write: int, folder: Path) -> str:
    from scripts.data_handler.unpacked import free_space

    if to_write == 0:
        return f"the images lie uncompressed in {folder} already"
    return f"would take {megabytes(to_write)} of disk once, in {folder}, where {megabytes(free_space(folder))} are free"


def _workers(config: Config, images: ImageSizes) -> str:
    if config.reproducible:
        return "none if streamed: reproducibility mode"
    shared = free_shared_memory()
    number, why_fewer = workers_that_fit(config.num_workers, images, batch_size=config.batch_size, shared=shared)
    room = "" if shared is None else f", of {megabytes(shared)} that are free in {SHARED_MEMORY}"
    needed = megabytes(images.in_flight_bytes(config.batch_size, number))
    return f"{number} if streamed, with {needed} of batches on their way{room}" + (f"; {why_fewer}" * bool(why_fewer))


if __name__ == "__main__":
    sys.exit(main())
