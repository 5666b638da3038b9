"""Photometric distortion of a batch on its device, as SSD (Liu et al., 2016) and MMSegmentation have it."""

import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.data.augment import turn_hue

_BRIGHTNESS = 32 / 255
_CONTRAST = (0.5, 1.5)
_SATURATION = (0.5, 1.5)
_HUE = 18 / 180  # of a full circle: MMSegmentation turns by 18 of the 180 steps that 8-bit hue has


@torch.no_grad()
def distort(pixels: Tensor, seeds: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast before or after the last two.

    Args:
        pixels: [B, 3, H, W] float32 in 0..1.
        seeds: [B] int64; an image's strengths are drawn from its own.

    Returns:
        The same shape, in 0..1.
    """
    numbers = sample_rng.uniform(seeds, "photometric", 9)  # [B, 9]
    done = numbers[:, :4] < 0.5  # [B, 4]
    of_brightness, of_contrast, of_saturation, of_hue = numbers[:, 4:8].unbind(1)  # [B] each
    contrast = torch.where(done[:, 1], _between(_CONTRAST, of_contrast), 1.0)
    early = numbers[:, 8] < 0.5
    pixels = pixels + torch.where(done[:, 0], (2 * of_brightness - 1) * _BRIGHTNESS, 0.0)[:, None, None, None]
    pixels = _times(pixels.clamp_(0, 1), torch.where(early, contrast, 1.0))
    pixels = saturate(pixels, torch.where(done[:, 2], _between(_SATURATION, of_saturation), 1.0))
    pixels = turn_hue(pixels, torch.where(done[:, 3], (2 * of_hue - 1) * _HUE, 0.0))
    return _times(pixels, torch.where(early, 1.0, contrast))


def saturate(pixels: Tensor, factors: Tensor) -> Tensor:
    """HSV's saturation times a factor an image, its value and hue kept: [B, 3, H, W] in 0..1 and [B]."""
    low, value = pixels.aminmax(dim=1, keepdim=True)  # [B, 1, H, W]
    most = value / (value - low).clamp(min=1e-6)  # the factor at which the saturation is 1
    return value - (value - pixels) * torch.minimum(factors[:, None, None, None], most)


def _between(bounds: tuple[float, float], numbers: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * numbers


def _times(pixels: Tensor, factors: Tensor) -> Tensor:
    return (pixels * factors[:, None, None, None]).clamp_(0, 1)
