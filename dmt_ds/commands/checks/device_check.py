"""Which device a run would find here, and what slows it there; knows no recipe."""

import os
from collections.abc import Callable, Iterator

import torch

from dmt_ds.commands.checks.findings import Finding
from dmt_ds.engine.ranks.devices import unseen_gpus, unused_gpus
from dmt_ds.triton_support import obstacle_to_triton


def look_at_device(advice_on_precision: Callable[[torch.device], str | None]) -> Iterator[Finding]:
    """The GPUs of this machine and what they can't do.

    Args:
        advice_on_precision: what would make the run faster on a device.
    """
    count = torch.cuda.device_count()
    device = torch.device("cuda", 0) if count else torch.device("cpu")
    if unseen := unseen_gpus(os.environ):
        yield Finding("fail", "device", unseen)
        return
    if count == 0:
        told = unused_gpus(os.environ) or "no CUDA device here: the run would use the CPU and gloo"
        yield Finding("warn", "device", told)
    else:
        name, gib = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / 2**30
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        yield Finding("ok", "device", f"{count} x {name}, {gib:.0f} GiB, NCCL {nccl}")
        if foreign := without_kernels():
            yield Finding("fail", "device", foreign)
        yield from slow_paths(device)
    if advice := advice_on_precision(device):
        yield Finding("warn", "device", advice)


def without_kernels() -> str | None:
    """What is wrong where this torch was built for newer GPUs than this machine's first; None where it runs there."""
    major, minor = torch.cuda.get_device_capability(0)
    oldest = min(int(arch.partition("_")[2].rstrip("af")) for arch in torch.cuda.get_arch_list())
    if 10 * major + minor >= oldest:
        return None
    name = torch.cuda.get_device_name(0)
    return (
        f"{name} has compute capability {major}.{minor}, and torch {torch.__version__} is built for "
        f"{oldest // 10}.{oldest % 10} and newer: install an older torch (2.8 or later), or one for an older CUDA"
    )


def slow_paths(device: torch.device) -> Iterator[Finding]:
    """What a run does without on a GPU where Triton's kernels can't be made."""
    if obstacle := obstacle_to_triton(device):
        yield Finding("warn", "device", f"losses and jitter use slower code and nothing is compiled: {obstacle}")
