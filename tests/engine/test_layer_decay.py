"""Learning rates that fall with depth, in DeepSpeed's optimizer and in what a step does to the weights."""

import json
from typing import Any

import pytest

from tests import processes
from tests.engine.layer_decay import DEPTH, OPTIM, WARMUP_STEPS

pytestmark = pytest.mark.distributed

FIRST_STEP = OPTIM.base_lr * 2 / 256 / WARMUP_STEPS
"""Full learning rate of the first of the warm-up's steps."""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    done = processes.run(["-m", "tests.engine.layer_decay"], processes=2)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    facts: dict[str, Any] = json.loads(line.removeprefix("FACTS "))
    return facts


def layer_of(name: str) -> int:
    """Written apart from the code under test."""
    if name.startswith("vit.blocks."):
        return 1 + int(name.split(".")[2])
    return DEPTH + 1 if name.startswith(("head.", "vit.norm.")) else 0


def test_the_optimizer_holds_each_layers_rate(facts: dict[str, Any]) -> None:
    expected = {name: FIRST_STEP * 0.5 ** (DEPTH + 1 - layer_of(name)) for name in facts["rates"]}
    assert facts["rates"] == pytest.approx(expected)
    assert {layer_of(name) for name in facts["rates"]} == set(range(DEPTH + 2))
    last, first = (facts["rates"][f"vit.blocks.{block}.mlp.fc1.weight"] for block in (DEPTH - 1, 0))
    assert first / last == pytest.approx(0.5 ** (DEPTH - 1))


def test_a_step_moves_each_layer_by_its_rate(facts: dict[str, Any]) -> None:
    kinds = ("mlp.fc1.weight", "head.weight", "patch_embed.proj.weight", "pos_embed")
    moved = {name: size for name, size in facts["moved"].items() if name.endswith(kinds)}
    assert moved == pytest.approx({name: facts["rates"][name] for name in moved}, rel=0.02)
    assert len(moved) == DEPTH + 3


def test_after_a_step_all_rates_have_risen_alike(facts: dict[str, Any]) -> None:
    assert facts["rates_after"] == pytest.approx({name: 2 * rate for name, rate in facts["rates"].items()})


def test_the_rate_that_is_logged_is_the_heads(facts: dict[str, Any]) -> None:
    assert facts["logged"] == pytest.approx(FIRST_STEP)
