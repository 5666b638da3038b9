"""Rate and decay of each group by the number of updates; in real engines: `test_frozen_groups`."""

import pytest
import torch
from torch import nn

from dmt_ds.engine.schedule import FROZEN_UNTIL, RateAndDecay, with_frozen_groups

TOTAL = 8


def optimizer(**frozen: float) -> torch.optim.Optimizer:
    """A group that decays, one that does not, and one that is frozen at first, if any is."""
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.5},
        {"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.0},
        *({"params": [nn.Parameter(torch.ones(2))], FROZEN_UNTIL: until} for until in frozen.values()),
    ]
    return torch.optim.SGD(groups, lr=2.0)


@pytest.mark.parametrize(("until", "frozen_steps"), [(0.5, 4), (0.51, 5), (1.0, TOTAL)])
def test_a_group_is_frozen_until_its_share_of_the_run_and_the_others_never(until: float, frozen_steps: int) -> None:
    *others, frozen = with_frozen_groups(optimizer(until=until), lambda step: 1.0 + step, TOTAL)
    assert [[factor(step) for step in range(TOTAL)] for factor in others] == [[1.0 + step for step in range(TOTAL)]] * 2
    rates = [frozen(step) for step in range(TOTAL + 1)]  # the last is set after the last update
    assert rates == [0.0] * frozen_steps + [1.0 + step for step in range(frozen_steps, TOTAL + 1)]


def test_a_run_without_steps_has_a_rate() -> None:
    *_, frozen = with_frozen_groups(optimizer(until=0.5), lambda step: 1.0, 0)
    assert frozen(0) == 1.0


def test_rates_and_decay_of_each_update_are_those_of_its_step_and_what_does_not_decay_never_does() -> None:
    torchs = optimizer()
    schedule = RateAndDecay(torchs, lambda step: 1.0 / (1 + step), lambda step: 0.1 * (1 + step))
    found = []
    for _ in range(3):
        found.append([(group["lr"], group["weight_decay"]) for group in torchs.param_groups])
        torchs.step()
        schedule.step()
    assert found == [
        [(2.0 / (1 + step), pytest.approx(0.1 * (1 + step))), (2.0 / (1 + step), 0.0)] for step in range(3)
    ]


def test_without_a_schedule_of_its_own_decay_stays_what_it_is() -> None:
    torchs = optimizer()
    schedule = RateAndDecay(torchs, lambda step: 1.0)
    torchs.param_groups[0]["weight_decay"] = 0.25
    torchs.step()
    schedule.step()
    assert [group["weight_decay"] for group in torchs.param_groups] == [0.25, 0.0]


def test_a_checkpoint_says_how_far_it_is_and_the_recipe_what_decays_how() -> None:
    torchs = optimizer()
    saved = RateAndDecay(torchs, lambda step: 1.0, lambda step: 0.1)
    for _ in range(5):
        torchs.step()
        saved.step()
    state = saved.state_dict()
    assert state["last_epoch"] == 5 and not {"_decay", "_decays"} & state.keys()
    torchs = optimizer()
    torchs.param_groups[1]["weight_decay"] = 0.5
    resumed = RateAndDecay(torchs, lambda step: 1.0, lambda step: 0.01 * step)
    resumed.load_state_dict(state)
    resumed.set_decay()
    assert [group["weight_decay"] for group in torchs.param_groups] == [0.05, 0.05]
