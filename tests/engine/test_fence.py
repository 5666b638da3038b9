"""A newer attempt takes a run folder over."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dmt_ds import storage
from dmt_ds.engine.checkpoints import fence
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, unusable
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.engine.checkpoints.manifest import sizes_in
from dmt_ds.errors import CheckpointError, StorageError
from dmt_ds.run_files import CLAIM_FILE
from tests.engine.test_checkpoint import state, write_weights


def test_the_only_attempt_goes_on(tmp_path):
    fence = Fence.claim(tmp_path)
    fence.check()
    assert fence.number == 1 and [p.name for p in tmp_path.iterdir()] == [CLAIM_FILE]


def test_a_newer_attempt_ends_the_older_one_and_is_named(tmp_path):
    older = Fence.claim(tmp_path, {})
    newer = Fence.claim(tmp_path, {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2"})
    newer.check()
    with pytest.raises(CheckpointError, match=r"attempt 2 \(.*job 77 restart 2\) has taken this run over; attempt 1"):
        older.check()


SIMULTANEOUS_STARTS = """
import json, multiprocessing, os, sys
from pathlib import Path
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.errors import CheckpointError

def start(folders, together):
    for folder in folders:
        together.wait()
        claim = Fence.claim(folder)
        together.wait()
        try:
            claim.check()
            told = None
        except CheckpointError as error:
            told = str(error)
        os.write(1, json.dumps({"folder": folder.name, "pid": os.getpid(), "told": told}).encode() + b"\\n")

