"""A newer attempt takes a run folder over."""

import pytest

from dmt_ds.engine.checkpoint import CheckpointFolder
from dmt_ds.engine.fence import CLAIM, Fence
from dmt_ds.errors import CheckpointError
from tests.engine.test_checkpoint import state, write_weights


def test_the_only_attempt_goes_on(tmp_path):
    fence = Fence.claim(tmp_path)
    fence.check()
    assert fence.number == 1 and [p.name for p in tmp_path.iterdir()] == [CLAIM]


def test_a_newer_attempt_ends_the_older_one_and_is_named(tmp_path):
    older = Fence.claim(tmp_path, {})
    newer = Fence.claim(tmp_path, {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2"})
    newer.check()
    with pytest.raises(CheckpointError, match=r"attempt 2 \(.*job 77 restart 2\) has taken this run over; attempt 1"):
        older.check()


def test_the_older_attempt_saves_nothing_any_more(tmp_path):
    older = CheckpointFolder(tmp_path / "checkpoints", 2, Fence.claim(tmp_path))
    older.save(state(1), write_weights)

    def taken_over_while_writing(folder, tag):
        write_weights(folder, tag)
        Fence.claim(tmp_path)

    with pytest.raises(CheckpointError, match="has taken this run over"):
        older.save(state(2), taken_over_while_writing)
    with pytest.raises(CheckpointError, match="has taken this run over"):
        older.save(state(3), write_weights)
    assert older.newest().state.step == 1
