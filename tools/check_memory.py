"""Check whether a data set can be trained on this machine, and how its images would be fed; nothing is written.

python tools/check_memory.py pathmnist --resolution 224             a set of the registry, downloaded or not
python tools/check_memory.py path/to/own.npz --batch_size 64        a file of your own
python tools/check_memory.py pathmnist --device cuda --feed resident --data_dir /scratch/dataset

Takes every setting of main.py after the data set. Uses the functions of a run, and reads only the file's headers or the
registry's facts. Exit codes: 0 it can be trained, 2 command line, 3 it cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import parse_command_line
from scripts.core.config import Config
from scripts.core.errors import DataError, PipelineError, StorageError
from scripts.core.files import free_space
from scripts.core.system.device import device_problems, select_device
from scripts.data_handler.memory import (
    SHARED_MEMORY,
    ImageSizes,
    free_on_host,
    free_shared_memory,
    megabytes,
    plan_memory,
    workers_that_fit,
)
from scripts.data_handler.registry import DATASET_REGISTRY, SYNTHBLOOD, dataset_problems


def main(argv: Sequence[str] | None = None) -> int:
    """Check one command line, print the result and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    if argv and not argv[0].startswith("-"):  # the data set may be given without its flag
        argv.insert(0, "--dataset")
    try:
        facts, problem = examine(parse_command_line(argv, checks=(dataset_problems, device_problems)))
    except PipelineError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return DataError.exit_code if isinstance(error, StorageError) else error.exit_code
    for heading, text in facts.items():
        print(f"{heading:12s}{text}")
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return DataError.exit_code
    return 0


def examine(config: Config) -> tuple[dict[str, str], str]:
    """Find out what a data set needs with the settings of a run, and what is free.

    Returns:
        A sentence for each heading, and why the data set cannot be trained; "" if it can.

    Raises:
        DataError: The file is not a data set, or its labels alone do not fit into memory.
    """
    # imported here: NumPy takes longer to import than --help should
    from scripts.data_handler.unpacked import bytes_to_write, image_files, require_space, require_writable

    source, images, md5, download = look_up(config)
    files = {} if md5 is None else image_files(images, md5, config.data_dir)
    facts = {"data set": f"{config.dataset}: {source}", "images": _describe(images)}
    problem, to_write = "", bytes_to_write(files)
    folder = next((file.path.parent for file in files.values()), None)
    try:
        plan = plan_memory(config.feed, images, select_device(config.device))
        facts |= {"memory": plan.figures, "feed": f"{plan.feed}: {plan.reason}"}
        if download is not None:
            require_writable(download.parent)
        if folder is not None and plan.feed == "streamed":
            require_space(folder, to_write)
    except (DataError, StorageError) as error:
        problem = str(error)
    if folder is not None:
        more = "" if download is None else "; the download needs space in addition"
        facts["streamed"] = _conversion(to_write, folder) + more
    facts["workers"] = _workers(config, images)
    facts["verdict"] = "it cannot be trained" if problem else "it can be trained"
    return facts, problem


def look_up(config: Config) -> tuple[str, ImageSizes, str | None, Path | None]:
    """Find out from a file's headers or the registry what the images of a set need; raises as ``examine``.

    Returns:
        The source of the facts, the images' sizes, the MD5 of their file (None where they are generated), and the path
        that it must be downloaded to first (None if it need not be).
    """
    from scripts.data_handler import npz, opening
    from scripts.data_handler.synthetic import open_synthblood

    name, side = config.dataset, config.resolution
    if name == SYNTHBLOOD:
        return "generated in memory", open_synthblood(), None, None
    info = DATASET_REGISTRY.get(name)
    path = config.data_dir / info.file_name(side) if info else opening.existing_file(Path(name))
    if info and not path.exists():
        images = ImageSizes(num_samples=info.num_samples, height=side, width=side, channels=info.channels)
        return "the registry; it is not downloaded yet", images, info.md5s[side], path.absolute()
    layout = npz.validate_npz_keys(path)
    npz.require_memory(layout, free_on_host()[0])
    return str(path.absolute()), layout, info.md5s[side] if info else opening.md5_of(path), None


def _describe(images: ImageSizes) -> str:
    sizes = (f"{split} {megabytes(count * images.image_bytes)}" for split, count in images.num_samples.items())
    shape = f"{images.width} × {images.height} × {images.channels}"
    return f"{sum(images.num_samples.values()):,} of {shape} bytes: {', '.join(sizes)}"


def _conversion(to_write: int, folder: Path) -> str:
    if to_write == 0:
        return f"the images are stored uncompressed in {folder} already"
    needed, free = megabytes(to_write), megabytes(free_space(folder))
    return f"would need {needed} of disk space once, in {folder}, where {free} are free"


def _workers(config: Config, images: ImageSizes) -> str:
    if config.reproducible:
        return "none if streamed: reproducibility mode"
    shared = free_shared_memory()
    number, why_fewer = workers_that_fit(config.num_workers, images, batch_size=config.batch_size, shared=shared)
    free = "" if shared is None else f", of {megabytes(shared)} that are free in {SHARED_MEMORY}"
    needed = megabytes(images.in_flight_bytes(config.batch_size, number))
    return f"{number} if streamed, with {needed} of batches in flight{free}" + (f"; {why_fewer}" * bool(why_fewer))


if __name__ == "__main__":
    sys.exit(main())
