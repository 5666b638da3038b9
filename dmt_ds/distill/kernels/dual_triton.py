"""Both losses and their gradient in two CUDA kernels: the columns first, then whole rows with the gradient.

The first kernel takes some channels of an image over all its rows and keeps each column's maxima and sums. The second
takes some whole rows: with their own sums and those of the columns it writes the gradient. Both walk over their part
once for the maxima, again for the sums and, the second, for the gradient, from the cache: a walk keeps its results
element by element, and only at its end do threads exchange anything. So memory is read twice: with a bfloat16 student
and a float32 target 14 bytes an element pass through it, where eager torch moves some 300.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmt_ds.distill.kernels.terms import Computed, Terms, new_gradient

_ROWS = 16
"""Rows of a step of a walk, in both kernels."""
_COLUMNS, _COLUMN_WARPS = 64, 4
"""Channels of a program of the first kernel."""
_WIDTH, _ROW_WARPS = 128, 8
"""Channels of a step of the second one's walk: four for each thread of a warp, so that a row is a warp's."""

_SCALED_AT_ONCE = 4096
"""Elements of a program of the scaling."""

_NUM_SUMS = 5  # kernels, which can't read it, write the number
"""Kept for a column: maximum and sum of exponentials of s, the same of t, and the sum of d = (s - max s) - (t - max t)
under the exponentials of the distribution that stands first."""


def dual_loss(student: Tensor, target: Tensor, terms: Terms, needs_gradient: bool) -> Computed:
    """Both losses, and the gradient of their weighted sum: [B, 1+N, D] twice -> see `Computed`."""
    student, target = student.contiguous(), target.contiguous()
    batch, num_rows, channels = student.shape
    gradient = new_gradient(student) if needs_gradient else None
    new = partial(torch.empty, dtype=torch.float32, device=student.device)
    tiles, blocks = triton.cdiv(channels, _COLUMNS), triton.cdiv(num_rows, _ROWS)
    column_sums, column_losses, row_losses = new(batch, _NUM_SUMS, channels), new(batch, tiles), new(batch, blocks)
    shared = (num_rows, channels, terms.student_first, _ROWS)
    _columns[(tiles, batch)](student, target, column_sums, column_losses, *shared, _COLUMNS, num_warps=_COLUMN_WARPS)
    _rows[(blocks, batch)](
        student,
        target,
        column_sums,
        row_losses,
        student if gradient is None else gradient,
        terms.row_weight(student),
        terms.column_weight(student),
        terms.first_row,
        *shared,
        _WIDTH,
        needs_gradient,
        num_warps=_ROW_WARPS,
    )
    tfd = row_losses.sum() / (batch * (num_rows - terms.first_row))
    return Computed(tfd, column_losses.sum() / (batch * channels), gradient)


def scale_(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiplies a contiguous gradient, in place, by a float32 scalar; a factor of 1 costs no pass over it."""
    assert gradient.is_contiguous()
    blocks = triton.cdiv(gradient.numel(), _SCALED_AT_ONCE)
    _scale[(blocks,)](gradient, factor, gradient.numel(), _SCALED_AT_ONCE)
    return gradient


@triton.jit
def _columns(
    student,
    target,
    column_sums,
    column_losses,
    num_rows,
    num_channels,
    student_first: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
):
    """One program: some channels of one image over its patches; SFD has no class token."""
    image, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    channels = tile * block_channels + tl.arange(0, block_channels)
    most_s = tl.full([block_rows, block_channels], float("-inf"), tl.float32)
    most_t = most_s
    for start in range(0, num_rows, block_rows):
        rows = start + tl.arange(0, block_rows)
        is_patch = ((rows > 0) & (rows < num_rows))[:, None]
        s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
        most_s = tl.maximum(most_s, tl.where(is_patch, s, float("-inf")))
        most_t = tl.maximum(most_t, tl.where(is_patch, t, float("-inf")))
    max_s, max_t = tl.max(most_s, 0), tl.max(most_t, 0)
    sums_s = tl.zeros([block_rows, block_channels], tl.float32)
    sums_t, sums_d = sums_s, sums_s
    for start in range(0, num_rows, block_rows):
        rows = start + tl.arange(0, block_rows)
        is_patch = ((rows > 0) & (rows < num_rows))[:, None]
        s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
        e, f, of_d = _terms(s - max_s[None, :], t - max_t[None, :], is_patch, student_first)
        sums_s, sums_t, sums_d = sums_s + e, sums_t + f, sums_d + of_d
    sum_s, sum_t, sum_d = tl.sum(sums_s, 0), tl.sum(sums_t, 0), tl.sum(sums_d, 0)
    is_channel = channels < num_channels
    here = column_sums + image * 5 * num_channels + channels
    tl.store(here, max_s, is_channel)
    tl.store(here + num_channels, sum_s, is_channel)
    tl.store(here + 2 * num_channels, max_t, is_channel)
    tl.store(here + 3 * num_channels, sum_t, is_channel)
    tl.store(here + 4 * num_channels, sum_d, is_channel)
    losses = tl.where(is_channel, _divergence(sum_s, sum_t, sum_d, student_first), 0.0)
    tl.store(column_losses + image * tl.num_programs(0) + tile, tl.sum(losses, 0))


