"""A single rank's gradients, added up once the backward pass is through; knows no training loop.

For ZeRO-2 in bf16 with float32 sums. DeepSpeed calls Python at each gradient, in the middle of the backward pass, to
fill buckets that nobody waits for. Here autograd leaves gradients with their parameters, where DeepSpeed has them lie
to the end of the pass too, and those that are neighbours in the flat group are added in one piece. The sums are the
same bit for bit.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


class LoneGradients:
    """Takes gradients in where DeepSpeed would reduce what is left at the end of a backward pass."""

    def __init__(self, zero: Any) -> None:
        """Note where gradients belong.

        Args:
            zero: DeepSpeed's optimizer, without its hooks.
        """
        self._zero = zero
        self._weights = [  # of each group: (weight, where it begins in the group, how many numbers)
            [(weight, int(begin), weight.numel()) for weight, begin in zip(weights, begins, strict=True)]
            for weights, begins in zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
        ]

    def take_in(self) -> None:
        """Add all gradients to `zero.averaged_gradients` and drop them."""
        for group in range(len(self._weights)):
            for begin, gradients in self._runs(group):
                part = self._zero._get_compact_grad_partition_buffer(group).flat_partition
                gradient = self._zero.flatten(gradients)
                part[begin : begin + len(gradient)].add_(gradient)

    def _runs(self, group: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Gradients that are neighbours in the group: (where they begin, the gradients), a bucket's numbers at most."""
        run: list[Tensor] = []
        begin = end = 0
        for weight, place, size in self._weights[group]:
            gradient = weight.grad
            if gradient is None:
                continue
            weight.grad = None
            if run and (place != end or end + size - begin > self._zero.reduce_bucket_size):
                yield begin, run
                run = []
            if not run:
                begin = place
            run.append(gradient)
            end = place + size
        if run:
            yield begin, run
