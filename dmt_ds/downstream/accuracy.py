"""What readouts of frozen features have in common: labels that are there, and the share of right answers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds.errors import DataError


class Accuracy(NamedTuple):
    """Shares of test images, 0 to 1."""

    top1: float
    """The class with the highest score is the right one."""
    top5: float
    """The right class is among the five with the highest scores; 1 by rule where there are five classes or fewer.

    For k-NN a class that no neighbour votes for is among the five in no case.
    """


def num_right(scores: Tensor, labels: Tensor, above: float = -math.inf) -> Tensor:
    """How many rows are right in their first and in their first five classes: [r, C] and [r] -> [2] int64.

    Args:
        scores: [r, C].
        labels: [r] int64.
        above: what a class must exceed to be among the five, where there are more.
    """
    num_classes = scores.shape[1]
    ranked = scores.topk(min(5, num_classes), dim=1)  # [r, 5] each
    hits = ranked.indices == labels[:, None]
    in_five = hits & (ranked.values > above) if num_classes > 5 else hits
    return torch.stack([hits[:, 0].sum(), in_five.any(dim=1).sum()])


def check_labels(labels: Tensor, num_classes: int, which: str) -> None:
    """Every image has a class.

    Args:
        labels: [n] int64, -1 where an image has none.
        num_classes: labels are below it.
        which: `training` or `test`, for the message.

    Raises:
        DataError: there is no image, or an image has no label.
    """
    if len(labels) == 0:
        raise DataError(f"there is no {which} image to evaluate features with; check data.path and the split's name")
    num_unlabelled = int((labels < 0).sum())
    if num_unlabelled:
        raise DataError(
            f"features are evaluated by labels, but {num_unlabelled} of {len(labels)} {which} images have none; "
            "set data.label_column"
        )
    assert int(labels.max()) < num_classes, f"label {int(labels.max())} of {num_classes} classes"
