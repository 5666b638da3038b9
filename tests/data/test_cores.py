"""A rank counts the cores that are really its own, and takes as many loader processes as they can bear."""

import os
from pathlib import Path
from typing import Literal

import pytest

from dmt_ds.data import cores
from dmt_ds.data.cores import cores_of_rank, quota_cores, usable_workers


@pytest.mark.parametrize(
    ("environment", "affinity", "quota", "local_ranks", "expected"),
    [
        ({}, 16, 99, 1, 16),
        ({}, 16, 99, 4, 4),
        ({}, 2, 99, 4, 1),
        ({}, 16, 6, 2, 3),
        ({"SLURM_CPUS_PER_TASK": "6"}, 6, 99, 4, 6),
        ({"SLURM_CPUS_PER_TASK": "6"}, 64, 99, 4, 6),
        ({"SLURM_CPUS_PER_TASK": "6"}, 64, 4, 4, 4),
        ({"SLURM_CPUS_PER_TASK": "32", "LOCAL_WORLD_SIZE": "8"}, 32, 99, 8, 4),
    ],
)
def test_a_ranks_cores_are_its_share_of_what_scheduler_affinity_and_container_leave(
    environment: dict[str, str],
    affinity: int,
    quota: int,
    local_ranks: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cores, "quota_cores", lambda: quota)
    assert cores_of_rank(local_ranks) == expected


@pytest.mark.parametrize(
    ("requested", "own_cores", "expected"),
    [(8, 16, 8), (8, 4, 4), (0, 16, 0), ("auto", 1, 1), ("auto", 2, 1), ("auto", 8, 7), ("auto", 96, 16), (40, 96, 40)],
)
def test_auto_leaves_a_core_to_training_and_no_number_goes_beyond_the_cores(
    requested: int | Literal["auto"], own_cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "cores_of_rank", lambda local_world_size: own_cores)
    assert usable_workers(requested) == expected


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_a_quota_of_version_2_counts_on_every_level(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    write(own, "0::/pod/task")
    assert quota_cores(root, own) > 10_000
    write(root / "pod" / "task" / "cpu.max", "max 100000")
    assert quota_cores(root, own) > 10_000
    write(root / "pod" / "cpu.max", "250000 100000")
    assert quota_cores(root, own) == 3
    write(root / "cpu.max", "50000 100000")
    assert quota_cores(root, own) == 1
    write(root.parent / "cpu.max", "1 100000")  # no control group
    write(root / "pod" / "task" / "cpu.max", "nonsense")
    assert quota_cores(root, own) == 1


def test_a_quota_of_version_1_is_found_where_a_container_sees_it(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    write(own, "4:memory:/\n2:cpu,cpuacct:/docker/0123\n0::/")
    for name, value in (("quota", "-1"), ("period", "100000")):
        write(root / "cpu" / f"cpu.cfs_{name}_us", value)
    assert quota_cores(root, own) > 10_000
    write(root / "cpu" / "cpu.cfs_quota_us", "400000")
    assert quota_cores(root, own) == 4


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert quota_cores(tmp_path, tmp_path / "missing") > 10_000
