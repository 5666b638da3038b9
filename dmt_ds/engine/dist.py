"""Ranks, and the few collectives that tasks and trainer need; works with no process group; knows no DeepSpeed."""

import math
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from dmt_ds.errors import DmtError, LaunchError, PeerFailedError
from dmt_ds.wording import first_line, one_line

T = TypeVar("T")

_group_timeout: timedelta | None = None

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
    if slurm_step_tasks(environ) > 1:
        return _slurm_environment(environ)
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }


def slurm_step_tasks(environ: Mapping[str, str]) -> int:
    """Tasks of the `srun` step that this process is one of; 1 outside a step.

    SLURM_NTASKS would not do: the shell of a batch job has it, with SLURM_PROCID=0, though nobody joins it there.
    """
    text = environ.get("SLURM_STEP_NUM_TASKS", "1")
    return int(text) if text.isdigit() and "SLURM_PROCID" in environ else 1


def slurm_tasks_of_nodes(text: str) -> list[int]:
    """Tasks of each node as SLURM writes them: `2(x3),1` is [2, 2, 2, 1]; [] where it is written otherwise."""
    nodes: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            return []
        nodes += [int(found[1])] * int(found[2] or 1)
    return nodes


def _slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    if "MASTER_ADDR" not in environ:
        raise LaunchError(
            "a SLURM step of several tasks but MASTER_ADDR is not set: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
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
    """Ranks on each node, as the launcher says; all of them where it does not.

    Where nodes have unlike numbers it is the largest number that divides them all, so that ranks agree and groups of
    so many neighbours never cross a node.
    """
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if slurm_step_tasks(os.environ) > 1:
        return math.gcd(*slurm_tasks_of_nodes(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))) or world_size()
    return world_size()


def why_apart(environment: Mapping[str, str], error: Exception) -> str:
    """Why a rank found no way to the others, and what to do; NCCL's reason is the last of many lines."""
    text = str(error).strip()
    if "NCCL" in text:
        reason = one_line(text.rpartition("Last error:")[2])
        remedy = "Each rank needs a GPU of its own; NCCL_DEBUG=INFO shows more"
    else:
        reason = first_line(error)
        remedy = "Is the port taken by another job? Set another MASTER_PORT (torchrun: --master-port)"
    address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return f"rank {environment['RANK']}: no process group at {address}: {reason}. {remedy}"


def set_group_timeout(timeout: timedelta) -> None:
    """How long collectives of groups made from now on wait for the slowest rank.

    torch gives this to the group of all alone; every other group of NCCL has 10 minutes, then kills its ranks.
    """
    global _group_timeout
    _group_timeout = timeout


def new_group(ranks: Iterable[int]) -> Any:
    """A group of some ranks; all ranks call, in the same order."""
    return torch_dist.new_group(list(ranks), timeout=_group_timeout)


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


def alike_on_all(error: DmtError) -> DmtError:
    """What each rank raises when all find the same error: rank 0 the error, the others a silent PeerFailedError."""
    return error if is_main() else PeerFailedError(str(error))


def decided_by_main(decide: Callable[[], T]) -> T:
    """Have rank 0 do it, and give its result to all: ranks that look at a shared file system may see different things.

    Raises:
        PeerFailedError: on the other ranks, where rank 0 raises its own error.
    """
    if world_size() == 1:
        return decide()
    results: list[T] = []
    failure: Exception | None = None
    if is_main():
        try:
            results.append(decide())
        except Exception as error:
            failure = error
    results, problem = from_main((results, None if failure is None else f"rank 0: {failure}"))
    if failure is not None:
        raise failure
    if problem is not None:
        raise PeerFailedError(problem)
    return results[0]
