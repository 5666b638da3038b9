"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of a batch on its device; knows no label and no model.

An image is mixed with its neighbour: the first with the second, the third with the fourth. Micro-batches of even size
always cut the order of images between pairs, so an image's partner is the same on any number of ranks, and with any
micro-batch. How much it takes of the partner comes from its own seed, so the two images of a pair differ.
"""

from functools import lru_cache

import torch
from torch import Tensor

from dmt_ds import sample_rng

_QUANTILES = 2048


def neighbours(rows: Tensor) -> Tensor:
    """Each row's partner: [B, ...] -> [B, ...], rows 1, 0, 3, 2, ...; B is even."""
    return rows.reshape(-1, 2, *rows.shape[1:]).flip(1).reshape(rows.shape)


@torch.no_grad()
def mix(
    images: Tensor, seeds: Tensor, mixup: float, cutmix: float, probability: float, cutmix_share: float
) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour.

    Args:
        images: [B, 3, H, W] float32, normalised; B is even.
        seeds: [B] int64.
        mixup: alpha of the beta distribution of an image's own weight; 0 leaves mixup out.
        cutmix: alpha of the beta distribution of an image's own area; 0 leaves CutMix out.
        probability: that an image takes something of its neighbour at all.
        cutmix_share: of these images, how many get a rectangle where both are on.

    Returns:
        The mixed images, and each one's own share of itself, [B] float32 in 0..1: with a rectangle, the area that is
        left after the rectangle is cut at the image's border.
    """
    own = own_weights(seeds, images.shape[2], images.shape[3], mixup, cutmix, probability, cutmix_share)  # [B, H, W]
    weight = own[:, None]  # [B, 1, H, W]
    return images * weight + neighbours(images) * (1 - weight), own.mean(dim=(1, 2))


def own_weights(
    seeds: Tensor, height: int, width: int, mixup: float, cutmix: float, probability: float, cutmix_share: float
) -> Tensor:
    """An image's own weight in each of its mixed pixels: [B] -> [B, H, W] float32; arguments as `mix` has them."""
    mixed, pasted, share, of_row, of_column = sample_rng.uniform(seeds, "mix", 5).unbind(dim=1)  # [B] each
    weights = torch.ones(len(seeds), height, width, device=seeds.device)
    if mixup:
        weights = weights * beta_quantiles(share, mixup)[:, None, None]
    if cutmix:
        box = centred_boxes(1 - beta_quantiles(share, cutmix), of_row, of_column, height, width)
        pastes = pasted < (cutmix_share if mixup else 1.0)
        weights = torch.where(pastes[:, None, None], 1 - box.float(), weights)
    return torch.where((mixed < probability)[:, None, None], weights, 1.0)


def centred_boxes(area: Tensor, of_row: Tensor, of_column: Tensor, height: int, width: int) -> Tensor:
    """Rectangles of the images' own shape, cut at the border: -> [B, H, W] bool.

    Args:
        area: [B], share of the image that a whole rectangle covers.
        of_row: [B] in [0, 1), where its centre lies.
        of_column: [B] in [0, 1), the same.
    """
    rows = _span(area, of_row, height)  # [B, H]
    columns = _span(area, of_column, width)  # [B, W]
    return rows[:, :, None] & columns[:, None, :]


def _span(area: Tensor, place: Tensor, length: int) -> Tensor:
    """Which places of one side lie within the rectangle: [B] and [B] -> [B, length] bool."""
    extent = (area.sqrt() * length).floor()
    start = (place * length).floor() - (extent / 2).floor()
    line = torch.arange(length, device=area.device)
    return (line >= start[:, None]) & (line < (start + extent)[:, None])


def beta_quantiles(shares: Tensor, alpha: float) -> Tensor:
    """The values of Beta(alpha, alpha) below which these shares of it lie: [B] in [0, 1] -> [B] float32 in [0, 1].

    Of uniform numbers it makes beta-distributed ones, one of each and without a loop that waits for the device.
    """
    mass, places = _lower_half(alpha, shares.device)
    tail = 1 - (2 * shares - 1).abs()  # [B]: the distribution mirrors itself at 1/2
    right = torch.searchsorted(mass, tail.contiguous()).clamp(1, _QUANTILES)
    low, high = mass[right - 1], mass[right]
    part = ((tail - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    place = places[right - 1].lerp(places[right], part)
    value = place ** (1 / min(alpha, 1.0)) / 2
    return torch.where(shares < 0.5, value, 1 - value)


@lru_cache
def _lower_half(alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mass of the lower half of Beta(alpha, alpha) up to each of a grid's places, both [K + 1] in 0..1.

    The grid is even in t = (2x)^p with p = min(alpha, 1): there the density has no pole where x is 0.
    """
    power = min(alpha, 1.0)
    t = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    x = t ** (1 / power) / 2
    density = (2 * x) ** (alpha - power) * (2 - 2 * x) ** (alpha - 1)
    mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, t)])
    return (mass / mass[-1]).float().to(device), t.float().to(device)
