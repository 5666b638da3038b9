"""What a fused kernel is told, what it gives back, and which one serves a run; knows no kernel's inside."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["eager", "chunked", "triton"]
KernelSetting = Literal["auto", "eager", "chunked", "triton"]


class Terms(NamedTuple):
    """The two divergences and their weights in the total.

    With p = softmax(s), q = softmax(t) along one axis, Z the sums of the exponentials after the axis's maximum is taken
    off, d = (s - max s) - (t - max t), and w the axis's weight:

    | direction | value K | gradient |
    | --- | --- | --- |
    | KL(student, fused) | sum p d - log(Z_s / Z_t) | w p (d - sum p d) |
    | KL(fused, student) | log(Z_s / Z_t) - sum q d | w (p - q) |

    So an axis needs two maxima and three sums. Without the maxima in d, a shift of s against t, which changes nothing,
    would cancel badly in float32.
    """

    student_first: bool
    """KL(student || fused) as printed, or KL(fused || student)."""
    tfd_weight: float
    sfd_weight: float
    first_row: int
    """First token that TFD looks at: 1 where nobody teaches the class token. SFD always starts at 1."""

    def row_weight(self, tokens: Tensor) -> float:
        """Weight of one token's divergence in the total; tokens [B, 1+N, D]."""
        return self.tfd_weight / (tokens.shape[0] * (tokens.shape[1] - self.first_row))

    def column_weight(self, tokens: Tensor) -> float:
        """Weight of one channel's divergence in the total; tokens [B, 1+N, D]."""
        return self.sfd_weight / (tokens.shape[0] * tokens.shape[2])


class Computed(NamedTuple):
    """What a kernel gives."""

    tfd: Tensor
    """Scalar, float32 (float64 for float64 tokens), without weight."""
    sfd: Tensor
    """Scalar, float32 (float64 for float64 tokens), without weight."""
    gradient: Tensor | None
    """Of tfd_weight * tfd + sfd_weight * sfd by the student tokens: [B, 1+N, D]; None if not asked for."""


def new_gradient(student: Tensor) -> Tensor:
    """Room for the gradient, of the tokens' type; float32 for float16, which a mean's small slopes would underflow."""
    kept = torch.float32 if student.dtype == torch.float16 else student.dtype
    return torch.empty_like(student, dtype=kept, memory_format=torch.contiguous_format)


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
        raise ValueError(f"kernel triton can't run here: {obstacle}; take auto")
    if setting != "auto":
        return setting, "as set"
    if obstacle is None:
        return "triton", "the device is CUDA"
    if device.type == "cpu":
        return "chunked", "the fastest on a CPU"
    return "eager", obstacle


def obstacle_to_triton(device: torch.device) -> str | None:
    """Why Triton's kernels can't run on a device, in a few words; None where they can.

    For each kernel it compiles a stub in C on the machine that runs it, so that nodes without a compiler go without.
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler, and there is none (gcc, clang, or its path as CC)"
    headers = Path(sysconfig.get_config_var("INCLUDEPY") or "")
    if not (headers / "Python.h").is_file():
        return f"triton needs Python's headers, and there are none in {headers}"
    return None