@triton.jit
def _rows(
    student,
    target,
    column_sums,
    row_losses,
    gradient,
    row_weight,
    column_weight,
    first_row,
    num_rows,
    num_channels,
    student_first: tl.constexpr,
    block_rows: tl.constexpr,
    width: tl.constexpr,
    needs_gradient: tl.constexpr,
):
    """One program: some whole rows of one image.

    It starts with the last image, which the second-level cache still holds from the first kernel.
    """
    image = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    block = tl.program_id(0)
    rows = block * block_rows + tl.arange(0, block_rows)
    most_s = tl.full([block_rows, width], float("-inf"), tl.float32)
    most_t = most_s
    for start in range(0, num_channels, width):
        channels = start + tl.arange(0, width)
        is_channel = (channels < num_channels)[None, :]
        s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
        most_s = tl.maximum(most_s, tl.where(is_channel, s, float("-inf")))
        most_t = tl.maximum(most_t, tl.where(is_channel, t, float("-inf")))
    max_s, max_t = tl.max(most_s, 1)[:, None], tl.max(most_t, 1)[:, None]
    sums_s = tl.zeros([block_rows, width], tl.float32)
    sums_t, sums_d = sums_s, sums_s
    for start in range(0, num_channels, width):
        channels = start + tl.arange(0, width)
        s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
        e, f, of_d = _terms(s - max_s, t - max_t, (channels < num_channels)[None, :], student_first)
        sums_s, sums_t, sums_d = sums_s + e, sums_t + f, sums_d + of_d
    sum_s, sum_t, sum_d = tl.sum(sums_s, 1)[:, None], tl.sum(sums_t, 1)[:, None], tl.sum(sums_d, 1)[:, None]
    taught = ((rows >= first_row) & (rows < num_rows))[:, None]
    losses = tl.where(taught, _divergence(sum_s, sum_t, sum_d, student_first), 0.0)
    tl.store(row_losses + image * tl.num_programs(0) + block, tl.sum(losses))
    if needs_gradient:
        row_weights = tl.where(taught, row_weight, 0.0)
        column_weights = tl.where(rows > 0, column_weight, 0.0)[:, None]
        for start in range(0, num_channels, width):
            channels = start + tl.arange(0, width)
            s, t = _tile(student, target, image, rows, channels, num_rows, num_channels)
            slope = row_weights * _slope(s, t, max_s, sum_s, max_t, sum_t, sum_d, student_first)
            is_channel = channels < num_channels
            here = column_sums + image * 5 * num_channels + channels
            top_s, all_s, top_t, all_t, all_d = _loaded(here, num_channels, is_channel)
            slope += column_weights * _slope(s, t, top_s, all_s, top_t, all_t, all_d, student_first)
            offsets = (image * num_rows + rows[:, None]) * num_channels + channels[None, :]
            tl.store(gradient + offsets, slope, (rows < num_rows)[:, None] & is_channel[None, :])


@triton.jit
def _tile(student, target, image, rows, channels, num_rows, num_channels):
    """Both tensors' values in float32, 0 outside."""
    offsets = (image * num_rows + rows[:, None]) * num_channels + channels[None, :]
    inside = (rows < num_rows)[:, None] & (channels < num_channels)[None, :]
    s, t = tl.load(student + offsets, inside, 0.0), tl.load(target + offsets, inside, 0.0)
    return s.to(tl.float32), t.to(tl.float32)


@triton.jit
def _loaded(here, num_channels, is_channel):
    """A step's columns: maxima and sums, [1, width] each."""
    top_s, all_s = tl.load(here, is_channel, 0.0), tl.load(here + num_channels, is_channel, 1.0)
    top_t, all_t = tl.load(here + 2 * num_channels, is_channel, 0.0), tl.load(here + 3 * num_channels, is_channel, 1.0)
    all_d = tl.load(here + 4 * num_channels, is_channel, 0.0)
    return top_s[None, :], all_s[None, :], top_t[None, :], all_t[None, :], all_d[None, :]


@triton.jit
def _terms(s, t, counts, student_first: tl.constexpr):
    """Of the three sums, from values whose maxima are taken off; nothing where an axis leaves them out."""
    e, f = tl.where(counts, tl.exp(s), 0.0), tl.where(counts, tl.exp(t), 0.0)
    return e, f, (e if student_first else f) * tl.where(counts, s - t, 0.0)


@triton.jit
def _slope(s, t, max_s, sum_s, max_t, sum_t, sum_d, student_first: tl.constexpr):
    """Gradient of a row's, or column's, divergence; what it leaves out may lie above its maximum, and has no weight."""
    s, t = s - max_s, t - max_t
    p = tl.exp(tl.minimum(s, 0.0)) * (1 / sum_s)
    return p * (s - t - sum_d * (1 / sum_s)) if student_first else p - tl.exp(tl.minimum(t, 0.0)) * (1 / sum_t)


@triton.jit
def _divergence(sum_s, sum_t, sum_d, student_first: tl.constexpr):
    """KL of each row, or column, from its sums."""
    log_ratio = tl.log(sum_s / sum_t)
    return sum_d / sum_s - log_ratio if student_first else log_ratio - sum_d / sum_t


@triton.jit
def _scale(gradient, factor, num_elements, block: tl.constexpr):
    """One program: some elements. The host does not know the factor, which is 1 as a rule."""
    by = tl.load(factor)
    if by != 1.0:
        offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = offsets < num_elements
        tl.store(gradient + offsets, tl.load(gradient + offsets, inside).to(tl.float32) * by, inside)
