"""Which image comes when: an endless order that any number of ranks share; knows no pixels.

The state of the order is one number, the images seen so far, so a run goes on at any world size without repeating or
losing an image of the epoch.
"""

from functools import lru_cache

import torch
from torch import Tensor

from dmt_ds import sample_rng


class SampleStream:
    """Epochs of a data set, each in its own random order, one after the other without a gap."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self._seed = num_images, seed

    def at(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Epochs and rows of the images at positions start .. start + count - 1: two [count] int64."""
        positions = torch.arange(start, start + count)
        epochs = positions // self.num_images
        rows = torch.empty_like(positions)
        for epoch in range(start // self.num_images, (start + count - 1) // self.num_images + 1):
            here = epochs == epoch
            rows[here] = _order(self._seed, self.num_images, epoch)[positions[here] % self.num_images]
        return epochs, rows


@lru_cache(maxsize=2)  # a micro-batch may lie over the end of an epoch
def _order(run_seed: int, num_images: int, epoch: int) -> Tensor:
    """[num_images] int64; not to be changed."""
    seed = sample_rng.image_seeds(run_seed, torch.tensor([epoch]), torch.tensor([-1]))
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(int(seed)))


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` rows, evenly from the first to the last."""
    return sorted({round(part * (count - 1) / (most - 1)) for part in range(most)})


def rank_positions(step_start: int, micro_step: int, rank: int, world_size: int, micro_batch_size: int) -> range:
    """Positions in the stream of one rank's micro-batch.

    One rank with two micro-steps and two ranks with one see the same two micro-batches.

    Args:
        step_start: position of the step's first image.
        micro_step: number within the step.
    """
    start = step_start + (micro_step * world_size + rank) * micro_batch_size
    return range(start, start + micro_batch_size)
