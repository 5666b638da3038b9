"""Ranks that would add gradients of unlike parameters are stopped, and decide alike whether to compile."""

import json
from typing import Any

import pytest
import torch

from dmt_ds.engine.deepspeed.gradient_order import GradientOrder
from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    done = processes.run(["-m", "tests.engine.gradient_order"], processes=2)
    assert "student: not compiled: rank 1: no C compiler" in done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return json.loads(line.removeprefix("FACTS "))


def test_where_one_rank_cannot_compile_none_does(facts) -> None:
    assert [each["compiles"] for each in facts] == [False, False]


def test_an_order_of_gradients_of_its_own_ends_the_run_on_all_ranks(facts) -> None:
    assert [each["alike"] for each in facts] == ["", ""]
    first, second = (each["unlike"] for each in facts)
    assert first.startswith("LaunchError: rank 1: gradients are ready in another order than on rank 0")
    assert second.startswith("PeerFailedError")


def test_nothing_listens_behind_the_pass_that_is_looked_at() -> None:
    """A name a gradient would be kept of every step."""
    module = torch.nn.Linear(2, 2)
    order = GradientOrder(module)
    module(torch.ones(1, 2)).sum().backward()
    assert all(weight._post_accumulate_grad_hooks for weight in module.parameters())
    order.check()
    assert not any(weight._post_accumulate_grad_hooks for weight in module.parameters())
