"""Two ways to do the same work, each in its own process, so that neither is affected by the other's settings.

The pipeline's process has the settings of ``main.py``, the conventional one the defaults of PyTorch.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks import conventional
from scripts.core.config import Config
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.core.system.machine import CUBLAS_WORKSPACE, keep_freed_memory, use_kernels
from scripts.data_handler.augmentation import augment, normalise, to_float
from scripts.data_handler.dataset import Split
from scripts.data_handler.plan import EpochPlan, draw_plan
from scripts.data_handler.sources import DeviceSplit, make_device_split
from scripts.data_handler.synthetic import open_synthblood
from scripts.data_handler.views import tta_views
from scripts.evaluation.inference import predict
from scripts.models.factory import new_model
from scripts.trainer import step as training
from scripts.trainer.fit import begin_training, epoch_line
from scripts.trainer.state import TrainingState
from scripts.trainer.writer import TrainingWriter

NUM_CLASSES = 8
PIPELINE, CONVENTIONAL = "pipeline", "conventional"
REPRODUCIBLE = "reproducible"  # used as a precision: fp32 on deterministic kernels
PEAK_MEMORY = "peak memory"  # requested instead of a task: the most bytes that were allocated on the device
EXIT_TIMEOUT_S = 30.0
BOOKKEEPING, SYNCHRONOUS_BOOKKEEPING = "bookkeeping", "synchronous bookkeeping"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A piece of work on images that is timed."""

    kind: str  # a key of PIPELINE_WORK
    num_images: int  # images are repeated where the data has fewer
    precision: str = "fp32"  # of the pipeline: "bf16", "fp32" or REPRODUCIBLE; the conventional way knows fp32 alone
    enlarged: int = 1  # factor of the images' side


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The data and the device of both ways."""

    data: Path | None  # a file in MedMNIST's schema; None for synthetic cells
    device: str
    config: Config

    @cached_property
    def train_split(self) -> Split:
        """All training images."""
        if self.data is None:
            return open_synthblood().load("train")
        with np.load(self.data) as content:
            return Split(content["train_images"], content["train_labels"][:, 0].astype(np.int64))

    def split(self, task: Task) -> Split:
        """The images of a task."""
        chosen = np.arange(task.num_images) % len(self.train_split.images)
        images = self.train_split.images[chosen].repeat(task.enlarged, axis=1).repeat(task.enlarged, axis=2)
        return Split(images, self.train_split.labels[chosen])

    def device_split(self, task: Task) -> DeviceSplit:
        """The images of a task on the device, as the pipeline uses them."""
        device = torch.device(self.device)
        return make_device_split(self.split(task), NUM_CLASSES, feed="resident", device=device, num_workers=0)

    def state(self) -> TrainingState:
        """A training before its first step."""
        model = new_model("resnet18", NUM_CLASSES, seed=0)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return begin_training(model.to(self.device), self.config, torch.device(self.device), head="fc")

    def plan(self, split: DeviceSplit, *, with_mixup: bool = True) -> EpochPlan:
        """The random decisions of an epoch."""
        config = self.config if with_mixup else replace(self.config, mixup_alpha=0.0)
        return draw_plan(config, split.size, epoch=1, image_size=split.image_size, device=torch.device(self.device))


# the function that is timed; if it returns a function, that is called after the clock is read
Work = Callable[[], object]


def augment_all(bench: Bench, task: Task) -> Work:
    """Augmentation and normalisation of every image, without a network."""
    examples = bench.device_split(task)

    def work() -> None:
        plan, start = bench.plan(examples, with_mixup=False), 0  # no MixUp, as the loader has none
        for images in examples.source.batches(plan.order, bench.config.batch_size):
            part = plan.augmentation.part(slice(start, start + len(images)))
            normalise(augment(to_float(images), part)).contiguous(memory_format=torch.channels_last)
            start += len(images)

    return work


def train_steps(bench: Bench, task: Task) -> Work:
    """Forward, backward and update of a batch that is on the device."""
    state, (images, targets) = bench.state(), one_batch(bench, task)
    channels_last = images.contiguous(memory_format=torch.channels_last)

    def work() -> None:
        for _ in range(task.num_images // len(images)):
            training.training_step(state.model, state.optimizer, channels_last, targets, precision=task.precision)

    return work


def train_epoch(bench: Bench, task: Task) -> Work:
    """One whole epoch, from stored bytes to updated weights; its plan is drawn each time."""
    examples, state = bench.device_split(task), bench.state()
    precision = "fp32" if task.precision == REPRODUCIBLE else task.precision
    config = replace(bench.config, schedule="constant", lr=0.001, precision=precision)

    def work() -> None:
        state.steps_done = 0
        training.train_epoch(state, examples, bench.plan(examples), config)

    return work


def train_epoch_without_steps(bench: Bench, task: Task) -> Work:
    """The same epoch, in which forward, backward and update are replaced by reading one value of the images."""
    whole = train_epoch(bench, task)
    real_step = training.training_step

    def work() -> None:
        training.training_step = lambda _model, _optimizer, images, *_, **__: images[0, 0, 0, 0]
        try:
            whole()
        finally:
            training.training_step = real_step

    return work


def do_bookkeeping(bench: Bench, task: Task) -> Work:
    """The work after an epoch that is the best so far: checkpoint, best weights, history and log line.

    As in a run, the files are written in the background, after the clock is read. ``SYNCHRONOUS_BOOKKEEPING`` waits for
    them instead.
    """
    state, folder = bench.state(), tempfile.TemporaryDirectory()
    paths = RunPaths(Path(folder.name))
    for part in paths.folders:
        part.mkdir()
    config = replace(bench.config, checkpoint_every=0.0)
    writer = TrainingWriter(state, paths, config, provenance={}, model_card={})
    record = EpochRecord(
        epoch=1,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.008,
        images_per_second=1.0,
        seconds=1.0,
        is_best=state.stopping.update(1, figure=0.5, loss=1.0),
    )
    state.optimizer.zero_grad()
    for parameter in state.model.parameters():  # the optimiser's momentum is half of what a checkpoint holds
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()

    def work() -> Callable[[], None] | None:
        assert folder.name  # keeps the folder
        state.history.clear()
        writer.finish_epoch(record)
        log.debug(epoch_line(record, config.epochs, 1.0))
        if task.kind == SYNCHRONOUS_BOOKKEEPING:
            writer.join()
            return None
        return writer.join

    return work


def evaluate(bench: Bench, task: Task) -> Work:
    """Class probabilities of every image, averaged over four views."""
    model, examples = bench.state().model, bench.device_split(task)
    views = tta_views(bench.config)
    return lambda: predict(model, examples, views, precision=task.precision)


def augment_all_conventionally(bench: Bench, task: Task) -> Work:
    """Every image through the DataLoader to the device."""
    split, device = bench.split(task), torch.device(bench.device)
    batches = conventional.loader(split.images, split.labels, shuffle=True)

    def work() -> None:
        for images, labels in batches:
            images.to(device), labels.to(device)

    return work


def train_steps_conventionally(bench: Bench, task: Task) -> Work:
    """The same batches in NCHW and fp32, with SGD as PyTorch gives it."""
    model, optimizer = conventional.new_training(NUM_CLASSES, torch.device(bench.device))
    model.train()
    images, targets = one_batch(bench, task)

    def work() -> None:
        for _ in range(task.num_images // len(images)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()

    return work


def train_epoch_conventionally(bench: Bench, task: Task) -> Work:
    """One whole epoch."""
    split, device = bench.split(task), torch.device(bench.device)
    batches = conventional.loader(split.images, split.labels, shuffle=True)
    model, optimizer = conventional.new_training(NUM_CLASSES, device)
    return lambda: conventional.train_epoch(model, optimizer, batches, device)


def evaluate_conventionally(bench: Bench, task: Task) -> Work:
    """The same views, one loader for each."""
    split, device = bench.split(task), torch.device(bench.device)
    model, _ = conventional.new_training(NUM_CLASSES, device)
    loaders = [
        conventional.loader(split.images, split.labels, conventional.view_transform(*view))
        for view in conventional.VIEWS
    ]
    return lambda: conventional.predict(model, loaders, device)


def one_batch(bench: Bench, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images in NCHW and their one-hot targets, on the device."""
    examples = bench.device_split(replace(task, num_images=bench.config.batch_size))
    (stored,) = examples.source.batches(np.arange(examples.size), examples.size)
    return normalise(to_float(stored)).contiguous(), examples.targets


