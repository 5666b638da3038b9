"""Spans of a step: they add up, an inner one takes its time from the outer, and nothing is kept where none listens."""

import time

import pytest
import torch

from dmt_ds.tracking.spans import REST, SpanClock, span


def test_parts_add_up_to_the_time_that_was_listened_to() -> None:
    clock = SpanClock(torch.device("cpu"))
    start = time.perf_counter()
    with clock.listening():
        time.sleep(0.02)
        with span("teachers"):
            time.sleep(0.03)
        with span("teachers"):
            time.sleep(0.01)
    whole = time.perf_counter() - start
    parts = clock.seconds()
    assert set(parts) == {"teachers", REST} and parts["teachers"] >= 0.04 and parts[REST] >= 0.02
    assert sum(parts.values()) == pytest.approx(whole, abs=0.005)


def test_a_span_inside_another_takes_its_time_away() -> None:
    clock = SpanClock(torch.device("cpu"))
    with clock.listening(), span("outer"):
        time.sleep(0.01)
        with span("inner"):
            time.sleep(0.05)
        time.sleep(0.01)
    parts = clock.seconds()
    assert parts["inner"] >= 0.05 and 0.02 <= parts["outer"] < 0.05


def test_an_error_ends_its_span_and_the_listening() -> None:
    clock = SpanClock(torch.device("cpu"))
    with pytest.raises(ValueError, match="broken"), clock.listening(), span("teachers"):
        raise ValueError("broken")
    with SpanClock(torch.device("cpu")).listening(), span("student"):
        pass
    assert "student" not in clock.seconds()


def test_what_lies_between_two_times_of_listening_does_not_count() -> None:
    clock = SpanClock(torch.device("cpu"))
    for _ in range(2):
        with clock.listening():
            pass
        with span("teachers"):
            time.sleep(0.02)
    assert sum(clock.seconds().values()) < 0.02
