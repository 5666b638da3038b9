"""The same scale, crop and flip of an image and of its label map, from the image's seed; knows no loader, no model."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmt_ds.config.schema import DataConfig, Interpolation
from dmt_ds.config.segmentation import IGNORED, SegmentConfig
from dmt_ds.data.views import resize_into

TRIES = 11
"""The first crop, and ten that are drawn anew, as MMSegmentation's RandomCrop."""
NUMBERS = 2 + 2 * TRIES
"""Of [0, 1) that a crop takes: the scale, the flip, and top and left of each try."""
_LONGEST = 4  # times the short side, as the usual limit of 2048 for 512


@dataclass(frozen=True)
class JointCrop:
    """How a training crop is drawn, as MMSegmentation's RandomResize, RandomCrop and RandomFlip.

    Attributes:
        size: side of the crop, in pixels.
        short_side: what an image's short side is scaled to before; None leaves it.
        scale: range of the factor that then scales it further.
        flip: probability of a mirrored crop.
        max_class_share: a crop in which one class has more of the pixels with a class, or no pixel has one, is drawn
            anew; 1 takes the first.
    """

    size: int
    short_side: int | None
    scale: tuple[float, float]
    flip: float
    max_class_share: float
    interpolation: Interpolation

    @classmethod
    def from_sections(cls, data: DataConfig, section: SegmentConfig) -> "JointCrop":
        """The crop of a recipe."""
        return cls(
            data.image_size,
            section.short_side,
            section.scale,
            data.horizontal_flip,
            section.max_class_share,
            data.interpolation,
        )

    def cut_into(
        self, image_place: Tensor, map_place: Tensor, pair: tuple[Tensor, Tensor], numbers: list[float]
    ) -> tuple[int, int]:
        """Write the crop that these numbers stand for: at the top left; beyond it the map is 255, the image black.

        Args:
            image_place: [3, size, size] uint8 of any strides.
            map_place: [size, size] uint8.
            pair: image [3, h, w] uint8 and label map [h, w] uint8.
            numbers: `NUMBERS` in [0, 1).

        Returns:
            Height and width that the image fills, `size` where it is large enough.
        """
        factor = self.scale[0] + numbers[0] * (self.scale[1] - self.scale[0])
        image, labels = (resized(part, self.short_side, factor, self.interpolation) for part in pair)
        top, left = self._corner(labels, numbers[2:])
        image = image[:, top : top + self.size, left : left + self.size]
        labels = labels[top : top + self.size, left : left + self.size]
        if numbers[1] < self.flip:
            image, labels = image.flip(-1), labels.flip(-1)
        height, width = labels.shape
        if (height, width) != (self.size, self.size):
            image_place.zero_()
            map_place.fill_(IGNORED)
        image_place[:, :height, :width] = image
        map_place[:height, :width] = labels
        return height, width

    def _corner(self, labels: Tensor, numbers: list[float]) -> tuple[int, int]:
        """Top and left of the first crop with a class, none of too large a share; of the last, where there is none."""
        room = [max(0, side - self.size) + 1 for side in labels.shape]
        top = left = 0
        for of_top, of_left in zip(numbers[0::2], numbers[1::2], strict=True):
            top, left = int(of_top * room[0]), int(of_left * room[1])
            if self.max_class_share == 1 or room == [1, 1]:
                break
            counts = torch.bincount(
                labels[top : top + self.size, left : left + self.size].flatten().int(), minlength=IGNORED + 1
            )
            of_classes = counts[:IGNORED]
            if 0 < of_classes.max() <= self.max_class_share * of_classes.sum():
                break
        return top, left


def scaled_size(height: int, width: int, short_side: int | None, factor: float = 1.0) -> tuple[int, int]:
    """Height and width that an image is scaled to, in pixels."""
    if short_side is not None:
        factor *= min(short_side / min(height, width), _LONGEST * short_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(
    pixels: Tensor,
    short_side: int | None,
    factor: float = 1.0,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """An image [3, h, w], resampled, or a label map [h, w], of the nearest pixels' classes; uint8 both ways."""
    height, width = scaled_size(pixels.shape[-2], pixels.shape[-1], short_side, factor)
    if (height, width) == pixels.shape[-2:]:
        return pixels
    if pixels.ndim == 2:  # the centres of pixels agree with those of the image's resampling
        nearest: Tensor = functional.interpolate(pixels[None, None], (height, width), mode="nearest-exact")[0, 0]
        return nearest
    image = torch.empty(3, height, width, dtype=torch.uint8)
    resize_into(image, pixels, interpolation)
    return image
