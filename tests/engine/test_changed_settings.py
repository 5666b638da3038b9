"""A restart with other settings of the optimizer trains by them, not by those that the checkpoint has."""

import json
from typing import Any

import pytest

from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    done = processes.run(["-m", "tests.engine.changed_settings"])
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))[len("FACTS ") :])


@pytest.mark.parametrize(
    "engine",
    [
        *("student_zero2_bf16", "student_zero2_fp32", "student_zero1_bf16", "student_zero3_bf16"),
        *("stage 0", "universal", "universal of stage 3", "sgd", "rising decay", "layers"),
    ],
)
def test_rates_decay_and_clipping_are_the_new_recipes_and_weights_the_checkpoints(facts, engine: str) -> None:
    found = facts[engine]
    assert found["weights as saved"]
    assert found["found"] == found["wanted"]
    assert found["found later"] == found["wanted later"], "after one more update"
    assert found["found"]["clipping"] == 1.0 and found["found"]["lr"] != found["found later"]["lr"]


def test_a_decay_that_rises_goes_on_rising(facts) -> None:
    now, later = (facts["rising decay"][when]["weight_decay"] for when in ("found", "found later"))
    assert 0.2 < now[0] < later[0] < 0.4 and now[1] == later[1] == 0, "biases have none"
