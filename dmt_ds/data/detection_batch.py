"""What the loader hands to a detection task beside pixels: each image's own size, and what is to be found in it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Objects(NamedTuple):
    """What is to be found in one image."""

    boxes: Tensor
    """[n, 4] float32: x1, y1, x2, y2 in pixels of the image as it stands in the batch."""
    labels: Tensor
    """[n] int64, numbers of categories from 0."""
    masks: Tensor
    """[n, h, w] uint8, 0 or 1, of the image's own size; [0, h, w] where no masks are learned."""


@dataclass(frozen=True)
class DetectionTarget:
    """What is to be found in a batch's images, which stand at the top left of one common size, black beyond their own.

    Attributes:
        sizes: height and width of each image in the batch.
        objects: of each image; none in evaluation.
    """

    sizes: tuple[tuple[int, int], ...]
    objects: tuple[Objects, ...] = ()

    def pin_memory(self) -> "DetectionTarget":
        """A copy in page-locked memory."""
        return DetectionTarget(self.sizes, tuple(Objects(*(part.pin_memory() for part in own)) for own in self.objects))

    def to(self, device: torch.device) -> "DetectionTarget":
        """A copy on `device`."""
        return DetectionTarget(
            self.sizes,
            tuple(Objects(*(part.to(device, non_blocking=True) for part in own)) for own in self.objects),
        )
