"""Photometric augmentation and normalisation of a batch on its device; knows no geometry and no teacher.

Each image's strengths come from its seed, so a result depends on the image alone, not on the batch it is in. Nothing
here waits for the device. On CUDA, `jitter_triton.py` does most of it in two kernels.
"""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from dmt_ds import sample_rng
from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.section import Triple
from dmt_ds.triton_support import obstacle_to_triton

logger = logging.getLogger(__name__)

_BLUR_SIGMA = (0.1, 2.0)  # pixels, as in SimCLR, BYOL, DINO and MoCo v3
_GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G, B
_UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and deviation that leave a picture as it is."""


class Augment:
    """Colour jitter, greyscale, blur, solarisation, normalisation, in this order; each may be left out."""

    def __init__(self, section: AugmentConfig) -> None:
        self.section = section

    @torch.no_grad()
    def __call__(self, images: Tensor, seeds: Tensor, view: int = 0) -> Tensor:
        """[B, 3, H, W] uint8 and [B] int64 -> [B, 3, H, W] float32, normalised.

        Args:
            view: number of the crop: crops of one image are augmented independently of each other.
        """
        section = self.section
        numbers = sample_rng.uniform(seeds, f"jitter/{view}", 13)  # [B, 13]
        order, amounts = _draw_jitter(section, numbers[:, :9])
        greys = numbers[:, 9] < section.grayscale_probability if section.grayscale_probability else None  # [B]
        if _has_kernel(images):
            from dmt_ds.data import jitter_triton  # triton is not on every platform

            is_last = not section.blur_probability and not section.solarize_probability
            constants = (section.mean, section.std) if is_last else _UNCHANGED
            pixels = jitter_triton.jitter(images, order, amounts, greys, *_channel_constants(*constants, images.device))
            if is_last:
                return pixels
        else:
            pixels = _jitter(_fractions(images), order, amounts)
            if greys is not None:
                pixels = torch.where(greys[:, None, None, None], _grey(pixels), pixels)
        if section.blur_probability:
            low, high = _BLUR_SIGMA
            blurred = gaussian_blur(pixels, low + (high - low) * numbers[:, 10])
            pixels = torch.where(_chosen(numbers[:, 11], section.blur_probability), blurred, pixels)
        if section.solarize_probability:
            chosen = _chosen(numbers[:, 12], section.solarize_probability)
            pixels = torch.where(chosen & (pixels >= 0.5), 1 - pixels, pixels)
        return normalize(pixels, section.mean, section.std)


def normalize(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """(pixels - mean) / std per channel: [B, 3, H, W] uint8, or float in 0..1 -> [B, 3, H, W] float32."""
    scale, shift = _channel_constants(mean, std, images.device)
    if images.is_cuda:  # bytes become floats on the way through
        made = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        return torch.addcmul(shift, images, scale if images.is_floating_point() else scale / 255, out=made)
    pixels = images.float() if images.is_floating_point() else _fractions(images)
    return torch.addcmul(shift, pixels, scale)


def blank_beyond(images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros, the mean colour, beyond each image's own size: [B, 3, H, W] normalised, changed in place.

    Args:
        sizes: height and width of each image, which stands at the top left.
    """
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


def _has_kernel(images: Tensor) -> bool:
    """Whether two kernels do what many would do otherwise: bytes on CUDA."""
    return images.dtype == torch.uint8 and _runs_triton(images.device)


@cache
def _runs_triton(device: torch.device) -> bool:
    obstacle = obstacle_to_triton(device)
    if obstacle and device.type == "cuda":
        logger.info("jitter in plain torch: %s", obstacle)
    return obstacle is None


def _fractions(images: Tensor) -> Tensor:
    """Uint8 of any strides -> float32 in 0..1, in planes."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


@lru_cache
def _channel_constants(mean: Triple, std: Triple, device: torch.device) -> tuple[Tensor, Tensor]:
    """1 / std and -mean / std, [3, 1, 1] each; kept, because copying them to the device makes the host wait."""
    mean_, std_ = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return (1 / std_).to(device), (-mean_ / std_).to(device)


def _draw_jitter(section: AugmentConfig, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Torchvision's ColorJitter with its own strengths and order for each image; `numbers` [B, 9] in [0, 1).

    Returns:
        What each image does in each of its turns, [B, T] int64: 0 brightness, 1 contrast, 2 saturation, 3 hue. Then by
        this number how much of it, [B, 4]: three factors, and the share of a full circle of hues.
    """
    strengths = (section.brightness, section.contrast, section.saturation)
    jittered = numbers[:, :1] < section.jitter_probability  # [B, 1]
    factors = torch.stack(
        [
            max(0.0, 1 - strength) + (1 + strength - max(0.0, 1 - strength)) * number
            for strength, number in zip(strengths, numbers[:, 1:4].unbind(1), strict=True)
        ],
        dim=1,
    )
    turns = (2 * numbers[:, 4:5] - 1) * section.hue
    amounts = torch.cat([torch.where(jittered, factors, 1.0), torch.where(jittered, turns, 0.0)], dim=1)
    num_turns = (4 if section.hue else 3 if any(strengths) else 0) if section.jitter_probability else 0
    return numbers[:, 5 : 5 + num_turns].argsort(dim=1, stable=True), amounts


