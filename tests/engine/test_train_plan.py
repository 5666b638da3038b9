"""At which steps the loop looks at what it trains."""

import pytest

from dmt_ds.config.load import load_config
from dmt_ds.engine.trainer import TrainPlan


def evaluations(images_in_data: int, epochs: float, batch: int, total_steps: int) -> list[int]:
    plan = TrainPlan(total_steps, batch, 1, 1, 1, eval_every_images=epochs * images_in_data)
    return [step for step in range(1, total_steps + 1) if plan.evaluates_at(step)]


@pytest.mark.parametrize("epochs", [0.5, 1, 2.5])
def test_an_evaluation_follows_the_first_update_that_completes_its_share_of_the_images(epochs: float) -> None:
    images_in_data, batch, total_steps = 103, 8, 90
    expected, due = [], epochs * images_in_data
    for step in range(1, total_steps):  # the last is not the loop's
        if step * batch >= due:
            expected.append(step)
            while due <= step * batch:
                due += epochs * images_in_data
    assert evaluations(images_in_data, epochs, batch, total_steps) == expected
    assert len(expected) > 1


@pytest.mark.parametrize("student", ["tiny", "small", "base"])
def test_ade20ks_recipes_evaluate_every_16000_steps_and_not_just_before_the_end(student: str) -> None:
    train = load_config(f"segment_ade20k_vit_{student}").train
    steps = evaluations(20_210, train.eval_every_epochs, train.global_batch_size, 160_000)
    assert train.steps == 160_000 and steps == [16_000 * number + 1 for number in range(1, 10)]


def test_zero_evaluates_at_the_end_only_and_a_batch_above_an_epoch_at_every_step() -> None:
    assert evaluations(103, 0, 8, 90) == []
    assert evaluations(10, 1, 64, 5) == [1, 2, 3, 4]


def test_the_first_each_nth_and_the_last_step_are_logged() -> None:
    plan = TrainPlan(total_steps=11, global_batch_size=8, grad_accum_steps=1, log_every_steps=4, save_every_steps=100)
    assert [step for step in range(1, 12) if plan.logs_at(step)] == [1, 4, 8, 11]


def test_each_nth_step_the_last_and_the_one_to_stop_after_are_saved() -> None:
    plan = TrainPlan(11, 8, 1, log_every_steps=100, save_every_steps=4, stop_after_step=6)
    assert [step for step in range(1, 12) if plan.saves_at(step)] == [4, 6, 8, 11]
    assert [step for step in range(1, 12) if plan.stops_at(step)] == [6, 7, 8, 9, 10, 11]  # also one that goes on there
    assert not any(TrainPlan(11, 8, 1, 1, 1).stops_at(step) for step in range(12))


def test_what_is_logged_saved_or_judged_is_looked_at_before() -> None:
    plan = TrainPlan(20, 8, 1, log_every_steps=19, save_every_steps=6, stop_after_step=9, eval_every_images=40)
    assert [step for step in range(1, 21) if plan.shows_at(step)] == [1, 5, 6, 9, 10, 12, 15, 18, 19, 20]
