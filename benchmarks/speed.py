"""How fast the pipeline is, against the conventional way on the same machine in the same minutes.

python -m benchmarks.speed                        everything on synthetic data, under five minutes on two cores
python -m benchmarks.speed --data PATH.npz        on data of your own, --images of them
python -m benchmarks.speed --device cuda --data PATH.npz --images 11963 --epochs 60      what a GPU is asked for
python -m benchmarks.speed --only epoch           only the measurements whose name contains "epoch"

Each way has a process of its own (``ways.py``). They take turns (A B A B …) after a warm-up that is not counted;
figures are medians, ratios are medians of the ratios turn by turn. Writes a table to the screen and everything to the
file of --json.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.ways import REPRODUCIBLE, Bench, Task, Way, ways
from scripts.core.config import Config
from scripts.core.environment import PROJECT_ROOT, describe_environment
from scripts.core.system.device import has_fast_bf16, select_device
from scripts.data_handler.dataset import Split
from scripts.data_handler.npz import SPLITS

SAMPLING_S = 0.05  # of a program's memory
MILLION = 1e6
INPUT_IMAGES = 4096  # at the least, where there is no network: fewer are done before the clock is read
EPOCH_BARS = {"bf16": 2.0, "fp32": 1.15}  # on a CPU
GPU_EPOCH_BAR, GPU_RATE_BAR, GPU_RUN_BAR = 20.0, 30_000, 60  # times, img/s, seconds


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure, of the pipeline and, where there is one to compare with, of the conventional way."""

    name: str
    unit: str
    ours: list[float]
    conventional: list[float] = field(default_factory=list)
    more_is_better: bool = True
    bar: float | None = None  # the ratio, or without a conventional way the figure, that is required

    @property
    def advantage(self) -> float | None:
        """By how much ours is better: the median ratio of neighbouring turns."""
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
class Session:
    """What every measurement needs."""

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
        """Those worth measuring, the pipeline's choice first."""
        return ("bf16", "fp32") if has_fast_bf16(torch.device(self.bench.device)) else ("fp32",)

    def compare(self, task: Task, *, bar: float | None = None) -> Measurement:
        """Images per second of both ways, turn by turn."""
        rates = [
            [task.num_images / way.seconds(task) for way in (self.pipeline, self.conventional)]
            for _ in range(self.turns)
        ]
        ours, theirs = (list(of_way) for of_way in zip(*rates, strict=True))
        name = f"{task.kind}, {task.precision}"
        return Measurement(name=name, unit="img/s", ours=ours, conventional=theirs, bar=bar)

    def ratios(self, task: Task, other: Task) -> list[float]:
        """Time of a task of the pipeline over that of another, turn by turn."""
        return [self.pipeline.seconds(task) / self.pipeline.seconds(other) for _ in range(self.turns)]


def input_pipeline(session: Session) -> Iterator[Measurement]:
    """Augmentation and normalisation of every image, without a network."""
    measured = session.compare(Task(kind="input pipeline", num_images=max(INPUT_IMAGES, session.num_images)), bar=20)
    yield replace(measured, name="input pipeline")


def training_step(session: Session) -> Iterator[Measurement]:
    """Forward, backward and update of a batch that is there already."""
    for precision in session.precisions:
        batch = session.bench.config.batch_size
        yield session.compare(Task(kind="training step", num_images=2 * batch, precision=precision))


def training_epoch(session: Session) -> Iterator[Measurement]:
    """One whole pass over the images, from stored bytes to updated weights."""
    for precision in session.precisions:
        task = Task(kind="training epoch", num_images=session.num_images, precision=precision)
        bar = GPU_EPOCH_BAR if session.on_gpu else EPOCH_BARS[precision]
        is_choice = precision == session.precisions[0]
        measured = session.compare(task, bar=bar if is_choice or not session.on_gpu else None)
        yield measured
        if session.on_gpu and is_choice:
            yield replace(measured, name="training rate, " + precision, conventional=[], bar=GPU_RATE_BAR)


def outside_the_network(session: Session) -> Iterator[Measurement]:
    """The share of an epoch that is not forward, backward and update: the epoch without its steps over the epoch."""
    epoch = Task(kind="training epoch", num_images=session.num_images, precision=session.precisions[0])
    shares = session.ratios(replace(epoch, kind="epoch without its steps"), epoch)
    yield Measurement(
        name=f"outside the network, {epoch.precision}",
        unit="% of an epoch",
        ours=[100 * share for share in shares],
        more_is_better=False,
        bar=3,
    )


def reproducibility(session: Session) -> Iterator[Measurement]:
    """What reproducibility mode costs against the fast mode."""
    epoch = Task(kind="training epoch", num_images=session.num_images, precision=session.precisions[0])
    yield Measurement(
        name="reproducibility mode",
        unit=f"× time of {epoch.precision}",
        ours=session.ratios(replace(epoch, precision=REPRODUCIBLE), epoch),
        more_is_better=False,
        bar=2 if session.on_gpu else None,
    )


def evaluation(session: Session) -> Iterator[Measurement]:
    """Class probabilities of every image, averaged over four views."""
    for precision in session.precisions:
        task = Task(kind="evaluation with TTA", num_images=session.num_images, precision=precision)
        yield session.compare(task, bar=2 if precision == session.precisions[0] else None)


