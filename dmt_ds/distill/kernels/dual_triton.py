"""Both losses and their gradient in two CUDA kernels: sums of both axes from one reading, the gradient from a second.

The first kernel keeps running maxima and sums (as a flash softmax does) of its rows, and of each column within its
block of rows. The second joins the blocks' columns and writes the gradient: with a bfloat16 student and a float32
target 14 bytes an element pass through memory, where eager torch moves some 300. Blocks are not yet tuned on a GPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_ds.distill.kernels.terms import Computed, Terms, new_gradient

_BLOCK_ROWS = 64
_BLOCK_CHANNELS = 64
_WARPS = 8

_NUM_SUMS = 5
"""Kept for a row, or a column of a block of rows: maximum and sum of exponentials of s, the same of t, and the sum of
d = (s - max s) - (t - max t) under the exponentials of the distribution that stands first."""
_NOTHING = tl.constexpr(-1e38)
"""A maximum of nothing yet: below all values, and finite, so that a difference times a sum of zero is zero."""


def dual_loss(student: Tensor, target: Tensor, terms: Terms, needs_gradient: bool) -> Computed:
    """Both losses, and the gradient of their weighted sum: [B, 1+N, D] twice -> see `Computed`."""
    student, target = student.contiguous(), target.contiguous()
    batch, num_rows, channels = student.shape
    block_rows = min(_BLOCK_ROWS, triton.next_power_of_2(num_rows))
    blocks = triton.cdiv(num_rows, block_rows)
    gradient = new_gradient(student) if needs_gradient else None
    new = partial(torch.empty, dtype=torch.float32, device=student.device)
    row_sums, column_sums = new(batch, _NUM_SUMS, num_rows), new(batch, blocks, _NUM_SUMS, channels)
    row_losses, column_losses = new(batch, blocks), new(batch)
    shared = (num_rows, channels, terms.first_row, terms.student_first, block_rows, _BLOCK_CHANNELS)
    _sums[(blocks, batch)](student, target, row_sums, column_sums, row_losses, *shared, num_warps=_WARPS)
    _gradient[(blocks, batch)](
        student,
        target,
        row_sums,
        column_sums,
        column_losses,
        student if gradient is None else gradient,
        terms.row_weight(student),
        terms.column_weight(student),
        *shared,
        needs_gradient,
        num_warps=_WARPS,
    )
    tfd = row_losses.sum() / (batch * (num_rows - terms.first_row))
    return Computed(tfd, column_losses.sum() / (batch * channels), gradient)


@triton.jit
def _sums(
    student,
    target,
    row_sums,
    column_sums,
    row_losses,
    num_rows,
    num_channels,
    first_row,
    student_first: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
):
    """One program: some rows of one image, over all channels."""
    image, block, blocks = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.num_programs(0)
    rows = block * block_rows + tl.arange(0, block_rows)
    is_patch = (rows > 0) & (rows < num_rows)
    max_s = tl.full([block_rows], _NOTHING, tl.float32)
    max_t, sum_s, sum_t, sum_d = max_s, tl.zeros_like(max_s), tl.zeros_like(max_s), tl.zeros_like(max_s)
    columns_here = column_sums + (image * blocks + block) * 5 * num_channels
    for start in range(0, num_channels, block_channels):
        channels = start + tl.arange(0, block_channels)
        is_channel = channels < num_channels
        s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
        # What is left out of an axis is -inf to it; a row outside is all zeros, harmless and never used.
        in_s, in_t = tl.where(is_channel[None, :], s, float("-inf")), tl.where(is_channel[None, :], t, float("-inf"))
        tops_s, sums_s, tops_t, sums_t, sums_d = _reduced(s, t, in_s, in_t, 1, student_first)
        max_s, sum_s, max_t, sum_t, sum_d = _joined(
            max_s, sum_s, max_t, sum_t, sum_d, tops_s, sums_s, tops_t, sums_t, sums_d, student_first
        )
        in_s, in_t = tl.where(is_patch[:, None], s, float("-inf")), tl.where(is_patch[:, None], t, float("-inf"))
        tops_s, sums_s, tops_t, sums_t, sums_d = _reduced(s, t, in_s, in_t, 0, student_first)
        here = columns_here + channels
        tl.store(here, tops_s, is_channel)
        tl.store(here + num_channels, sums_s, is_channel)
        tl.store(here + 2 * num_channels, tops_t, is_channel)
        tl.store(here + 3 * num_channels, sums_t, is_channel)
        tl.store(here + 4 * num_channels, sums_d, is_channel)
    here, is_row = row_sums + image * 5 * num_rows + rows, rows < num_rows
    tl.store(here, max_s, is_row)
    tl.store(here + num_rows, sum_s, is_row)
    tl.store(here + 2 * num_rows, max_t, is_row)
    tl.store(here + 3 * num_rows, sum_t, is_row)
    tl.store(here + 4 * num_rows, sum_d, is_row)
    divergences = _divergence(sum_s, sum_t, sum_d, student_first)
    taught = is_row & (rows >= first_row)
    tl.store(row_losses + image * blocks + block, tl.sum(tl.where(taught, divergences, 0.0), 0))


@triton.jit
def _gradient(
    student,
    target,
    row_sums,
    column_sums,
    column_losses,
    gradient,
    row_weight,
    column_weight,
    num_rows,
    num_channels,
    first_row,
    student_first: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
    needs_gradient: tl.constexpr,
):
    """One program: the same rows; the image's first also adds up the columns' losses.

    It starts with the last image, which the second-level cache still holds from the first kernel.
    """
    image = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    block, blocks = tl.program_id(0), tl.num_programs(0)
    rows = block * block_rows + tl.arange(0, block_rows)
    is_row = rows < num_rows
    here = row_sums + image * 5 * num_rows + rows
    row_max_s, row_sum_s = tl.load(here, is_row, 0.0), tl.load(here + num_rows, is_row, 1.0)
    row_max_t, row_sum_t = tl.load(here + 2 * num_rows, is_row, 0.0), tl.load(here + 3 * num_rows, is_row, 1.0)
    row_mean = tl.load(here + 4 * num_rows, is_row, 0.0) / (row_sum_s if student_first else row_sum_t)
    row_weights = tl.where(rows >= first_row, row_weight, 0.0)
    column_weights = tl.where(rows > 0, column_weight, 0.0)  # SFD has no class token
    loss = tl.zeros([block_channels], tl.float32)
    for start in range(0, num_channels, block_channels):
        channels = start + tl.arange(0, block_channels)
        is_channel = channels < num_channels
        max_s, sum_s, max_t, sum_t, sum_d = _whole_columns(
            column_sums + image * blocks * 5 * num_channels, channels, num_channels, blocks, student_first
        )
        loss += tl.where(is_channel, _divergence(sum_s, sum_t, sum_d, student_first), 0.0)
        if needs_gradient:
            s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
            by_row = _shares(s, row_max_s[:, None], row_sum_s[:, None])
            by_column = _shares(s, max_s[None, :], sum_s[None, :])
            if student_first:
                by_row *= (s - row_max_s[:, None]) - (t - row_max_t[:, None]) - row_mean[:, None]
                by_column *= (s - max_s[None, :]) - (t - max_t[None, :]) - (sum_d / sum_s)[None, :]
            else:
                by_row -= _shares(t, row_max_t[:, None], row_sum_t[:, None])
                by_column -= _shares(t, max_t[None, :], sum_t[None, :])
            slope = by_row * row_weights[:, None] + by_column * column_weights[:, None]
            offsets = (image * num_rows + rows[:, None]) * num_channels + channels[None, :]
            tl.store(gradient + offsets, slope, is_row[:, None] & is_channel[None, :])
    if block == 0:
        tl.store(column_losses + image, tl.sum(loss, 0))


@triton.jit
def _tile(student, target, image, rows, channels, num_rows, num_channels):
    """Both tensors' values in float32, 0 outside."""
    offsets = (image * num_rows + rows[:, None]) * num_channels + channels[None, :]
    inside = (rows < num_rows)[:, None] & (channels < num_channels)[None, :]
    s, t = tl.load(student + offsets, inside, 0.0), tl.load(target + offsets, inside, 0.0)
    return s.to(tl.float32), t.to(tl.float32)


