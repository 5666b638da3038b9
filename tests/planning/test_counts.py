"""Formulas of memory and traffic against what engines hold and send, in 1, 2 and 4 real processes."""

import json
from typing import Any

import pytest

from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[1, 2, 4])
def facts(request) -> dict[str, dict[str, Any]]:
    done = processes.run(["-m", "tests.planning.counted_run"], processes=request.param)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return {**json.loads(line.removeprefix("FACTS ")), "ranks": request.param}


@pytest.mark.parametrize("stage", ["1", "2"])
@pytest.mark.parametrize("what", ["teachers", "moments", "masters", "trained"])
def test_each_rank_holds_what_the_formula_says(facts, stage, what):
    real, formula = facts[stage][what]
    assert real == pytest.approx(formula, rel=1e-3)  # DeepSpeed rounds shards up to whole alignments
    assert real > 0


@pytest.mark.parametrize("stage", ["1", "2"])
@pytest.mark.parametrize("what", ["sent by teachers", "sent by student"])
def test_each_rank_sends_what_the_formula_says(facts, stage, what):
    real, formula = facts[stage][what]
    assert real == pytest.approx(formula, rel=1e-3, abs=100)  # DeepSpeed's flags and norms are a few bytes
    assert (real > 1000) == (facts["ranks"] > 1)
