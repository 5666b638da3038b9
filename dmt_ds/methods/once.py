"""What students of the same teachers ask for one after the other is computed once; knows no method."""

from collections.abc import Callable
from typing import Generic, TypeVar

from dmt_ds.data.batch import Batch

T = TypeVar("T")


class OncePerBatch(Generic[T]):
    """A function of a micro-batch for several who ask about it one after the other: the first has it computed."""

    def __init__(self, compute: Callable[[Batch, bool], T], num_askers: int) -> None:
        """Put the parts together.

        Args:
            compute: (batch, whether to give the costlier metrics too) -> the answer.
            num_askers: once so many have it, it is not kept: what follows, such as a backward pass, has its memory.
        """
        self._compute = compute
        self._num_askers = num_askers
        self._num_asked = 0
        self._last: tuple[Batch, bool, T] | None = None

    def __call__(self, batch: Batch, diagnose: bool) -> T:
        """The answer; computed where this very batch was not asked about just before."""
        if self._last is None or self._last[0] is not batch or self._last[1] != diagnose:
            self._last = None  # the old answer must not lie beside the new one
            self._last, self._num_asked = (batch, diagnose, self._compute(batch, diagnose)), 0
        answer = self._last[2]
        self._num_asked += 1
        if self._num_asked == self._num_askers:
            self._last = None
        return answer
