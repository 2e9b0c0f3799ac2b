"""tools/leaderboard.py: every run below a folder, in one page and one CSV that can be trusted and used."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.core.files import write_json, write_text
from scripts.core.paths import RunPaths
from scripts.core.system import ensure_single_instance
from tests.conftest import PROJECT_ROOT, FinishedRun
from tools import leaderboard

Run = Callable[..., tuple[int, str, str]]
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str | Path) -> tuple[int, str, str]:
        code = leaderboard.main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return {row["run"]: row for row in csv.DictReader(stream)}


def figure(value: float | None) -> dict[str, float | None]:
    ends = (None, None) if value is None else (value - 0.01, value + 0.01)
    return {"value": value, "low": ends[0], "high": ends[1]}


def write_run(root: Path, *, accuracy: float | None = 0.9, summary: bool = True, **settings: Any) -> RunPaths:
    """Write what the leaderboard reads of a run."""
    paths = RunPaths(root)
    paths.logs.mkdir(parents=True)
    applied = {"backbone": "resnet18", "recipe": "seed", "seed": 42} | settings
    dataset = {"key": settings.get("key", "bloodmnist"), "height": 28, "width": 28}
    environment = {"commit": "0123456789ab"}
    write_json(paths.config, {"settings": applied, "dataset": dataset, "environment": environment})
    metrics = {"accuracy": figure(accuracy), "auc": figure(0.95), "macro_f1": figure(0.8)}
    if summary:
        content = {
            "finished": "2026-01-31T22:15:00",
            "note": settings.get("note"),
            "dataset": dataset,
            "training": {"epochs": 12, "seconds": 3725.4},
            "test": {"plain": metrics, "tta": None},
            "config": applied,
            "environment": environment,
        }
        write_json(paths.summary, content)
    return paths


def test_a_real_run_is_listed_with_its_figures(run: Run, finished_run: FinishedRun, tmp_path: Path):
    paths = finished_run.copy_to(tmp_path / "suite" / "cell")
    code, out, err = run(tmp_path)
    assert (code, err) == (0, "")
    assert "1 finished" in out

    (row,) = rows_of(tmp_path / "leaderboard.csv").values()
    summary = json.loads(paths.summary.read_text(encoding="utf-8"))
    assert row["run"] == f"suite/cell/{paths.root.name}"
    for variant in ("plain", "tta"):
        for metric in ("accuracy", "auc", "macro_f1"):
            expected = summary["test"][variant][metric]
            found = [float(row[f"{metric}_{variant}{end}"]) for end in ("", "_low", "_high")]
            assert found == [expected["value"], expected["low"], expected["high"]]
    expected = [summary["training"]["seconds"], 12, "squares", "resnet18", "seed", 42, 2]
    names = ("seconds", "resolution", "dataset", "backbone", "recipe", "seed", "epochs")
    assert [row[name] for name in names] == list(map(str, expected))
    assert row["commit"] == summary["environment"]["commit"]


def test_runs_that_did_not_finish_are_listed_as_such(run: Run, tmp_path: Path):
    killed = write_run(tmp_path / "killed", summary=False)
    write_text(killed.history, '{"epoch": 1}\n{"epoch": 2}\n{"epo')
    stopped = write_run(tmp_path / "stopped", summary=False)
    write_text(stopped.log, "2026-11-25 15:38:38,048 ERROR   Stopped by SIGTERM. Go on with: main.py\n")
    failed = write_run(tmp_path / "failed", summary=False)
    log = (
        "2026-11-25 15:38:38,048 INFO    epoch 1\n2026-11-25 15:38:39,048 ERROR   The loss is not finite.\nsee above\n"
    )
    write_text(failed.log, log)
    resumed = write_run(tmp_path / "resumed", summary=False)
    write_text(resumed.log, log + "2026-11-25 15:40:39,048 INFO    epoch 2\n")
    running = write_run(tmp_path / "running", summary=False)
    damaged = write_run(tmp_path / "damaged")
    damaged.summary.write_bytes(b'{"test": \xff')
    partial = write_run(tmp_path / "partial")
    write_json(partial.summary, {"training": [], "test": {}})

    with ensure_single_instance(running.lock):
        code, out, _ = run(tmp_path)

    rows = rows_of(tmp_path / "leaderboard.csv")
    assert code == 0
    assert sorted(out.splitlines()[0].split(", ")) == ["1 failed", "1 running", "2 damaged", "3 unfinished"]
    assert {name: row["state"] for name, row in rows.items()} == {
        "killed": "unfinished",
        "stopped": "unfinished",
        "failed": "failed",
        "resumed": "unfinished",
        "running": "running",
        "damaged": "damaged",
        "partial": "damaged",
    }
    assert (rows["killed"]["epochs"], rows["failed"]["note"]) == ("2", "The loss is not finite.")
    assert (rows["killed"]["backbone"], rows["killed"]["accuracy_plain"]) == ("resnet18", "")


LONE_SURROGATE = "\ud800"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((path, LONE_SURROGATE) for path in ("config.seed", "training.epochs")),
        *[("config.backbone", value) for value in (5, [1], dict[str, int](), None)],
        *((path, 5) for path in ("finished", "note", "dataset.key", "config.recipe", "environment.commit")),
        *((path, math.inf) for path in ("training.seconds", "training.epochs", "config.seed", "dataset.height")),
        *((path, math.nan) for path in ("training.seconds", "dataset.width", "test.plain.auc.value")),
        *((path, 10**400) for path in ("training.seconds", "training.epochs", "test.plain.auc.low")),
        ("training.seconds", 1e300),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_damaged_summary_costs_only_its_own_row(run: Run, tmp_path: Path, path: str, value: object):
    write_run(tmp_path / "a")
    summary = write_run(tmp_path / "b").summary
    content = json.loads(summary.read_text(encoding="utf-8"))
    *parents, name = path.split(".")
    part = content
    for parent in parents:
        part = part[parent]
    part[name] = value
    summary.write_text(json.dumps(content), encoding="utf-8")

    code, _, err = run(tmp_path)

    assert (code, err) == (0, "")
    assert {name: row["state"] for name, row in rows_of(tmp_path / "leaderboard.csv").items()} == {
        "a": "finished",
        "b": "damaged",
    }


def test_text_that_utf_8_cannot_hold_is_escaped(run: Run, tmp_path: Path):
    settings: dict[str, Any] = dict.fromkeys(("backbone", "recipe", "key", "note"), f"x{LONE_SURROGATE}y")
    summary = write_run(tmp_path / "a", **settings).summary
    content = json.loads(summary.read_text(encoding="utf-8"))
    content["finished"] = content["environment"]["commit"] = settings["note"]
    summary.write_text(json.dumps(content), encoding="utf-8")
    code, _, err = run(tmp_path)
    assert (code, err) == (0, "")
    (row,) = rows_of(tmp_path / "leaderboard.csv").values()
    names = ("backbone", "recipe", "dataset", "note", "finished", "commit")
    assert (row["state"], {row[name] for name in names}) == ("finished", {r"x\ud800y"})
    assert r"x\ud800y" in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")


def write_early_run(root: Path, log: str) -> RunPaths:
    """Write the folder of a run that ended before its config.json was written."""
    paths = RunPaths(root)
    for folder in (paths.logs, paths.models, paths.reports, paths.figures):
        folder.mkdir(parents=True)
    write_text(paths.log, "2026-11-25 19:04:02,021 INFO    run folder a\n" + log)
    return paths


def test_a_run_that_ended_before_its_config_was_written_is_listed(run: Run, tmp_path: Path):
    write_early_run(tmp_path / "failed", "2026-11-25 19:04:03,021 ERROR   The data file is damaged.\n")
    code, out, err = run(tmp_path)
    assert (code, err, out.splitlines()[0]) == (0, "", "1 failed")
    write_early_run(tmp_path / "killed", "")
    write_early_run(tmp_path / "stopped", "2026-11-25 19:04:03,021 ERROR   Stopped by SIGTERM.\n")
    with ensure_single_instance(write_early_run(tmp_path / "running", "").lock):
        run(tmp_path)
    rows = rows_of(tmp_path / "leaderboard.csv")
    assert {name: (row["state"], row["note"]) for name, row in rows.items()} == {
        "failed": ("failed", "The data file is damaged."),
        "killed": ("unfinished", "It has no config.json, so it cannot be resumed."),
        "stopped": ("unfinished", "Stopped by SIGTERM."),
        "running": ("running", ""),
    }


def test_a_lock_that_a_killed_process_left_is_not_a_running_run(run: Run, tmp_path: Path):
    paths = write_run(tmp_path / "a", summary=False)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=60)
    write_text(paths.lock, json.dumps({"pid": child.pid, "started": "2026-01-01", "run_folder": None}))
    run(tmp_path)
    assert rows_of(tmp_path / "leaderboard.csv")["a"]["state"] == "unfinished"


def test_loops_of_links_and_other_folders_are_survived(run: Run, tmp_path: Path):
    write_run(tmp_path / "outputs" / "deep" / "er" / "a")
    write_run(tmp_path / "elsewhere" / "b")
    (tmp_path / "outputs" / "loop").symlink_to("..")
    (tmp_path / "outputs" / "self").symlink_to("self")
    (tmp_path / "outputs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "outputs" / "other").mkdir()
    write_json(tmp_path / "outputs" / "other" / "config.json", {"of": "another program"})
    code, _, err = run(tmp_path / "outputs")
    found = rows_of(tmp_path / "outputs" / "leaderboard.csv")
    assert (code, err) == (0, "")
    assert sorted(Path(name).name for name in found) == ["a", "b"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_left_out(run: Run, tmp_path: Path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "closed" / "b")
    (tmp_path / "closed").chmod(0)
    try:
        code, _, _ = run(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert code == 0
    assert rows_of(tmp_path / "leaderboard.csv").keys() == {"a"}


def test_a_folder_that_vanishes_is_left_out(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "a")
    write_run(tmp_path / "gone" / "b")
    stat = os.stat

    def vanished(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("gone"):
            raise PermissionError
        return stat(path, **options)

    monkeypatch.setattr("tools.board.runs.os.stat", vanished)
    assert run(tmp_path)[0] == 0
    assert rows_of(tmp_path / "leaderboard.csv").keys() == {"a"}


def test_a_name_cannot_write_into_the_page(run: Run, tmp_path: Path):
    evil = "<script>alert(1)</script>&\"'"
    write_run(tmp_path / "x#?% ä", key=evil, note=evil, backbone=evil, recipe="</td>")
    (tmp_path / "x#?% ä" / "report.html").touch()
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")  # noqa: PTH102 (a name that is not UTF-8)
    shutil.copytree(tmp_path / "x#?% ä", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/run")))
    run(tmp_path)
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;" in page
    assert 'href="x%23%3F%25%20%C3%A4/report.html"' in page
    assert 'href="%FF/run/report.html"' in page
    assert rows_of(tmp_path / "leaderboard.csv")["x#?% ä"]["note"] == evil


def test_a_row_links_to_its_report_or_else_to_its_folder(run: Run, tmp_path: Path):
    write_run(tmp_path / "outputs" / "a")
    write_text(write_run(tmp_path / "outputs" / "b").root / "report.html", "")
    run(tmp_path / "outputs", "--output", tmp_path / "pages" / "board.html")
    page = (tmp_path / "pages" / "board.html").read_text(encoding="utf-8")
    assert 'href="../outputs/a/"' in page
    assert 'href="../outputs/b/report.html"' in page
    assert (tmp_path / "pages" / "board.csv").is_file()


def test_the_best_run_of_a_set_is_the_first(run: Run, tmp_path: Path):
    for name, accuracy in (("a", 0.5), ("b", 0.9), ("c", None), ("d", 0.7)):
        write_run(tmp_path / name, accuracy=accuracy)
    write_run(tmp_path / "e", key="aset", accuracy=0.1)
    run(tmp_path)
    assert list(rows_of(tmp_path / "leaderboard.csv")) == ["e", "b", "d", "a", "c"]


def test_a_run_itself_can_be_given(run: Run, tmp_path: Path):
    write_run(tmp_path / "a")
    run(tmp_path / "a", "--output", tmp_path / "one.html")
    assert list(rows_of(tmp_path / "one.csv")) == ["a"]


def test_wrong_command_lines_are_refused(run: Run, tmp_path: Path):
    (tmp_path / "folder.html").mkdir()
    for argv, reason in (
        ([tmp_path], f"There is no run below {tmp_path}."),
        ([tmp_path / "nowhere"], "is none."),
        ([tmp_path, "--output", tmp_path / "board.txt"], "must be a file whose name ends in .html"),
        ([tmp_path, "--output", tmp_path / "folder.html"], "must be a file whose name ends in .html"),
        ([tmp_path, tmp_path], "Unrecognized arguments"),
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert reason in err
        assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_page_that_cannot_be_written_is_a_storage_error(run: Run, tmp_path: Path):
    write_run(tmp_path / "a")
    (tmp_path / "file").touch()
    code, _, err = run(tmp_path, "--output", tmp_path / "file" / "board.html")
    assert code == 6
    assert "Cannot make the folder at" in err


def test_a_thousand_runs_take_seconds(run: Run, tmp_path: Path):
    first = write_run(tmp_path / "0")
    for number in range(1, 1000):
        root = tmp_path / str(number)
        (root / "logs").mkdir(parents=True)
        os.link(first.config, root / "config.json")
        os.link(first.summary, root / "summary.json")
    start = time.process_time()
    run(tmp_path)
    assert len(rows_of(tmp_path / "leaderboard.csv")) == 1000
    assert time.process_time() - start < 10


def test_the_program_runs_from_any_folder(tmp_path: Path):
    command = [sys.executable, str(PROJECT_ROOT / "tools/leaderboard.py"), "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("usage: leaderboard.py ")


def test_help_and_a_refused_command_line_import_nothing_slow():
    program = (
        "from tools import leaderboard\n"
        "try: leaderboard.main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert leaderboard.main(['nowhere']) == 2\n"
        "import sys; print('slow:', *{'torch', 'numpy', 'pandas', 'psutil', 'jinja2'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert found.stdout.splitlines()[-1] == "slow:", found.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, run: Run, tmp_path: Path) -> Iterator[Any]:
    """The page of six runs in a real browser; fails if it logs anything, or requests anything but itself."""
    for name, accuracy, settings in (
        ("a", 0.5, {"seed": 10}),
        ("b", 0.9, {"seed": 9}),
        ("c", None, {"seed": 100}),
        ("d", 0.7, {"backbone": "swin_v2_t", "note": "A special one"}),
        ("e", 0.1, {"key": "pneumoniamnist", "seed": 2}),
    ):
        write_run(tmp_path / name, accuracy=accuracy, **settings)
    write_run(tmp_path / "f", summary=False, seed=1)
    run(tmp_path)
    opened, problems, requests = browser.new_page(), [], []
    opened.set_default_timeout(10_000)
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto((tmp_path / "leaderboard.html").as_uri())
    yield opened
    opened.close()
    assert problems == []
    assert requests == [(tmp_path / "leaderboard.html").as_uri()]


def shown(page: Any) -> str:
    """The names of the visible runs in their order."""
    return "".join(page.locator("tbody tr:visible td:nth-child(2)").all_text_contents())


def sort_of(page: Any, name: str) -> str:
    return page.get_by_role("columnheader", name=name, exact=True).get_attribute("aria-sort")


@pytest.mark.slow
def test_a_click_sorts_numbers_as_numbers_and_leaves_unknown_ones_last(page: Any):
    assert shown(page) == "bdacef"
    page.get_by_role("button", name="Accuracy", exact=True).click()
    assert (shown(page), sort_of(page, "Accuracy")) == ("bdaecf", "descending")
    page.get_by_role("button", name="Accuracy", exact=True).click()
    assert (shown(page), sort_of(page, "Accuracy")) == ("eadbcf", "ascending")
    page.get_by_role("button", name="Seed", exact=True).click()
    assert (shown(page), sort_of(page, "Accuracy"), sort_of(page, "Seed")) == ("cdabef", "none", "descending")
    page.get_by_role("button", name="Run", exact=True).click()
    assert (shown(page), sort_of(page, "Run")) == ("abcdef", "ascending")


@pytest.mark.slow
def test_the_keyboard_sorts_and_filters(page: Any):
    page.get_by_label("Text").focus()
    for _ in range(6):  # past the fields and the table to the second header
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert (shown(page), sort_of(page, "Run")) == ("abcdef", "ascending")
    page.keyboard.press("Space")
    assert (shown(page), sort_of(page, "Run")) == ("fedcba", "descending")
    page.get_by_label("Text").focus()
    page.keyboard.type("SPECIAL one")
    assert shown(page) == "d"


@pytest.mark.slow
def test_the_filters_work_together(page: Any):
    page.get_by_label("Set").select_option("bloodmnist")
    assert shown(page) == "bdacf"
    page.get_by_label("Backbone").select_option("resnet18")
    page.get_by_label("State").select_option("finished")
    assert (shown(page), page.get_by_role("status").text_content()) == ("bac", "3 of 6 runs")
    page.get_by_label("Text").fill("no such run")
    assert (shown(page), page.get_by_role("status").text_content()) == ("", "0 of 6 runs")
    page.get_by_label("Text").fill("")
    page.get_by_role("button", name="Run", exact=True).click()
    assert shown(page) == "abc"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_is_dark_where_the_system_is(page: Any, scheme: str):
    page.emulate_media(color_scheme=scheme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"dark": "rgb(20, 25, 31)", "light": "rgb(255, 255, 255)"}[scheme]
