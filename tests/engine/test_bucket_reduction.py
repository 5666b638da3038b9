"""Buckets that are averaged while the backward pass goes on give the sums of DeepSpeed's own way; so does one rank."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmt_ds.engine.deepspeed.bucket_reduction import _sums_whole_buckets, overlap_reduction
from tests import processes

pytestmark = pytest.mark.distributed

PASSES = 2 * 3  # micro-batches of updates


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def facts(ranks: int) -> dict[str, Any]:
    done = processes.run(["-m", "tests.engine.bucket_reduction"], processes=ranks)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))[len("FACTS ") :])


def test_masters_are_those_of_deepspeeds_own_way_bit_for_bit(facts, ranks: int) -> None:
    """On three ranks a parameter lies on two of them."""
    first, second, _ = facts["overlapping"]
    assert facts["overlapping"] == facts["by deepspeed"]
    assert all(first[name] != second[name] for name in first), "all move: else this shows nothing"
    assert facts["sent by deepspeed"] == 0
    assert facts["waiting"] == facts["normed by deepspeed"]


def test_a_bucket_is_waited_for_only_where_batch_norm_talks_too(facts, ranks: int) -> None:
    """Each pass has two; a single rank has none."""
    assert facts["on their way"] == ([1, 2] * PASSES if ranks > 1 else [])
    assert facts["on their way beside batch norm"] == ([0, 0] * PASSES if ranks > 1 else [])


def test_where_the_numbers_of_a_bucket_go_is_worked_out_once_while_it_holds_the_same(facts, ranks: int) -> None:
    assert facts["laid out"] == ([5, 1] if ranks > 1 else [])
    # the rare layer alone is larger than a bucket
    assert facts["laid out of branches"] == ([3, 1, 3, 1, 2] if ranks > 1 else [])
    assert facts["branching"] == facts["branching by deepspeed"]


def test_a_bucket_may_be_full_to_the_last_number_and_hold_a_gradient_that_is_larger(facts, ranks: int) -> None:
    assert facts["laid out of a full one"] == ([6] if ranks > 1 else [])
    assert facts["full in one"] == ([2, 4] * PASSES if ranks == 1 else [])
    assert facts["full"] == facts["full by deepspeed"] and facts["large"] == facts["large by deepspeed"]


def test_a_pass_may_leave_a_whole_group_without_gradients(facts, ranks: int) -> None:
    assert facts["seldom"] == facts["seldom by deepspeed"]


def test_gradients_are_dropped_as_they_are_sent_by_hooks_that_the_optimizer_can_remove(facts, ranks: int) -> None:
    assert facts["held"] == 0
    assert facts["hooks"] == [6 if ranks > 1 else 0]


def optimizer(**other: object) -> SimpleNamespace:
    """What of DeepSpeed's optimizer says whether it sums whole buckets."""
    settings = {
        "_use_compact_grad_partition_buffer": lambda group: True,
        "partition_gradients": True,
        "gradient_average": True,
        "contiguous_gradients": False,
        "overlap_comm": False,
        "bit16_groups": [["a"], ["b"]],
        "get_param_comm_dtype": lambda parameter: torch.float32,
        "communication_data_type": torch.float32,
    }
    return SimpleNamespace(**settings | other)


@pytest.mark.parametrize(
    "other",
    [
        {"partition_gradients": False},
        {"gradient_average": False},
        {"contiguous_gradients": True},
        {"overlap_comm": True},
        {"_use_compact_grad_partition_buffer": lambda group: group == 0},
        {"get_param_comm_dtype": {"a": torch.float32, "b": torch.bfloat16}.get},
    ],
    ids=lambda other: next(iter(other)),
)
def test_an_optimizer_that_does_anything_else_stays_as_it_is(other: dict[str, object]) -> None:
    assert _sums_whole_buckets(optimizer())
    zero = optimizer(**other)
    before = dict(vars(zero))
    overlap_reduction(SimpleNamespace(optimizer=zero))
    assert vars(zero) == before
    overlap_reduction(SimpleNamespace(optimizer=SimpleNamespace()))  # of stage 0 or 3


def test_a_single_rank_adds_neighbours_in_one_piece_of_a_buckets_numbers_at_most(facts, ranks: int) -> None:
    """Two matrices, which together are more, and four vectors; in the branches a missing gradient parts neighbours."""
    assert facts["in one"] == ([1, 1, 4] * PASSES if ranks == 1 else [])
    rarely = [1, 1, 1, 1] * 2 + [1, 1, 1, 3]
    assert facts["branches in one"] == (rarely * (PASSES // 3) if ranks == 1 else [])


def test_a_gradient_that_comes_in_two_pieces_is_refused_where_the_first_may_have_been_sent(facts, ranks: int) -> None:
    """As by DeepSpeed: a sum of the second would have the first in it too."""
    assert facts["repeating"] == ("a gradient was computed twice in one backward pass" if ranks > 1 else None)


@pytest.mark.parametrize("setting", ["contiguous_gradients", "overlap_comm"])
def test_deepspeed_keeps_gradients_that_it_copies_or_adds_on_a_stream_of_its_own(facts, ranks: int, setting) -> None:
    assert facts[f"kept with {setting}"] == [False, True]
