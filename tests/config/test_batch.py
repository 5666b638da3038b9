"""The arithmetic of batches and steps."""

from math import ceil

import pytest

from dmt_ds.config.batch import plan_batch, plan_length
from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.train import TrainConfig
from dmt_ds.errors import ConfigError, DataError


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 32, 96])
def test_the_parts_of_an_exact_batch_multiply_to_the_whole(world_size: int, micro_batch_size: int) -> None:
    plan = plan_batch(4 * world_size * micro_batch_size, micro_batch_size, world_size)
    assert plan.grad_accum_steps == 4
    assert plan.micro_batch_size * plan.grad_accum_steps * plan.world_size == plan.global_batch_size


def test_a_batch_that_can_not_be_exact_shows_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_batch(4096, 96, 8)
    assert "4096 is not divisible by micro_batch_size 96 x 8 ranks = 768; nearest: 3840, 4608" in str(caught.value)


@pytest.mark.parametrize(("whole", "micro", "ranks"), [(4096, 96, 8), (4096, 128, 3), (64, 64, 2), (10, 7, 2)])
def test_every_size_that_the_message_offers_works(whole: int, micro: int, ranks: int) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_batch(whole, micro, ranks)
    offered = str(caught.value).split("nearest: ")[1]
    sizes, _, other_micro = offered.partition("; or train.micro_batch_size=")
    for size in sizes.split(", "):
        plan_batch(int(size), micro, ranks)
    if other_micro:
        plan_batch(whole, int(other_micro), ranks)


def test_a_batch_smaller_than_one_pass_offers_no_batch_of_nothing() -> None:
    with pytest.raises(ConfigError, match=r"nearest: 128; or train\.micro_batch_size=32"):
        plan_batch(64, 64, 2)


def test_epochs_become_steps_rounded_up() -> None:
    train = TrainConfig(epochs=300, global_batch_size=4096)
    length = plan_length(train, OptimConfig(warmup_epochs=15), 1_281_167)
    assert length.total_steps == ceil(300 * 1_281_167 / 4096)
    assert length.warmup_steps == round(15 * 1_281_167 / 4096)


def test_epochs_that_divide_exactly_are_not_rounded_up() -> None:
    train = TrainConfig(epochs=0.3, global_batch_size=3)
    assert plan_length(train, OptimConfig(), 100).total_steps == 10


def test_steps_win_over_epochs() -> None:
    train = TrainConfig(epochs=300, steps=7, global_batch_size=64)
    length = plan_length(train, OptimConfig(warmup_epochs=1, warmup_steps=3), 640)
    assert (length.total_steps, length.warmup_steps) == (7, 3)


def test_no_warmup_is_no_warmup() -> None:
    assert plan_length(TrainConfig(), OptimConfig(warmup_steps=0), 10_000).warmup_steps == 0


def test_a_data_set_smaller_than_a_batch_still_makes_a_step() -> None:
    assert plan_length(TrainConfig(epochs=1, global_batch_size=4096), OptimConfig(), 10).total_steps == 1


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        plan_length(TrainConfig(), OptimConfig(), 0)
