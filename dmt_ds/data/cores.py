"""How many CPU cores a rank may use, and how many loader processes that makes; knows no image."""

import logging
import math
import os
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

MAX_AUTO_WORKERS = 16
"""More feed no GPU faster, and each takes memory for the batches that it holds ready."""


def cores_of_rank(local_world_size: int = 1) -> int:
    """This rank's share of the cores that the scheduler, the affinity and the container leave to it, at least 1.

    Args:
        local_world_size: ranks on this node, which share its cores.
    """
    cores = min(len(os.sched_getaffinity(0)), quota_cores())
    cores_a_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if "LOCAL_WORLD_SIZE" not in os.environ and cores_a_task.isdigit():
        return max(1, min(cores, int(cores_a_task)))  # srun binds each rank to cores of its own
    return max(1, cores // local_world_size)


def usable_workers(requested: int | Literal["auto"], local_world_size: int = 1) -> int:
    """Loader processes for this rank: as requested, but no more than it has cores.

    Args:
        requested: `auto` is one a core, less one for the training process.
        local_world_size: ranks on this node, which share its cores.
    """
    cores = cores_of_rank(local_world_size)
    if requested == "auto":
        return min(max(1, cores - 1), MAX_AUTO_WORKERS)
    if requested > cores:
        logger.info("%d loader processes instead of data.num_workers %d: this rank has no more cores", cores, requested)
    return min(requested, cores)


def quota_cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that the control groups of this process give it time for, rounded up; very many where nothing limits it.

    A container's quota is not seen in the affinity: all cores of the machine are there, but they stand still for most
    of the time.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    groups = [line.split(":", 2) for line in lines]
    folders = [root / path.lstrip("/") for number, _, path in groups if number == "0"]
    folders += [root / "cpu" / path.lstrip("/") for _, names, path in groups if "cpu" in names.split(",")]
    limits = [_quota(level) for folder in folders for level in (folder, *folder.parents) if level.is_relative_to(root)]
    return min([math.ceil(limit) for limit in limits if limit is not None], default=2**20)


def _quota(folder: Path) -> float | None:
    """Cores of one control group, by version 2 or 1 of its files; None without limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota.isdigit() and int(period) else None
    except (OSError, ValueError):
        return None
