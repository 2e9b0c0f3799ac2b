"""Train an adapted, ImageNet-pretrained network on MedMNIST v2 images, evaluate it and report.

python main.py                                             BloodMNIST: 60 epochs at most, seed 42
python main.py --dataset synthblood --weights none --epochs 5          a small training, offline
python main.py --dataset path/to/own.npz                               your own images in MedMNIST's schema
python main.py --backbone convnext_tiny --recipe strong                another network, and other settings at once
python main.py --resume outputs/20260131_221500_bloodmnist_resnet18    resume an interrupted run
python main.py --help                                                  every setting

Exit codes: 0 done, 1 unexpected error, 2 command line, 3 data or weights, 4 another instance runs, 5 diverged,
6 storage, 129, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.core import Config, RunPaths, ensure_single_instance, log, parse_command_line
from scripts.core.errors import Interrupted, PipelineError, ResourceError, StorageError
from scripts.core.log import file_log, screen_log
from scripts.core.paths import run_folder
from scripts.core.resume import next_step, start_command
from scripts.core.system import StopRequest, device_problems, restart_with_fixed_hashing, stop_request, terminate_ghosts
from scripts.data_handler import dataset_problems
from scripts.models.backbones import backbone_problems
from scripts.tracking import Tracking, tracking_problems

ENTRY_POINT = Path(__file__).resolve()
# of a command line, besides the limits of its settings
CHECKS = (backbone_problems, dataset_problems, device_problems, tracking_problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    with screen_log():
        try:
            with stop_request() as stop:
                stop.advice = f"Start again with: {start_command()}"
                config = parse_command_line(argv, checks=CHECKS)
                if config.reproducible:
                    restart_with_fixed_hashing(config.seed)
                run(config, stop)
        except (PipelineError, Interrupted) as error:
            log.error(str(error))
            return error.exit_code
    return 0


def run(config: Config, stop: StopRequest) -> RunPaths:
    """Do one whole run, from the lock to the last report, and return the paths of its files."""
    with ensure_single_instance(config.lock_file) as lock:
        if not config.no_process_guard:
            terminate_ghosts(ENTRY_POINT)
        with run_folder(config) as paths:
            lock.note(paths.root.absolute())
            stop.advice = lambda: next_step(config, paths)
            # the folder's own lock, against a second process that resumes this run under another --lock_file
            with ensure_single_instance(paths.lock), file_log(paths.log):
                try:
                    train_and_report(config, paths, stop)
                except (StorageError, ResourceError) as error:  # the run itself is valid
                    raise type(error)(f"{error} {next_step(config, paths)}") from error
    return paths


def train_and_report(config: Config, paths: RunPaths, stop: StopRequest) -> None:
    """Do the steps of a run, unless it is finished."""
    if paths.summary.exists():
        log.info("the run in %s is finished: its results are in %s", paths.root, paths.summary)
        with Tracking(config, paths) as tracking:
            tracking.update_from_files()
        return
    # here rather than above: it takes seconds to import, and --help or a wrong flag does not need it
    from scripts import pipeline

    log.info("run folder %s", paths.root)
    pipeline.train_and_report(config, paths, stop)


if __name__ == "__main__":
    sys.exit(main())
