"""What is measured between two log steps, kept on the device until it is asked for; knows no tracker."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_GIB = 2**30


class MeanMeters:
    """Means of scalars over micro-steps and ranks. Adding never makes the host wait for the device."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names that come together -> [K] float32
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one micro-step's scalars (0-dim tensors of one device); names may be absent from some micro-steps."""
        if not metrics:
            return
        names = tuple(sorted(metrics))
        values = torch.stack([metrics[name].detach().float() for name in names])  # [K]: two kernels, however many names
        if names in self._sums:
            self._sums[names] += values
        else:
            self._sums[names] = values
        self._counts[names] = self._counts.get(names, 0) + 1

    def pop_means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, by sorted name; the one place where the host waits.

        Args:
            reduce: mean over ranks of a [K] float32 tensor; called once. All ranks must have had the same names.
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for names, values in self._sums.items():
            for name, value in zip(names, values.unbind(), strict=True):
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + self._counts[names]
        self._sums.clear()
        self._counts.clear()
        if not sums:
            return {}
        order = sorted(sums)
        means: list[float] = reduce(torch.stack([sums[name] / counts[name] for name in order])).tolist()
        return dict(zip(order, means, strict=True))


class Throughput:
    """Images a second, and the share of the time that was spent waiting for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._num_images = 0
        self._wait_seconds = 0.0

    def count(self, num_images: int) -> None:
        """So many more images (of all ranks) are done."""
        self._num_images += num_images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the call that fetches a batch."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait_seconds += time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """`perf/images_per_second` and `perf/data_wait_share` since the last call.

        Call it right after the host has waited for the device, or it counts work that is only queued.
        """
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        rates = {
            "perf/images_per_second": self._num_images / seconds,
            "perf/data_wait_share": self._wait_seconds / seconds,
        }
        self._start, self._num_images, self._wait_seconds = now, 0, 0.0
        return rates


def memory_gib() -> float:
    """Peak memory of this process so far, in GiB: on the CUDA device, or resident where there is none."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / _GIB
    status = Path("/proc/self/status")
    if status.exists():
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if peak is not None:
            return int(peak.split()[1]) * 1024 / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
