"""How fast this machine multiplies and gathers, measured in a moment; knows no model."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as torch_dist

from dmt_ds.engine import dist

_ROUNDS = 3
_SIDE = 1024  # of the multiplied matrices on a CPU
_CUDA_SIDE = 8192
_GATHERED_BYTES = 1 << 24


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product in this rank, a multiply-add being two: the best of a few."""
    side = _CUDA_SIDE if device.type == "cuda" else _SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best_seconds(lambda: a @ b, device)


def gather_bytes_per_second(group: Any, group_size: int, device: torch.device) -> float:
    """Bytes that a rank receives a second in an all-gather; all ranks of the group call."""
    part = torch.zeros(_GATHERED_BYTES // group_size, dtype=torch.uint8, device=device)
    whole = torch.empty(group_size * part.numel(), dtype=torch.uint8, device=device)
    seconds = _best_seconds(lambda: torch_dist.all_gather_into_tensor(whole, part, group=group), device)
    return part.numel() * (group_size - 1) / seconds


def slowest(rate: float) -> float:
    """The lowest rate of all ranks, the same on each."""
    return min(dist.gather_objects(rate))


def _best_seconds(act: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(1 + _ROUNDS):
        _wait(device)
        start = time.perf_counter()
        act()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one warms up


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
