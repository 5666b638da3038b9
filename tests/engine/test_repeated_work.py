"""What is not done again at each update changes nothing."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from dmt_ds.engine.deepspeed.repeated_work import keep_weights_in_place
from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[1, 2])
def facts(request: pytest.FixtureRequest) -> dict[str, Any]:
    done = processes.run(["-m", "tests.engine.repeated_work"], processes=request.param)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))[len("FACTS ") :])


@pytest.mark.parametrize("json_name", ["student_zero2_bf16", "student_zero2_fp32"])
def test_weights_that_stay_where_they_are_are_not_made_views_again(facts, json_name: str) -> None:
    ours, theirs = facts["ours"][json_name], facts["deepspeed's"][json_name]
    assert theirs["made"] == [0, 1] * 3 and ours["made"] == []
    assert ours["weights"] == theirs["weights"]
    assert ours["weights"][0] != ours["weights"][1] != ours["weights"][2], "they change: else this shows nothing"
    assert ours["in place"] == [True] * 3


def test_weights_that_were_moved_are_put_back(facts) -> None:
    """One of the first group before an update, another before the next, then all, of both groups."""
    assert facts["moved"]["made"] == [0, 0, 0, 1]
    assert facts["moved"]["in place"] == [True] * 3
    assert facts["moved"]["weights"] == facts["ours"]["student_zero2_bf16"]["weights"]


def test_an_optimizer_without_flat_groups_stays_as_it_is() -> None:
    zero = SimpleNamespace()
    keep_weights_in_place(SimpleNamespace(optimizer=zero))
    assert vars(zero) == {}
