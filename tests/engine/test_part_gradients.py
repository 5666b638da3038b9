"""Buffers of gradients whose views are made when they are read give what DeepSpeed's own do."""

import json
from typing import Any

import pytest
import torch

from dmt_ds.engine.deepspeed.part_gradients import views_on_demand
from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[1, 2])
def facts(request: pytest.FixtureRequest) -> dict[str, Any]:
    done = processes.run(["-m", "tests.engine.part_gradients"], processes=request.param)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))[len("FACTS ") :])


@pytest.mark.parametrize("kind", ["plain", "clipped", "left out on the device"])
def test_gradients_norms_and_weights_are_those_of_deepspeeds_buffers(facts, kind: str) -> None:
    """The groups' length is odd: the part ends in padding, which DeepSpeed's norm leaves out."""
    ours, theirs = facts["ours"][kind], facts["deepspeed's"][kind]
    assert ours == theirs
    assert ours["gradients"][1] != ours["gradients"][2], "they change: else this shows nothing"


def test_views_are_made_where_they_are_read_and_nowhere_else(facts) -> None:
    assert facts["made where nobody reads"] == 0
    assert facts["made where they are read"] == 3 * 2  # kinds, updates after the first


class OfDeepSpeed(list):
    """A group's gradients, as DeepSpeed has them: a view of a matrix and padding."""

    def __init__(self) -> None:
        self.flat_partition = torch.zeros(8, dtype=torch.float64)
        padding = self.flat_partition[6:]
        padding._zero_padding = True
        super().__init__([self.flat_partition[:6].view(2, 3), padding])


class Optimizer:
    """What of DeepSpeed's optimizer makes them."""

    def _build_compact_grad_partition_buffer(self, group: int) -> OfDeepSpeed:
        return OfDeepSpeed()


def test_the_buffer_can_be_moved_and_is_read_where_it_went() -> None:
    zero: Any = Optimizer()
    views_on_demand(zero)
    first, second = (zero._build_compact_grad_partition_buffer(1) for _ in range(2))
    assert isinstance(first, OfDeepSpeed) and not isinstance(second, OfDeepSpeed)
    assert len(second) == len(first)
    assert second.flat_partition.dtype is torch.float64
    assert [view.shape for view in second] == [view.shape for view in first]
    second.flat_partition.data = second.flat_partition.data + 1  # as memory of another device
    second.move_flat_partition("cpu")
    assert [view.sum().item() for view in second] == [6, 2]
    assert [hasattr(view, "_zero_padding") for view in second] == [False, True]
