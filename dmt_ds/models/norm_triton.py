"""LayerNorm of a sum in one CUDA kernel: each row is read once and written once."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _WARPS = 2, 2
"""Of a program. For 50,000 rows of 768 numbers in bf16 an H200 takes 40 us, as long as moving their bytes does."""


def shifted_norm(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis of x + shift, computed in float32: contiguous [..., D] -> [..., D] of x's type.

    Args:
        shift: [D] float32, added to each row.
    """
    made, width = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // width
    _norm[(triton.cdiv(rows, _ROWS),)](
        x, shift, weight, bias, made, rows, eps, width, triton.next_power_of_2(width), _ROWS, num_warps=_WARPS
    )
    return made


@triton.jit
def _norm(
    x, shift, weight, bias, made, num_rows, eps, width: tl.constexpr, columns: tl.constexpr, rows_at_once: tl.constexpr
):
    """One program: some whole rows."""
    row = tl.program_id(0) * rows_at_once + tl.arange(0, rows_at_once)
    column = tl.arange(0, columns)
    is_column = column < width
    inside = (row < num_rows)[:, None] & is_column[None, :]
    places = row.to(tl.int64)[:, None] * width + column[None, :]
    added = tl.load(shift + column, mask=is_column, other=0.0)
    values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32) + added[None, :]
    mean = tl.sum(values, 1) / width
    centred = tl.where(is_column[None, :], values - mean[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)
    scale = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    normed = centred * deviation[:, None] * scale[None, :] + offset[None, :]
    tl.store(made + places, normed.to(made.dtype.element_ty), mask=inside)
