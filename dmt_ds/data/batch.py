"""What the loader hands to a task; knows nothing of files or losses."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Target(Protocol):
    """What people say of a batch's images beyond one class each: label maps, boxes, masks."""

    def pin_memory(self) -> "Target":
        """A copy in page-locked memory."""
        ...

    def to(self, device: torch.device) -> "Target":
        """A copy on `device`; does not wait for the transfer when the memory is pinned."""
        ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        crops: each [B, 3, H, W] uint8, channels-last in memory; crop 0 is the one that teachers and student share,
            further ones are for methods that compare several crops of an image (sizes may differ between crops).
        seeds: [B] int64, one an image and epoch: the source of all its randomness (`dmt_ds.sample_rng`).
        indices: [B] int64, rows of the data set.
        labels: [B] int64, -1 where there is none.
        target: of tasks that learn more of an image than its class; each knows its own.
    """

    crops: tuple[Tensor, ...]
    seeds: Tensor
    indices: Tensor
    labels: Tensor
    target: Target | None = None

    @property
    def images(self) -> Tensor:
        """The shared crop, [B, 3, H, W] uint8."""
        return self.crops[0]

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which `to` does not wait; called by torch's loader."""
        return Batch(
            tuple(crop.pin_memory() for crop in self.crops),
            self.seeds.pin_memory(),
            self.indices.pin_memory(),
            self.labels.pin_memory(),
            self.target and self.target.pin_memory(),
        )

    def to(self, device: torch.device) -> "Batch":
        """A copy on `device`; does not wait for the transfer when the memory is pinned."""
        return Batch(
            tuple(crop.to(device, non_blocking=True) for crop in self.crops),
            self.seeds.to(device, non_blocking=True),
            self.indices.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.target and self.target.to(device),
        )