PIPELINE_WORK: dict[str, Callable[[Bench, Task], Work]] = {
    "input pipeline": augment_all,
    "training step": train_steps,
    "training epoch": train_epoch,
    "epoch without its steps": train_epoch_without_steps,
    BOOKKEEPING: do_bookkeeping,
    SYNCHRONOUS_BOOKKEEPING: do_bookkeeping,
    "evaluation with TTA": evaluate,
}
CONVENTIONAL_WORK: dict[str, Callable[[Bench, Task], Work]] = {
    "input pipeline": augment_all_conventionally,
    "training step": train_steps_conventionally,
    "training epoch": train_epoch_conventionally,
    "evaluation with TTA": evaluate_conventionally,
}


class Way:
    """A process that does tasks in one of the two ways and times them; it keeps the data and model of each task."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def seconds(self, task: Task) -> float:
        """Do one turn and return its wall-clock seconds; the first turn of a task follows a warm-up."""
        return self._request(task)

    def peak_memory(self) -> float:
        """The most bytes that the tasks so far had allocated on a GPU."""
        return self._request(PEAK_MEMORY)

    def _request(self, what: Task | str) -> float:
        try:
            self._connection.send(what)
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"The process for {what} has ended.") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return float(answer)


@contextmanager
def ways(bench: Bench) -> Iterator[tuple[Way, Way]]:
    """Start both ways, the pipeline's and the conventional one, to be timed in turns."""
    # read when a process first uses cuBLAS; main.py sets it in reproducibility mode, in the same way before it starts
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACE
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=_serve, args=(theirs, name, bench))
        for (_, theirs), name in zip(pairs, (PIPELINE, CONVENTIONAL), strict=True)
    ]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()  # so that reading fails once the process has ended
    try:
        yield Way(pairs[0][0]), Way(pairs[1][0])
    finally:
        for ours, _ in pairs:
            with suppress(OSError):  # it has ended already
                ours.send(None)
        for process in processes:
            process.join(EXIT_TIMEOUT_S)
            process.kill()


