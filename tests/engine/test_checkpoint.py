"""Checkpoint folders are complete or not there."""

import json
from pathlib import Path

import pytest

from dmt_ds.engine.checkpoint import CheckpointFolder, RunState, incompleteness
from dmt_ds.errors import CheckpointError


def state(step: int) -> RunState:
    return RunState(step=step, images_seen=8 * step, world_size=1, zero_stage=2, precision="fp32", config={"seed": 0})


def write_weights(folder: Path, tag: str) -> None:
    (folder / tag / "weights.pt").write_bytes(b"w" * 1000)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", keep=2)


def test_what_was_saved_is_found_with_its_state(folder):
    assert folder.newest() is None
    folder.save(state(3), write_weights)
    newest = folder.newest()
    assert newest.tag == "step00000003" and newest.state == state(3)
    assert (folder.folder / "latest").read_text() == "step00000003"


def test_only_the_newest_are_kept(folder):
    for step in (1, 2, 3, 10):
        folder.save(state(step), write_weights)
        folder.prune(step)
    assert sorted(p.name for p in folder.folder.glob("step*")) == ["step00000003", "step00000010"]


def test_a_save_that_fails_leaves_the_earlier_one_and_says_where_things_stand(folder):
    folder.save(state(1), write_weights)

    def full_disk(root: Path, tag: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step00000002: not saved \(rank 0\): No space left.*step00000001"):
        folder.save(state(2), full_disk)
    assert folder.newest().state.step == 1
    folder.save(state(2), write_weights)
    assert folder.newest().state.step == 2 and not list(folder.folder.glob(".tmp-step*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "empty manifest"])
def test_an_incomplete_checkpoint_is_passed_over(folder, damage):
    folder.save(state(1), write_weights)
    folder.save(state(2), write_weights)
    newest = folder.folder / "step00000002"
    if damage == "truncated":
        (newest / "weights.pt").write_bytes(b"w" * 10)
    elif damage == "missing":
        (newest / "weights.pt").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    assert incompleteness(newest)
    assert folder.newest().state.step == 1


def test_latest_pointing_nowhere_does_not_matter(folder):
    folder.save(state(1), write_weights)
    (folder.folder / "latest").write_text("step99999999")
    assert folder.newest().state.step == 1


def test_a_record_of_another_program_version_is_one_clear_line(folder):
    folder.save(state(1), write_weights)
    record = folder.folder / "step00000001" / "run_state.json"
    content = json.loads(record.read_text())
    content["surprise"] = 1
    text = json.dumps(content)
    record.write_text(text)
    manifest = folder.folder / "step00000001" / "manifest.json"
    sizes = json.loads(manifest.read_text()) | {"run_state.json": len(text)}
    manifest.write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match=r"run_state\.json: unreadable"):
        folder.newest()


def test_saving_a_step_again_replaces_it(folder):
    folder.save(state(1), write_weights)
    folder.save(state(1), lambda root, tag: (root / tag / "weights.pt").write_bytes(b"new"))
    assert (folder.folder / "step00000001" / "weights.pt").read_bytes() == b"new"


def test_what_kills_and_conversions_leave_behind_is_removed_by_the_next_save(folder):
    folder.save(state(1), write_weights)
    for name in (".tmp-step00000002", "step00000001_universal"):
        (folder.folder / name).mkdir()
    for name in (".tmp-latest", "latest_universal"):
        (folder.folder / name).write_text("step00000001")
    folder.save(state(2), write_weights)
    assert sorted(p.name for p in folder.folder.iterdir()) == ["latest", "step00000001", "step00000002"]
