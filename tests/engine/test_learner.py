"""What a model in training writes, and in which order."""

from types import SimpleNamespace

import torch

from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.engine.learner import Learner
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