def _serve(connection: Connection, way: str, bench: Bench) -> None:
    """Do the tasks that are received, until None is received."""
    table = PIPELINE_WORK if way == PIPELINE else CONVENTIONAL_WORK
    if way == PIPELINE:
        keep_freed_memory()
    works: dict[Task, Work] = {}
    while (task := connection.recv()) is not None:
        try:
            connection.send(
                torch.cuda.max_memory_allocated() if task == PEAK_MEMORY else _seconds(table, way, bench, task, works)
            )
        except Exception as error:  # of any kind, since the other side waits for an answer
            connection.send(f"{task} failed in the {way} way: {type(error).__name__}: {error}")


def _seconds(
    table: dict[str, Callable[[Bench, Task], Work]], way: str, bench: Bench, task: Task, works: dict[Task, Work]
) -> float:
    """Time one turn of a task; a new task is built and done once before."""
    if way == PIPELINE:  # as main.py does: fast kernels, or deterministic ones
        use_kernels(deterministic=task.precision == REPRODUCIBLE)
    if task not in works:
        works[task] = table[task.kind](bench, task)
        _timed(works[task], torch.device(bench.device))
    return _timed(works[task], torch.device(bench.device))


def _timed(work: Work, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    wait()
    started = time.perf_counter()
    rest = work()
    wait()
    seconds = time.perf_counter() - started
    if callable(rest):
        rest()
    return seconds
