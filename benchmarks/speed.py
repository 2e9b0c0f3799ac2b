"""Compare the speed of the pipeline with that of the conventional way, on the same machine at the same time.

python -m benchmarks.speed                        everything on synthetic data, under five minutes on two cores
python -m benchmarks.speed --data PATH.npz        on your own data, --images of them
python -m benchmarks.speed --device cuda --data PATH.npz --images 11963 --epochs 60      the bars of a GPU
python -m benchmarks.speed --only epoch           only the measurements whose name contains "epoch"

Each way has its own process (``ways.py``). They take turns (A B A B …) after a warm-up that is not counted. Figures are
medians, ratios are medians of the ratios of each turn. Prints a table and writes everything to the file of --json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import conventional
from benchmarks.ways import BOOKKEEPING, REPRODUCIBLE, SYNCHRONOUS_BOOKKEEPING, Bench, Task, Way, ways
from scripts.core.config import Config
from scripts.core.environment import PROJECT_ROOT, describe_environment
from scripts.core.files import write_json, write_text
from scripts.core.system.device import has_fast_bf16, select_device
from scripts.data_handler.dataset import Split
from scripts.data_handler.npz import SPLITS

SAMPLING_S = 0.05  # of a program's memory
MILLION = 1e6
INPUT_IMAGES = 8192  # at least, where there is no network: fewer take too little time to be measured
EPOCH_BARS = {"bf16": 2.0, "fp32": 1.15}  # on a CPU
GPU_EPOCH_BAR, GPU_RATE_BAR, GPU_RUN_BAR = 20.0, 30_000, 60  # times, img/s, seconds
BOOKKEEPING_BAR = 10.0  # times
PBC_IMAGES = 11_963  # in an epoch of PBC-28, the data that the bars are for
LONG_RUN_EPOCHS = 60


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure of the pipeline, and of the conventional way if it has one."""

    name: str
    unit: str
    ours: list[float]
    conventional: list[float] = field(default_factory=list)
    more_is_better: bool = True
    bar: float | None = None  # the required ratio, or without a conventional figure the required figure

    @property
    def advantage(self) -> float | None:
        """How many times better ours is: the median of the ratios of each turn."""
        if not self.conventional:
            return None
        ratios = [one / other for one, other in zip(self.ours, self.conventional, strict=True)]
        return median(ratios) if self.more_is_better else 1 / median(ratios)

    @property
    def meets_its_bar(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        if self.advantage is not None:
            return self.advantage >= self.bar
        figure = median(self.ours)
        return figure >= self.bar if self.more_is_better else figure <= self.bar


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every measurement uses."""

    bench: Bench
    pipeline: Way
    conventional: Way
    num_images: int
    turns: int
    epochs: int  # of the whole run

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.bench.device.startswith("cuda")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that are measured, the pipeline's choice first."""
        return ("bf16", "fp32") if has_fast_bf16(torch.device(self.bench.device)) else ("fp32",)

    def compare(self, *tasks: Task, bars: Sequence[float | None] = ()) -> Iterator[Measurement]:
        """Measure images per second of both ways, in turns.

        The tasks differ in their precision only; the conventional way, which knows fp32 alone, does one of them a turn.
        ``bars`` are the required advantages of the tasks, if there are any.
        """
        conventional = replace(tasks[0], precision="fp32")
        ours: list[list[float]] = [[] for _ in tasks]
        theirs: list[float] = []
        for _ in range(self.turns):
            for task, rates in zip(tasks, ours, strict=True):
                rates.append(task.num_images / self.pipeline.seconds(task))
            theirs.append(conventional.num_images / self.conventional.seconds(conventional))
        for task, rates, bar in zip(tasks, ours, bars or [None] * len(tasks), strict=True):
            name = f"{task.kind}, {task.precision}"
            yield Measurement(name=name, unit="img/s", ours=rates, conventional=theirs, bar=bar)

    def in_all_precisions(self, kind: str, num_images: int) -> tuple[Task, ...]:
        """A task in each of the precisions."""
        return tuple(Task(kind=kind, num_images=num_images, precision=precision) for precision in self.precisions)

    def ratios(self, task: Task, other: Task) -> list[float]:
        """Time of a task of the pipeline over that of another, turn by turn."""
        return [self.pipeline.seconds(task) / self.pipeline.seconds(other) for _ in range(self.turns)]


def input_pipeline(setup: Setup) -> Iterator[Measurement]:
    """Augmentation and normalisation of every image, without a network."""
    task = Task(kind="input pipeline", num_images=max(INPUT_IMAGES, setup.num_images))
    for measured in setup.compare(task, bars=[20]):
        yield replace(measured, name=task.kind)


def training_step(setup: Setup) -> Iterator[Measurement]:
    """Forward, backward and update of a batch that is on the device."""
    num_images = setup.num_images if setup.on_gpu else 2 * setup.bench.config.batch_size
    yield from setup.compare(*setup.in_all_precisions("training step", num_images))


def training_epoch(setup: Setup) -> Iterator[Measurement]:
    """One whole epoch, from stored bytes to updated weights."""
    tasks = setup.in_all_precisions("training epoch", setup.num_images)
    on_gpu = [GPU_EPOCH_BAR, None]
    bars = on_gpu[: len(tasks)] if setup.on_gpu else [EPOCH_BARS[task.precision] for task in tasks]
    measured = list(setup.compare(*tasks, bars=bars))
    yield from measured
    if setup.on_gpu:
        yield replace(measured[0], name=f"training rate, {tasks[0].precision}", conventional=[], bar=GPU_RATE_BAR)
        for name, way in (("ours", setup.pipeline), ("conventional", setup.conventional)):
            peak = way.peak_memory() / MILLION
            yield Measurement(name=f"peak GPU memory, {name}", unit="MB", ours=[peak], more_is_better=False)


def outside_the_network(setup: Setup) -> Iterator[Measurement]:
    """The share of an epoch of PBC-28 that is not forward, backward and update.

    It is the epoch without its steps, which grows with the number of images, and the bookkeeping that the next epoch
    waits for, which does not. The conventional bookkeeping waits until all files are written.
    """
    epoch = Task(kind="training epoch", num_images=setup.num_images, precision=setup.precisions[0])
    times = PBC_IMAGES / setup.num_images
    shares, bookkeeping, synchronous = [], [], []
    for _ in range(setup.turns):
        bookkeeping.append(setup.pipeline.seconds(replace(epoch, kind=BOOKKEEPING)))
        synchronous.append(setup.pipeline.seconds(replace(epoch, kind=SYNCHRONOUS_BOOKKEEPING)))
        rest_s = times * setup.pipeline.seconds(replace(epoch, kind="epoch without its steps")) + bookkeeping[-1]
        shares.append(100 * rest_s / (times * setup.pipeline.seconds(epoch) + bookkeeping[-1]))
    name = f"outside the network, {epoch.precision}"
    yield Measurement(name=name, unit="% of an epoch", ours=shares, more_is_better=False, bar=3)
    name = "bookkeeping after an epoch"
    yield Measurement(
        name=name, unit="s", ours=bookkeeping, conventional=synchronous, more_is_better=False, bar=BOOKKEEPING_BAR
    )


def reproducibility(setup: Setup) -> Iterator[Measurement]:
    """The cost of reproducibility mode compared with the fast mode, and on a GPU also with the fast mode in fp32."""
    for precision in setup.precisions if setup.on_gpu else setup.precisions[:1]:
        epoch = Task(kind="training epoch", num_images=setup.num_images, precision=precision)
        yield Measurement(
            name="reproducibility mode",
            unit=f"× time of {precision}",
            ours=setup.ratios(replace(epoch, precision=REPRODUCIBLE), epoch),
            more_is_better=False,
            bar=2 if setup.on_gpu and precision == setup.precisions[0] else None,
        )


def evaluation(setup: Setup) -> Iterator[Measurement]:
    """Class probabilities of every image, averaged over four views."""
    tasks = setup.in_all_precisions("evaluation with TTA", setup.num_images // 2)
    yield from setup.compare(*tasks, bars=[2, None][: len(tasks)])


def growth(setup: Setup) -> Iterator[Measurement]:
    """The growth of an epoch's time with the number of images and with their side."""
    whole = Task(kind="training epoch", num_images=setup.num_images, precision=setup.precisions[0])
    quarter = replace(whole, num_images=setup.num_images // 4)
    side = setup.bench.train_split.images.shape[1]
    for task in (
        quarter,
        replace(whole, num_images=setup.num_images // 2),
        replace(quarter, num_images=quarter.num_images // 2, enlarged=2),
    ):
        name = f"{task.num_images} images of side {side * task.enlarged}, {task.precision}"
        for measured in setup.compare(task):
            yield replace(measured, name=name)


def whole_run(setup: Setup) -> Iterator[Measurement]:
    """From the start of the process to its last report; the memory of all its processes is measured in further runs."""
    is_long = setup.on_gpu and setup.epochs >= LONG_RUN_EPOCHS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = data_of(setup, folder)
        shared = ("--output_dir", str(folder / "outputs"), "--device", setup.bench.device)
        own = ("--dataset", str(data), "--weights", "none", "--lock_file", str(folder / "lock"), "--no_process_guard")
        ours = ("main.py", *own, "--epochs", str(setup.epochs), "--patience", str(setup.epochs), *shared)
        # the bar of a long run is its time alone: the conventional run then only shows its memory
        epochs = ("--epochs", str(1 if is_long else setup.epochs))
        theirs = ("-m", "benchmarks.conventional", str(data), *epochs, *shared)
        timed = (ours,) if is_long else (ours, theirs)
        seconds = [[run_program(arguments)[0] for arguments in timed] for _ in range(2)]
        memory = [run_program(arguments, watch_memory=True)[1] for arguments in (ours, theirs)]
    by_way = [list(of_way) for of_way in zip(*seconds, strict=True)]
    yield Measurement(
        name=f"whole run, epochs: {setup.epochs}",
        unit="s",
        ours=by_way[0],
        conventional=by_way[1] if len(by_way) > 1 else [],
        more_is_better=False,
        bar=GPU_RUN_BAR if is_long else None,
    )
    yield Measurement(
        name="peak memory of all processes",
        unit="MB",
        ours=[memory[0]],
        conventional=[memory[1]],
        more_is_better=False,
        bar=1,
    )


def data_of(setup: Setup, folder: Path) -> Path:
    """Return the setup's images as a file: the user's own if all its images are used, else a new one in ``folder``."""
    bench = setup.bench
    if bench.data is not None and setup.num_images >= len(bench.train_split.images):
        return bench.data.absolute()
    path = folder / "data.npz"
    np.savez(path, **dict(three_splits(bench.split(Task(kind="training epoch", num_images=setup.num_images)))))
    return path


def help_text(setup: Setup) -> Iterator[Measurement]:
    """The time that ``--help`` takes."""
    seconds = [run_program(("main.py", "--help"))[0] for _ in range(setup.turns + 1)][1:]
    yield Measurement(name="--help", unit="s", ours=seconds, more_is_better=False, bar=0.5)


MEASUREMENTS: dict[str, Callable[[Setup], Iterator[Measurement]]] = {
    "input pipeline": input_pipeline,
    "training step": training_step,
    "training epoch": training_epoch,
    "outside the network": outside_the_network,
    "reproducibility": reproducibility,
    "evaluation": evaluation,
    "growth": growth,
    "whole run": whole_run,
    "--help": help_text,
}


def three_splits(split: Split) -> Iterator[tuple[str, Any]]:
    """Split the images into a data set: four sixths for training, one for validation, one for testing."""
    cuts = [len(split.images) * part // 6 for part in (0, 4, 5, 6)]
    for name, start, end in zip(SPLITS, cuts[:-1], cuts[1:], strict=True):
        yield f"{name}_images", split.images[start:end]
        yield f"{name}_labels", split.labels[start:end, None]


def run_program(arguments: Sequence[str], *, watch_memory: bool = False) -> tuple[float, float]:
    """Run ``python`` with these arguments; return its seconds, and the peak memory of it and its children in MB.

    The memory is the proportional set size, which counts shared pages once. It is 0 without ``watch_memory``, which
    slows the program down.
    """
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while watch_memory and process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(SAMPLING_S)
    error_output = process.communicate()[1]
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {error_output}")
    return seconds, peak / MILLION


def memory_of(pid: int) -> float:
    """Count the bytes of a process and its descendants."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in processes:
        try:
            found = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(found, "pss", found.rss)
    return total


def table(measurements: Sequence[Measurement]) -> str:
    """Format all measurements as a table."""
    head = f"{'':44s}{'ours':>12s}{'conventional':>15s}  {'unit':14s}{'advantage':>10s}{'bar':>9s}"
    return "\n".join([head, "-" * len(head), *(row(measurement) for measurement in measurements)])


def row(measurement: Measurement) -> str:
    """Format one line of the table."""

    def number(values: Sequence[float]) -> str:
        return (
            f"{median(values):,.4g}" if values and median(values) < 1000 else f"{median(values):,.0f}" if values else ""
        )

    advantage = "" if measurement.advantage is None else f"{measurement.advantage:.2f}×"
    verdict = {None: "", True: "met", False: "MISSED"}[measurement.meets_its_bar]
    return (
        f"{measurement.name:44s}{number(measurement.ours):>12s}{number(measurement.conventional):>15s}  "
        f"{measurement.unit:14s}{advantage:>10s}{verdict:>9s}"
    )


def measure(options: argparse.Namespace, bench: Bench) -> Iterator[Measurement]:
    """Make the measurements that --only selects, and yield each as soon as it is known."""
    with ways(bench) as (pipeline, other):
        setup = Setup(
            bench=bench,
            pipeline=pipeline,
            conventional=other,
            num_images=options.images,
            turns=options.turns,
            epochs=options.epochs,
        )
        for name, measurements in MEASUREMENTS.items():
            if options.only in name:
                yield from measurements(setup)


def main() -> int:
    """Measure, print the table and write the JSON; return 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="an .npz in MedMNIST's schema with eight classes")
    parser.add_argument("--images", type=int, default=512, help="training images (default: 512)")
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each way (default: 3)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the whole run (default: 1)")
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_speed.json"))
    options = parser.parse_args()

    bench = Bench(data=options.data, device=str(select_device(options.device)), config=Config(weights="none"))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    started, found = time.perf_counter(), []
    for measurement in measure(options, bench):
        found.append(measurement)
        print(row(measurement), flush=True)
        write_results(options, bench, found)  # after each, so that a later failure does not lose it
    print(f"\n{table(found)}\n\n{time.perf_counter() - started:.0f} s in all")
    return 0 if all(each.meets_its_bar is not False for each in found) else 1


def write_results(options: argparse.Namespace, bench: Bench, found: Sequence[Measurement]) -> None:
    """Write everything to the file of --json, and the table beside it."""
    content = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "command": sys.argv,
        "environment": describe_environment(bench.device),
        "config": bench.config.as_dict(),
        "conventional": {"batch_size": conventional.BATCH_SIZE, "num_workers": conventional.NUM_WORKERS},
        "images": options.images,
        "turns": options.turns,
        "epochs_of_the_whole_run": options.epochs,
        "data": "synthblood" if options.data is None else options.data.name,
        "measurements": [
            asdict(each) | {"advantage": each.advantage, "meets_its_bar": each.meets_its_bar} for each in found
        ],
    }
    write_json(options.json, content)
    write_text(options.json.with_suffix(".txt"), table(found) + "\n")


if __name__ == "__main__":
    sys.exit(main())
