"""Checkpoint folders are complete or not there."""

import errno
import json
import logging
import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_ds import storage
from dmt_ds.engine.checkpoints import manifest
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, RunState, read_run_state, tag_of, unusable
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.checkpoints.manifest import answering, damage, share_to_sync
from dmt_ds.errors import CheckpointError, StorageError
from tests.faults import places


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


def test_a_damaged_one_stays_while_no_newer_one_is_whole(folder):
    for step in (1, 2):
        folder.save(state(step), write_weights)
    (folder.folder / tag_of(2) / "weights.pt").write_bytes(b"")
    folder.prune(2)
    assert sorted(p.name for p in folder.folder.glob("step*")) == ["step00000001", "step00000002"]


def test_one_of_a_later_step_can_only_be_another_attempts_and_goes(folder):
    for step in (1, 9, 2):
        folder.save(state(step), write_weights)
    folder.prune(2)
    assert sorted(p.name for p in folder.folder.glob("step*")) == ["step00000001", "step00000002"]


def test_a_damaged_one_goes_once_a_newer_one_is_whole_and_what_somebody_put_aside_stays(folder):
    for step in (1, 2):
        folder.save(state(step), write_weights)
    for step in (1, 2):
        (folder.folder / tag_of(step) / "weights.pt").write_bytes(b"")
    (folder.folder / tag_of(1)).rename(folder.folder / "step00000001.bad")
    folder.save(state(3), write_weights)
    assert (folder.folder / tag_of(2)).exists()
    folder.prune(3)
    assert sorted(path.name for path in folder.folder.glob("step*")) == ["step00000001.bad", "step00000003"]


def test_a_save_that_fails_leaves_the_earlier_one_and_says_where_things_stand(folder):
    folder.save(state(1), write_weights)

    def full_disk(root: Path, tag: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step00000002: not saved \(rank 0\): No space left.*step00000001"):
        folder.save(state(2), full_disk)
    assert folder.newest().state.step == 1
    folder.save(state(2), write_weights)
    assert folder.newest().state.step == 2 and not list(folder.folder.glob(".tmp-step*"))


def test_a_peer_that_has_left_during_a_save_is_not_told_as_a_full_disk(folder):
    def broken_collective(root: Path, tag: str) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset by peer")

    with pytest.raises(RuntimeError, match="reset by peer"):
        folder.save(state(1), broken_collective)


def test_a_disk_that_torch_finds_full_is_told_as_one(folder):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(CheckpointError, match="step00000001: not saved"):
        folder.save(state(1), lambda root, tag: torch.save({"x": torch.zeros(100_000)}, full))


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "no manifest", "empty manifest"])
def test_an_incomplete_checkpoint_is_passed_over(folder, damage):
    folder.save(state(1), write_weights)
    folder.save(state(2), write_weights)
    newest = folder.folder / "step00000002"
    if damage == "truncated":
        (newest / "weights.pt").write_bytes(b"w" * 10)
    elif damage == "longer":
        (newest / "weights.pt").write_bytes((newest / "weights.pt").read_bytes() + b"w")
    elif damage == "missing":
        (newest / "weights.pt").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    assert unusable(newest)
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
    content = json.loads(manifest.read_text())
    content["files"]["run_state.json"]["bytes"] = len(text)
    manifest.write_text(json.dumps(content))
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


