"""Gradients averaged over ranks bucket by bucket, while the backward pass goes on; knows no training loop.

For ZeRO-2 in bf16 with float32 sums. DeepSpeed waits for the sum of each bucket before the backward pass goes on, or,
with `overlap_comm`, for the whole device. It accumulates gradients one by one, then copies the averaged bucket back
to bf16 and into each gradient, which is dropped unread. That costs two kernel launches per parameter, with the host's
work around them, and two copies of everything; and to fill a bucket it runs pages of Python for each gradient. The sums
are the same bit for bit: gradients keep DeepSpeed's order in a bucket, as a ring of three or more ranks adds each place
of it in an order of its own.

Where a bucket's numbers go is worked out once, as the same gradients come together at each update.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.engine.deepspeed.lone_gradients import LoneGradients
from dmt_ds.engine.deepspeed.part_gradients import views_on_demand

_KNOWN_BUCKETS = 1024
"""Of how many it is remembered where their numbers go: more than any model fills, where they are the same each time."""


class _Place(NamedTuple):
    """Whose a gradient is."""

    group: int
    """Parameter group."""
    parameter: int
    """DeepSpeed's id of the parameter."""
    size: int
    """Numbers."""


class _Sent(NamedTuple):
    """A bucket whose sum over ranks is on its way."""

    bucket: Tensor
    """[n] of what was sent; the mean, once it has arrived."""
    arrival: Any
    """What `all_reduce` gives to wait by."""
    places: tuple[_Place, ...]
    """Of the gradients in it, one after the other; they themselves need not wait."""


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
        """Have gradients come here.

        Args:
            zero: DeepSpeed's optimizer, without its hooks.
            waits: a bucket is waited for before the backward pass goes on.
        """
        self._zero = zero
        self._waits = waits
        self._dtype: torch.dtype = zero.communication_data_type
        self._ranks = torch.distributed.get_world_size(zero.dp_process_group)
        self._ready: list[nn.Parameter] = []
        """Whose gradients are to fill the next bucket."""
        self._places: list[_Place] = []  # of the same
        self._numbers = 0
        self._seen: set[_Place] = set()
        self._sent: list[_Sent] = []
        self._layout = lru_cache(_KNOWN_BUCKETS)(self._lay_out)
        for group, parameters in enumerate(zero.bit16_groups):
            for parameter in parameters:
                place = _Place(group, zero.get_param_id(parameter), parameter.numel())
                if place.size:
                    hook = parameter.register_post_accumulate_grad_hook(partial(self._note, place))
                    zero._grad_acc_hooks.append(hook)  # which its `destroy` removes

    def reduce(self) -> None:
        """Take the place of DeepSpeed's `reduce_ipg_grads` at the end of a backward pass: send and add what is left.

        On a GPU the device waits for what is on its way, and the host does not.
        """
        if self._ready:
            self._send()
        for sent in self._sent:
            self._take_in(sent)
        self._sent.clear()
        self._seen.clear()

    def _note(self, place: _Place, parameter: nn.Parameter) -> None:
        """The gradient is ready; buckets are filled in this order, as by DeepSpeed."""
        assert place not in self._seen, "a gradient was computed twice in one backward pass"
        self._seen.add(place)
        if self._ready and self._numbers + place.size > self._zero.reduce_bucket_size:
            self._send()
        self._ready.append(parameter)
        self._places.append(place)
        self._numbers += place.size

    def _send(self) -> None:
        """Begin to average the gradients that are ready over ranks, and drop them."""
        bucket = self._zero.flatten([parameter.grad for parameter in self._ready]).to(self._dtype)
        for parameter in self._ready:
            parameter.grad = None
        # divided before they are added, as DeepSpeed does
        arrival = torch.distributed.all_reduce(
            bucket.div_(self._ranks), group=self._zero.dp_process_group, async_op=True
        )
        sent = _Sent(bucket, arrival, tuple(self._places))
        self._ready.clear()
        self._places.clear()
        self._numbers = 0
        if self._waits:
            self._take_in(sent)
        else:
            self._sent.append(sent)

    def _take_in(self, sent: _Sent) -> None:
        """Add what is of this rank's part to `zero.averaged_gradients`, once it is here."""
        sent.arrival.wait()
        layout = self._layout(sent.places)
        shares_of_all = layout.shares.of(sent.bucket)
        parts: list[Tensor] = []
        shares: list[Tensor] = []
        for group, numbers, cut in layout.groups:
            parts += cut.of(self._zero._get_compact_grad_partition_buffer(group).flat_partition)
            shares += [shares_of_all[number] for number in numbers]
        if parts:
            torch._foreach_add_(parts, shares)

    def _lay_out(self, places: Sequence[_Place]) -> _Layout:
        """By DeepSpeed's tables, which stay as they are."""
        zero = self._zero
        ranks = [torch.distributed.get_rank(members) for members in zero.real_dp_process_group]
        spans: list[tuple[int, int]] = []  # in the bucket
        targets: dict[int, list[tuple[int, int, int]]] = {}  # of each group: (begin in this rank's part, length, share)
        begin_in_bucket = 0
        for group, parameter, size in places:
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
    if not _sums_whole_buckets(zero):
        return
    views_on_demand(zero)
    for hook in zero._grad_acc_hooks:
        hook.remove()
    zero._grad_acc_hooks.clear()
    if torch.distributed.get_world_size(zero.dp_process_group) == 1:
        zero.reduce_ipg_grads = LoneGradients(zero).take_in
    else:
        # NCCL may lock up where another group (batch norm's backward) is used while a sum of this one is on its way.
        talks_on_the_way = any(isinstance(child, nn.SyncBatchNorm) for child in engine.module.modules())
        zero.reduce_ipg_grads = BucketReduction(zero, waits=talks_on_the_way).reduce


def _sums_whole_buckets(zero: Any) -> bool:
    """Whether DeepSpeed's optimizer is of ZeRO-2, adds float32 sums of buckets of gradients, and does nothing else."""
    return (
        hasattr(zero, "_use_compact_grad_partition_buffer")
        and zero.partition_gradients
        and zero.gradient_average
        and not zero.contiguous_gradients  # which DeepSpeed sets for an offloaded optimizer and for experts
        and not zero.overlap_comm  # copies on another stream need marks of their own
        and all(map(zero._use_compact_grad_partition_buffer, range(len(zero.bit16_groups))))
        and {zero.get_param_comm_dtype(parameter) for group in zero.bit16_groups for parameter in group}
        == {zero.communication_data_type}
    )
