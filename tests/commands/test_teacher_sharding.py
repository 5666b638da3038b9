"""`teachers.sharding: auto` weighs memory and time, and says why."""

import pytest

from dmt_ds.planning.sharding import ShardingCost

GIB = 2**30


def cost(share: float, gather: float = 1.0, forward: float = 2.0, ranks: int = 8) -> ShardingCost:
    return ShardingCost(ranks, share * 80 * GIB, 80 * GIB, gather, forward)


@pytest.mark.parametrize(
    ("weighed", "choice", "reason"),
    [
        (cost(0.006), "replicate", "memory is no reason to shard"),
        (cost(0.006, gather=0.001), "replicate", "memory is no reason to shard"),
        (cost(0.1), "replicate", "memory is no reason to shard"),
        (cost(0.11), "zero3", "hides behind the arithmetic"),
        (cost(0.3), "zero3", "hides behind the arithmetic"),
        (cost(0.3, gather=2.0), "zero3", "hides behind the arithmetic"),
        (cost(0.3, gather=3.0), "replicate", "does not hide"),
        (cost(0.5, gather=3.0), "replicate", "does not hide"),
        (cost(0.51, gather=3.0), "zero3", "the student needs the memory"),
        (cost(0.6, gather=3.0), "zero3", "the student needs the memory"),
        (cost(0.6, ranks=1), "replicate", "one rank"),
    ],
)
def test_the_choice_follows_from_memory_then_time(weighed: ShardingCost, choice: str, reason: str) -> None:
    chosen, why = weighed.choose()
    assert chosen == choice and reason in why


def test_the_reason_is_one_line_with_its_figures() -> None:
    _, why = cost(0.3, gather=0.0021, forward=0.031).choose()
    assert "\n" not in why
    assert "24.00 GiB of 80 GiB (30.0 %)" in why and "8 ranks" in why and "for 2.1 ms and compute for 31 ms" in why
