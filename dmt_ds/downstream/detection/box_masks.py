"""Masks of boxes: cut out of an image's masks to learn from, put back into the image when found; knows no head.

A pixel's centre is at half a pixel, and a box is where it is, as in detectron2 and MMDetection. torchvision's own two
functions cut half a pixel off and put back at whole pixels, a pixel too wide: then the mask of a small object that
is found as well as can be overlaps it by 0.9.
"""

import torch
from torch import Tensor

_NARROWEST = 1e-6
"""Pixels that a box is taken to have at least: one of no width has a mask of zeros, not of what is no number."""


def cut_out(masks: Tensor, boxes: Tensor, rows: Tensor, side: int) -> Tensor:
    """What a mask head should say of boxes: the object's share of each cell.

    Args:
        masks: [m, H, W] of 0 and 1.
        boxes: [n, 4] float.
        rows: [n], which mask is a box's.

    Returns:
        [n, side, side] in 0..1.
    """
    from torchvision.ops import roi_align  # not for every run that imports what puts masks back

    places = torch.cat([rows[:, None].to(boxes), boxes], dim=1)
    shares: Tensor = roi_align(masks[:, None].to(boxes), places, side, aligned=True)[:, 0]
    return shares


def put_back(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes at the pixels of an image, bilinear, 0 beyond: [n, side, side] and [n, 4] -> [n, H, W], float32.

    It is what `grid_sample` gives. A box has its sides along the image's, so that two products of matrices do, in a
    quarter of the time and a third of the memory.
    """
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    down, across = (
        _shares(low, high, count, masks.shape[-1]) for low, high, count in ((y1, y2, size[0]), (x1, x2, size[1]))
    )
    return down @ masks @ across.transpose(1, 2)


def _shares(low: Tensor, high: Tensor, count: int, side: int) -> Tensor:
    """What each cell between two places gives to each pixel of a line: [n] and [n] -> [n, count, side]."""
    pixels = torch.arange(count, device=low.device) + 0.5
    width = (high - low).clamp(min=_NARROWEST)
    cells = (pixels - low[:, None]) / width[:, None] * side - 0.5  # from the first cell's centre
    return (1 - (cells[:, :, None] - torch.arange(side, device=low.device)).abs()).clamp(min=0)