def growth(session: Session) -> Iterator[Measurement]:
    """How an epoch's time grows with the number of images and with the side of a picture."""
    whole = Task(kind="training epoch", num_images=session.num_images, precision=session.precisions[0])
    quarter = replace(whole, num_images=session.num_images // 4)
    side = session.bench.pictures.images.shape[1]
    for task in (quarter, replace(whole, num_images=session.num_images // 2), whole, replace(quarter, enlarged=2)):
        yield Measurement(
            name=f"epoch of {task.num_images} images of side {side * task.enlarged}, {task.precision}",
            unit="s",
            ours=[session.pipeline.seconds(task) for _ in range(session.turns)],
            more_is_better=False,
        )


def whole_run(session: Session) -> Iterator[Measurement]:
    """From the start of the process to its last report; and the memory of all its processes together."""
    task = Task(kind="training epoch", num_images=session.num_images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.npz"
        np.savez(data, **dict(three_splits(session.bench.split(task))))
        shared = ("--epochs", str(session.epochs), "--output_dir", str(folder / "outputs"))
        patience = ("--patience", str(session.epochs))
        ours = ("main.py", "--dataset", str(data), "--weights", "none", "--lock_file", str(folder / "lock"))
        programs = (
            (*ours, "--no_process_guard", "--device", session.bench.device, *patience, *shared),
            ("-m", "benchmarks.conventional", str(data), *shared),
        )
        turns = [[run_program(words) for words in programs] for _ in range(max(2, session.turns - 1))]
    figures = [list(zip(*(turn[way] for turn in turns), strict=True)) for way in range(2)]
    bars = GPU_RUN_BAR if session.on_gpu and session.epochs >= 60 else None, 1.0
    for number, (title, unit) in enumerate((("whole run", "s"), ("peak memory", "MB"))):
        yield Measurement(
            name=f"{title}, epochs: {session.epochs}",
            unit=unit,
            ours=list(figures[0][number]),
            conventional=[] if number == 0 and bars[0] else list(figures[1][number]),
            more_is_better=False,
            bar=bars[number],
        )


def help_text(session: Session) -> Iterator[Measurement]:
    """How long ``--help`` takes."""
    seconds = [run_program(("main.py", "--help"))[0] for _ in range(session.turns + 1)][1:]
    yield Measurement(name="--help", unit="s", ours=seconds, more_is_better=False, bar=0.5)


MEASUREMENTS: dict[str, Callable[[Session], Iterator[Measurement]]] = {
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
    """The images as a data set: four parts to train on, one to validate, one to test."""
    cuts = [len(split.images) * part // 6 for part in (0, 4, 5, 6)]
    for name, start, end in zip(SPLITS, cuts[:-1], cuts[1:], strict=True):
        yield f"{name}_images", split.images[start:end]
        yield f"{name}_labels", split.labels[start:end, None]


def run_program(words: Sequence[str]) -> tuple[float, float]:
    """Run a Python program; seconds it took, and the most megabytes that it and its children had at once.

    Memory is the proportional set size, which counts what processes share once.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(SAMPLING_S)
    seconds = time.perf_counter() - started
    complaint = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {complaint}")
    return seconds, peak / MILLION


def memory_of(pid: int) -> float:
    """Bytes of a process and its descendants."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for member in family:
        try:
            found = member.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(found, "pss", found.rss)
    return total


def table(measurements: Sequence[Measurement]) -> str:
    """The figures for a reader."""
    head = f"{'':44s}{'ours':>12s}{'conventional':>15s}  {'unit':14s}{'advantage':>10s}{'bar':>9s}"
    return "\n".join([head, "-" * len(head), *(row(measurement) for measurement in measurements)])


def row(measurement: Measurement) -> str:
    """One line of the table."""

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


def measure(given: argparse.Namespace, bench: Bench) -> Iterator[Measurement]:
    """Everything that --only asks for, each as soon as it is known."""
    with ways(bench) as (pipeline, conventional):
        session = Session(
            bench=bench,
            pipeline=pipeline,
            conventional=conventional,
            num_images=given.images,
            turns=given.turns,
            epochs=given.epochs,
        )
        for name, measurements in MEASUREMENTS.items():
            if given.only in name:
                yield from measurements(session)


def main() -> int:
    """Measure, print the table, write the JSON; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="an .npz in MedMNIST's schema with eight classes")
    parser.add_argument("--images", type=int, default=512, help="training images (default: 512)")
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each way (default: 3)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the whole run (default: 1)")
    parser.add_argument("--only", default="", help="part of the name of what to measure")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_speed.json"))
    given = parser.parse_args()

    bench = Bench(data=given.data, device=str(select_device(given.device)), config=Config(weights="none"))
    started, found = time.perf_counter(), []
    for measurement in measure(given, bench):
        found.append(measurement)
        print(row(measurement), flush=True)
    print(f"\n{table(found)}\n\n{time.perf_counter() - started:.0f} s in all")
    content = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "environment": describe_environment(bench.device),
        "config": bench.config.as_dict(),
        "images": given.images,
        "turns": given.turns,
        "epochs_of_the_whole_run": given.epochs,
        "data": "synthblood" if given.data is None else given.data.name,
        "measurements": [asdict(each) | {"advantage": each.advantage} for each in found],
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(each.meets_its_bar is not False for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
