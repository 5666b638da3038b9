"""Jitter and normalisation of a batch in two CUDA kernels: the mean grey that contrast asks for, then all the rest.

In eager torch each turn of the jitter goes through memory several times, in float32; here an image is read as bytes
twice and written once. Sums are added up in a fixed order, so that the same batch gives the same pixels bit for bit.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
"""Pixels of one program."""


def jitter(images: Tensor, order: Tensor, amounts: Tensor, grey: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """Colour jitter, greyscale and normalisation: [B, 3, H, W] uint8 of any strides -> the same in float32, in planes.

    Args:
        order: [B, T] int64, what each image does in each of its turns: 0 brightness, 1 contrast, 2 saturation, 3 hue.
            Without turns it is only normalised.
        amounts: [B, 4] float32, each image's by that number: three factors, and the share of a full circle of hues.
        grey: [B] bool, which images lose their colours in the end; None has none.
        scale: 3 numbers, with `shift` for each channel: pixels in 0..1 times `scale` plus `shift` come out.
    """
    batch, _, height, width = images.shape
    if images.stride(2) != width * images.stride(3):
        images = images.contiguous()
    num_pixels, num_turns = height * width, order.shape[1]
    blocks = triton.cdiv(num_pixels, _BLOCK)
    sums = torch.empty(batch, blocks, dtype=torch.float32, device=images.device)
    made = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    order, amounts = order.contiguous(), amounts.contiguous()
    shared = (num_pixels, images.stride(0), images.stride(1), images.stride(3), num_turns, _BLOCK)
    if num_turns:
        _grey_sums[(blocks, batch)](images, order, amounts, sums, *shared)
    _pixels[(blocks, batch)](
        images,
        order,
        amounts,
        sums,
        images if grey is None else grey,
        scale,
        shift,
        made,
        *shared,
        triton.next_power_of_2(blocks),
        grey is not None,
    )
    return made


@triton.jit
def _grey_sums(
    images,
    order,
    amounts,
    sums,
    num_pixels,
    image_stride,
    channel_stride,
    pixel_stride,
    num_turns: tl.constexpr,
    block: tl.constexpr,
):
    """One program: the sum of grey of some pixels of one image, as they are when its contrast is due."""
    image, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    pixels = part * block + tl.arange(0, block)
    inside = pixels < num_pixels
    red, green, blue = _fractions(images + image * image_stride + pixels * pixel_stride, channel_stride, inside)
    is_due = False
    for turn in tl.static_range(num_turns):
        kind = tl.load(order + image * num_turns + turn)
        is_due = is_due | (kind == 1)
        amount = tl.load(amounts + image * 4 + kind)
        turned_red, turned_green, turned_blue = _turned(red, green, blue, kind, amount, 0.0)
        red = tl.where(is_due, red, turned_red)
        green = tl.where(is_due, green, turned_green)
        blue = tl.where(is_due, blue, turned_blue)
    grey = tl.where(inside, _grey(red, green, blue), 0.0)
    tl.store(sums + image * tl.num_programs(0) + part, tl.sum(grey, 0))


@triton.jit
def _pixels(
    images,
    order,
    amounts,
    sums,
    loses_colours,
    scale,
    shift,
    made,
    num_pixels,
    image_stride,
    channel_stride,
    pixel_stride,
    num_turns: tl.constexpr,
    block: tl.constexpr,
    most_blocks: tl.constexpr,
    has_grey: tl.constexpr,
):
    """One program: some pixels of one image, from bytes to what the student sees."""
    image, part, blocks = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.num_programs(0)
    pixels = part * block + tl.arange(0, block)
    inside = pixels < num_pixels
    red, green, blue = _fractions(images + image * image_stride + pixels * pixel_stride, channel_stride, inside)
    if num_turns > 0:
        parts = tl.arange(0, most_blocks)
        mean = tl.sum(tl.load(sums + image * blocks + parts, parts < blocks, 0.0), 0) / num_pixels
        for turn in tl.static_range(num_turns):
            kind = tl.load(order + image * num_turns + turn)
            amount = tl.load(amounts + image * 4 + kind)
            red, green, blue = _turned(red, green, blue, kind, amount, mean)
    if has_grey:
        grey, is_grey = _grey(red, green, blue), tl.load(loses_colours + image) != 0
        red = tl.where(is_grey, grey, red)
        green = tl.where(is_grey, grey, green)
        blue = tl.where(is_grey, grey, blue)
    there = made + image * 3 * num_pixels + pixels
    tl.store(there, red * tl.load(scale) + tl.load(shift), inside)
    tl.store(there + num_pixels, green * tl.load(scale + 1) + tl.load(shift + 1), inside)
    tl.store(there + 2 * num_pixels, blue * tl.load(scale + 2) + tl.load(shift + 2), inside)


@triton.jit
def _fractions(here, channel_stride, inside):
    """Three channels of bytes in 0..1."""
    red = tl.load(here, inside, 0).to(tl.float32) / 255
    green = tl.load(here + channel_stride, inside, 0).to(tl.float32) / 255
    blue = tl.load(here + 2 * channel_stride, inside, 0).to(tl.float32) / 255
    return red, green, blue


@triton.jit
def _grey(red, green, blue):
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _turned(red, green, blue, kind, amount, mean):
    """One turn of the jitter; see `augment.py`, which has the same formulas for whole tensors."""
    if kind == 3:
        red, green, blue = _hue_turned(red, green, blue, amount)
    else:
        flat = tl.where(kind == 1, mean, 0.0)
        base = tl.where(kind == 2, _grey(red, green, blue), flat)
        red, green, blue = _blend(base, red, amount), _blend(base, green, amount), _blend(base, blue, amount)
    return red, green, blue


@triton.jit
def _blend(base, channel, factor):
    return _clamped(base + factor * (channel - base))


@triton.jit
def _hue_turned(red, green, blue, turn):
    value, low = tl.maximum(red, tl.maximum(green, blue)), tl.minimum(red, tl.minimum(green, blue))
    span = value - low
    is_red, is_green = value == red, value == green
    ahead = tl.where(is_red, green - blue, tl.where(is_green, blue - red, red - green))
    start = tl.where(is_red, 0.0, tl.where(is_green, 2.0, 4.0)) + 6 * turn
    hue = ahead / tl.where(span == 0, 1.0, span) + start
    return _of_hue(value, span, hue + 5), _of_hue(value, span, hue + 3), _of_hue(value, span, hue + 1)


@triton.jit
def _of_hue(value, span, sixths):
    """A channel of a pixel whose hue lies so many sixths of a circle from it."""
    sixths -= 6 * tl.floor(sixths / 6)
    return value - span * _clamped(tl.minimum(sixths, 4 - sixths))


@triton.jit
def _clamped(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)
