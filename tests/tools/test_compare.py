"""tools/compare.py: what it prints and writes, and what it refuses in one sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from scripts.core.config import Config
from scripts.core.files import write_json
from scripts.core.paths import RunPaths
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.evaluation.metrics import TASKS
from scripts.evaluation.reports import write_rows
from tests.conftest import PROJECT_ROOT, FinishedRun
from tools import compare
from tools.comparison.files import draw_differences
from tools.comparison.groups import open_pair
from tools.comparison.result import compare as compare_groups

Run = Callable[..., tuple[int, str, str]]
NUM_IMAGES = 200


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str | Path) -> tuple[int, str, str]:
        code = compare.main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def true_labels(task: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if task == MULTI_LABEL:
        return random.integers(0, 2, (NUM_IMAGES, 3))
    return random.integers(0, 2 if task == BINARY else 3, NUM_IMAGES)


def scores_of(labels: np.ndarray, task: str, quality: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if task == MULTI_LABEL:
        return 1 / (1 + np.exp(-(quality * (2 * labels - 1) + random.normal(size=labels.shape))))
    count = 2 if task == BINARY else 3
    scores = np.exp(random.normal(size=(len(labels), count)) + quality * np.eye(count)[labels])
    return scores / scores.sum(axis=1, keepdims=True)


def write_run(
    root: Path,
    *,
    task: str = MULTI_CLASS,
    quality: float = 1.0,
    seed: int = 1,
    tta: bool = True,
    dataset: str = "own.npz",
    md5: str = "0" * 32,
    labels: np.ndarray | None = None,
    **settings: object,
) -> Path:
    """Write the files of a finished run that a comparison reads; the images do not exist."""
    paths = RunPaths(root)
    for folder in (paths.models, paths.reports):
        folder.mkdir(parents=True)
    labels = true_labels(task) if labels is None else labels
    scores = scores_of(labels, task, quality, seed)
    files = []
    for variant, of_variant in (("plain", scores), ("tta", scores_of(labels, task, quality + 1, seed))):
        if variant == "plain" or tta:
            files.append(f"reports/own_test_[AUC]0.900_[ACC]0.900@{variant}.csv")
            write_rows(root / files[-1], of_variant)
    write_rows(paths.test_labels, labels.reshape(len(labels), -1))
    config = Config(dataset=dataset, seed=seed, **settings)  # type: ignore[arg-type]
    write_json(paths.config, {"settings": config.as_dict(), "dataset": {"source": str(root / "own.npz")}})
    card = {
        "class_names": ["a", "b"] if task == BINARY else ["a", "b", "c"],
        "task": task,
        "input": {"height": 28, "width": 28, "stored_channels": 3},
        "normalisation": {},
        "dataset": {"key": "own", "title": "own", "md5": md5, "note": None},
    }
    write_json(paths.best_model_card, card)
    write_json(paths.summary, {"test": {"plain": {}, "tta": {"accuracy": {}} if tta else None}, "files": files})
    return root


def conclusion(out: str) -> str:
    return next(line for line in out.splitlines() if "95 % interval" in line and line.endswith("."))


@pytest.mark.parametrize("task", TASKS)
def test_the_better_run_is_named_with_its_interval(run: Run, tmp_path: Path, task: str):
    bad, good = (write_run(tmp_path / name, task=task, quality=quality) for name, quality in (("a", 0.2), ("b", 2)))
    unit = "of AUC" if task == MULTI_LABEL else "points of accuracy"

    code, out, err = run(bad, good)
    assert (code, err) == (0, "")
    assert conclusion(out).startswith("B is better by 0." if task == MULTI_LABEL else "B is better by ")
    assert f" {unit}, 95 % interval " in conclusion(out)
    assert ("mean absolute error" in out) == (task == ORDINAL)

    rows = out.partition("DeLong")[2]
    assert "\nb  " in rows
    assert ("\na  " in rows) == (task != BINARY)

    code, swapped, _ = run(good, bad)
    assert conclusion(swapped) == conclusion(out).replace("B is", "A is")


@pytest.mark.parametrize("task", TASKS)
def test_identical_runs_differ_by_nothing(run: Run, tmp_path: Path, task: str):
    one = write_run(tmp_path / "a", task=task)
    _, out, _ = run(one, shutil.copytree(one, tmp_path / "b"))
    number = "0.0000 of AUC, 95 % interval 0.0000 to 0.0000"
    if task != MULTI_LABEL:
        number = "0.0 points of accuracy, 95 % interval 0.0 to 0.0"
    assert conclusion(out) == f"The difference is within what chance gives: B − A is {number}."
    assert f"0 of {NUM_IMAGES} test images are predicted differently." in out


def test_a_small_difference_is_within_what_chance_gives(run: Run, tmp_path: Path):
    _, out, _ = run(write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2))
    assert "The difference is within what chance gives: B − A is " in out


def test_an_undefined_difference_is_stated_as_such(run: Run, tmp_path: Path):
    labels = np.zeros((NUM_IMAGES, 3), dtype=np.int64)
    a, b = (write_run(tmp_path / name, task=MULTI_LABEL, labels=labels, seed=seed) for seed, name in enumerate("ab"))
    code, out, _ = run(a, b, "--output", tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert code == 0
    assert out.splitlines()[-3] == "The difference of AUC is undefined on this test split."
    assert (found["figures"]["auc"]["value"], found["delong"][0]["p"]) == (None, None)


def test_a_difference_near_zero_is_not_shown_as_zero(run: Run, tmp_path: Path):
    labels = np.arange(4000) % 3
    a, b = (write_run(tmp_path / name, labels=labels, quality=9) for name in "ab")
    for path in b.glob("reports/*@tta.csv"):
        rows = np.loadtxt(path, delimiter=",")[:, 1:]
        rows[0] = np.roll(rows[0], 1)
        write_rows(path, rows)
    _, out, _ = run(a, b)
    assert "B − A is −0.02 points of accuracy, 95 % interval −0." in conclusion(out)


def test_the_variant_with_tta_is_compared_unless_plain_is_requested(run: Run, tmp_path: Path):
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    _, with_tta, _ = run(*runs)
    _, plain, _ = run(*runs, "--plain")
    assert f"{NUM_IMAGES} test images, with TTA" in with_tta
    assert f"{NUM_IMAGES} test images, without TTA" in plain

    _, mixed, _ = run(runs[0], write_run(tmp_path / "c", seed=1, tta=False))
    assert f"Note: {tmp_path / 'c'} has no predictions with TTA: all are compared without TTA." in mixed
    same = lambda out: out.split("\n\n")[1]  # noqa: E731 (the table of figures)
    assert same(mixed) == same(plain)


def test_groups_are_compared_by_their_means_and_the_tests_by_their_mean_scores(run: Run, tmp_path: Path):
    a = [write_run(tmp_path / f"a{seed}", quality=0.2, seed=seed) for seed in (1, 2, 3)]
    b = [write_run(tmp_path / f"b{seed}", quality=1.5, seed=seed) for seed in (1, 2)]
    code, out, _ = run(*a, "--against", *b, "--output", tmp_path / "new" / "out")

    found = json.loads((tmp_path / "new/out/comparison.json").read_text(encoding="utf-8"))
    assert code == 0
    assert [len(found[letter]) for letter in "ab"] == [3, 2]
    assert "on the mean probabilities of each group's runs" in out
    labels = true_labels(MULTI_CLASS)
    mean = np.mean([scores_of(labels, MULTI_CLASS, 1.2, seed) for seed in (1, 2, 3)], axis=0)
    other = np.mean([scores_of(labels, MULTI_CLASS, 2.5, seed) for seed in (1, 2)], axis=0)
    is_right = mean.argmax(axis=1) == labels, other.argmax(axis=1) == labels
    assert found["mcnemar"][0]["only_b"] == (is_right[1] & ~is_right[0]).sum()
    accuracies = [(scores_of(labels, MULTI_CLASS, 1.2, seed).argmax(axis=1) == labels).mean() for seed in (1, 2, 3)]
    assert found["figures"]["accuracy"]["a"] == pytest.approx(np.mean(accuracies))
    assert found["figures"]["accuracy"]["better"] == "B"
    assert found["conclusion"] == conclusion(out)
    assert f"Note: {found['notes'][0]}" in out
    assert found["notes"][0].startswith("A and B have 2 to 5 runs: ")


def test_a_note_says_what_else_differs_within_a_group(run: Run, tmp_path: Path):
    a = [write_run(tmp_path / "a1"), write_run(tmp_path / "a2", seed=2, epochs=5)]
    _, out, _ = run(*a, "--against", write_run(tmp_path / "b", seed=3))
    assert "Note: The runs of A differ in more than the seed: --epochs." in out
    assert "Note: B is one run: the intervals hold for these trained models." in out


def test_the_json_has_every_number_and_every_image_that_differs(run: Run, tmp_path: Path):
    a, b = (write_run(tmp_path / name, task=MULTI_LABEL, seed=seed) for seed, name in enumerate("ab"))
    _, out, _ = run(a, b, "--output", tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))

    assert f"{len(found['images'])} of {NUM_IMAGES} test images are predicted differently." in out
    assert all(image["a"] != image["b"] and len(image["true"]) == 3 for image in found["images"])
    assert [test["of"] for test in found["mcnemar"]] == ["a", "b", "c"]
    assert all(test["p"] <= test["p_holm"] <= 1 for test in (*found["mcnemar"], *found["delong"]))
    assert f"no differences.png: the images cannot be read. --dataset {a / 'own.npz'}: there is no file" in out


def test_the_images_are_drawn_where_the_data_set_is_there(run: Run, finished_run: FinishedRun, tmp_path: Path):
    other = finished_run.copy_to(tmp_path)
    for path in other.reports.glob("*@*.csv"):
        rows = np.loadtxt(path, delimiter=",")[:, 1:]
        rows[::2] = np.roll(rows[::2], 1, axis=1)
        write_rows(path, rows)
    code, out, err = run(finished_run.paths.root, other.root, "--output", tmp_path)

    assert (code, err) == (0, "")
    assert "12 of 24 test images are predicted differently." in out
    with Image.open(tmp_path / "differences.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.parametrize("task", [BINARY, MULTI_LABEL])
def test_every_image_that_differs_is_in_one_group_of_the_figure(tmp_path: Path, task: str):
    a, b = (write_run(tmp_path / name, task=task, quality=0.5, seed=seed) for seed, name in enumerate("ab"))
    found = compare_groups(open_pair([a], [b], plain=False))
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 12, 12), dtype=np.uint8)

    texts = [text.get_text() for text in draw_differences(images, found).findobj(Text)]

    counts = [
        int(total) for text in texts for total in re.findall(r": \d+ of (\d+), the largest difference first", text)
    ]
    assert sum(counts) == len(found.differing) > 0
    index = found.differing[np.abs(found.scores[0] - found.scores[1]).max(axis=1)[found.differing].argmax()]
    assert f"test #{index}" in texts


def test_two_resolutions_of_a_published_set_are_the_same_images(run: Run, tmp_path: Path):
    a = write_run(tmp_path / "a", dataset="bloodmnist", md5="1" * 32, resolution=28, data_dir=tmp_path)
    b = write_run(tmp_path / "b", dataset="bloodmnist", md5="2" * 32, resolution=64, data_dir=tmp_path)
    code, out, _ = run(a, b, "--output", tmp_path)
    assert code == 0
    assert f"no differences.png: the images cannot be read. There is no file {tmp_path / 'bloodmnist.npz'}." in out or (
        "no image is predicted differently" in out
    )


def refusals(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    labels = true_labels(MULTI_CLASS)
    return {
        "other data": (write_run(tmp_path / "md5", md5="9" * 32), "they were tested on different data (own, MD5 999"),
        "other labels": (write_run(tmp_path / "labels", labels=labels[::-1]), "the true classes of their test images"),
        "fewer images": (write_run(tmp_path / "few", labels=labels[:50]), "they have 50 and 200 test images"),
        "other classes": (write_run(tmp_path / "binary", task=BINARY), "their classes differ"),
        "no run": (tmp_path / "nowhere", "it does not exist"),
    }


@pytest.mark.parametrize("case", ["other data", "other labels", "fewer images", "other classes", "no run"])
def test_runs_that_cannot_be_compared_are_refused(run: Run, tmp_path: Path, case: str):
    root, reason = refusals(tmp_path)[case]
    code, out, err = run(write_run(tmp_path / "a"), root)
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.splitlines()) == 1


DAMAGES: dict[str, tuple[str, str | None, str]] = {
    "older version": ("reports/test_labels.csv", None, "an earlier version of the program"),
    "empty labels": ("reports/test_labels.csv", "", "expected lines index,value"),
    "labels that are text": ("reports/test_labels.csv", "0,a\n", "expected lines index,value"),
    "half a label": ("reports/test_labels.csv", "0,0.5\n1,1\n", "must have 1 whole number"),
    "a label without its class": ("reports/test_labels.csv", "0,7\n", "is damaged"),
    "rows in another order": ("reports/test_labels.csv", "1,0\n0,1\n", "expected lines index,value"),
    "binary labels": ("reports/test_labels.csv", "\x00\x01\x02", "expected lines index,value"),
    "cut predictions": ("reports/own_test_[AUC]0.900_[ACC]0.900@tta.csv", "0,0.1,0.2,0.7\n1,0.2,0.", "is damaged"),
    "no predictions": ("reports/own_test_[AUC]0.900_[ACC]0.900@tta.csv", None, "cannot be read"),
    "scores above 1": ("reports/own_test_[AUC]0.900_[ACC]0.900@tta.csv", "0,3,0,0\n", "is damaged"),
    "summary without files": ("summary.json", '{"test": {}}', "names no file of predictions @plain.csv"),
    "summary that is a list": ("summary.json", "[]", "must hold a JSON object"),
    "summary of other types": ("summary.json", '{"test": 3, "files": 4}', "names no file of predictions"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_run_is_refused_in_one_sentence(run: Run, tmp_path: Path, case: str):
    name, content, reason = DAMAGES[case]
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    if content is None:
        (b / name).unlink()
    else:
        (b / name).write_text(content, encoding="utf-8")
    code, out, err = run(a, b, "--output", tmp_path / "out")
    assert (code, out) == (3, "")
    assert reason in err
    assert str(b) in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_command_lines_are_refused(run: Run, tmp_path: Path):
    a = write_run(tmp_path / "a")
    (tmp_path / "file").touch()
    for argv, reason in (
        ([], "The following arguments are required: RUN."),
        ([a], "got 1 without --against."),
        ([a, a, a], "got 3 without --against."),
        ([a, a, "--against", a], "A run is given twice in one group"),
        ([a, a, "--plian"], "Unrecognized arguments: --plian."),
        ([a, a, "--output", tmp_path / "file"], "is not a folder."),
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert reason in err


def test_an_output_that_cannot_be_written_is_a_storage_error(run: Run, tmp_path: Path):
    a = write_run(tmp_path / "a")
    (tmp_path / "loop").symlink_to("loop")
    code, _, err = run(a, a, "--output", tmp_path / "loop" / "x")
    assert code == 6
    assert "Cannot make the folder at" in err


def test_the_program_runs_from_any_folder(tmp_path: Path):
    command = [sys.executable, str(PROJECT_ROOT / "tools/compare.py"), "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("usage: compare.py ")


def test_help_and_a_refused_command_line_import_nothing_slow():
    program = (
        "from tools import compare\ntry: compare.main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert compare.main(['one']) == 2\n"
        "import sys; print('slow:', *{'torch', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert found.stdout.splitlines()[-1] == "slow:", found.stderr
