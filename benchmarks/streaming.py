"""What streaming costs: the memory of a training on a set larger than memory, and its speed against resident images.

python -m benchmarks.streaming --folder /scratch                8.2 GB of images of 224 × 224, 300 steps
python -m benchmarks.streaming --folder /tmp --megabytes 100 --steps 20 --images 64         a quick try
python -m benchmarks.streaming --folder /tmp --only throughput                              without the large set

The first part writes a set, starts main.py on it, samples the memory of all its processes, and stops it by SIGTERM
after ``--steps`` steps. The second alternates between both feeds (A B A B …) in the pipeline's own epochs with the same
network, after a warm-up that is not counted; ratios are medians of the ratios of each round. All files but the JSON are
deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from scripts.core.config import Config
from scripts.core.environment import PROJECT_ROOT, describe_environment
from scripts.core.system.device import select_device, select_precision
from scripts.core.system.machine import use_kernels
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.opening import open_dataset
from scripts.data_handler.plan import draw_plan
from scripts.data_handler.sources import DeviceSplit, make_device_split
from scripts.models.factory import new_model
from scripts.trainer import step as training
from scripts.trainer.fit import begin_training

NUM_CLASSES = 8
HELD_OUT = 200  # images to validate on, and as many to test on
GRAIN = 8  # pixels of a side that share one colour: noise that a zip packs well and fast
IMAGES_AT_ONCE = 256
SAMPLING_S = 0.1
MILLION = 1e6
PEAK_BAR_MB = 2500.0
THROUGHPUT_BAR = 0.9  # of the resident feed's images per second
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measurement."""

    name: str
    unit: str
    values: list[float]
    bar: float | None = None
    more_is_better: bool = False

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def meets_its_bar(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.more_is_better else self.value <= self.bar

    def row(self) -> str:
        """One line of the table."""
        verdict = {None: "", True: "met", False: "MISSED"}[self.meets_its_bar]
        bar = "" if self.bar is None else f" ({self.bar:g})"
        return f"{self.name:54s}{self.value:>12,.4g} {self.unit:8s}{verdict + bar:>16s}"


def write_set(path: Path, *, num_train: int, side: int, seed: int = 0) -> int:
    """Write a data set piece by piece; returns the size of its images in bytes."""
    counts = {"train": num_train, "val": HELD_OUT, "test": HELD_OUT}
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, count in counts.items():
            labels = (np.arange(count) % NUM_CLASSES).astype(np.uint8)
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, labels[:, None])
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as stream:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
                np.lib.format.write_array_header_1_0(stream, header)
                for start in range(0, count, IMAGES_AT_ONCE):
                    stream.write(noisy_images(labels[start : start + IMAGES_AT_ONCE], side, random).tobytes())
    return sum(counts.values()) * side * side * 3


