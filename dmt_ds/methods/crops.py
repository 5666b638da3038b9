"""Several crops of the same images as one list of rows, crop after crop; knows no method."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_ds.data.augment import Augment
from dmt_ds.data.batch import Batch


def crop_seeds(seeds: Tensor, num_crops: int) -> Tensor:
    """A seed for each crop of each image: [B] -> [num_crops * B]; crop 0 has the image's own."""
    return torch.cat([seeds + crop for crop in range(num_crops)])


def augmented_crops(batch: Batch, augments: Sequence[Augment]) -> list[Tensor]:
    """The crops, each by its own augmentation, normalised: [B, 3, H, W] float32 each."""
    pairs = zip(augments, batch.crops, strict=True)
    return [augment(crop, batch.seeds, view) for view, (augment, crop) in enumerate(pairs)]
