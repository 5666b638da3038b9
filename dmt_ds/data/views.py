"""Crops of an image, drawn from the image's seed; knows no loader and no teacher.

torchvision is imported where it is used, as it brings torch's compiler along: more than a second.

The same crop goes to all teachers and the student: tokens are compared position by position.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.evaluation import eval_short_side
from dmt_ds.config.schema import DataConfig, Interpolation
from dmt_ds.data.rand_augment import RandAugment

_TRIES = 10  # as many as torchvision's
_NUMBERS = 2 * _TRIES + 4  # (area, ratio) a try; top, left, flip, angle
_LONGEST = 16  # times the short side: what is longer is cut before it is scaled, far from the middle
_RESIZERS = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa, "bilinear": torch.ops.aten._upsample_bilinear2d_aa}


@dataclass(frozen=True)
class CropSpec:
    """How one crop is drawn; torchvision's RandomResizedCrop, then a flip, then a turn.

    Attributes:
        size: side of the crop, in pixels.
        scale: range of its share of the image's area.
        ratio: range of its width over height, before it is made square.
        flip: probability of a mirrored crop.
        rotation_degrees: largest angle, either way; corners that come from outside the crop are black.
        rand_augment: what happens to the finished crop's pixels in the loader process; None is nothing.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    rotation_degrees: float = 0.0
    rand_augment: RandAugment | None = None

    @classmethod
    def from_section(cls, section: DataConfig) -> "CropSpec":
        """The shared crop of a recipe; `dataclasses.replace` makes a method's further ones."""
        return cls(
            section.image_size,
            section.crop_scale,
            section.crop_ratio,
            section.interpolation,
            section.horizontal_flip,
            section.rotation_degrees,
        )


def crop_numbers(seeds: Tensor, view: int) -> list[list[float]]:
    """All random numbers of the crops of several images: [B] int64 -> B rows for `cut`.

    Args:
        seeds: of the images.
        view: number of the crop: crops of one image are independent of each other.
    """
    rows: list[list[float]] = sample_rng.uniform(seeds, f"crop/{view}", _NUMBERS).tolist()
    return rows


def cut(image: Tensor, spec: CropSpec, numbers: list[float]) -> Tensor:
    """The crop that these numbers in [0, 1) stand for: [3, h, w] uint8 -> [3, size, size] uint8."""
    crop = torch.empty(3, spec.size, spec.size, dtype=torch.uint8)
    cut_into(crop, image, spec, numbers)
    return crop


def cut_into(place: Tensor, image: Tensor, spec: CropSpec, numbers: list[float]) -> None:
    """Write the crop that these numbers stand for to `place`, [3, size, size] uint8 of any strides."""
    height, width = image.shape[-2:]
    top, left, crop_height, crop_width = crop_box(height, width, spec, numbers)
    resize_into(place, image[:, top : top + crop_height, left : left + crop_width], spec.interpolation)
    if numbers[-2] < spec.flip:
        place.copy_(place.flip(-1))
    if spec.rotation_degrees:
        from torchvision.transforms.v2 import InterpolationMode, functional

        angle = (2 * numbers[-1] - 1) * spec.rotation_degrees
        place.copy_(functional.rotate(place, angle, InterpolationMode.BILINEAR))


def resize_into(place: Tensor, image: Tensor, interpolation: Interpolation) -> None:
    """Antialiased, by torchvision's arithmetic and in Pillow's order, to where the pixels shall lie.

    torchvision spends half of its time copying.

    Args:
        place: [3, H, W] uint8 of any strides.
        image: [3, h, w] uint8, a part of a picture or all of it.
    """
    resize = _RESIZERS[interpolation]
    height, width = place.shape[-2:]
    pixels = _colours_together(image[None])
    if _height_first(image, place):
        pixels = _colours_together(resize(pixels, (height, image.shape[-1]), False, None, None))
    resize.out(pixels, (height, width), False, None, None, out=place[None])


def _colours_together(pixels: Tensor) -> Tensor:
    """The same pixels, channels last: from planes that lie apart, torch's `.out` writes beyond such a place."""
    return pixels.contiguous(memory_format=torch.channels_last)


def _height_first(image: Tensor, place: Tensor) -> bool:
    """Pillow's rule from version 13 on; before it, and in torch, the width always comes first.

    The order shows: between the two, pixels are rounded and clipped to 8 bits.
    """
    rows_less, columns_less = (before - after for before, after in zip(image.shape[1:], place.shape[1:], strict=True))
    return rows_less > max(0, 2 * columns_less)


def crop_box(height: int, width: int, spec: CropSpec, numbers: list[float]) -> tuple[int, int, int, int]:
    """Top, left, height, width of the crop, in pixels: ten tries, then the largest central one of an allowed ratio."""
    log_low, log_high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    for area_number, ratio_number in zip(numbers[0 : 2 * _TRIES : 2], numbers[1 : 2 * _TRIES : 2], strict=True):
        area = height * width * (spec.scale[0] + area_number * (spec.scale[1] - spec.scale[0]))
        ratio = math.exp(log_low + ratio_number * (log_high - log_low))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(numbers[2 * _TRIES] * (height - crop_height + 1))
            left = int(numbers[2 * _TRIES + 1] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < spec.ratio[0]:
        crop_height = round(width / spec.ratio[0])
    elif width / height > spec.ratio[1]:
        crop_width = round(height * spec.ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _without_far_ends(image: Tensor) -> Tensor:
    """The same middle of a very long image, which would fill the memory if it were scaled as a whole; others as is."""
    height, width = image.shape[-2:]
    longest = _LONGEST * min(height, width)
    rows, columns = (side if side <= longest else longest + (side - longest) % 2 for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[:, top : top + rows, left : left + columns]


def center_crop(image: Tensor, size: int, interpolation: Interpolation = "bicubic") -> Tensor:
    """The middle of an image, for evaluation: [3, h, w] uint8 -> [3, size, size] uint8.

    The short side is scaled as `eval_short_side` says, and the margin cut off; where that leaves no margin, the whole
    image is made `size` x `size`.
    """
    from torchvision.transforms.v2 import functional

    short_side = eval_short_side(size)
    if short_side > size:
        image = _without_far_ends(image)
    height, width = image.shape[-2:]
    factor = short_side / min(height, width)
    scaled = [max(size, round(height * factor)), max(size, round(width * factor))]
    resized = torch.empty(3, *(scaled if short_side > size else [size, size]), dtype=torch.uint8)
    resize_into(resized, image, interpolation)
    middle: Tensor = functional.center_crop(resized, [size, size])
    return middle
