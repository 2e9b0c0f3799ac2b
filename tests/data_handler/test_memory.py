"""Which feed is chosen, by figures that are easy to check."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from scripts.core.errors import DataError
from scripts.data_handler import memory
from scripts.data_handler.memory import (
    FreeMemory,
    ImageSizes,
    choose_feed,
    eval_batch_size,
    free_in_control_group,
    free_shared_memory,
    megabytes,
    plan_memory,
    workers_that_fit,
)

# 100 images of 100 bytes
IMAGES = ImageSizes(num_samples={"train": 70, "val": 10, "test": 20}, height=10, width=10, channels=1)


def free(host: int, device: int | None = None) -> FreeMemory:
    return FreeMemory(host=host, bound="here", device=device)


def test_sizes_are_counted_in_bytes_of_all_splits():
    assert (IMAGES.image_bytes, IMAGES.total_bytes) == (100, 10_000)
    coloured = ImageSizes(num_samples={"train": 1, "val": 1, "test": 1}, height=2, width=5, channels=3)
    assert (coloured.image_bytes, coloured.total_bytes) == (30, 90)


@pytest.mark.parametrize(
    ("requested", "host", "device", "feed", "reason"),
    [
        ("auto", 20_000, None, "resident", "0.0 MB of images fit into half of the memory that is free"),
        ("auto", 19_999, None, "streamed", "0.0 MB of images do not fit into half of the 0.0 MB that are free here"),
        ("auto", 20_000, 20_000, "resident", "0.0 MB of images fit into half of the memory that is free"),
        (
            "auto",
            20_000,
            19_999,
            "streamed",
            "0.0 MB of images do not fit into half of the 0.0 MB that are free on the",
        ),
        ("auto", 19_999, 99_999, "streamed", "0.0 MB of images do not fit into half of the 0.0 MB that are free here"),
        ("resident", 10_000, None, "resident", "0.0 MB of images, as requested"),
        ("resident", 10_000, 10_000, "resident", "0.0 MB of images, as requested"),
        ("streamed", 99_999, 99_999, "streamed", "0.0 MB of images, as requested"),
        ("streamed", 0, 0, "streamed", "0.0 MB of images, as requested"),
    ],
)
def test_images_stay_resident_as_long_as_they_take_no_more_than_half(requested, host, device, feed, reason):
    plan = choose_feed(requested, IMAGES, free(host, device))

    assert plan.feed == feed
    assert plan.reason.startswith(reason)
    assert (plan.host_needed, plan.device_needed) == (10_000, 0 if device is None else 10_000)


@pytest.mark.parametrize(
    ("host", "device", "there", "where"), [(9_999, None, "9,999", "here"), (10_000, 9_998, "9,998", "on the GPU")]
)
def test_resident_is_refused_where_it_cannot_be(host, device, there, where):
    with pytest.raises(DataError) as caught:
        choose_feed("resident", IMAGES, free(host, device))
    assert str(caught.value) == (
        f"--feed resident was requested, but the images need 10,000 bytes of memory, and {there} are free {where}. "
        "Use --feed streamed, which reads them from the disk batch by batch."
    )


def test_a_device_that_copies_within_the_hosts_memory_needs_twice_as_much_there():
    assert choose_feed("auto", IMAGES, free(40_000), shares_host_memory=True).feed == "resident"
    assert choose_feed("auto", IMAGES, free(39_999), shares_host_memory=True).feed == "streamed"
    with pytest.raises(DataError, match="need 20,000 bytes"):
        choose_feed("resident", IMAGES, free(19_999), shares_host_memory=True)


def test_needed_and_free_memory_are_described():
    sizes = ImageSizes(num_samples={"train": 8_000_000, "val": 0, "test": 0}, height=10, width=100, channels=1)
    plan = choose_feed("auto", sizes, FreeMemory(host=2_000_000_000, bound="on this machine", device=70_000_000_000))
    assert plan.figures == (
        "the images need 8,000 MB, 2,000 MB are free on this machine; on the GPU they need 8,000 MB, 70,000 MB are free"
    )
    assert megabytes(400_000) == "0.4 MB"


def test_a_gpus_memory_is_its_own_and_a_cpus_the_hosts(monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: (20_000, "on this machine"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (19_999, 80_000))

    assert plan_memory("auto", IMAGES, torch.device("cpu")).feed == "resident"
    on_gpu = plan_memory("auto", IMAGES, torch.device("cuda", 0))
    assert (on_gpu.feed, on_gpu.free.device) == ("streamed", 19_999)
    assert plan_memory("auto", IMAGES, torch.device("mps")).feed == "streamed"


def group(folder: Path, version: int, limit: str, used: int, files: int = 0) -> Path:
    """A fake control group; ``files`` bytes of it, half of them, are active."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), 2: ("memory.max", "memory.current", "")}
    limit_name, used_name, prefix = names[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    stat = f"anon 5\n{prefix}inactive_file {files - files // 2}\n{prefix}active_file {files // 2}\nfile {files}\n"
    (folder / "memory.stat").write_text(stat)
    return folder


@pytest.fixture
def free_of(tmp_path: Path) -> Any:
    """Measure for a process whose ``/proc/self/cgroup`` holds these lines."""

    def measure(*lines: str) -> int | None:
        (tmp_path / "membership").write_text("\n".join(lines) + "\n")
        return free_in_control_group(tmp_path / "membership", tmp_path / "mount")

    return measure


def test_a_containers_limit_counts_without_what_files_hold(tmp_path, free_of):
    group(tmp_path / "mount", 2, "2000", used=900, files=301)
    assert free_of("0::/") == 1401


def test_the_tightest_of_the_groups_around_a_job_counts(tmp_path, free_of):
    mount = tmp_path / "mount"
    group(mount / "user.slice", 2, "700", used=100)
    group(mount / "user.slice" / "job", 2, "5000", used=50)
    assert free_of("0::/user.slice/job") == 600
    group(mount / "user.slice" / "job", 2, "500", used=50)
    assert free_of("0::/user.slice/job") == 450
    group(mount / "user.slice" / "job", 2, "max", used=50)
    assert free_of("0::/user.slice/job") == 600


def test_version_1_is_read_where_its_memory_controller_is(tmp_path, free_of):
    group(tmp_path / "mount" / "memory" / "slurm" / "job_7", 1, "4000", used=1000, files=500)
    assert free_of("5:cpu,cpuacct:/elsewhere", "4:memory:/slurm/job_7", "0::/") == 3500
    assert free_of("11:cpuset,memory:/slurm/job_7") == 3500


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/../../outside", "/"])
def test_inside_a_container_the_mount_is_its_group_whatever_the_path_says(tmp_path, free_of, path):
    group(tmp_path / "outside", 1, "1", used=1)
    group(tmp_path / "mount" / "memory", 1, "2147483648", used=147483648)
    assert free_of(f"4:memory:{path}") == 2_000_000_000


def test_a_used_up_limit_leaves_nothing_rather_than_less(tmp_path, free_of):
    group(tmp_path / "mount", 2, "100", used=130)
    assert free_of("0::/") == 0


def test_without_a_limit_there_is_none(tmp_path, free_of):
    assert free_in_control_group(tmp_path / "no membership", tmp_path) is None
    assert free_of("0::/", "", "nonsense") is None
    group(tmp_path / "mount", 2, "max", used=1)
    assert free_of("0::/") is None
    group(tmp_path / "mount", 2, "100", used=1)
    (tmp_path / "mount" / "memory.stat").write_text("a line of four words\n")
    assert free_of("0::/") is None


def test_the_smaller_of_machine_and_limit_is_what_the_host_has(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for limit, expected in (
        (None, (1000, "on this machine")),
        (1000, (1000, "on this machine")),
        (999, (999, "within the limit of this container or job")),
    ):
        monkeypatch.setattr(memory, "free_in_control_group", lambda limit=limit: limit)
        assert memory.free_on_host() == expected


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(28, 28, 128), (64, 64, 128), (158, 158, 128), (180, 180, 99), (224, 224, 64), (5000, 5000, 1)],
)
def test_large_images_are_evaluated_in_smaller_batches(height, width, expected):
    assert eval_batch_size(height, width) == expected


