"""Which patches of an image are hidden: a function of the image's seed alone, so the same on any number of ranks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds import sample_rng

BLOCK_ATTEMPTS = 16
BLOCK_ASPECT = 0.3
"""Smallest aspect of a hidden rectangle; the largest is its inverse."""


def patch_order(seeds: Tensor, stream: str, num_patches: int) -> Tensor:
    """A random order of an image's patches: [B] -> [B, N] int64, each row a permutation."""
    return sample_rng.uniform(seeds, stream, num_patches).argsort(dim=1, stable=True)


class HiddenPatches(NamedTuple):
    """The patches that iBOT hides, also as a list of fixed length, so that the host never waits for the device."""

    mask: Tensor
    """[B, N] bool, True where hidden."""
    slots: Tensor
    """[B, S] int64, positions; the hidden ones come first, S is the largest number that an image can hide."""
    weights: Tensor
    """[B, S] float32: 1 / (number hidden) at hidden slots, else 0; a row sums to 1, or to 0 where none is hidden."""

    def shown(self) -> "HiddenPatches":
        """The same slots with nothing hidden: what a teacher sees."""
        return self._replace(mask=torch.zeros_like(self.mask))


def hide_patches(
    seeds: Tensor, stream: str, num_patches: int, ratio: tuple[float, float], probability: float, shape: str = "random"
) -> HiddenPatches:
    """Hide a share of the patches, drawn from `ratio`, of a `probability` of the images: [B] seeds.

    Args:
        shape: `random` hides patches one by one, at least one of an image that is chosen; `block` as `hidden_blocks`.
    """
    chosen, share = sample_rng.uniform(seeds, f"{stream}/share", 2).unbind(dim=1)  # [B], [B]
    low, high = ratio
    num_slots = max(1, round(high * num_patches))
    wanted = ((low + (high - low) * share) * num_patches).round().clamp(1, num_slots)
    count = torch.where(chosen < probability, wanted, torch.zeros_like(wanted))  # [B]
    places = sample_rng.uniform(seeds, f"{stream}/order", num_patches)  # [B, N]
    if shape == "block":
        mask = hidden_blocks(seeds, f"{stream}/block", math.isqrt(num_patches), count)
    else:
        mask = places.argsort(dim=1, stable=True).argsort(dim=1) < count[:, None]
    # Slots that hide nothing are random patches too: a batch norm and the centre see them.
    slots = (places - mask.float()).argsort(dim=1, stable=True)[:, :num_slots]
    hidden = mask.gather(1, slots)  # [B, S]
    return HiddenPatches(mask, slots, hidden / hidden.sum(dim=1, keepdim=True).clamp(min=1))


def hidden_blocks(seeds: Tensor, stream: str, side: int, count: Tensor) -> Tensor:
    """Rectangles until `count` patches are hidden: [B] and [B] -> [B, side * side] bool, never more than `count`.

    The authors' generator (after BEiT's), for all images at once: a rectangle's area is drawn between (side // 3)^2 and
    what is left to hide, its aspect between 0.3 and 1 / 0.3; one that does not fit, or would hide nothing new or too
    much, is left out. It differs in when it ends: after `BLOCK_ATTEMPTS` draws, where theirs ends after ten failures in
    a row. That keeps the host from waiting for the device; on 14 x 14 patches both hide about 99 % of what is wanted
    where that is 10 to 50 % of them. Here it is 85 % where all are wanted, as ever fewer rectangles fit, and an image
    that is to hide a patch or two may hide none, as most rectangles are too large.
    """
    draws = sample_rng.uniform(seeds, stream, 4 * BLOCK_ATTEMPTS).reshape(-1, BLOCK_ATTEMPTS, 4)
    smallest, line = (side // 3) ** 2, torch.arange(side, device=seeds.device)
    mask = torch.zeros(len(seeds), side, side, dtype=torch.bool, device=seeds.device)
    left = count.clone()
    for of_area, of_aspect, of_top, of_left in (draw.unbind(dim=1) for draw in draws.unbind(dim=1)):
        area = smallest + (left - smallest) * of_area
        aspect = torch.exp((2 * of_aspect - 1) * math.log(BLOCK_ASPECT))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        rows = _span(line, (of_top * (side - height + 1)).floor(), height)
        columns = _span(line, (of_left * (side - width + 1)).floor(), width)
        new = rows[:, :, None] & columns[:, None, :] & ~mask  # [B, side, side]
        num_new = new.sum(dim=(1, 2))
        accepted = (height < side) & (width < side) & (num_new > 0) & (num_new <= left)
        mask |= new & accepted[:, None, None]
        left = left - num_new * accepted
    return mask.flatten(1)


def _span(line: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Which places of a line lie within a span: [side], [B], [B] -> [B, side] bool."""
    return (line >= start[:, None]) & (line < (start + length)[:, None])


def take_rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens at the given positions: [B, N, D] and [B, K] -> [B, K, D]."""
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))
