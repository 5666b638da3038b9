"""Which anchors and boxes a loss is of, drawn by the image's own seed; knows no box."""

import torch
from torch import Tensor

from dmt_ds import sample_rng


class SeededSampler:
    """Draws as torchvision's `BalancedPositiveNegativeSampler` does, but the same on any number of processes.

    Attributes:
        seeds: [B] int64 of the images of the forward to come.

    Args:
        count: places an image.
        positive_fraction: largest share of positive ones among them.
        stream: of the random numbers; several samplers of one model have one each.
    """

    def __init__(self, count: int, positive_fraction: float, stream: str) -> None:
        self.count, self.stream = count, stream
        self.max_positive = int(count * positive_fraction)
        self.seeds: Tensor | None = None

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels of each image's places, -1 left out, 0 negative -> masks of the drawn positive and negative ones."""
        assert self.seeds is not None and len(self.seeds) == len(labels), "Detector.forward sets the seeds"
        positives, negatives = [], []
        for of_image, seed in zip(labels, self.seeds, strict=True):
            order = sample_rng.uniform(seed[None], f"detection/{self.stream}", len(of_image))[0]
            positives.append(_drawn(of_image >= 1, order, self.max_positive))
            room = self.count - int(positives[-1].sum())
            negatives.append(_drawn(of_image == 0, order, room))
        return positives, negatives


def _drawn(allowed: Tensor, order: Tensor, count: int) -> Tensor:
    """The first `count` of those allowed, by their random numbers: [n] bool, [n] -> [n] bool."""
    first = torch.where(allowed, order, 2.0).argsort(stable=True)[:count]
    chosen = torch.zeros_like(allowed)
    chosen[first] = True
    return chosen & allowed
