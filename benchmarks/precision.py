"""Does bf16 train as well as fp32? Run the same trainings in both precisions, seed by seed, on your own data.

python -m benchmarks.precision --data PATH.npz --images 4000 --epochs 8 --seeds 1 2 3

Each training is a whole run of ``main.py``. Weights, data order and augmentation of a seed are the same in both
precisions, so only rounding differs; the difference is compared with that between seeds. Prints a table, writes the
numbers to the file of --json and the curves to the file of --figure.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scripts.core.environment import PROJECT_ROOT, describe_environment
from scripts.core.files import write_bytes, write_json
from scripts.core.paths import RunPaths
from scripts.data_handler.npz import CLASS_NAMES, KEYS

PRECISIONS = ("bf16", "fp32")
COLOURS = {"bf16": "#c8500a", "fp32": "#0a5fa4"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Results of one run."""

    precision: str
    seed: int
    val_accuracies: tuple[float, ...]  # by epoch
    test_accuracy: float  # without TTA
    test_accuracy_tta: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Test accuracy in both precisions, over the seeds."""

    means: Mapping[str, float]
    deviations: Mapping[str, float]  # over the seeds, with n - 1
    difference: float  # bf16 minus fp32, mean over the seeds
    noise: float  # two standard errors of the difference of two means with independent seeds

    @property
    def is_within_noise(self) -> bool:
        """Whether bf16 and fp32 differ by no more than trainings with other seeds do."""
        return abs(self.difference) <= self.noise


def compare(trainings: Sequence[Training]) -> Comparison:
    """Compare the test accuracies without TTA.

    Args:
        trainings: At least two seeds, each in both precisions.
    """
    figures = {name: [each.test_accuracy for each in trainings if each.precision == name] for name in PRECISIONS}
    deviations = {name: stdev(values) for name, values in figures.items()}
    num_seeds = len(figures["fp32"])
    return Comparison(
        means={name: mean(values) for name, values in figures.items()},
        deviations=deviations,
        difference=mean(figures["bf16"]) - mean(figures["fp32"]),
        noise=2 * math.sqrt(sum(each**2 for each in deviations.values()) / num_seeds),
    )


def every_nth(data: Path, num_images: int) -> dict[str, Any]:
    """Take about ``num_images`` evenly spread training images, and the same share of the other splits."""
    with np.load(data) as content:
        stride = max(1, round(len(content["train_labels"]) / num_images))
        splits = {name: content[name][::stride] for name in KEYS}
        return splits | {name: content[name] for name in content.files if name == CLASS_NAMES}


def train(data: Path, folder: Path, precision: str, seed: int, flags: Sequence[str]) -> Training:
    """Run ``main.py`` once; its epochs are shown on the screen."""
    outputs = folder / f"{precision}_{seed}"
    own = ("--lock_file", str(folder / "lock"), "--no_process_guard", "--output_dir", str(outputs))
    chosen = ("--dataset", str(data), "--weights", "none", "--precision", precision, "--seed", str(seed))
    subprocess.run([sys.executable, "main.py", *chosen, *own, *flags], cwd=PROJECT_ROOT, check=True)
    (paths,) = map(RunPaths, outputs.iterdir())
    history = [json.loads(line) for line in paths.history.read_text(encoding="utf-8").splitlines()]
    test = json.loads(paths.summary.read_text(encoding="utf-8"))["test"]
    return Training(
        precision=precision,
        seed=seed,
        val_accuracies=tuple(record["val_accuracy"] for record in history),
        test_accuracy=test["plain"]["accuracy"]["value"],
        test_accuracy_tta=test["tta"]["accuracy"]["value"],
    )


def draw(trainings: Sequence[Training], title: str) -> bytes:
    """Draw the validation accuracy of every training by epoch; return a PNG."""
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="Epoch", ylabel="Validation accuracy", title=title)
    for training in trainings:
        epochs = range(1, len(training.val_accuracies) + 1)
        label = training.precision if training.seed == trainings[0].seed else None
        style: dict[str, Any] = {
            "color": COLOURS[training.precision],
            "linestyle": "-" if training.precision == "fp32" else "--",
        }
        axes.plot(epochs, training.val_accuracies, marker=".", label=label, alpha=0.85, **style)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, metadata={"Software": ""})
    return buffer.getvalue()


def table(trainings: Sequence[Training], comparison: Comparison) -> Iterator[str]:
    """Format the results as a Markdown table and two sentences."""
    yield "| seed | bf16 | fp32 | bf16, TTA | fp32, TTA |"
    yield "|---:|---:|---:|---:|---:|"
    found = {(each.precision, each.seed): each for each in trainings}
    for seed in dict.fromkeys(each.seed for each in trainings):
        pair = [found[name, seed] for name in PRECISIONS]
        figures = [each.test_accuracy for each in pair] + [each.test_accuracy_tta for each in pair]
        yield f"| {seed} | {' | '.join(f'{figure:.4f}' for figure in figures)} |"
    spread = (f"{name} {comparison.means[name]:.4f} ± {comparison.deviations[name]:.4f}" for name in PRECISIONS)
    yield f"\nTest accuracy without TTA, mean ± standard deviation over the seeds: {', '.join(spread)}."
    yield (
        f"bf16 minus fp32: {comparison.difference:+.4f}; two standard errors of such a difference by the seeds alone: "
        f"{comparison.noise:.4f}; {'within' if comparison.is_within_noise else 'beyond'} seed noise."
    )


def main() -> int:
    """Train, compare, draw; return 1 if the difference exceeds the noise between seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="an .npz in MedMNIST's schema")
    parser.add_argument("--images", type=int, default=4000, help="about how many training images (default: 4000)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="at least two")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark_precision.json"))
    parser.add_argument("--figure", type=Path, default=Path("outputs/benchmark_precision.png"))
    given = parser.parse_args()
    if len(given.seeds) < 2:
        parser.error("--seeds needs at least two: with one there is no noise to compare with")

    flags = ("--epochs", str(given.epochs), "--patience", str(given.epochs))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = folder / given.data.name
        arrays = every_nth(given.data, given.images)
        np.savez(part, **arrays)
        trainings = [train(part, folder, precision, seed, flags) for seed in given.seeds for precision in PRECISIONS]
    comparison = compare(trainings)
    print("\n".join(table(trainings, comparison)))
    count = len(arrays["train_labels"])
    for path in (given.json, given.figure):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(
        given.figure, draw(trainings, f"{given.data.stem}: {count:,} training images, {len(given.seeds)} seeds")
    )
    content = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "environment": describe_environment("cpu"),
        "data": given.data.name,
        "images": {name: len(values) for name, values in arrays.items() if name.endswith("_labels")},
        "flags": list(flags),
        "trainings": [asdict(each) for each in trainings],
        "comparison": asdict(comparison) | {"is_within_noise": comparison.is_within_noise},
    }
    write_json(given.json, content)
    return 0 if comparison.is_within_noise else 1


if __name__ == "__main__":
    sys.exit(main())