def test_batches_under_way_are_two_per_worker_and_three_more():
    # 64 images of 224 × 224 × 3 are evaluated at once, more than the 16 of a step
    large = ImageSizes(num_samples={"train": 100, "val": 100, "test": 9}, height=224, width=224, channels=3)
    assert large.in_flight_bytes(16, 1) == 5 * 64 * 150_528
    assert large.in_flight_bytes(80, 4) == 11 * 80 * 150_528
    assert large.in_flight_bytes(500, 4) == 11 * 100 * 150_528  # no batch is larger than its split
    assert large.in_flight_bytes(128, 0) == 0


@pytest.mark.parametrize(
    ("shared", "expected"), [(None, 4), (11 * 7000, 4), (11 * 7000 - 1, 3), (5 * 7000, 1), (5 * 7000 - 1, 0), (0, 0)]
)
def test_there_are_no_more_workers_than_shared_memory_has_room_for(shared, expected):
    # 70 images of 100 bytes a batch
    found, reason = workers_that_fit(4, IMAGES, batch_size=128, shared=shared)

    assert found == expected
    assert bool(reason) == (expected < 4)
    if reason:
        assert reason.startswith(f"--num_workers 4 becomes {expected}: workers hand batches over in /dev/shm, where 4")
        assert "docker run --shm-size" in reason


def test_a_system_without_shared_memory_folder_sets_no_bound(tmp_path):
    assert free_shared_memory(tmp_path / "nothing") is None
    assert (free_shared_memory(tmp_path) or 0) > 0
