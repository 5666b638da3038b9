"""Checkpoints of a family: what counts is what all members have."""

import errno
import os
from pathlib import Path

import pytest

from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.errors import CheckpointError, StorageError
from tests.engine.test_checkpoint import state, write_weights


class Family:
    """Two members that save as a trainer has them do."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.members = [CheckpointFolder(folder / name / "checkpoints", keep) for name in ("slim", "wide")]
        self.mark = folder / "checkpoints" / "latest"
        self.group = CheckpointGroup(self.members, self.mark)

    def save(self, step: int, num_members: int = 2) -> None:
        """`num_members`: how many have saved when the process is killed."""
        for member in self.members[:num_members]:
            member.save(state(step), write_weights)
        if num_members == 2:
            self.group.saved(step)

    def steps(self) -> list[list[int]]:
        return [[int(folder.name[4:]) for folder in member.complete()] for member in self.members]

    def newest(self) -> list[int] | None:
        found = self.group.newest()
        return found and [checkpoint.state.step for checkpoint in found]


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


def test_all_go_on_from_the_step_that_all_have(family: Family) -> None:
    assert family.newest() is None
    family.save(2)
    assert family.newest() == [2, 2] and family.mark.read_text() == "step00000002"
    family.save(4, num_members=1)
    assert family.steps() == [[4, 2], [2]]
    assert family.newest() == [2, 2] and family.mark.read_text() == "step00000002"


def test_an_incomplete_checkpoint_of_one_member_is_passed_over_for_all(tmp_path: Path) -> None:
    family = Family(tmp_path, keep=2)
    family.save(2)
    family.save(4)
    (family.members[1].folder / "step00000004" / "weights.pt").unlink()
    assert family.newest() == [2, 2]


def changed(folder: Path) -> None:
    """As a disk does it: other bytes, as many."""
    weights = folder / "weights.pt"
    weights.write_bytes(b"x" * weights.stat().st_size)


def test_a_changed_file_of_any_member_is_passed_over_for_the_newest_step_that_is_whole(tmp_path: Path) -> None:
    family = Family(tmp_path, keep=3)
    for step in (2, 4, 6):
        family.save(step)
    changed(family.members[1].folder / "step00000006")
    assert family.newest() == [4, 4]


def test_a_family_of_which_no_step_is_whole_does_not_start_afresh(tmp_path: Path) -> None:
    family = Family(tmp_path, keep=2)
    for step in (2, 4):
        family.save(step)
        changed(family.members[step // 4].folder / f"step{step:08d}")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(step00000002, step00000004\)"):
        family.newest()


def test_what_a_kill_left_of_a_mark_goes_with_the_next_save(family: Family) -> None:
    family.save(2)
    left = family.mark.with_name("latest.1234.tmp")
    left.touch()
    os.utime(left, (0, 0))
    family.save(4)
    assert not left.exists() and family.mark.read_text() == "step00000004"


def test_a_kill_within_the_first_save_of_all_starts_afresh(family: Family) -> None:
    family.save(2, num_members=1)
    assert family.newest() is None


def test_what_was_saved_by_an_attempt_that_lost_does_not_push_out_what_all_have(family: Family) -> None:
    family.save(2)
    family.save(4, num_members=1)  # killed here; the next attempt goes on from 2, and is asked to stop at 3
    family.save(3)
    assert family.steps() == [[3], [3]] and family.newest() == [3, 3]


def test_a_member_that_has_lost_its_checkpoints_is_named_and_nothing_else_is_touched(family: Family) -> None:
    family.save(2)
    for folder in family.members[1].complete():
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"slim/checkpoints: step00000002; .*wide/checkpoints: none"):
        family.newest()
    assert family.steps() == [[2], []]


def test_a_mark_that_a_server_does_not_take_is_worth_another_try(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.save(2)
    for member in family.members:
        member.save(state(4), write_weights)

    def stale(descriptor: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "fsync", stale)
    with pytest.raises(
        StorageError, match=r"checkpoints/latest: can't be written \(Stale file handle\); look at the disk"
    ):
        family.group.saved(4)
    assert family.steps() == [[4, 2], [4, 2]], "what the mark names is still there"


def test_only_who_holds_the_family_notes_a_save(tmp_path: Path) -> None:
    older = Fence.claim(tmp_path)
    family = Family(tmp_path)
    group = CheckpointGroup(family.members, family.mark, older)
    Fence.claim(tmp_path)
    with pytest.raises(CheckpointError, match=r"attempt 2 .* has taken"):
        group.saved(2)
    assert not family.mark.exists()
