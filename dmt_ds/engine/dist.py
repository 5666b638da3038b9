"""Ranks, and the few collectives that tasks and trainer need; works with no process group; knows no DeepSpeed."""

import os
import socket
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from dmt_ds.errors import LaunchError

T = TypeVar("T")

_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The five variables that torch and DeepSpeed read, from torchrun's, else SLURM's, else one process's environment.

    Raises:
        LaunchError: some of the five are set but not all, or a SLURM step of several tasks gives no MASTER_ADDR.
    """
    found = {name: environ[name] for name in _LAUNCHER_VARIABLES if name in environ}
    if "RANK" in found:
        missing = [name for name in _LAUNCHER_VARIABLES if name not in found]
        if missing:
            raise LaunchError(f"RANK is set but {', '.join(missing)} is not: start with torchrun, deepspeed or srun")
        return found
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environ:
        return _slurm_environment(environ)
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }


def _slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    if "MASTER_ADDR" not in environ:
        raise LaunchError(
            "SLURM_NTASKS > 1 but MASTER_ADDR is not set: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "MASTER_ADDR": environ["MASTER_ADDR"],
        "MASTER_PORT": environ.get("MASTER_PORT", str(10000 + int(environ["SLURM_JOB_ID"]) % 20000)),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_initialized() -> bool:
    """Whether there is a process group."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """This process's number; 0 without a process group."""
    return torch_dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return torch_dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0: the one that logs, tracks and prunes."""
    return rank() == 0


def local_world_size() -> int:
    """Ranks on this node, as the launcher says; all of them where it does not."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return world_size()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        torch_dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over ranks, in place where there are several."""
    if world_size() > 1:
        torch_dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a tensor over ranks (gloo has no AVG, so a sum is divided)."""
    return sum_over_ranks(values) / world_size()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order: [B, ...] -> [world * B, ...]; no gradient flows through."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    torch_dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_objects(item: T) -> list[T]:
    """One small picklable thing from each rank, in rank order."""
    if world_size() == 1:
        return [item]
    items = [item] * world_size()
    torch_dist.all_gather_object(items, item)
    return items


def from_main(item: T) -> T:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return item
    box = [item]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]
