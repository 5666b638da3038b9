"""SIGKILL on any rank at any moment of a save: the next start goes on from a complete checkpoint."""

import json
from pathlib import Path

import pytest

from tests import processes, tiny_run

ROUNDS = 20

pytestmark = pytest.mark.distributed


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing_that_was_complete(tmp_path, record_property):
    record_property("times", ROUNDS)
    recipe = tiny_run.write_recipe(
        tmp_path, train={"steps": 5000, "save_every_steps": 1, "micro_batch_size": 16}, teachers={"use": ["red"]}
    )
    script = str(Path(__file__).with_name("kill_rounds.py"))
    done = processes.run([script, str(recipe), str(ROUNDS), "1"], timeout=600)
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("REPORT "))[7:])

    assert len(report) == ROUNDS and all(r["began"] for r in report)
    assert not any(r["went_back"] for r in report)
    steps = [r["step"] for r in report]
    assert steps == sorted(steps) and steps[-1] > steps[0]
    assert {r["victim"] for r in report} == {0, 1}
    # The point of the test: kills did land inside a save, several times.
    assert sum(r["in_save"] for r in report) >= 3

    values: dict[int, set[float]] = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            continue  # a line cut by a kill
        values.setdefault(point["step"], set()).add(point["metrics"]["train/loss"])
    repeated = [step for step, losses in values.items() if len(losses) > 1]
    assert not repeated, f"steps {repeated[:5]} had other losses when they were done again"
