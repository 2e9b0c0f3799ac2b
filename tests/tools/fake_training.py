"""Replace ``main.py`` in tests: train nothing, and end as the file ``NAME.order`` beside the data file orders.

The orders are ``fine``, ``exit N`` with a last line of its own, ``killed``, ``patient`` (wait for SIGTERM and end with
143), and ``locked`` for as long as the file ``holder`` exists beside it. Each call adds a line to the file ``calls``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.core import Config, RunPaths, parse_command_line
from scripts.core.files import file_digest, write_json
from scripts.core.system import StopRequest
from tools.suite.running import Ending


def summary(config: Config) -> dict[str, object]:
    """The parts of a run's summary that a suite reads: accuracy is 0.9 + seed / 100, with TTA 0.9 + 1.5 seed / 100."""

    def figures(gain: float) -> dict[str, object]:
        accuracy = {"value": round(0.9 + (config.seed / 100) * gain, 6), "low": 0.0, "high": 1.0}
        return {"accuracy": accuracy, "auc": {"value": 0.99}, "macro_f1": {"value": 0.8}, "notes": []}

    return {
        "note": None,
        "dataset": {"title": config.dataset_part, "width": 28, "height": 28, "md5": "0" * 32},
        "training": {"best_epoch": 2, "epochs": 3, "epochs_at_most": config.epochs, "seconds": 12.5},
        "test": {"num_images": 100, "plain": figures(1.0), "tta": None if config.no_tta else figures(1.5)},
        "config": config.as_dict(),
        "environment": {"commit": "abc", "packages": {"torch": "2.6"}, "device_name": "a processor"},
    }


def train(argv: Sequence[str], show: Callable[[str], None]) -> int:
    """Do what a training with this command line does to the disk; return its exit code, or minus its signal."""
    config = parse_command_line(argv)
    data = Path(config.dataset)
    with (data.parent / "calls").open("a", encoding="utf-8") as calls:
        calls.write(" ".join(argv) + "\n")
    order, _, value = data.with_suffix(".order").read_text(encoding="utf-8").partition(" ")
    if order == "locked" and (data.parent / "holder").exists():
        show("error: Another training holds the lock")
        return 4
    root = Path(config.resume) if config.resume else config.output_dir / "20260131_221500_toy_resnet18"
    paths = RunPaths(root)
    if not config.resume:
        root.mkdir(parents=True, exist_ok=True)
        dataset = {"md5": file_digest(data, "md5"), "source": str(data.absolute())}
        write_json(paths.config, {"command": sys.argv, "settings": config.as_dict(), "dataset": dataset})
    show("epoch 1/1  val_acc 0.9")
    if order == "exit":
        show(f"error: This is why it ends with {value}.")
        return int(value)
    if order == "patient":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        show("waiting for a signal")
        time.sleep(120)
    if order == "killed":
        return -signal.SIGKILL
    write_json(paths.summary, summary(config))
    return 0


def run_in_process(command: Sequence[str], stop: StopRequest, show: Callable[[str], None]) -> Ending:
    """Replace ``run_process``, without the time that a process takes to start."""
    lines = [""]

    def keep(line: str) -> None:
        lines.append(line)
        show(line)

    _, _, *argv = command
    return Ending(train(argv, keep), lines[-1])


if __name__ == "__main__":
    code = train(sys.argv[1:], lambda line: print(line, flush=True))
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)
