"""What all ranks learn about each update: whether it is sound, and whether one of them was asked to stop.

The ranks add their flags up on the device. The host may read the sum at once, or a step later, when the copy has long
arrived and the device already works on the next step.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds.engine import dist

_NAMED_IMAGES = 4  # of each micro-batch, in messages


class Verdict(NamedTuple):
    """Flags of one update, one per learner except `stop_asked`; all but the last are the same on every rank."""

    loss_unsound: list[bool]
    """A loss of some rank is not finite."""
    gradient_unsound: list[bool]
    """The gradient is not finite; always False where DeepSpeed itself checks the gradient in `step`."""
    stop_asked: bool
    """Some rank was asked to stop."""
    loss_unsound_here: list[bool]
    """A loss of this rank is not finite."""


class Agreement:
    """The flags of one update, in flight; the constructor is a collective call."""

    def __init__(
        self, step: int, rows: Sequence[Tensor], flaws: Tensor, squared_norms: Tensor, stop_asked: bool
    ) -> None:
        """Add up over ranks.

        Args:
            step: number of the update, from 1.
            rows: data-set rows of each micro-batch, on the host; the first few are kept for error messages.
            flaws: 0 where all losses of this rank are finite, else NaN: [L] float32 on the device, one per learner.
            squared_norms: of this rank's part of each learner's gradient: [L] float32 on the device.
            stop_asked: whether this rank was asked to stop.
        """
        self.step = step
        self.images: list[int] = [int(row) for batch in rows for row in batch[:_NAMED_IMAGES]]
        # torch.full fills on the device; torch.tensor would copy there, and the host would wait.
        asked = torch.full((1,), float(stop_asked), device=flaws.device)
        count = len(flaws)
        summed = dist.sum_over_ranks(torch.cat([flaws, squared_norms, asked]))  # [2 L + 1]
        self.squared_norms = summed[count : 2 * count]
        """Squared norms of the whole gradients: [L] float32 on the device, the same on all ranks."""
        self.unsound = (summed * 0).sum() != 0  # NaN as soon as one is not finite; fewer kernels than asking each
        """Whether the update must not be made, by any learner: scalar bool on the device, the same on all ranks."""
        flags = torch.cat([summed, flaws])  # [3 L + 1]
        self._event: torch.cuda.Event | None = None
        if flags.is_cuda:
            self._host = torch.empty(len(flags), pin_memory=True)
            self._host.copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = flags

    def read(self) -> Verdict:
        """Wait until the device has come to this update's flags, and give them."""
        if self._event is not None:
            self._event.synchronize()
        values = self._host.tolist()
        count = len(values) // 3
        loss, squared, (asked, *here) = values[:count], values[count : 2 * count], values[2 * count :]
        return Verdict(
            loss_unsound=[not math.isfinite(flaw) for flaw in loss],
            gradient_unsound=[not math.isfinite(norm) for norm in squared],
            stop_asked=asked > 0,
            loss_unsound_here=[not math.isfinite(flaw) for flaw in here],
        )