def noisy_images(labels: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """Make images whose brightness shows their class, with coarse noise."""
    coarse = random.integers(0, 64, (len(labels), -(-side // GRAIN), -(-side // GRAIN), 3), dtype=np.uint8)
    coarse += (labels * (190 // NUM_CLASSES)).astype(np.uint8)[:, None, None, None]
    return coarse.repeat(GRAIN, axis=1).repeat(GRAIN, axis=2)[:, :side, :side]


def memory(given: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Measure peak memory and speed of ``main.py`` on a large set, from its start to ``--steps`` steps."""
    started = time.perf_counter()
    num_train = int(given.megabytes * MILLION) // (given.side**2 * 3) + 1
    size = write_set(folder / "large.npz", num_train=num_train, side=given.side)
    packed = (folder / "large.npz").stat().st_size
    print(f"wrote {size / MILLION:,.0f} MB of images into {packed / MILLION:,.0f} MB", flush=True)
    yield Figure(name="images, uncompressed", unit="MB", values=[size / MILLION])
    yield Figure(name="writing them", unit="s", values=[time.perf_counter() - started])

    argv = f"--weights none --no_tta --no_process_guard --feed {given.feed} --batch_size {given.batch_size}".split()
    argv += ["--dataset", str(folder / "large.npz"), "--num_workers", str(given.workers), "--device", given.device]
    argv += ["--data_dir", str(folder), "--output_dir", str(folder / "outputs"), "--lock_file", str(folder / "lock")]
    report = folder / "steps.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.streaming", "--child", str(given.steps), str(report), *argv],
        cwd=PROJECT_ROOT,
    )
    peaks = watch(process)
    if process.returncode != STOPPED:
        raise RuntimeError(f"main.py ended with {process.returncode} rather than {STOPPED}")
    for name, kind in (
        ("proportional", "pss"),
        ("unique", "uss"),
        ("resident, shared pages counted repeatedly,", "rss"),
    ):
        bar = PEAK_BAR_MB if kind == "pss" else None
        yield Figure(name=f"peak memory, {name} set size", unit="MB", values=[peaks[kind] / MILLION], bar=bar)
    moments = json.loads(report.read_text())
    pace = given.batch_size * (len(moments) - 1) / (moments[-1] - moments[0])
    yield Figure(name="steps", unit="", values=[len(moments)])
    yield Figure(name="training", unit="img/s", values=[pace])


def watch(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Measure the peak memory of a process and its descendants together, in bytes, until it ends."""
    peaks = {"pss": 0.0, "uss": 0.0, "rss": 0.0}
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        now = dict.fromkeys(peaks, 0.0)
        try:
            family = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for member in family:
            try:
                found = member.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            for kind in now:
                now[kind] += getattr(found, kind, found.rss)
        peaks = {kind: max(peaks[kind], now[kind]) for kind in peaks}
        time.sleep(SAMPLING_S)
    process.wait()
    return peaks


def train_some(num_steps: int, report: Path, argv: Sequence[str]) -> int:
    """Run ``main.py``, send it SIGTERM after ``num_steps`` steps, and write the times at which its steps ended."""
    import main

    moments: list[float] = []
    real_step = training.training_step

    def counted(*arguments: Any, **settings: Any) -> torch.Tensor:
        loss = real_step(*arguments, **settings)
        moments.append(time.perf_counter())
        if len(moments) == num_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    training.training_step = counted
    code = main.main(argv)
    report.write_text(json.dumps(moments))
    return code


def throughput(given: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Measure the images per second of either feed on a subset, with the stock ResNet-18."""
    path = folder / "subset.npz"
    write_set(path, num_train=given.images, side=given.side)
    in_memory = open_dataset(str(path), folder)
    on_disk = in_memory.unpack(folder)
    device = select_device(given.device)
    epoch_of = _epochs(given, device)
    ways = {
        "resident": epoch_of(_device_split(in_memory, "resident", device, 0)),
        f"streamed, {given.workers} workers": epoch_of(_device_split(on_disk, "streamed", device, given.workers)),
        "streamed, no workers": epoch_of(_device_split(on_disk, "streamed", device, 0)),
        f"streamed, {given.workers} workers, disk cold": epoch_of(
            _device_split(on_disk, "streamed", device, given.workers), before=lambda: drop_from_cache(on_disk)
        ),
    }
    for way in ways.values():
        way()
    rounds = [{name: given.images / way() for name, way in ways.items()} for _ in range(given.turns)]
    for name in ways:
        yield Figure(name=name, unit="img/s", values=[one[name] for one in rounds])
        if name != "resident":
            ratios = [one[name] / one["resident"] for one in rounds]
            bar = THROUGHPUT_BAR if name.endswith("workers") and "no" not in name else None
            yield Figure(name=f"{name} : resident", unit="", values=ratios, bar=bar, more_is_better=True)


def _device_split(dataset: Dataset, feed: str, device: torch.device, num_workers: int) -> DeviceSplit:
    return make_device_split(dataset.load("train"), NUM_CLASSES, feed=feed, device=device, num_workers=num_workers)


def _epochs(given: argparse.Namespace, device: torch.device) -> Callable[..., Callable[[], float]]:
    """Return a function that makes, from a split, a function that trains one epoch and returns its seconds.

    All share one network.
    """
    precision, _ = select_precision("auto", device, reproducible=False)
    config = Config(weights="none", batch_size=given.batch_size, schedule="constant", lr=0.001, precision=precision)
    model = new_model("resnet18", NUM_CLASSES, stem="stock", seed=0)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = begin_training(model, config, device, head="fc")

    def of(split: DeviceSplit, before: Callable[[], None] = lambda: None) -> Callable[[], float]:
        def epoch() -> float:
            before()
            plan = draw_plan(config, split.size, epoch=1, image_size=split.image_size, device=device)
            state.steps_done = 0
            started = time.perf_counter()
            training.train_epoch(state, split, plan, config)
            return time.perf_counter() - started  # the epoch's loss, read at its end, waited for the device

        return epoch

    return of


def drop_from_cache(dataset: Dataset) -> None:
    """Drop the training images from the system's cache, so that they are read from the disk."""
    file = dataset.load("train").file
    assert file is not None
    descriptor = os.open(file.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only what is on the disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


PARTS = {"memory": memory, "throughput": throughput}


def main() -> int:
    """Measure, print the table, write the JSON; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where the large set is written, and deleted")
    parser.add_argument("--megabytes", type=float, default=8200, help="of the large set, uncompressed (default: 8200)")
    parser.add_argument("--side", type=int, default=224, help="of an image, in pixels (default: 224)")
    parser.add_argument("--steps", type=int, default=300, help="after which main.py is stopped (default: 300)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--feed", choices=("auto", "streamed", "resident"), default="streamed")
    parser.add_argument("--images", type=int, default=320, help="of the subset for the throughput (default: 320)")
    parser.add_argument("--turns", type=int, default=5, help="counted rounds of each feed (default: 5)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part alone")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_streaming.json"))
    given = parser.parse_args()

    use_kernels(deterministic=False)
    given.folder.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="streaming_") as name:
        for part, measure in PARTS.items():
            if given.only in (None, part):
                for figure in measure(given, Path(name)):
                    found.append(figure)
                    print(figure.row(), flush=True)
    content = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "environment": describe_environment(str(select_device(given.device))),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()},
        "figures": [asdict(figure) for figure in found],
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(figure.meets_its_bar is not False for figure in found) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(train_some(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    sys.exit(main())
