"""Gradients averaged over ranks bucket by bucket, while the backward pass goes on; knows no training loop.

For ZeRO-2 in bf16 with float32 sums. DeepSpeed waits for the sum of each bucket before the backward pass goes on, or,
with `overlap_comm`, for the whole device. It accumulates gradients one by one, then copies the averaged bucket back
to bf16 and into each gradient, which is dropped unread. That costs two kernel launches per parameter, with the host's
work around them, and two copies of everything. The sums are the same bit for bit: gradients keep DeepSpeed's order in a
bucket, as a ring of three or more ranks adds each place of it in an order of its own.

Where a bucket's numbers go is worked out once, as the same gradients come together at each update.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.engine.deepspeed.lone_gradients import LoneGradients, is_alone
from dmt_ds.engine.deepspeed.part_gradients import views_on_demand

_OF_A_BUCKET = "_allreduce_noncontiguous_bucket_preserving_fp32"
"""DeepSpeed 0.19: what `reduce_ipg_grads` calls for gradients that lie where autograd left them."""

_KNOWN_BUCKETS = 1024
"""Of how many it is remembered where their numbers go: more than any model fills, where they are the same each time."""

_Place = tuple[int, int, int]
"""Of a gradient: (parameter group, number in it, DeepSpeed's id of the parameter)."""


class _Sent(NamedTuple):
    """A bucket whose sum over ranks is on its way."""

    bucket: Tensor
    """[n] of what was sent; the mean, once it has arrived."""
    arrival: Any
    """What `all_reduce` gives to wait by; None where there is nobody to wait for."""
    sizes: tuple[int, ...]
    """Numbers of each gradient; the gradients themselves need not wait."""
    places: tuple[_Place, ...]


class _Cut(NamedTuple):
    """Pieces that are taken out of a flat tensor, in their order there."""

    sizes: list[int]
    """Of all pieces that it is cut in, the others too."""
    taken: list[int]
    """Their numbers."""

    @classmethod
    def at(cls, spans: Iterable[tuple[int, int]], length: int) -> "_Cut":
        """Where the pieces lie in a tensor of this length: (begin, length), in their order, none in another."""
        sizes, taken, done = [], [], 0
        for begin, size in spans:
            if begin > done:
                sizes.append(begin - done)
            taken.append(len(sizes))
            sizes.append(size)
            done = begin + size
        return cls([*sizes, length - done], taken)

    def of(self, flat: Tensor) -> list[Tensor]:
        """Views of the pieces."""
        pieces = torch.split(flat, self.sizes)
        return [pieces[number] for number in self.taken]


class _Layout(NamedTuple):
    """What of a bucket is of this rank's part, and where it goes."""

    shares: _Cut
    """Of the bucket."""
    groups: list[tuple[int, list[int], _Cut]]
    """(parameter group, numbers of its shares, where they go in this rank's part of it, in the same order)."""


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
        self._layout = lru_cache(_KNOWN_BUCKETS)(self._lay_out)

    def send(self, gradients: Sequence[Tensor], places: Sequence[_Place], dtype: torch.dtype) -> None:
        """Begin to average gradients over ranks; takes the place of what DeepSpeed calls for a bucket.

        Args:
            dtype: of what is sent.
        """
        bucket, group = self._zero.flatten(gradients).to(dtype), self._zero.dp_process_group
        ranks = torch.distributed.get_world_size(group)
        arrival = None
        if ranks > 1:  # divided before they are added, as DeepSpeed does
            arrival = torch.distributed.all_reduce(bucket.div_(ranks), group=group, async_op=True)
        sent = _Sent(bucket, arrival, tuple(gradient.numel() for gradient in gradients), tuple(places))
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
        layout = self._layout(sent.sizes, sent.places)
        shares_of_all = layout.shares.of(sent.bucket)
        parts: list[Tensor] = []
        shares: list[Tensor] = []
        for group, numbers, cut in layout.groups:
            parts += cut.of(self._zero._get_compact_grad_partition_buffer(group).flat_partition)
            shares += [shares_of_all[number] for number in numbers]
        if parts:
            torch._foreach_add_(parts, shares)

    def _lay_out(self, sizes: Sequence[int], places: Sequence[_Place]) -> _Layout:
        """By DeepSpeed's tables, which stay as they are."""
        zero = self._zero
        ranks = [torch.distributed.get_rank(members) for members in zero.real_dp_process_group]
        spans: list[tuple[int, int]] = []  # in the bucket
        targets: dict[int, list[tuple[int, int, int]]] = {}  # of each group: (begin in this rank's part, length, share)
        begin_in_bucket = 0
        for size, (group, _, parameter) in zip(sizes, places, strict=True):
            begin = zero.grad_start_offset[group][ranks[group]].get(parameter)
            if begin is not None:  # else all of it is other ranks'
                target = int(zero.grad_partition_insertion_offset[group][ranks[group]][parameter])
                length = min(size - int(begin), int(zero.partition_size[group]) - target)
                targets.setdefault(group, []).append((target, length, len(spans)))
                spans.append((begin_in_bucket + int(begin), length))
            begin_in_bucket += size
        groups = []
        for group, of_group in targets.items():
            of_group.sort()
            cut = _Cut.at([(target, length) for target, length, _ in of_group], int(zero.partition_size[group]))
            groups.append((group, [share for _, _, share in of_group], cut))
        return _Layout(_Cut.at(spans, begin_in_bucket), groups)


def overlap_reduction(engine: Any) -> None:
    """Make a DeepSpeed engine reduce this way; one that does not reduce whole bf16 buckets stays as it is.

    A rank that is alone has no buckets (`LoneGradients`).
    """
    zero = engine.optimizer
    # Another stream's copies need marks of their own (`overlap_comm`).
    if not hasattr(zero, _OF_A_BUCKET) or zero.overlap_comm or not zero.gradient_average:
        return
    views_on_demand(zero)
    if is_alone(zero):
        zero.reduce_ipg_grads = LoneGradients(zero).take_in
    else:
        # NCCL may lock up where another group (batch norm's backward) is used while a sum of this one is on its way.
        talks_on_the_way = any(isinstance(child, nn.SyncBatchNorm) for child in engine.module.modules())
        reduction = BucketReduction(zero, waits=talks_on_the_way)
        setattr(zero, _OF_A_BUCKET, reduction.send)
        zero.reduce_ipg_grads = reduction.reduce
