"""mIoU, aAcc and mAcc from one confusion matrix of pixels, as MMSegmentation has them; knows no model."""

from typing import NamedTuple

import torch
from torch import Tensor


class Overlap(NamedTuple):
    """Shares in 0..1."""

    miou: float
    """Mean over classes of intersection over union; a class that is in no map and in no answer is left out."""
    aacc: float
    """Right pixels, of all with a class."""
    macc: float
    """Mean over classes of the right share of a class's pixels; a class that is in no map is left out."""


def confusion_of(labels: Tensor, answers: Tensor, num_classes: int) -> Tensor:
    """How many pixels of a class got which answer: two of one shape -> [C, C] int64, a row a true class.

    Args:
        labels: class numbers; what is `num_classes` or more (255) is not counted.
        answers: class numbers.
    """
    counted = labels < num_classes
    cells = labels[counted].long() * num_classes + answers[counted].long()
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def overlap_of(confusion: Tensor) -> Overlap:
    """[C, C] int64, a row a true class -> shares; all 0 where no pixel has a class."""
    counts = confusion.double()
    right, of_class = counts.diagonal(), counts.sum(dim=1)
    iou = class_iou(confusion)
    there = of_class > 0
    return Overlap(
        miou=_mean(iou[~iou.isnan()]),
        aacc=float(right.sum() / counts.sum().clamp(min=1)),
        macc=_mean(right[there] / of_class[there]),
    )


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class: [C, C] -> [C] float64, NaN for one in no map and no answer."""
    counts = confusion.double()
    right = counts.diagonal()
    return right / (counts.sum(dim=0) + counts.sum(dim=1) - right)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
