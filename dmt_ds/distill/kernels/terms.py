"""What a fused kernel is told and what it gives back; knows no kernel's inside."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["eager", "chunked", "triton"]


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
