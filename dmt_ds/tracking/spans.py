"""Where a step's time goes: named spans that cost nothing until a clock listens; knows no trainer and no file.

    with span("teachers"):
        ...

A span inside another takes its time away from the outer one, so the parts of a step add up to the step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

REST = "rest"
"""The part of what lies in no span."""


class SpanClock:
    """Adds up the time of each span while it listens; on CUDA that of the device's stream, which it does not disturb.

    On CUDA a part is the time from the device's coming to a span's start until its coming to the end, idle time
    included: "data wait" is how long the device stood still for want of images, not how long the host waited.

    Args:
        device: whose time is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._stamps: list[tuple[float | torch.cuda.Event, str]] = []  # (when, part that begins)
        self._open: list[str] = []
        self._now: Callable[[], float | torch.cuda.Event] = _event if device.type == "cuda" else time.perf_counter

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count all spans of this process within, and what lies between them as `REST`; one clock at a time."""
        global _clock
        assert _clock is None, "two clocks at once"
        _clock = self
        self._mark(REST)
        try:
            yield
        finally:
            self._mark("")
            _clock = None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count what happens within under `name`."""
        self._open.append(name)
        self._mark(name)
        try:
            with torch.profiler.record_function(name):  # the same name in a profiler's trace
                yield
        finally:
            self._open.pop()
            self._mark(self._open[-1] if self._open else REST)

    def seconds(self) -> dict[str, float]:
        """Part -> time so far, largest first; waits for the device."""
        parts: dict[str, float] = {}
        for (start, name), (end, _) in zip(self._stamps, self._stamps[1:], strict=False):
            if name:
                parts[name] = parts.get(name, 0.0) + _between(start, end)
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def _mark(self, name: str) -> None:
        self._stamps.append((self._now(), name))


_clock: SpanClock | None = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """A named part of a step, for the clock that listens; nothing where none does."""
    if _clock is None:
        yield
        return
    with _clock.span(name):
        yield


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Seconds."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert not isinstance(start, float)
    assert not isinstance(end, float)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
