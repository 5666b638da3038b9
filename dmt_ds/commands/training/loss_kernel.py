"""Which kernel of the losses serves a run; knows no kernel's inside."""

from typing import Literal

import torch

from dmt_ds.distill.kernels.terms import Kernel
from dmt_ds.triton_support import obstacle_to_triton

KernelSetting = Literal["auto", "eager", "chunked", "triton"]


def choose_kernel(
    setting: KernelSetting, divergence: str, tfd_weight: float, sfd_weight: float, device: torch.device
) -> tuple[Kernel, str]:
    """The kernel that a run uses, and why in a few words.

    Raises:
        ValueError: `triton` is asked for where it can't run.
    """
    if setting == "eager":
        return "eager", "as set"
    if divergence != "kl":
        return "eager", f"divergence {divergence} has no fused form"
    if not (tfd_weight and sfd_weight):
        return "eager", "only one of the two losses is computed"
    obstacle = obstacle_to_triton(device)
    if setting == "triton" and obstacle:
        raise ValueError(f"kernel triton can't run here: {obstacle}; use auto")
    if setting != "auto":
        return setting, "as set"
    if obstacle is None:
        return "triton", "the device is CUDA"
    if device.type == "cpu":
        return "chunked", "the fastest on a CPU"
    return "eager", obstacle
