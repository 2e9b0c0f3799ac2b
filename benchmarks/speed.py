"""How fast the pipeline is, against the conventional way on the same machine in the same minutes.

python -m benchmarks.speed                        everything on synthetic data, under five minutes on two cores
python -m benchmarks.speed --data PATH.npz        on data of your own, --images of them
python -m benchmarks.speed --only epoch           only the measurements whose name contains "epoch"

Both ways take turns (A B A B …) after a warm-up that is not counted; figures are medians, ratios are medians of the
ratios turn by turn. Writes a table to the screen and everything to the file of --json.
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

from benchmarks import conventional
from scripts.core.config import Config
from scripts.core.environment import PROJECT_ROOT, describe_environment
from scripts.core.system.device import has_fast_bf16, select_device
from scripts.core.system.machine import keep_freed_memory
from scripts.core.system.reproducibility import use_fast_kernels
from scripts.data_handler.augmentation import augment, normalise, to_float
from scripts.data_handler.dataset import Split
from scripts.data_handler.feed import Examples, make_examples
from scripts.data_handler.plan import EpochPlan, draw_plan
from scripts.data_handler.synthetic import open_synthblood
from scripts.data_handler.views import tta_views
from scripts.evaluation.inference import predict
from scripts.models.resnet import adapted_resnet18
from scripts.trainer import step as training
from scripts.trainer.fit import begin_training
from scripts.trainer.state import TrainingState

NUM_CLASSES = 8
SAMPLING_S = 0.05  # of a program's memory
MILLION = 1e6
EPOCH_BARS = {"bf16": 2.0, "fp32": 1.15}  # on a CPU


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
        return self.advantage >= self.bar if self.advantage is not None else median(self.ours) <= self.bar


@dataclass(frozen=True)
class Bench:
    """What is measured, and on what."""

    split: Split
    device: torch.device
    turns: int
    config: Config

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.split.images)

    def examples(self, size: int | None = None) -> Examples:
        """The first ``size`` images as the pipeline has them."""
        part = Split(self.split.images[:size], self.split.labels[:size])
        return make_examples(part, NUM_CLASSES, feed="resident", device=self.device, num_workers=0)

    def state(self) -> TrainingState:
        """A training before its first step."""
        model = adapted_resnet18(NUM_CLASSES, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(self.device)
        return begin_training(model, self.config, self.device)

    def plan(self, size: int, epoch: int = 1) -> EpochPlan:
        """The random decisions of an epoch."""
        config = self.config
        return draw_plan(
            size,
            seed=config.seed,
            epoch=epoch,
            batch_size=config.batch_size,
            hflip=config.hflip,
            rotation_angle=config.rotation_angle,
            jitter=config.jitter_val,
            mixup_alpha=config.mixup_alpha,
            device=self.device,
        )

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall-clock seconds until the device has done the work."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def take_turns(self, *ways: Callable[[], object]) -> list[list[float]]:
        """Seconds of each way, turn by turn, after a warm-up."""
        for way in ways:
            way()
        turns = [[self.seconds(way) for way in ways] for _ in range(self.turns)]
        return [list(of_way) for of_way in zip(*turns, strict=True)]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def rates(count: int, seconds: Sequence[float]) -> list[float]:
    """Images per second."""
    return [count / each for each in seconds]


def input_pipeline(bench: Bench) -> Iterator[Measurement]:
    """Augmentation and normalisation of every image, without a network."""
    examples, plan = bench.examples(), bench.plan(bench.size)
    batches = conventional.loader(bench.split.images, bench.split.labels, shuffle=True)

    def ours() -> None:
        start = 0
        for images in examples.feed.batches(plan.order, bench.config.batch_size):
            part = plan.augmentation.part(slice(start, start + len(images)))
            normalise(augment(to_float(images), part, rotates=True)).contiguous(memory_format=torch.channels_last)
            start += len(images)

    def theirs() -> None:
        for images, labels in batches:
            images.to(bench.device), labels.to(bench.device)

    seconds = bench.take_turns(ours, theirs)
    ours_s, theirs_s = (rates(bench.size, each) for each in seconds)
    yield Measurement(name="input pipeline", unit="img/s", ours=ours_s, conventional=theirs_s, bar=20)


def training_step(bench: Bench) -> Iterator[Measurement]:
    """Forward, backward and update of one batch that is there already."""
    batch = bench.config.batch_size
    images = torch.randn(batch, 3, *bench.split.images.shape[1:3], device=bench.device)
    targets = torch.eye(NUM_CLASSES, device=bench.device)[torch.arange(batch) % NUM_CLASSES]
    near = images.contiguous(memory_format=torch.channels_last)
    ours, plain = bench.state(), bench.state()
    plain.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def step(state: TrainingState, inputs: torch.Tensor, precision: str) -> Callable[[], object]:
        return lambda: training.training_step(state.model, state.optimizer, inputs, targets, precision=precision)

    for precision in precisions(bench.device):
        seconds = bench.take_turns(step(ours, near, precision), step(plain, images, "fp32"))
        ours_s, theirs_s = (rates(batch, each) for each in seconds)
        yield Measurement(name=f"training step, {precision}", unit="img/s", ours=ours_s, conventional=theirs_s)


def training_epoch(bench: Bench) -> Iterator[Measurement]:
    """One whole pass over the images, from stored bytes to updated weights."""
    batches = conventional.loader(bench.split.images, bench.split.labels, shuffle=True)
    model = adapted_resnet18(NUM_CLASSES, seed=0).to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.008, momentum=0.9, weight_decay=5e-4)
    for precision in precisions(bench.device):
        ways = epoch_of(bench, precision), lambda: conventional.train_epoch(model, optimizer, batches, bench.device)
        ours_s, theirs_s = (rates(bench.size, each) for each in bench.take_turns(*ways))
        bar = EPOCH_BARS[precision]
        name = f"training epoch, {precision}"
        yield Measurement(name=name, unit="img/s", ours=ours_s, conventional=theirs_s, bar=bar)


def outside_the_network(bench: Bench) -> Iterator[Measurement]:
    """The share of an epoch that is not forward, backward and update: the epoch with and without its steps."""
    precision = precisions(bench.device)[0]
    whole = epoch_of(bench, precision)
    real_step = training.training_step
    shares = []
    whole()
    for _ in range(bench.turns):
        whole_s = bench.seconds(whole)
        training.training_step = no_step  # type: ignore[assignment]
        try:
            rest_s = bench.seconds(epoch_of(bench, precision))
        finally:
            training.training_step = real_step
        shares.append(100 * rest_s / whole_s)
    yield Measurement(
        name=f"outside the network, {precision}", unit="% of an epoch", ours=shares, more_is_better=False, bar=3
    )


def no_step(_model: object, _optimizer: object, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """What takes the place of a training step: a look at the images, so that they have to be there."""
    return images[0, 0, 0, 0]


def evaluation(bench: Bench) -> Iterator[Measurement]:
    """Class probabilities of every image, averaged over four views."""
    model, examples = bench.state().model, bench.examples()
    plain = adapted_resnet18(NUM_CLASSES, seed=0).to(bench.device)
    views = tta_views(hflip=0.5, rotation_angle=10)
    loaders = [
        conventional.loader(bench.split.images, bench.split.labels, conventional.view_transform(*view))
        for view in conventional.VIEWS
    ]
    for precision in precisions(bench.device):
        ways = (
            lambda precision=precision: predict(model, examples, views, precision=precision),
            lambda: conventional.predict(plain, loaders, bench.device),
        )
        ours_s, theirs_s = (rates(bench.size, each) for each in bench.take_turns(*ways))
        yield Measurement(
            name=f"evaluation with TTA, {precision}",
            unit="img/s",
            ours=ours_s,
            conventional=theirs_s,
            bar=2 if precision == precisions(bench.device)[0] else None,
        )


def whole_run(bench: Bench) -> Iterator[Measurement]:
    """From the start of the process to its last report, one epoch; and the memory of all its processes together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.npz"
        np.savez(data, **dict(three_splits(bench.split)))
        shared = ("--epochs", "1", "--output_dir", str(folder / "outputs"))
        ours = ("main.py", "--dataset", str(data), "--weights", "none", "--lock_file", str(folder / "lock"), *shared)
        ways = (*ours, "--no_process_guard"), ("-m", "benchmarks.conventional", str(data), *shared)
        turns = [[run_program(way) for way in ways] for _ in range(max(2, bench.turns - 1))]
    figures = [list(zip(*(turn[way] for turn in turns), strict=True)) for way in range(2)]
    for number, (name, unit, bar) in enumerate((("whole run", "s", None), ("peak memory", "MB", 1.0))):
        yield Measurement(
            name=name,
            unit=unit,
            ours=list(figures[0][number]),
            conventional=list(figures[1][number]),
            more_is_better=False,
            bar=bar,
        )


