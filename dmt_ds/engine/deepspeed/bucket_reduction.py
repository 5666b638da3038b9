"""A bucket of averaged gradients, added to this rank's part at once; knows no training loop.

For ZeRO-2 in bf16 with float32 sums. DeepSpeed accumulates gradients one by one, then copies the averaged bucket back
to bf16 and into each gradient, which is dropped unread. That costs two kernel launches per parameter, with the host's
work around them, and two copies of everything. A single rank divides by one as well. The sums are the same bit for
bit.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

_OF_DEEPSPEED = "_allreduce_noncontiguous_bucket_preserving_fp32"


def reduce_at_once(engine: Any) -> None:
    """Make a DeepSpeed engine reduce this way; one that does not reduce whole bf16 buckets stays as it is."""
    zero = engine.optimizer
    # Another stream's copies need marks of their own (`overlap_comm`).
    if hasattr(zero, _OF_DEEPSPEED) and not zero.overlap_comm and zero.gradient_average:
        setattr(zero, _OF_DEEPSPEED, partial(_reduce, zero))


def _reduce(zero: Any, gradients: Sequence[Tensor], places: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> None:
    """Average gradients over ranks, and add what is of this rank's part to `zero.averaged_gradients`.

    Args:
        places: of each gradient: (parameter group, number in it, DeepSpeed's id of the parameter).
        dtype: of what is sent.
    """
    averaged = zero.unflatten(_averaged(zero.flatten(gradients).to(dtype), zero.dp_process_group), gradients)
    ranks = [torch.distributed.get_rank(members) for members in zero.real_dp_process_group]
    parts, shares = [], []
    for gradient, (group, _, parameter) in zip(averaged, places, strict=True):
        begin = zero.grad_start_offset[group][ranks[group]].get(parameter)
        if begin is None:  # all of it is other ranks'
            continue
        place = int(zero.grad_partition_insertion_offset[group][ranks[group]][parameter])
        part = zero._get_compact_grad_partition_buffer(group).flat_partition[place:]
        share = gradient.flatten()[int(begin) :][: len(part)]
        parts.append(part[: len(share)])
        shares.append(share)
    if parts:
        torch._foreach_add_(parts, shares)


def _averaged(bucket: Tensor, group: Any) -> Tensor:
    """The bucket's mean over ranks, in place: divided before they are added, as DeepSpeed does."""
    ranks = torch.distributed.get_world_size(group)
    if ranks > 1:
        torch.distributed.all_reduce(bucket.div_(ranks), group=group)
    return bucket
