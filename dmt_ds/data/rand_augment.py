"""RandAugment (Cubuk et al., 2020) of one crop, as timm's `rand-m9-mstd0.5-inc1` does it; knows no batch and no label.

Two operations an image, drawn with replacement, each carried out with probability 1/2. Severity grows with the
magnitude, 0 to 10. All numbers come from the image's seed. The pixels are Pillow's, as with timm and DeiT.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.schema import Interpolation

NUM_OPERATIONS = 2
_PROBABILITY = 0.5
_LARGEST = 10.0
_DRAWS = 5  # an operation: which, whether, two for the normal number, which way


class Step(NamedTuple):
    """One operation to carry out."""

    operation: str
    level: float
    """Magnitude / 10, with the sign of the direction where the operation has two: -1 to 1."""


@dataclass(frozen=True)
class RandAugment:
    """What to draw.

    Attributes:
        magnitude: mean severity, 0 to 10.
        std: standard deviation of the severity, which stays between 0 and 10.
        fill: R, G, B of what comes from outside the picture; timm takes the data's mean.
        interpolation: of rotation, shear and translation.
    """

    magnitude: float = 9.0
    std: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)
    interpolation: Interpolation = "bicubic"

    def draw(self, seeds: Tensor, view: int) -> list[list[Step]]:
        """The steps of each image: [B] int64 -> B lists of none to two.

        Args:
            view: number of the crop: crops of one image are independent of each other.
        """
        rows = sample_rng.uniform(seeds, f"rand_augment/{view}", NUM_OPERATIONS * _DRAWS).tolist()
        parts = [[row[start : start + _DRAWS] for start in range(0, len(row), _DRAWS)] for row in rows]
        return [[self._step(numbers) for numbers in row if numbers[1] < _PROBABILITY] for row in parts]

    def _step(self, numbers: list[float]) -> Step:
        which, _, radius, angle, direction = numbers
        normal = math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)  # Box and Muller
        magnitude = min(_LARGEST, max(0.0, self.magnitude + self.std * normal))
        sign = -1 if direction < 0.5 else 1
        return Step(NAMES[int(which * len(NAMES))], sign * magnitude / _LARGEST)

    def __call__(self, crop: Tensor, steps: list[Step]) -> Tensor:
        """Carry the steps out: [3, H, W] uint8 -> [3, H, W] uint8, the crop itself where there are none."""
        if not steps:
            return crop
        picture = Image.fromarray(crop.permute(1, 2, 0).numpy())
        for name, level in steps:
            picture = OPERATIONS[name](picture, level, self)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def warp(self, picture: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
        """The picture whose pixel (x, y) is that at (ax + by + c, dx + ey + f) of this one."""
        return picture.transform(
            picture.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample=self.resample, fillcolor=self.fill
        )

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return Image.Resampling[self.interpolation.upper()]


def _blend_factor(level: float) -> float:
    """Of ImageEnhance: 1 changes nothing, 0.1 takes nearly all away, 1.9 nearly doubles it."""
    return max(0.1, 1.0 + 0.9 * level)


def _posterize(picture: Image.Image, level: float, how: RandAugment) -> Image.Image:
    """Keep 4 bits a channel, down to one; timm's largest magnitude keeps none, which Pillow now refuses."""
    return ImageOps.posterize(picture, max(1, 4 - int(abs(level) * 4)))


def _solarize(picture: Image.Image, level: float, how: RandAugment) -> Image.Image:
    """Invert what is bright."""
    return ImageOps.solarize(picture, 256 - min(256, int(abs(level) * 256)))


def _solarize_add(picture: Image.Image, level: float, how: RandAugment) -> Image.Image:
    """Make brighter what is dark."""
    added = int(abs(level) * 110)
    return picture.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


OPERATIONS: dict[str, Callable[[Image.Image, float, RandAugment], Image.Image]] = {
    "auto_contrast": lambda picture, level, how: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level, how: ImageOps.equalize(picture),
    "invert": lambda picture, level, how: ImageOps.invert(picture),
    "rotate": lambda picture, level, how: picture.rotate(30 * level, resample=how.resample, fillcolor=how.fill),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": lambda picture, level, how: ImageEnhance.Color(picture).enhance(_blend_factor(level)),
    "contrast": lambda picture, level, how: ImageEnhance.Contrast(picture).enhance(_blend_factor(level)),
    "brightness": lambda picture, level, how: ImageEnhance.Brightness(picture).enhance(_blend_factor(level)),
    "sharpness": lambda picture, level, how: ImageEnhance.Sharpness(picture).enhance(_blend_factor(level)),
    "shear_x": lambda picture, level, how: how.warp(picture, 1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda picture, level, how: how.warp(picture, 1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda picture, level, how: how.warp(picture, 1, 0, 0.45 * level * picture.width, 0, 1, 0),
    "translate_y": lambda picture, level, how: how.warp(picture, 1, 0, 0, 0, 1, 0.45 * level * picture.height),
}
"""timm's fifteen, of increasing severity, in its order: picture, level and settings -> picture."""

NAMES = tuple(OPERATIONS)
