"""The running mean that curves are drawn by."""

import math
import tracemalloc

import pytest

from dmt_ds.tracking.figures import smoothed


def test_a_running_mean_is_that_of_the_values_beside_with_shorter_windows_towards_the_ends() -> None:
    values = [float(index**2) for index in range(40)]
    found = smoothed(values, half_width=6)
    for index, value in enumerate(found):
        half = max(3, min(6, index, 39 - index))
        window = [values[place] for place in range(40) if abs(place - index) <= half]
        assert value == pytest.approx(sum(window) / len(window))


def test_a_huge_value_and_one_that_is_no_number_touch_only_the_windows_that_hold_them() -> None:
    values = [1.0] * 20 + [1e300] + [1.0] * 20 + [math.nan] + [1.0] * 20
    found = smoothed(values, half_width=4)
    assert [index for index, value in enumerate(found) if value != 1.0] == [*range(16, 25), *range(37, 46)]
    assert math.isnan(found[41])


def test_a_running_mean_of_many_points_holds_one_window_at_a_time() -> None:
    values = [1.0] * 20_000
    tracemalloc.start()
    smoothed(values, half_width=800)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10 * 8 * len(values)
