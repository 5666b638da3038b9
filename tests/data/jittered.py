"""Images for tests of the pixels, and torchvision's jitter to hold ours against."""

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.methods import AugmentConfig


def random_images(count: int, size: int = 32) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)


def jittered_by_torchvision(image: Tensor, section: AugmentConfig, seed: Tensor, view: int = 0) -> Tensor:
    """ColorJitter step by step on one image in 0..1, with the strengths and the order of `Augment`."""
    numbers = sample_rng.uniform(seed[None], f"jitter/{view}", 13)[0].tolist()
    pixels = image.float() / 255
    if numbers[0] >= section.jitter_probability:
        return pixels
    strengths = (section.brightness, section.contrast, section.saturation)
    factors = [max(0, 1 - s) + (1 + s - max(0, 1 - s)) * u for s, u in zip(strengths, numbers[1:4], strict=True)]
    adjust = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
    keys = numbers[5:9] if section.hue else numbers[5:8]
    for kind in sorted(range(len(keys)), key=keys.__getitem__):
        factor = factors[kind] if kind < 3 else (2 * numbers[4] - 1) * section.hue
        pixels = adjust[kind](pixels, factor)
    return pixels