def test_a_checkpoint_that_can_not_be_removed_is_one_line(folder, monkeypatch):
    for step in (1, 2, 3):
        folder.save(state(step), write_weights)

    def read_only(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(
        CheckpointError, match=r"step00000003 is saved, but .*\(Read-only file system\): look at the disk"
    ):
        folder.prune(3)


# A disk that becomes full in the middle of a save, after a look had found room enough

PAGE = 4096  # a small file takes one on a disk in memory


@pytest.mark.parametrize(
    ("leave", "saved"),
    [
        pytest.param(None, 1, id="the files"),
        pytest.param(0, 1, id="the record"),
        pytest.param(PAGE, 1, id="the manifest"),
        pytest.param(2 * PAGE, 2, id="latest"),
    ],
)
def test_a_disk_that_becomes_full_in_a_save_costs_that_save_at_most(tmp_path, leave, saved):
    places.needs_mount()
    with places.small_disk(tmp_path, mib=4):
        folder, ballast = CheckpointFolder(tmp_path / "checkpoints", 2), tmp_path / "ballast"
        folder.save(state(1), write_weights)

        def write(root: Path, tag: str) -> None:
            if leave is None:
                places.fill(ballast)
                torch.save({"weights": torch.zeros(2**18)}, root / tag / "weights.pt")
            write_weights(root, tag)
            places.fill(ballast, leave)

        newest = f"The newest complete checkpoint is step{saved:08d}"
        with pytest.raises(CheckpointError, match=rf"step00000002: not saved \(rank 0\): [^\n]*{newest}; make room"):
            folder.save(state(2), write)
        assert folder.newest().state.step == saved and damage(folder.newest().folder) is None
        ballast.unlink()
        folder.save(state(2), write_weights)
        assert sorted(path.name for path in folder.folder.iterdir()) == ["latest", tag_of(1), tag_of(2)]
        assert (folder.folder / "latest").read_text() == tag_of(2) and damage(folder.folder / tag_of(2)) is None


# What a node that loses its power leaves


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was asked of the kernel: (`fsync`, path as it was then) and (`rename`, new path)."""
    asked, fsync, replace = [], os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        asked.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noting_replace(source: Path, target: Path) -> None:
        asked.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    return asked


def test_all_files_and_folders_are_on_the_disk_before_a_checkpoint_has_its_name_and_latest_after_it(folder, disk):
    def write(root: Path, tag: str) -> None:
        (root / tag / "encoder").mkdir()
        (root / tag / "encoder" / "model.pt").write_bytes(b"e")
        write_weights(root, tag)

    final = folder.save(state(1), write)
    hidden = folder.folder / ".tmp-step00000001"
    renamed, points = disk.index(("rename", str(final))), disk.index(("rename", str(folder.folder / "latest")))
    written_out = [path for what, path in disk[:renamed] if what == "fsync"]
    names = ["encoder/model.pt", "weights.pt", "run_state.json", "encoder", "manifest.json"]
    order = [written_out.index(str(hidden / name)) for name in names]
    assert order == sorted(order) and written_out[-1] == str(hidden)
    assert ("fsync", str(folder.folder)) in disk[renamed:points]
    assert ("fsync", str(folder.folder / ".tmp-latest")) in disk[renamed:points]


@given(st.lists(st.sampled_from(["node 1", "node 2", "node 3"]), min_size=1, max_size=12), st.integers(0, 9), st.data())
def test_every_node_writes_out_each_file_that_it_wrote_once(kernels, files_a_node, data):
    """A page of a file lies in the memory of the node that wrote it; rank 0 can't write it out from another."""
    written = {node: {f"{node} {number}" for number in range(files_a_node)} for node in set(kernels)}
    of_others = st.sets(st.sampled_from(sorted({"a stray", *set.union(*written.values())})))
    seen = [sorted(written[node] | data.draw(of_others)) for node in kernels]  # those of others come late
    shares = [share_to_sync(seen, kernels, rank) for rank in range(len(kernels))]
    for node in set(kernels):
        of_node = [name for share, kernel in zip(shares, kernels, strict=True) if kernel == node for name in share]
        assert written[node] <= set(of_node) and len(of_node) == len(set(of_node))


# What a disk, a copy or a stranger has changed


def group(folder: CheckpointFolder) -> CheckpointGroup:
    return CheckpointGroup([folder])


@settings(max_examples=40)
@given(
    name=st.sampled_from(["weights.pt", "run_state.json"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_single_bit_of_any_file_that_has_turned_over_is_noticed(name, place, bit):
    with TemporaryDirectory() as temporary:
        folder = CheckpointFolder(Path(temporary), keep=2)
        folder.save(state(1), write_weights)
        folder.save(state(2), write_weights)
        file = folder.folder / "step00000002" / name
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        file.write_bytes(content)
        assert damage(file.parent) == f"{name} is damaged (its sha256 differs)"
        (newest,) = group(folder).newest()
        assert newest.state.step == 1


def test_of_a_run_that_is_alone_nothing_is_said_of_a_family(folder, caplog):
    for step in (1, 2):
        folder.save(state(step), write_weights)
    (folder.folder / tag_of(2) / "weights.pt").write_bytes(b"v" * 1000)
    with caplog.at_level(logging.WARNING):
        (newest,) = group(folder).newest()
    assert newest.state.step == 1
    (line,) = caplog.messages
    assert "step00000002: skipped: weights.pt is damaged" in line


# A disk or file server that does not answer


def write_empty(folder: Path, tag: str) -> None:
    """A file that can be taken for as large as it was, though it can't be read."""
    (folder / tag / "weights.pt").write_bytes(b"")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01, 0.01))


@pytest.mark.parametrize("name", ["manifest.json", "weights.pt"])
def test_a_checkpoint_that_can_not_be_read_is_not_given_up_for_an_older_one(folder, impatient, name):
    for step in (1, 2):
        folder.save(state(step), write_empty)
    file = folder.folder / tag_of(2) / name
    content = file.read_bytes()
    places.without_answer(file)
    with pytest.raises(
        StorageError, match=rf"step00000002/{name}: can't be read \(Input/output error\)[^\n]*start again"
    ) as told:
        group(folder).newest()
    assert told.value.exit_code == 75
    file.unlink()
    file.write_bytes(content)
    (newest,) = group(folder).newest()
    assert newest.state.step == 2


@pytest.mark.parametrize("name", ["manifest.json", "weights.pt"])
def test_a_checkpoint_that_can_be_read_again_within_seconds_costs_nothing(folder, name):
    for step in (1, 2):
        folder.save(state(step), write_empty)
    file, whole = folder.folder / tag_of(2) / name, folder.folder / "whole"
    whole.write_bytes(file.read_bytes())
    places.without_answer(file)
    heals = threading.Timer(0.1, whole.replace, [file])
    heals.start()
    (newest,) = group(folder).newest()
    heals.join()
    assert newest.state.step == 2


def test_nothing_is_removed_while_nobody_can_tell_what_is_whole(folder, impatient):
    for step in (1, 2, 3):
        folder.save(state(step), write_weights)
    places.without_answer(folder.folder / tag_of(2) / "manifest.json")
    with pytest.raises(StorageError, match=r"step00000002/manifest\.json: can't be read"):
        folder.prune(3)
    assert sorted(path.name for path in folder.folder.glob("step*")) == [tag_of(1), tag_of(2), tag_of(3)]


def test_a_record_that_can_not_be_read_is_not_told_as_damaged(folder, impatient):
    folder.save(state(1), write_weights)
    places.without_answer(folder.folder / tag_of(1) / "run_state.json")
    with pytest.raises(StorageError, match=r"run_state\.json: can't be read \(Input/output error\)"):
        read_run_state(folder.folder / tag_of(1))


def test_a_folder_that_can_not_be_listed_is_not_taken_for_an_empty_one(folder, impatient, monkeypatch):
    folder.save(state(1), write_weights)

    def stale(path: Path) -> list[str]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(os, "listdir", stale)
    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StorageError, match=r"checkpoints: can't be read \(Stale file handle\)"):
        group(folder).newest()


def failing_save(folder: CheckpointFolder, number: int) -> CheckpointError:
    """What a save raises whose files the kernel does not take."""

    def write(root: Path, tag: str) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(CheckpointError, match=rf"step00000002: not saved \(rank 0\): {os.strerror(number)}\. ") as told:
        folder.save(state(2), write)
    assert "The newest complete checkpoint is step00000001; " in str(told.value)
    return told.value


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ESHUTDOWN", "ENOTCONN"])
def test_a_save_without_an_answer_is_worth_another_try_and_nobody_has_to_make_room(folder, name):
    folder.save(state(1), write_weights)
    failure = failing_save(folder, getattr(errno, name))
    assert failure.exit_code == 75 and str(failure).endswith("look at the disk or file server, then start again")
    folder.save(state(2), write_weights)
    assert folder.newest().state.step == 2


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("ENOSPC", "make room"), ("EDQUOT", "make room"), ("EACCES", "make it writable")],
)
def test_what_somebody_has_to_mend_before_a_save_is_not_tried_again(folder, name, remedy):
    folder.save(state(1), write_weights)
    failure = failing_save(folder, getattr(errno, name))
    assert failure.exit_code == 2 and f"; {remedy}" in str(failure)


