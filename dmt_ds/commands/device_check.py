"""Which device a run would find here, and what slows it there; knows no recipe."""

import os
from collections.abc import Iterator

import torch

from dmt_ds.commands.findings import Finding
from dmt_ds.engine.dist import unseen_gpus
from dmt_ds.triton_support import obstacle_to_triton


def look_at_device(advice_for_cpu: str | None) -> Iterator[Finding]:
    """The GPUs of this machine and what they can't do.

    Args:
        advice_for_cpu: what would make the run faster where there is none.
    """
    count = torch.cuda.device_count()
    if unseen := unseen_gpus(os.environ):
        yield Finding("fail", "device", unseen)
        return
    if count == 0:
        told = ("no CUDA device here: the run would use the CPU and gloo", advice_for_cpu)
        yield from (Finding("warn", "device", text) for text in told if text)
        return
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    yield Finding("ok", "device", f"{count} x {torch.cuda.get_device_name(0)}, {gib:.0f} GiB, NCCL {nccl}")
    if not torch.cuda.is_bf16_supported():
        yield Finding("warn", "device", "no bf16 on this device: train.deepspeed=student_zero2_fp32")
    yield from slow_paths(torch.device("cuda"))


def slow_paths(device: torch.device) -> Iterator[Finding]:
    """What a run does without on a GPU where Triton's kernels can't be made."""
    if obstacle := obstacle_to_triton(device):
        yield Finding("warn", "device", f"losses and jitter take slower code and nothing is compiled: {obstacle}")
