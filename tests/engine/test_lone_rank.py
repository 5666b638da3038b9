"""What one rank leaves out of DeepSpeed's update changes nothing."""

import json
from typing import Any

import pytest
import torch

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine.deepspeed.lone_rank import averages_with_nobody
from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    done = processes.run(["-m", "tests.engine.lone_rank"])
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return json.loads(line.removeprefix("FACTS "))


@pytest.mark.parametrize(("case", "tolerance"), [("plain", 0.0), ("clipped", 1e-6)])
def test_the_weights_are_those_of_deepspeeds_own_way(facts, case: str, tolerance: float) -> None:
    """Clipping divides by the norm, which is summed in another order."""
    spared, wanted = (torch.tensor(facts[side][case]["weights"]) for side in ("spared", "by deepspeed"))
    assert (spared - wanted).abs().max() <= tolerance
    assert (wanted[0] != wanted[1]).any(), "weights move: else this shows nothing"


@pytest.mark.parametrize("case", ["plain", "clipped"])
def test_norms_agree_and_a_gradient_that_is_not_finite_is_left_out(facts, case: str) -> None:
    spared, wanted = (facts[side][case] for side in ("spared", "by deepspeed"))
    assert spared["norms"] == pytest.approx(wanted["norms"], rel=1e-6)
    assert spared["skipped"] == wanted["skipped"] == 1
    assert spared["weights"][1] == spared["weights"][2]


def test_only_a_rank_alone_in_float32_does_so() -> None:
    float32, bf16 = (
        resolve_student(find_ds_config(f"student_zero2_{kind}"), plan_batch(8, 8, 1), 0.0) for kind in ("fp32", "bf16")
    )
    assert averages_with_nobody(float32, 1) == (not torch.cuda.is_available())
    assert not averages_with_nobody(float32, 2) and not averages_with_nobody(bf16, 1)
