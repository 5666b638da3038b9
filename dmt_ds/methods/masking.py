"""Which patches of an image are hidden: a function of the image's seed alone, so the same on any number of ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds import sample_rng


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
    seeds: Tensor, stream: str, num_patches: int, ratio: tuple[float, float], probability: float
) -> HiddenPatches:
    """Hide a share of the patches, drawn from `ratio`, of a `probability` of the images: [B] seeds.

    An image that is chosen hides at least one patch.
    """
    chosen, share = sample_rng.uniform(seeds, f"{stream}/share", 2).unbind(dim=1)  # [B], [B]
    low, high = ratio
    num_slots = max(1, round(high * num_patches))
    wanted = ((low + (high - low) * share) * num_patches).round().clamp(1, num_slots)
    count = torch.where(chosen < probability, wanted, torch.zeros_like(wanted))[:, None]  # [B, 1]
    slots = patch_order(seeds, f"{stream}/order", num_patches)[:, :num_slots]
    hidden = torch.arange(num_slots, device=seeds.device) < count  # [B, S]
    mask = torch.zeros(len(seeds), num_patches, dtype=torch.bool, device=seeds.device).scatter(1, slots, hidden)
    return HiddenPatches(mask, slots, hidden / count.clamp(min=1))


def take_rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens at the given positions: [B, N, D] and [B, K] -> [B, K, D]."""
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))