@triton.jit
def _reduced(s, t, in_s, in_t, axis: tl.constexpr, student_first: tl.constexpr):
    """The five sums along an axis of a tile; `in_s` and `in_t` are -inf where the axis leaves something out."""
    max_s, max_t = tl.maximum(tl.max(in_s, axis), _NOTHING), tl.maximum(tl.max(in_t, axis), _NOTHING)
    tops_s, tops_t = tl.expand_dims(max_s, axis), tl.expand_dims(max_t, axis)
    e, f = tl.exp(in_s - tops_s), tl.exp(in_t - tops_t)
    d = (s - tops_s) - (t - tops_t)
    return max_s, tl.sum(e, axis), max_t, tl.sum(f, axis), tl.sum((e if student_first else f) * d, axis)


@triton.jit
def _joined(
    max_s,
    sum_s,
    max_t,
    sum_t,
    sum_d,
    new_max_s,
    new_sum_s,
    new_max_t,
    new_sum_t,
    new_sum_d,
    student_first: tl.constexpr,
):
    """The five sums of two parts together: both are moved to the larger maxima first."""
    top_s, top_t = tl.maximum(max_s, new_max_s), tl.maximum(max_t, new_max_t)
    old, new = _shrink(max_s, max_t, top_s, top_t), _shrink(new_max_s, new_max_t, top_s, top_t)
    old_s, old_t, old_d = old
    new_s, new_t, new_d = new
    sum_d += (sum_s if student_first else sum_t) * old_d
    new_sum_d += (new_sum_s if student_first else new_sum_t) * new_d
    sum_d = sum_d * (old_s if student_first else old_t) + new_sum_d * (new_s if student_first else new_t)
    return top_s, sum_s * old_s + new_sum_s * new_s, top_t, sum_t * old_t + new_sum_t * new_t, sum_d


