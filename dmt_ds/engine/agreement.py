"""What all ranks learn of each update: whether it is sound, and whether one of them was asked to stop.

The ranks add their flags up on the device. The host may read the sum at once, or a step later, when the copy has long
arrived while the device already works on the next step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds.data.batch import Batch
from dmt_ds.engine import dist

_NAMED_IMAGES = 4  # of each micro-batch, in messages


class Verdict(NamedTuple):
    """Flags of one update, a flag a learner but for `stop_asked`; all but the last are the same on every rank."""

    loss_unsound: list[bool]
    """A loss of some rank is not finite."""
    gradient_unsound: list[bool]
    """The gradient is not finite; False where DeepSpeed looks at it by itself."""
    stop_asked: bool
    """Some rank was asked to stop."""
    loss_unsound_here: list[bool]
    """A loss of this rank is not finite."""


class Agreement:
    """One update's flags on their way; making it is a collective call."""

    def __init__(
        self, step: int, seen: Sequence[Batch], finite: Tensor, unsound_gradient: Tensor, stop_asked: bool
    ) -> None:
        """Add up over ranks.

        Args:
            step: number of the update, from 1.
            seen: its micro-batches on the host, of which the first images are remembered for messages.
            finite: whether all losses of this rank are: [L] bool on the device, one a learner.
            unsound_gradient: of this rank's part: [L] bool on the device.
            stop_asked: of this rank.
        """
        self.step = step
        self.images: list[int] = [int(row) for batch in seen for row in batch.indices[:_NAMED_IMAGES]]
        # torch.full fills on the device; torch.tensor would copy there, and the host would wait.
        asked = torch.full((1,), float(stop_asked), device=finite.device)
        here = (~finite).float()
        summed = dist.sum_over_ranks(torch.cat([here, unsound_gradient.float(), asked]))  # [2 L + 1]
        self.unsound = summed[:-1].sum() > 0
        """Whether no learner may make the update: scalar bool on the device, the same on all ranks."""
        flags = torch.cat([summed, here])  # [3 L + 1]
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
        flags = [flag > 0 for flag in self._host.tolist()]
        count = len(flags) // 3
        return Verdict(flags[:count], flags[count : 2 * count], flags[2 * count], flags[2 * count + 1 :])
