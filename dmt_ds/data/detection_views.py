"""An image and its objects as a detector sees them: scaled as a whole, perhaps mirrored; knows no loader, no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.schema import Interpolation
from dmt_ds.data.coco import CocoObject
from dmt_ds.data.coco_library import Segmentation, mask_of
from dmt_ds.data.detection_batch import Objects
from dmt_ds.data.views import resize_into

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class ScaleSpec:
    """How an image is scaled; nothing is cut off.

    Attributes:
        short_sides: what the shorter side may become, in pixels; one is drawn for each image.
        max_side: what the longer side becomes at most; then the shorter one is less.
        flip: probability of a mirrored image.
        masks: whether masks are drawn too.
    """

    short_sides: tuple[int, ...]
    max_side: int
    flip: float = 0.0
    interpolation: Interpolation = "bilinear"
    masks: bool = True


class Draw(NamedTuple):
    """What chance said of one image."""

    short_side: int
    mirrored: bool


def draws(seeds: Tensor, spec: ScaleSpec) -> list[Draw]:
    """One draw an image, by the image's own seed: [B] int64 -> B draws."""
    numbers: list[list[float]] = sample_rng.uniform(seeds, "detection", 2).tolist()
    sides = spec.short_sides
    return [Draw(sides[int(number * len(sides))], flip < spec.flip) for number, flip in numbers]


def scaled_size(height: int, width: int, short_side: int, max_side: int) -> Size:
    """Height and width with the shorter side as wanted, or as far as the longer one allows."""
    factor = min(short_side / min(height, width), max_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def scaled_image(image: Tensor, spec: ScaleSpec, draw: Draw) -> Tensor:
    """[3, h, w] uint8 -> [3, H, W] uint8."""
    size = scaled_size(image.shape[1], image.shape[2], draw.short_side, spec.max_side)
    scaled = torch.empty(1, 3, *size, dtype=torch.uint8, memory_format=torch.channels_last)[0]
    resize_into(scaled, image, spec.interpolation)
    return scaled.flip(-1) if draw.mirrored else scaled


def scaled_objects(objects: Sequence[CocoObject], was: Size, now: Size, spec: ScaleSpec, draw: Draw) -> Objects:
    """Boxes and masks that fit the scaled image.

    Args:
        was: of the image in its file.
        now: of the scaled one.

    Raises:
        DataError: masks are wanted, and pycocotools is not there.
    """
    labels = torch.tensor([thing.label for thing in objects], dtype=torch.int64)
    boxes = torch.tensor([thing.box for thing in objects], dtype=torch.float64).reshape(-1, 4)
    across, down = now[1] / was[1], now[0] / was[0]
    boxes = boxes * torch.tensor([across, down, across, down], dtype=torch.float64)
    outlines = [thing.segmentation for thing in objects] if spec.masks else []
    masks = torch.zeros(len(outlines), *now, dtype=torch.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        assert outline is not None, "a source that is asked for masks has them"
        mask.copy_(scaled_mask(outline, was, now))
    if draw.mirrored:
        boxes = torch.stack([now[1] - boxes[:, 2], boxes[:, 1], now[1] - boxes[:, 0], boxes[:, 3]], dim=1)
        masks = masks.flip(-1)
    return Objects(boxes.float(), labels, masks)


def scaled_mask(outline: Segmentation, was: Size, now: Size) -> Tensor:
    """[H, W] uint8 of the new size: polygons are drawn anew, of an RLE the nearest pixel is taken."""
    if isinstance(outline, list):
        factors = now[1] / was[1], now[0] / was[0]
        scaled = [[number * factors[place % 2] for place, number in enumerate(polygon)] for polygon in outline]
        return mask_of(scaled, *now)
    pixels = mask_of(outline, *was)
    return F.interpolate(pixels[None, None], now, mode="nearest-exact")[0, 0]


def padded(images: Sequence[Tensor], multiple: int) -> Tensor:
    """Images at the top left of one common size, black beyond: B times [3, h, w] -> [B, 3, H, W] uint8.

    Args:
        multiple: of which H and W are.
    """
    height, width = (-(-max(image.shape[side] for image in images) // multiple) * multiple for side in (1, 2))
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8).to(memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch
