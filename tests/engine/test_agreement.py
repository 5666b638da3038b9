"""Flags of an update, of a process that is alone; over ranks: `test_deferred_updates`."""

import pytest
import torch

from dmt_ds.engine.ranks.agreement import Agreement, Verdict

ROWS = [torch.arange(3), torch.arange(10, 20)]


def agree(flaws: list[float], norms: list[float], stop_asked: bool = False) -> Agreement:
    return Agreement(7, ROWS, torch.tensor(flaws), torch.tensor(norms), stop_asked)


def test_a_sound_update_of_two_learners():
    agreement = agree([0.0, 0.0], [0.0, 3e38], stop_asked=True)
    assert not agreement.unsound
    assert agreement.read() == Verdict([False] * 2, [False] * 2, True, [False] * 2)
    assert agreement.squared_norms.tolist() == pytest.approx([0.0, 3e38])
    assert (agreement.step, agreement.images) == (7, [0, 1, 2, 10, 11, 12, 13])


@pytest.mark.parametrize("learner", [0, 1])
def test_a_flaw_or_a_norm_of_one_learner_makes_the_update_of_all_unsound_and_is_told_apart(learner: int):
    is_it = [number == learner for number in range(2)]
    of_loss = agree([torch.nan if it else 0.0 for it in is_it], [1.0, 2.0])
    assert of_loss.unsound
    assert of_loss.read() == Verdict(is_it, [False] * 2, False, is_it)
    for norm in (torch.nan, torch.inf):
        of_gradient = agree([0.0, 0.0], [norm if it else 1.0 for it in is_it])
        assert of_gradient.unsound
        assert of_gradient.read() == Verdict([False] * 2, is_it, False, [False] * 2)
