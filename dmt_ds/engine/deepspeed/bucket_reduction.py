"""Gradients averaged over ranks bucket by bucket, while the backward pass goes on; knows no training loop.

For ZeRO-2 in bf16 with float32 sums. DeepSpeed waits for the sum of each bucket before the backward pass goes on, or,
with `overlap_comm`, for the whole device. It accumulates gradients one by one, then copies the averaged bucket back
to bf16 and into each gradient, which is dropped unread. That costs two kernel launches per parameter, with the host's
work around them, and two copies of everything. A single rank divides by one as well. The sums are the same bit for
bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_OF_A_BUCKET = "_allreduce_noncontiguous_bucket_preserving_fp32"
"""DeepSpeed 0.19: what `reduce_ipg_grads` calls for gradients that lie where autograd left them."""


class _Sent(NamedTuple):
    """A bucket whose sum over ranks is on its way."""

    bucket: Tensor
    """[n] of what was sent; the mean, once it has arrived."""
    arrival: Any
    """What `all_reduce` gives to wait by; None where there is nobody to wait for."""
    sizes: list[int]
    """Numbers of each gradient; the gradients themselves need not wait."""
    places: Sequence[tuple[int, int, int]]
    """Of each gradient: (parameter group, number in it, DeepSpeed's id of the parameter)."""


class BucketReduction:
    """Sends each bucket as it is full, and adds what is of this rank's part once the backward pass is through."""

    def __init__(self, zero: Any, waits: bool) -> None:
        """Put it beside DeepSpeed.

        Args:
            zero: DeepSpeed's optimizer.
            waits: a bucket is waited for before the backward pass goes on.
        """
        self._zero = zero
        self._waits = waits
        self._sent: list[_Sent] = []
        self._reduce_what_waits: Callable[..., None] = zero.reduce_ipg_grads

    def send(self, gradients: Sequence[Tensor], places: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> None:
        """Begin to average gradients over ranks; takes the place of what DeepSpeed calls for a bucket.

        Args:
            places: as in `_Sent`.
            dtype: of what is sent.
        """
        bucket, group = self._zero.flatten(gradients).to(dtype), self._zero.dp_process_group
        ranks = torch.distributed.get_world_size(group)
        arrival = None
        if ranks > 1:  # divided before they are added, as DeepSpeed does
            arrival = torch.distributed.all_reduce(bucket.div_(ranks), group=group, async_op=True)
        sent = _Sent(bucket, arrival, [gradient.numel() for gradient in gradients], places)
        if self._waits or arrival is None:
            self._take_in(sent)
        else:
            self._sent.append(sent)

    def reduce(self, comm_dtype: torch.dtype | None = None) -> None:
        """DeepSpeed's `reduce_ipg_grads`: the full bucket of a type, or, at the end of a pass, all that is left.

        On a GPU the device waits for what is on its way, and the host does not.
        """
        self._reduce_what_waits(comm_dtype)
        if comm_dtype is not None:
            return
        for sent in self._sent:
            self._take_in(sent)
        self._sent.clear()

    def _take_in(self, sent: _Sent) -> None:
        """Add what is of this rank's part to `zero.averaged_gradients`, once it is here."""
        if sent.arrival is not None:
            sent.arrival.wait()
        zero = self._zero
        ranks = [torch.distributed.get_rank(members) for members in zero.real_dp_process_group]
        parts, shares = [], []
        for gradient, (group, _, parameter) in zip(torch.split(sent.bucket, sent.sizes), sent.places, strict=True):
            begin = zero.grad_start_offset[group][ranks[group]].get(parameter)
            if begin is None:  # all of it is other ranks'
                continue
            place = int(zero.grad_partition_insertion_offset[group][ranks[group]][parameter])
            part = zero._get_compact_grad_partition_buffer(group).flat_partition[place:]
            share = gradient[int(begin) :][: len(part)]
            parts.append(part[: len(share)])
            shares.append(share)
        if parts:
            torch._foreach_add_(parts, shares)


def overlap_reduction(engine: Any) -> None:
    """Make a DeepSpeed engine reduce this way; one that does not reduce whole bf16 buckets stays as it is."""
    zero = engine.optimizer
    # Another stream's copies need marks of their own (`overlap_comm`).
    if hasattr(zero, _OF_A_BUCKET) and not zero.overlap_comm and zero.gradient_average:
        # NCCL may lock up where another group (batch norm's backward) is used while a sum of this one is on its way.
        talks_on_the_way = any(isinstance(child, nn.SyncBatchNorm) for child in engine.module.modules())
        reduction = BucketReduction(zero, waits=talks_on_the_way)
        setattr(zero, _OF_A_BUCKET, reduction.send)
        zero.reduce_ipg_grads = reduction.reduce
