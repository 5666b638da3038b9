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


def test_an_attempt_that_wakes_up_in_a_save_does_not_write_into_that_of_the_newer_one(tmp_path):
    older = CheckpointFolder(tmp_path / "checkpoints", 2, Fence.claim(tmp_path))
    written_by_newer = []

    def newer_saves_the_same_step(folder, tag):
        newer = CheckpointFolder(tmp_path / "checkpoints", 2, Fence.claim(tmp_path))

        def both_write(folder_of_newer, tag_of_newer):
            write_weights(folder_of_newer, tag_of_newer)
            assert tag_of_newer != tag and not (folder / tag).exists()
            written_by_newer.append(tag_of_newer)

        newer.save(state(2), both_write)
        (folder / tag / "weights").write_text("of the older attempt")

    with pytest.raises(CheckpointError, match="has taken this run over"):
        older.save(state(2), newer_saves_the_same_step)
    assert len(written_by_newer) == 1 and older.newest().state.step == 2
    assert [path.name for path in (tmp_path / "checkpoints").glob("step*")] == ["step00000002"]
