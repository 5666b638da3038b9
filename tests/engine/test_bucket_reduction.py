"""Buckets that are averaged while the backward pass goes on give the sums of DeepSpeed's own way."""

import json

import pytest

from tests import processes

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_masters_are_those_of_deepspeeds_own_way_bit_for_bit(ranks: int) -> None:
    """On three ranks a parameter lies on two of them."""
    done = processes.run(["-m", "tests.engine.bucket_reduction"], processes=ranks)
    facts = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))[len("FACTS ") :])
    first, second, _ = facts["overlapping"]
    assert facts["overlapping"] == facts["by deepspeed"]
    assert all(first[name] != second[name] for name in first), "all move: else this shows nothing"
    passes = 2 * 3  # micro-batches of updates, of two buckets each
    assert facts["on their way"] == ([1, 2] if ranks > 1 else [0, 0]) * passes
    assert facts["sent by deepspeed"] == 0
    assert facts["waiting"] == facts["normed by deepspeed"]
    assert facts["on their way beside batch norm"] == [0, 0] * passes
