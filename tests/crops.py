"""The crop of one image by its seed, as loaders draw those of many."""

import torch
from torch import Tensor

from dmt_ds.data.views import CropSpec, crop_numbers, cut


def draw_crop(image: Tensor, spec: CropSpec, seed: Tensor | int, view: int) -> Tensor:
    """[3, h, w] uint8 -> [3, size, size] uint8."""
    (numbers,) = crop_numbers(torch.as_tensor(seed, dtype=torch.int64).reshape(1), view)
    return cut(image, spec, numbers)