def help_text(bench: Bench) -> Iterator[Measurement]:
    """How long ``--help`` takes."""
    seconds = [run_program(("main.py", "--help"))[0] for _ in range(bench.turns + 1)][1:]
    yield Measurement(name="--help", unit="s", ours=seconds, more_is_better=False, bar=0.5)


def growth(bench: Bench) -> Iterator[Measurement]:
    """How an epoch's time grows with the number of images and with the side of a picture."""
    precision = precisions(bench.device)[0]
    for size in (bench.size // 4, bench.size // 2, bench.size):
        part = replace(bench, split=Split(bench.split.images[:size], bench.split.labels[:size]))
        (seconds,) = part.take_turns(epoch_of(part, precision))
        yield Measurement(name=f"epoch of {size} images, {precision}", unit="s", ours=seconds, more_is_better=False)
    quarter = bench.size // 4
    for factor in (1, 2):
        images = bench.split.images[:quarter].repeat(factor, axis=1).repeat(factor, axis=2)
        part = replace(bench, split=Split(images, bench.split.labels[:quarter]))
        (seconds,) = part.take_turns(epoch_of(part, precision))
        name = f"epoch of {quarter} images of side {images.shape[1]}, {precision}"
        yield Measurement(name=name, unit="s", ours=seconds, more_is_better=False)


MEASUREMENTS = {
    "input pipeline": input_pipeline,
    "training step": training_step,
    "training epoch": training_epoch,
    "outside the network": outside_the_network,
    "evaluation": evaluation,
    "whole run": whole_run,
    "--help": help_text,
    "growth": growth,
}


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those worth measuring, the pipeline's choice first."""
    return ("bf16", "fp32") if has_fast_bf16(device) else ("fp32",)


def epoch_of(bench: Bench, precision: str) -> Callable[[], object]:
    """An epoch of the pipeline, with its plan drawn each time."""
    examples, state = bench.examples(), bench.state()

    def epoch() -> None:
        state.steps_done = 0
        training.train_epoch(
            state,
            examples,
            bench.plan(bench.size),
            batch_size=bench.config.batch_size,
            rotates=True,
            learning_rate=lambda _: 0.001,
            precision=precision,
        )

    return epoch


def three_splits(split: Split) -> Iterator[tuple[str, Any]]:
    """The images as a data set: four parts to train on, one to validate, one to test."""
    cuts = [len(split.images) * part // 6 for part in (0, 4, 5, 6)]
    for name, start, end in zip(("train", "val", "test"), cuts, cuts[1:], strict=True):
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


def load_images(path: Path | None, count: int) -> Split:
    """The first ``count`` training images of a file, or of ``synthblood``."""
    if path is None:
        split = open_synthblood().load("train")
        return Split(split.images[:count], split.labels[:count])
    with np.load(path) as data:
        return Split(data["train_images"][:count], data["train_labels"][:count, 0].astype(np.int64))


def main() -> int:
    """Measure, print the table, write the JSON; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="an .npz in MedMNIST's schema with eight classes")
    parser.add_argument("--images", type=int, default=512, help="how many of its training images (default: 512)")
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each way (default: 3)")
    parser.add_argument("--only", default="", help="part of the name of what to measure")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_speed.json"))
    given = parser.parse_args()

    device = select_device(given.device)
    keep_freed_memory()
    use_fast_kernels()
    bench = Bench(load_images(given.data, given.images), device, given.turns, Config(weights="none"))
    started, found = time.perf_counter(), []
    for name, measure in MEASUREMENTS.items():
        if given.only in name:
            for measurement in measure(bench):
                found.append(measurement)
                print(row(measurement), flush=True)
    print(f"\n{table(found)}\n\n{time.perf_counter() - started:.0f} s in all")
    environment = describe_environment(str(device))
    content = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "environment": environment,
        "config": bench.config.as_dict(),
        "images": bench.size,
        "turns": bench.turns,
        "data": "synthblood" if given.data is None else given.data.name,
        "measurements": [asdict(each) | {"advantage": each.advantage} for each in found],
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(each.meets_its_bar is not False for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
