"""Meters give plain means, and wait for the device once."""

import time

import pytest
import torch
from torch import Tensor

from dmt_ds.tracking.meters import MeanMeters, Throughput, memory_gib


class CountingReduce:
    """A mean over ranks that all measured the same, and how often it was asked."""

    def __init__(self) -> None:
        self.names: list[int] = []

    def __call__(self, values: Tensor) -> Tensor:
        self.names.append(len(values))
        return values


def test_the_mean_of_a_metric_is_over_the_micro_steps_that_had_it() -> None:
    meters, reduce = MeanMeters(), CountingReduce()
    for value in (1.0, 2.0, 6.0):
        meters.add({"train/loss": torch.tensor(value), "a": torch.tensor(value * 10)})
    meters.add({"train/loss": torch.tensor(7.0), "train/entropy": torch.tensor(0.5)})
    means = meters.pop_means(reduce)
    assert list(means) == ["a", "train/entropy", "train/loss"]
    assert means == {"a": pytest.approx(30.0), "train/entropy": 0.5, "train/loss": 4.0}
    assert reduce.names == [3]


def test_means_start_anew_after_they_were_taken() -> None:
    meters, reduce = MeanMeters(), CountingReduce()
    meters.add({"loss": torch.tensor(1.0)})
    meters.pop_means(reduce)
    assert meters.pop_means(reduce) == {}
    meters.add({"loss": torch.tensor(3.0)})
    assert meters.pop_means(reduce) == {"loss": 3.0}


def test_adding_keeps_no_graph_and_half_precision_is_summed_in_float32() -> None:
    meters = MeanMeters()
    value = torch.tensor(1.0, requires_grad=True)
    for _ in range(1000):
        meters.add({"loss": (value * 1.0).bfloat16()})

    def reduce(means: Tensor) -> Tensor:
        assert means.grad_fn is None
        return means

    assert meters.pop_means(reduce) == {"loss": 1.0}


def test_adding_never_reads_a_value_back_to_the_host() -> None:
    meters = MeanMeters()
    # A meta tensor has no value: whatever would read it raises.
    for _ in range(3):
        meters.add({"loss": torch.empty((), device="meta"), "other": torch.empty((), device="meta")})


def test_throughput_counts_images_and_the_share_of_waiting() -> None:
    throughput = Throughput()
    with throughput.waiting():
        time.sleep(0.1)
    time.sleep(0.1)
    throughput.count(30)
    throughput.count(10)
    rates = throughput.pop()
    assert 0.3 < rates["perf/data_wait_share"] < 0.7
    assert 100 < rates["perf/images_per_second"] <= 200
    assert throughput.pop() == {"perf/images_per_second": 0, "perf/data_wait_share": 0}


def test_memory_is_that_of_a_process_with_torch() -> None:
    assert 0.05 < memory_gib() < 64