fork = multiprocessing.get_context("fork")
folders, together = sorted(Path(sys.argv[1]).iterdir()), fork.Barrier(2)
starts = [fork.Process(target=start, args=(folders, together)) for _ in range(2)]
[process.start() for process in starts]
[process.join() for process in starts]
"""


def test_of_two_that_start_in_the_same_moment_one_has_the_run_and_the_other_is_told_of_it(tmp_path):
    for number in range(100):
        (tmp_path / str(number)).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SIMULTANEOUS_STARTS, tmp_path], capture_output=True, text=True, timeout=120, check=True
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == 200
    for number in range(100):
        here = [outcome for outcome in outcomes if outcome["folder"] == str(number)]
        (has_it,) = [outcome for outcome in here if outcome["told"] is None]
        (other,) = [outcome for outcome in here if outcome["told"] is not None]
        assert f"pid {has_it['pid']}) has taken this run over" in other["told"]
    numbers = [json.loads((tmp_path / str(number) / CLAIM_FILE).read_text())["number"] for number in range(100)]
    assert 1 in numbers  # both had read that nobody was there: they did start at once


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "READ_SECONDS", 0.3)


def make_unreadable(claim: Path, how: str) -> None:
    """The kernel refuses to read a folder as it does a file whose server is away; a power cut leaves zeros."""
    content = claim.read_text()
    claim.unlink()
    claim.mkdir() if how == "refused" else claim.write_bytes(bytes(len(content)))


@pytest.mark.parametrize(("how", "reason"), [("refused", "Is a directory"), ("zeros", "it holds no claim")])
def test_a_claim_that_can_not_be_read_is_no_takeover_and_worth_another_try(tmp_path, impatient, how, reason):
    attempt = Fence.claim(tmp_path)
    make_unreadable(tmp_path / CLAIM_FILE, how)
    with pytest.raises(StorageError, match=rf"attempt\.json: can't be read \({reason}\)[^\n]*start again") as told:
        attempt.check()
    assert told.value.exit_code == 75 and "taken" not in str(told.value)


def test_a_claim_that_can_be_read_again_within_seconds_costs_nothing(tmp_path):
    attempt = Fence.claim(tmp_path)
    claim, content = tmp_path / CLAIM_FILE, (tmp_path / CLAIM_FILE).read_text()
    make_unreadable(claim, "zeros")
    heals = threading.Timer(0.5, lambda: claim.write_text(content))
    heals.start()
    attempt.check()
    heals.join()


def test_a_folder_that_was_removed_is_named_and_not_tried_again(tmp_path, impatient):
    attempt = Fence.claim(tmp_path)
    (tmp_path / CLAIM_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"attempt\.json: is gone: the run's folder was removed") as told:
        attempt.check()
    assert told.value.exit_code == 2


def test_a_folder_whose_claim_a_power_cut_emptied_can_be_claimed(tmp_path, impatient):
    Fence.claim(tmp_path)
    make_unreadable(tmp_path / CLAIM_FILE, "zeros")
    Fence.claim(tmp_path).check()
    assert json.loads((tmp_path / CLAIM_FILE).read_text())["number"] == 1


def test_a_folder_whose_claim_can_not_be_read_is_not_taken_over_as_if_there_was_none(tmp_path, impatient):
    Fence.claim(tmp_path)
    make_unreadable(tmp_path / CLAIM_FILE, "refused")
    with pytest.raises(StorageError, match=r"can't be read \(Is a directory\)"):
        Fence.claim(tmp_path)


@pytest.mark.parametrize("times", [1, 9])
def test_a_claim_whose_server_does_not_say_whether_it_is_there_is_asked_again(tmp_path, monkeypatch, times):
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01, 0.01))
    Fence.claim(tmp_path)
    answers, stat = iter([errno.ESTALE] * times), Path.stat

    def unanswered(path: Path, **options: bool) -> os.stat_result:
        if path.name == CLAIM_FILE and (code := next(answers, None)):
            raise OSError(code, os.strerror(code))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", unanswered)
    if times == 1:
        assert Fence.claim(tmp_path).number == 2
        return
    with pytest.raises(
        StorageError, match=r"attempt\.json: can't be read \(Stale file handle\)[^\n]*start again"
    ) as told:
        Fence.claim(tmp_path)
    assert told.value.exit_code == 75


@pytest.mark.parametrize(("name", "code"), [("ESTALE", 75), ("ENOSPC", 2)])
def test_a_folder_that_can_not_be_claimed_for_want_of_an_answer_is_worth_another_try(tmp_path, monkeypatch, name, code):
    def fails(descriptor: int) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(CheckpointError, match=r"can't be taken over \([^)]*\); ") as told:
        Fence.claim(tmp_path)
    assert told.value.exit_code == code and ("make room" in str(told.value)) == (name == "ENOSPC")


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


def test_an_attempt_whose_save_a_newer_one_took_away_does_not_call_the_disk_full(tmp_path):
    older = CheckpointFolder(tmp_path / "checkpoints", 2, Fence.claim(tmp_path))

    def taken_away_when_all_is_written(folder, tag):
        write_weights(folder, tag)
        newer = CheckpointFolder(tmp_path / "checkpoints", 2, Fence.claim(tmp_path))
        newer.save(state(2), write_weights)
        assert not (folder / tag).exists()

    with pytest.raises(CheckpointError, match=r"attempt 2 \(.*has taken this run over; attempt 1 ends"):
        older.save(state(2), taken_away_when_all_is_written)


def test_what_an_older_attempt_still_writes_does_not_keep_the_newer_one_from_saving(tmp_path, monkeypatch):
    """Its folder has a new file whenever it was emptied; its small file is gone before it is removed."""
    checkpoints = tmp_path / "checkpoints"
    busy, renamed = checkpoints / ".tmp-step00000001-older", checkpoints / ".tmp-latest"
    busy.mkdir(parents=True)
    renamed.write_text("step00000001")
    remove_folder, remove_file = os.rmdir, os.unlink

    def rmdir(path, **more):
        if Path(path).name == busy.name:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        remove_folder(path, **more)

    def unlink(path, **more):
        remove_file(path, **more)
        if Path(path).name == renamed.name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(os, "rmdir", rmdir)
    monkeypatch.setattr(os, "unlink", unlink)
    newer = CheckpointFolder(checkpoints, 2, Fence.claim(tmp_path))
    newer.save(state(2), write_weights)
    assert newer.newest().state.step == 2 and busy.exists()


# An attempt that stands still exactly between its look at the claim and what it does next


def asleep_after_check(older: Fence, what_happens: Callable[[], None], at_check: int) -> None:
    """The attempt finds its claim as it was, once more; what happens then it does not notice."""
    plain, checks = older.check, 0

    def check() -> None:
        nonlocal checks
        checks += 1
        plain()
        if checks == at_check:
            what_happens()

    older.check = check  # type: ignore[method-assign]


def complete(checkpoints: Path) -> list[str]:
    assert (checkpoints / (checkpoints / "latest").read_text()).is_dir()
    return sorted(path.name for path in checkpoints.glob("step*") if unusable(path) is None)


@pytest.mark.parametrize("at_check", [1, 2, 3])
def test_an_attempt_that_wakes_up_while_it_prunes_removes_nothing_of_the_newer_one(tmp_path, at_check):
    claim = Fence.claim(tmp_path)
    older = CheckpointFolder(tmp_path / "checkpoints", 1, claim)
    for step in (3, 5, 10):
        older.save(state(step), write_weights)

    def newer_works() -> None:
        newer = CheckpointFolder(tmp_path / "checkpoints", 2, Fence.claim(tmp_path))
        for step in (15, 20):
            newer.save(state(step), write_weights)
            newer.prune(step)

    asleep_after_check(claim, newer_works, at_check)
    with suppress(CheckpointError):  # after the last look it has nothing to do any more but what it may
        older.prune(10)
    assert complete(older.folder) == ["step00000015", "step00000020"]


def test_a_checkpoint_that_was_hidden_by_an_attempt_that_stood_still_comes_back(tmp_path, monkeypatch):
    claim = Fence.claim(tmp_path)
    older = CheckpointFolder(tmp_path / "checkpoints", 1, claim)
    for step in (5, 10):
        older.save(state(step), write_weights)
    asleep_after_check(claim, lambda: Fence.claim(tmp_path), at_check=1)
    with pytest.raises(CheckpointError, match="has taken this run over"):
        older.prune(10)
    assert complete(older.folder) == ["step00000005", "step00000010"]


def test_an_attempt_that_wakes_up_before_a_save_removes_nothing_that_the_newer_one_writes(tmp_path):
    claim = Fence.claim(tmp_path)
    older = CheckpointFolder(tmp_path / "checkpoints", 2, claim)
    older.save(state(1), write_weights)
    (older.folder / ".tmp-step00000002-killed").mkdir()
    begun = older.folder / ".tmp-step00000002-newer"

    def newer_begins_to_save() -> None:
        Fence.claim(tmp_path)
        begun.mkdir()
        write_weights(older.folder, begun.name)

    asleep_after_check(claim, newer_begins_to_save, at_check=1)
    with pytest.raises(CheckpointError, match="has taken this run over"):
        older.save(state(2), write_weights)
    assert sizes_in(begun) == {"weights.pt": 1000} and not (older.folder / ".tmp-step00000002-killed").exists()
