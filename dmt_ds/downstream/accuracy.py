"""What readouts of frozen features have in common: labels that are there, and the share of right answers."""

from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds.errors import DataError


class Accuracy(NamedTuple):
    """Shares of test images, 0 to 1."""

    top1: float
    """The class with the highest score is the right one."""
    top5: float
    """The right class is among the five with the highest scores; 1 by rule where there are five classes or fewer."""


def num_right(scores: Tensor, labels: Tensor) -> Tensor:
    """How many rows are right in their first and in their first five classes: [r, C] and [r] -> [2] int64."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices  # [r, 5]
    hits = ranked == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum()])


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
