"""SIGKILL of one or all ranks at random moments of start, step, evaluation and save: nothing complete is lost."""

import random
from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.faults.rounds import KILLS, WORLD, Lane

ROUNDS = 10

pytestmark = pytest.mark.distributed


def write_judged(folder: Path) -> Path:
    """A classifier that is judged after every other step, and saved after every third."""
    train = {"steps": 10_000, "save_every_steps": 3, "micro_batch_size": 16, "eval_every_epochs": 2 * 32 / 1437}
    return tiny_run.write_recipe(folder, task="classify", train=train, classify={"mix_probability": 0.0})


def test_ten_kills_at_random_moments_lose_nothing_and_change_no_loss(tmp_path: Path, record_property) -> None:
    recipe = write_judged(tmp_path)
    lane = Lane(recipe, tmp_path / "run", random.Random(3))
    names = sorted(KILLS, reverse=True)
    for number in range(ROUNDS):
        name = names[number % 3 == 2]
        done = lane.round(name, KILLS[name], tmp_path / f"{number}.log")
        assert not done.went_back and all(done.codes)
    # Which moments are met is chance, and how fast this machine starts; that all were the same one is not.
    assert lane.saved_step() > 0 and len({done.moment for done in lane.rounds}) > 1
    record_property("times", ROUNDS)
    last = max(lane.losses()) + 1
    processes.run(lane.arguments(f"train.stop_after_step={last}"), WORLD)
    assert lane.temporary_files() == []
    twin = Lane(recipe, tmp_path / "twin", random.Random(0))
    processes.run(twin.arguments(f"train.stop_after_step={last}"), WORLD)
    assert lane.losses() == twin.losses() and list(twin.losses()) == list(range(1, last + 1))
