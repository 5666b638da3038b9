"""This rank's part of the averaged gradient, in one piece; views of single gradients exist once somebody reads them.

DeepSpeed makes them anew at each update, a few hundred, of a buffer that lives from the backward pass to the update.
With `DeviceSkip` nobody reads them: sums go into the whole, and the optimizer takes the whole.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _View(NamedTuple):
    shape: torch.Size
    is_padding: bool


class PartGradients:
    """What DeepSpeed has as a list of views, `GradPartitionBufferGroup`, of a parameter group."""

    def __init__(self, flat_partition: Tensor, views: list[_View]) -> None:
        """Take the buffer.

        Args:
            flat_partition: [n], of which they are views.
            views: one after the other, to the end of it.
        """
        self.flat_partition = flat_partition
        self._shapes = views

    @cached_property
    def _views(self) -> list[Tensor]:
        pieces = torch.split(self.flat_partition, [view.shape.numel() for view in self._shapes])
        views = [piece.view(view.shape) for piece, view in zip(pieces, self._shapes, strict=True)]
        for tensor, view in zip(views, self._shapes, strict=True):
            if view.is_padding:
                tensor._zero_padding = True  # type: ignore[attr-defined]  # read by DeepSpeed's norm
        return views

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._views)

    def __getitem__(self, number: int) -> Tensor:
        return self._views[number]

    def move_flat_partition(self, device: torch.device | str, non_blocking: bool = False) -> None:
        """Move the buffer, in place, as DeepSpeed offloads gradients; views that were taken stay where they are."""
        self.flat_partition.data = self.flat_partition.data.to(device, non_blocking=non_blocking)
        self.__dict__.pop("_views", None)


def views_on_demand(zero: Any) -> None:
    """Have DeepSpeed's optimizer of ZeRO-2 use these from the second update on; the first is made by its own."""
    build: Callable[[int], Any] = zero._build_compact_grad_partition_buffer
    known: dict[int, tuple[torch.Size, dict[str, Any], list[_View]]] = {}

    def build_part(group: int) -> Any:
        if group not in known:
            made = build(group)
            flat = made.flat_partition
            views = [_View(view.shape, getattr(view, "_zero_padding", False)) for view in made]
            known[group] = flat.shape, {"dtype": flat.dtype, "device": flat.device}, views
            return made
        shape, kind, views = known[group]
        return PartGradients(torch.zeros(shape, **kind), views)

    zero._build_compact_grad_partition_buffer = build_part
