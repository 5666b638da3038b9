"""A journal outlives its writer, torn lines and full disks."""

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmt_ds.errors import TrackingError
from dmt_ds.tracking.journal import FileLock, Journal, read_lines, remove_leftovers, write_atomically

WRITER = """
import sys
from pathlib import Path
from dmt_ds.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]))
step = 0
while True:
    journal.append({"step": step})
    sys.stdout.write(f"{step}\\n")
    sys.stdout.flush()
    step += 1
"""
LOCKER = """
import sys
from pathlib import Path
from dmt_ds.tracking.journal import FileLock
assert FileLock(Path(sys.argv[1])).acquire(wait=False)
print("locked", flush=True)
sys.stdin.read()
"""


def test_every_line_is_there_after_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 300:
            pass
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.stdout if line.endswith("\n")]
    steps = [record["step"] for record in read_lines(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > max([300, *said])


def test_a_torn_last_line_is_left_out_and_spoils_no_later_one(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text('{"step":1}\n{"step":2,"met')
    journal = Journal(path)
    assert journal.read(0) == ([{"step": 1}], 11)
    assert journal.last() == {"step": 1}
    journal.append({"step": 3})
    assert [record["step"] for record in journal.read(0)[0]] == [1, 3]
    assert journal.last() == {"step": 3}


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "points.jsonl")
    for step in range(5):
        journal.append({"step": step})
    first, offset = journal.read(0, max_lines=3)
    rest, end = journal.read(offset)
    assert [record["step"] for record in first + rest] == [0, 1, 2, 3, 4]
    assert journal.read(end) == ([], end)


def test_on_a_full_disk_lines_wait_and_a_warning_is_given_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "points.jsonl"
    journal = Journal(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for step in range(200):
            journal.append({"step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == 1000
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert str(path) in caplog.text
    journal.append({"step": 200})
    assert [record["step"] for record in read_lines(path)] == list(range(201))
    assert journal.num_lost == 0


def test_what_a_full_disk_costs_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path = tmp_path / "points.jsonl"
    journal = Journal(path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file)
    os.close(full)
    for step in range(3000):
        journal.append({"step": step, "text": "x" * 1000})
    assert 1900 < journal.num_lost < 2100
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2  # it is full; lines are lost
    assert "1024 KiB wait in memory: further lines are lost" in caplog.messages[1]
    journal.close()
    assert "3000 lines are lost for good" in caplog.text


def test_a_file_that_someone_removed_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "points.jsonl")
    journal.append({"step": 1})
    journal.path.unlink()
    journal.append({"step": 2})
    assert journal.read(0) == ([], 0) and journal.last() is None and journal.num_bytes == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"file/points\.jsonl: can't be written .*output_dir"):
        Journal(tmp_path / "file" / "points.jsonl")


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        assert not FileLock(path).acquire(wait=False)
        holder.send_signal(signal.SIGKILL)
    lock = FileLock(path)
    assert lock.acquire(wait=False)
    lock.release()


def test_what_a_kill_left_unfinished_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    for name, age in (("old.json.1.tmp", 60), ("new.json.2.tmp", 0), ("old.json", 60)):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_leftovers(tmp_path, "*.tmp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json.2.tmp", "old.json"]


def test_a_small_file_that_can_not_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (path := tmp_path / "config.yaml").write_text("seed: 1")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "seed: 2")
    assert path.read_text() == "seed: 1" and list(tmp_path.iterdir()) == [path]