@triton.jit
def _shrink(max_s, max_t, top_s, top_t):
    """Factors of the exponentials of s and of t, and what is added to d, when the maxima become the tops."""
    return tl.exp(max_s - top_s), tl.exp(max_t - top_t), (max_s - top_s) - (max_t - top_t)


@triton.jit
def _shares(values, tops, sums):
    """Softmax from an axis's maximum and sum; what lies above (the class token to the columns) is not overflowed by."""
    return tl.exp(tl.minimum(values - tops, 0.0)) / sums


@triton.jit
def _whole_columns(image_sums, channels, num_channels, blocks, student_first: tl.constexpr):
    """A column's five sums over all blocks of rows."""
    is_channel = channels < num_channels
    max_s = tl.full([channels.shape[0]], _NOTHING, tl.float32)
    max_t, sum_s, sum_t, sum_d = max_s, tl.zeros_like(max_s), tl.zeros_like(max_s), tl.zeros_like(max_s)
    for block in range(blocks):
        here = image_sums + block * 5 * num_channels + channels
        max_s, sum_s, max_t, sum_t, sum_d = _joined(
            max_s,
            sum_s,
            max_t,
            sum_t,
            sum_d,
            tl.load(here, is_channel, 0.0),
            tl.load(here + num_channels, is_channel, 1.0),
            tl.load(here + 2 * num_channels, is_channel, 0.0),
            tl.load(here + 3 * num_channels, is_channel, 1.0),
            tl.load(here + 4 * num_channels, is_channel, 0.0),
            student_first,
        )
    return max_s, sum_s, max_t, sum_t, sum_d


@triton.jit
def _divergence(sum_s, sum_t, sum_d, student_first: tl.constexpr):
    """KL of each row, or column, from its sums."""
    log_ratio = tl.log(sum_s / sum_t)
    return sum_d / sum_s - log_ratio if student_first else log_ratio - sum_d / sum_t
