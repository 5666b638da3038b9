"""Random erasing (Zhong et al., 2020) of a batch on its device; knows no other augmentation.

Each image's rectangle and noise come from its seed. Nothing here waits for the device.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from dmt_ds import sample_rng

_AREA = (0.02, 1 / 3)
_ASPECT = 0.3  # smallest height over width; the largest is its inverse
_ATTEMPTS = 10
_NUM_STARTS = 2**20


@torch.no_grad()
def erase(images: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """Fill one rectangle of some images with normal noise, pixel by pixel, as timm's mode `pixel` does.

    Args:
        images: [B, 3, H, W] float32, already normalised, so that the noise has the data's spread.
        seeds: [B] int64.
        probability: that an image loses a rectangle.
    """
    if not probability:
        return images
    box = erased_boxes(seeds, images.shape[2], images.shape[3], probability)  # [B, H, W]
    return torch.where(box[:, None], pixel_noise(seeds, images.shape[1:]), images)


def erased_boxes(seeds: Tensor, height: int, width: int, probability: float) -> Tensor:
    """Where the pixels go: [B] -> [B, H, W] bool. The first of ten drawn rectangles that fits is taken, if any does."""
    chosen = sample_rng.uniform(seeds, "erase/chosen", 1)[:, 0] < probability  # [B]
    draws = sample_rng.uniform(seeds, "erase/box", 4 * _ATTEMPTS).reshape(-1, _ATTEMPTS, 4)
    of_area, of_aspect, of_top, of_left = draws.unbind(dim=2)  # [B, attempts] each
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * of_area) * height * width
    aspect = torch.exp((2 * of_aspect - 1) * math.log(_ASPECT))
    box_height, box_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_height < height) & (box_width < width)
    first = fits.int().argmax(dim=1, keepdim=True)  # [B, 1]
    top = (of_top * (height - box_height + 1)).floor()
    left = (of_left * (width - box_width + 1)).floor()
    top, left, box_height, box_width = (x.gather(1, first) for x in (top, left, box_height, box_width))  # [B, 1]
    line_y, line_x = torch.arange(height, device=seeds.device), torch.arange(width, device=seeds.device)
    rows = (line_y >= top) & (line_y < top + box_height)  # [B, H]
    columns = (line_x >= left) & (line_x < left + box_width)  # [B, W]
    happens = chosen & fits.any(dim=1)
    return rows[:, :, None] & columns[:, None, :] & happens[:, None, None]


def pixel_noise(seeds: Tensor, shape: torch.Size) -> Tensor:
    """A normal number for each value of each image: [B] -> [B, *shape] float32.

    Each image reads a stretch of one fixed sequence, from a place that its seed says: hashing a number for each pixel
    takes ten times as long as all else that erasing does.
    """
    start = (sample_rng.uniform(seeds, "erase/noise", 1)[:, 0] * _NUM_STARTS).to(torch.int64)  # [B]
    return _stretches(shape.numel(), seeds.device)[start].reshape(-1, *shape)


@lru_cache
def _stretches(length: int, device: torch.device) -> Tensor:
    """All stretches of so many numbers, as views of one sequence: [starts, length]; the same on every device."""
    sequence = torch.randn(_NUM_STARTS + length - 1, generator=torch.Generator().manual_seed(0))
    return sequence.to(device).unfold(0, length, 1)
