"""What a model in training writes, and in which order."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints import rng_state
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, CheckpointFolder
from dmt_ds.engine.learner import TASK_STATE, Learner, gradient_error
from dmt_ds.engine.task import StatelessTask, TaskLosses
from dmt_ds.errors import DivergenceError, PeerFailedError
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
    learner = Learner(None, engine, Checkpoints(tmp_path, 1), state, None, Points())
    assert learner.start_again == "There is no checkpoint yet: start again"
    learner.save(3)
    assert happened == ["points written out", "step 3 saved"]
    assert learner.start_again == "Start again to resume from the newest checkpoint"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_holds_the_engine_the_encoder_and_what_neither_keeps_once_and_random_states_of_each_rank(
    tmp_path, monkeypatch, rank
):
    written = []

    class Task(StatelessTask):
        def state_dict(self):
            return {"average": torch.tensor([3.0])}

    class Checkpoints(CheckpointFolder):
        def save(self, state, write):
            (tmp_path / "tag").mkdir()
            write(tmp_path, "tag")

    module = nn.Module()
    module.register_buffer("running_mean", torch.tensor([7.0]))
    engine = SimpleNamespace(
        device=torch.device("cpu"), module=module, save=lambda folder, tag: written.append(("engine", folder, tag))
    )
    monkeypatch.setattr(dist, "rank", lambda: rank)
    Learner(
        Task(),
        engine,
        Checkpoints(tmp_path, 1),
        state,
        lambda engine, folder, step: written.append(("encoder", folder, step)),
        NullTracker(),
    ).save(3)
    assert written == [("engine", tmp_path, "tag"), ("encoder", tmp_path / "tag", 3)]
    files = {path.name for path in (tmp_path / "tag").iterdir()}
    assert files == {rng_state.path(tmp_path, rank).name} | ({TASK_STATE} if rank == 0 else set())
    if rank == 0:
        assert torch.load(tmp_path / "tag" / TASK_STATE) == {"task": {"average": 3}, "untrained": {"running_mean": 7}}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_model_has_what_no_engine_keeps_and_the_random_state_of_as_many_ranks(
    tmp_path, monkeypatch, world_size
):
    monkeypatch.setattr(dist, "rank", lambda: 3)
    untrained, task_state = {"running_mean": torch.tensor([7.0])}, {"average": torch.tensor([3.0])}
    torch.save({"task": task_state, "untrained": untrained}, tmp_path / TASK_STATE)
    torch.manual_seed(1)
    rng_state.save(rng_state.path(tmp_path, 3))
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


def test_an_update_that_deepspeed_skips_is_noticed_without_a_look_and_those_before_a_restart_are_not():
    modes = []
    engine = SimpleNamespace(device=torch.device("cpu"), skipped_steps=5, train=lambda: modes.append("train"))
    learner = Learner(None, engine, None, state, None, NullTracker(), "small")
    learner.start()
    assert modes == ["train"]
    learner.check_update(8, looks=False)
    engine.skipped_steps += 1
    with pytest.raises(DivergenceError, match="step 9: the gradient of small is not finite"):
        learner.check_update(9, looks=False)


@pytest.mark.parametrize("norm", [torch.nan, torch.inf])
def test_a_norm_that_is_not_finite_is_told_where_it_is_looked_at(norm):
    engine = SimpleNamespace(device=torch.device("cpu"), skipped_steps=0, gradient_norm=lambda: norm)
    learner = Learner(None, engine, None, state, None, NullTracker())
    learner.check_update(1, looks=False)
    with pytest.raises(DivergenceError):
        learner.check_update(2, looks=True)


def test_one_rank_tells_of_a_gradient_that_all_have(monkeypatch):
    learner = Learner(None, SimpleNamespace(device=torch.device("cpu")), None, state, None, NullTracker())
    assert isinstance(gradient_error(3, learner), DivergenceError)
    monkeypatch.setattr(dist, "rank", lambda: 1)
    assert isinstance(gradient_error(3, learner), PeerFailedError)


@pytest.mark.parametrize("norm", [None, 2.0])
def test_figures_are_means_of_the_micro_batches_that_are_logged_and_the_rate_of_the_update_that_was_made(norm):
    class Engine:
        device, learning_rate = torch.device("cpu"), 0.1

        def backward(self, loss):
            pass

        def step(self):
            self.learning_rate = 0.2  # of the next update

        def gradient_norm(self):
            return norm

    losses = iter([1.0, 2.0, 4.0])
    task = SimpleNamespace(losses=lambda *given: TaskLosses(loss := torch.tensor(next(losses)), {"half": loss / 2}))
    learner = Learner(task, Engine(), None, state, None, NullTracker())
    for logs in (False, True, True):
        learner.learn(None, None, logs=logs)
    learner.step()
    of_norm = {} if norm is None else {"train/grad_norm": norm}
    assert learner.figures() == {"train/loss": 3.0, "half": 1.5, "train/lr": 0.1, **of_norm}
