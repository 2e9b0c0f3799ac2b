"""Train an adapted, ImageNet-pretrained ResNet-18 on MedMNIST v2 images, evaluate it and report.

python main.py                                             BloodMNIST as published: 60 epochs, seed 42
python main.py --dataset synthblood --weights none --epochs 5          a small training without a network
python main.py --dataset path/to/own.npz                               your own images in MedMNIST's schema
python main.py --resume outputs/20260131_221500_bloodmnist_resnet18    go on with an interrupted run
python main.py --help                                                  every setting

Exit codes: 0 done, 1 unexpected error, 2 command line, 3 data or weights, 4 another instance runs, 5 diverged,
6 storage, 129, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.core import Config, RunPaths, ensure_single_instance, log, parse_command_line
from scripts.core.errors import Interrupted, PipelineError, StorageError
from scripts.core.log import file_log, screen_log
from scripts.core.paths import open_run_folder
from scripts.core.resume import start_command
from scripts.core.system import StopRequest, device_problems, restart_with_fixed_hashing, stop_request, terminate_ghosts
from scripts.data_handler import dataset_problems

ENTRY_POINT = Path(__file__).resolve()


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = sys.argv[1:] if words is None else words
    with screen_log():
        try:
            with stop_request() as stop:
                stop.advice = f"Start again with: {start_command()}"
                config = parse_command_line(words, checks=(dataset_problems, device_problems))
                if config.reproducible:
                    restart_with_fixed_hashing(config.seed)
                run(config, stop)
        except (PipelineError, Interrupted) as error:
            log.error(str(error))
            return error.exit_code
    return 0


def run(config: Config, stop: StopRequest) -> RunPaths:
    """One whole run, from the lock to the last report; returns where its files are."""
    with ensure_single_instance(config.lock_file) as lock:
        if not config.no_process_guard:
            terminate_ghosts(ENTRY_POINT)
        paths = open_run_folder(config)
        lock.note(paths.root.absolute())
        # the folder's own lock: under another --lock_file the same run might be resumed twice at once
        with ensure_single_instance(paths.lock), file_log(paths.log):
            try:
                train_and_report(config, paths, stop)
            except StorageError as error:
                raise StorageError(f"{error} {stop.advice}") from error
    return paths


def train_and_report(config: Config, paths: RunPaths, stop: StopRequest) -> None:
    """Do the steps of a run that is not finished yet."""
    if paths.summary.exists():
        log.info(f"the run in {paths.root} is finished: its results are in {paths.summary}")
        return
    # here rather than above: it takes seconds to import, which --help and a wrong flag should not
    from scripts import pipeline

    log.info(f"run folder {paths.root}")
    pipeline.train_and_report(config, paths, stop)


if __name__ == "__main__":
    sys.exit(main())