def test_a_write_of_torchs_that_gets_no_answer_is_not_told_as_a_full_disk(folder):
    folder.save(state(1), write_weights)

    def write(root: Path, tag: str) -> None:
        write_weights(root, tag)
        places.without_answer(root / tag / "weights.pt")
        torch.save({"weights": torch.zeros(100_000)}, root / tag / "weights.pt")

    with pytest.raises(
        StorageError, match=r"step00000002: not saved .*is step00000001; look at the disk or file server"
    ):
        folder.save(state(2), write)


def test_a_file_of_another_node_that_does_not_appear_is_worth_another_try(folder, monkeypatch):
    def gathered(item: object) -> list[object]:
        """A second rank, on this node too, sees a file that does not come to be seen here."""
        return [item, (item[0], {"of_rank_1.pt": 5})] if isinstance(item, tuple) else [item]

    monkeypatch.setattr(manifest.dist, "gather_objects", gathered)
    monkeypatch.setattr(manifest, "_SHOWN_SECONDS", 0.3)
    with pytest.raises(
        StorageError, match=r"not saved \(rank 0\): of_rank_1\.pt of another rank does not appear"
    ) as told:
        folder.save(state(1), write_weights)
    assert "make room" not in str(told.value)


def test_older_checkpoints_that_a_server_does_not_remove_are_removed_by_another_try(folder, monkeypatch):
    for step in (1, 2, 3):
        folder.save(state(step), write_weights)

    def stale(source: Path, target: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as harm:
        harm.setattr(os, "replace", stale)
        with pytest.raises(StorageError, match=r"step00000003 is saved, but .*\(Stale file handle\): look at the disk"):
            folder.prune(3)
    folder.prune(3)
    assert sorted(path.name for path in folder.folder.glob("step*")) == [tag_of(2), tag_of(3)]


@pytest.mark.parametrize("harm", ["emptied", "bit", "no manifest"])
def test_where_no_checkpoint_is_left_whole_the_run_does_not_start_afresh(folder, harm):
    folder.save(state(1), write_weights)
    weights = folder.folder / "step00000001" / "weights.pt"
    if harm == "no manifest":
        (weights.parent / "manifest.json").unlink()
    else:
        weights.write_bytes(b"" if harm == "emptied" else b"v" + b"w" * 999)
    with pytest.raises(CheckpointError, match=r"step00000001.*choose another output_dir"):
        group(folder).newest()


@settings(max_examples=40)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["files", "bytes", "sha256"]), inner)
            ),
        ).map(lambda content: json.dumps(content).encode()),
    )
)
def test_whatever_stands_in_a_manifest_or_a_record_it_is_passed_over_or_one_line(content):
    with TemporaryDirectory() as temporary:
        folder = CheckpointFolder(Path(temporary), keep=2)
        folder.save(state(1), write_weights)
        folder.save(state(2), write_weights)
        (folder.folder / "step00000002" / "manifest.json").write_bytes(content)
        (newest,) = group(folder).newest()
        assert newest.state.step == 1
        record = folder.folder / "step00000001" / "run_state.json"
        record.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"run_state\.json: unreadable") as caught:
            read_run_state(record.parent)
        assert "\n" not in str(caught.value)


def test_a_manifest_that_lists_a_file_of_elsewhere_is_none(folder, tmp_path):
    folder.save(state(1), write_weights)
    manifest = folder.folder / "step00000001" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../../elsewhere"] = {"bytes": 0, "sha256": ""}
    manifest.write_text(json.dumps(content))
    assert unusable(manifest.parent) == "no readable manifest.json"


def test_a_checkpoint_of_a_version_that_kept_no_hashes_is_taken_by_its_sizes(folder):
    folder.save(state(1), write_weights)
    manifest = folder.folder / "step00000001" / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({name: mark["bytes"] for name, mark in files.items()}))
    (newest,) = group(folder).newest()
    assert newest.state == state(1)


@pytest.mark.parametrize(
    ("reason", "kind"), [("EACCES", CheckpointError), ("EPERM", CheckpointError), ("EIO", StorageError)]
)
def test_what_may_not_be_read_is_told_from_what_can_not_be_read_for_now(tmp_path, reason, kind):
    with pytest.raises(CheckpointError, match=r"weights\.pt: can't be read") as told, answering(tmp_path):
        raise OSError(getattr(errno, reason), os.strerror(getattr(errno, reason)), str(tmp_path / "weights.pt"))
    assert type(told.value) is kind
