"""What a model in training writes, and in which order."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmt_ds.engine.checkpoints import rng_state
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, CheckpointFolder
from dmt_ds.engine.learner import TASK_STATE, Learner
from dmt_ds.engine.task import TaskLosses
from dmt_ds.tracking.tracker import NullTracker
from tests.engine.test_checkpoint import state


def test_points_are_written_out_before_a_checkpoint_makes_sure_that_their_steps_are_not_made_again(tmp_path):
    happened = []

    class Points(NullTracker):
        def sync(self):
            happened.append("points written out")

    class Checkpoints(CheckpointFolder):
        def save(self, state, write):
            happened.append(f"step {state.step} saved")

    engine = SimpleNamespace(device=torch.device("cpu"))
    Learner(None, engine, Checkpoints(tmp_path, 1), state, None, Points()).save(3)
    assert happened == ["points written out", "step 3 saved"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_model_has_what_no_engine_keeps_and_the_random_state_of_as_many_ranks(tmp_path, world_size):
    untrained, task_state = {"running_mean": torch.tensor([7.0])}, {"average": torch.tensor([3.0])}
    torch.save({"task": task_state, "untrained": untrained}, tmp_path / TASK_STATE)
    torch.manual_seed(1)
    rng_state.save(rng_state.path(tmp_path, 0))
    saved = torch.rand(3)
    torch.manual_seed(2)
    fresh = torch.rand(3)

    module, loaded = nn.Module(), {}
    module.register_buffer("running_mean", torch.zeros(1))
    engine = SimpleNamespace(device=torch.device("cpu"), module=module, load=lambda folder, tag: None)
    learner = Learner(SimpleNamespace(load_state_dict=loaded.update), engine, None, state, None, NullTracker())
    torch.manual_seed(2)
    learner.resume(Checkpoint(tmp_path, replace(state(3), world_size=world_size)), tmp_path.name)
    assert module.running_mean == 7 and loaded == task_state
    assert learner.start_again == "Start again to resume from the newest checkpoint"
    assert torch.equal(torch.rand(3), saved if world_size == 1 else fresh)


@pytest.mark.parametrize("unsound", [torch.nan, torch.inf, -torch.inf])
def test_one_unsound_loss_of_several_makes_the_update_unsound_until_it_is_looked_at(unsound):
    losses = iter([torch.tensor(unsound), torch.tensor(1.0), torch.tensor(3e38)])
    task = SimpleNamespace(losses=lambda *given: TaskLosses(next(losses), {}))
    engine = SimpleNamespace(device=torch.device("cpu"), backward=lambda loss: None, skipped_steps=0)
    learner = Learner(task, engine, None, state, None, NullTracker())
    for _ in range(2):
        learner.learn(None, None, logs=False)
        assert learner.flaw.isnan()
    learner.check_update(1, looks=False)
    learner.learn(None, None, logs=False)
    assert learner.flaw == 0