def _jitter(pixels: Tensor, order: Tensor, amounts: Tensor) -> Tensor:
    """What `_draw_jitter` drew, of [B, 3, H, W] in 0..1."""
    if order.shape[1] < 4:
        return _blends(pixels, order, amounts)
    # Hue is by far the dearest, so it is turned once for all images: between the blends before and after it.
    hue_is_due = (order == 3).cumsum(dim=1) > 0  # [B, 4]
    pixels = _blends(pixels, torch.where(hue_is_due, 3, order)[:, :3], amounts)
    pixels = turn_hue(pixels, amounts[:, 3])
    return _blends(pixels, torch.where(hue_is_due, order, 3)[:, 1:], amounts)


def _blends(pixels: Tensor, order: Tensor, amounts: Tensor) -> Tensor:
    """Brightness (0), contrast (1), saturation (2): all mix with something grey, so one formula serves a mixed batch.

    Args:
        order: [B, T], what each image does in each of these turns; 3 is nothing.
        amounts: [B, 4]; the last is not used.
    """
    factors = functional.pad(amounts[:, :3], [0, 1], value=1.0)  # [B, 4]
    for turn in order[..., None].unbind(1):  # [B, 1] each
        kind, factor = turn[..., None, None], factors.gather(1, turn)[..., None, None]  # [B, 1, 1, 1] each
        grey = _grey(pixels)  # [B, 1, H, W]
        flat = torch.where(kind == 1, grey.mean(dim=(1, 2, 3), keepdim=True), 0.0)  # [B, 1, 1, 1]
        pixels = torch.lerp(torch.where(kind == 2, grey, flat), pixels, factor).clamp_(0, 1)
    return pixels


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn each image's hue by its share of a full circle: [B, 3, H, W] in 0..1 and [B] in [-0.5, 0.5]."""
    red, green, blue = pixels.unbind(1)  # [B, H, W]
    low, value = pixels.aminmax(dim=1)
    span = value - low
    # The largest channel less its right-hand neighbour on the circle, and where the largest stands, in sixths.
    is_red, is_green = value == red, value == green
    ahead = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    start = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)) + 6 * turns[:, None, None]
    hue = (ahead / torch.where(span == 0, 1.0, span)).add_(start)
    sixths = (hue[:, None] + _offsets(hue.device)).remainder_(6)  # [B, 3, H, W]
    below = torch.minimum(sixths, 4 - sixths).clamp_(0, 1)  # how far each channel is below the largest, 0 to 1
    return torch.addcmul(value[:, None], below, span[:, None], value=-1)


@lru_cache
def _offsets(device: torch.device) -> Tensor:
    """Of red, green and blue on the circle of hues, in sixths: [3, 1, 1]; kept, as copying makes the host wait."""
    return torch.tensor([5.0, 3.0, 1.0])[:, None, None].to(device)


def gaussian_blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image with its own sigma: [B, 3, H, W] and [B] in pixels; the kernel spans a tenth of the side, odd."""
    batch, channels, height, width = pixels.shape
    radius = max(1, round(min(height, width) / 20))
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=torch.float32)
    kernel = torch.softmax(-((offsets / sigmas[:, None]) ** 2) / 2, dim=1)  # [B, K]
    weight = kernel.repeat_interleave(channels, dim=0)[:, None, None, :]  # [B*3, 1, 1, K]
    flat = functional.pad(pixels.reshape(1, batch * channels, height, width), [radius] * 4, mode="reflect")
    with torch.autocast(pixels.device.type, enabled=False):
        flat = functional.conv2d(flat, weight, groups=batch * channels)
        flat = functional.conv2d(flat, weight.transpose(2, 3), groups=batch * channels)
    return flat.reshape(pixels.shape)


def _grey(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]."""
    red, green, blue = pixels.unbind(1)
    return (_GREY[0] * red).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).unsqueeze(1)


def _chosen(numbers: Tensor, probability: float) -> Tensor:
    """[B] -> [B, 1, 1, 1] bool."""
    return (numbers < probability)[:, None, None, None]
