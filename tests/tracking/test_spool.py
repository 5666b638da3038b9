"""A spool remembers what has arrived, of which run, and keeps the files that a run was given."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from dmt_ds.tracking.spool import Copy, Spool, is_at_rest
from dmt_ds.tracking.tracker import JsonlTracker, read_points


def test_what_was_confirmed_is_not_given_again_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "first")
    spool.adopt("run-1")
    for step in range(4):
        spool.metrics.append({"step": step})
    spool.confirm(spool.metrics, spool.unshipped(spool.metrics, 3)[1])
    spool.close()
    again = Spool(tmp_path, "second")
    assert again.run_id == "run-1"
    assert again.unshipped(again.metrics, 100)[0] == [{"step": 3}]


def test_a_new_run_in_the_store_gets_everything(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "name")
    spool.adopt("run-1")
    spool.metrics.append({"step": 0})
    spool.confirm(spool.metrics, spool.unshipped(spool.metrics, 3)[1])
    spool.adopt("run-2")
    assert spool.unshipped(spool.metrics, 100)[0] == [{"step": 0}]


def test_a_file_that_became_shorter_is_given_from_its_start(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "name")
    spool.metrics.append({"step": 123456})
    spool.confirm(spool.metrics, spool.metrics.num_bytes)
    spool.metrics.path.write_text('{"step":7}\n')
    assert spool.unshipped(spool.metrics, 100)[0] == [{"step": 7}]


def test_name_key_and_start_are_those_of_the_first_start(tmp_path: Path) -> None:
    first = Spool(tmp_path, "first").beginning()
    assert Spool(tmp_path, "second").beginning() == first
    assert first["run_name"] == "first" and first["key"]


def test_a_file_from_elsewhere_is_copied_at_once_and_one_of_the_run_is_named_by_its_path(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run", "name")
    (tmp_path / "recipe.yaml").write_text("seed: 1")
    (tmp_path / "run" / "config.yaml").write_text("seed: 2")
    spool.put_artifact(tmp_path / "recipe.yaml", "recipes")
    spool.put_artifact(tmp_path / "run" / "config.yaml", None)
    (tmp_path / "recipe.yaml").unlink()
    paths = [tmp_path / "run" / record["path"] for record in spool.unshipped(spool.records, 10)[0][1:]]
    assert [path.read_text() for path in paths] == ["seed: 1", "seed: 2"]
    assert [path.name for path in paths] == ["recipe.yaml", "config.yaml"]


def test_a_copy_that_a_full_disk_did_not_take_is_made_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = Spool(tmp_path / "run", "name")
    spool.confirm(spool.records, spool.records.num_bytes)  # nothing but the copies is left
    (tmp_path / "charts").mkdir()
    for path in (tmp_path / "recipe.yaml", tmp_path / "charts" / "a.txt"):
        path.write_text(path.name)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        patch.setattr(shutil, "copy2", full)
        patch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
        for path in (tmp_path / "recipe.yaml", tmp_path / "charts"):
            spool.put_artifact(path, None)
        spool.copy_again()
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2 and not spool.is_empty()
    assert spool.unshipped(spool.records, 10)[0] == []
    spool.copy_again()
    records = spool.unshipped(spool.records, 10)[0]
    assert [record["path"] for record in records] == ["tracking/artifacts/recipe.yaml", "tracking/artifacts/charts"]
    assert (tmp_path / "run" / "tracking" / "artifacts" / "charts" / "a.txt").read_text() == "a.txt"


def test_a_run_that_ends_while_a_copy_is_made_keeps_that_file_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "run", "name")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
        spool._copies.append(Copy(tmp_path / name, spool.folder / "artifacts" / name, None))
    begun, go_on = threading.Event(), threading.Event()

    def slow_copy(source: Path, target: Path) -> None:
        if source.name == "a.txt":
            begun.set()
            go_on.wait(10)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", slow_copy)
    threads = [threading.Thread(target=spool.copy_again), threading.Thread(target=spool.close)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for thread in threads:
        thread.join(10)
    records = spool.unshipped(spool.records, 10)[0][1:]
    assert [record["path"] for record in records] == [f"tracking/artifacts/{name}" for name in ("a.txt", "b.txt")]


def test_a_file_that_is_not_there_is_told_at_once_and_never_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "run", "name")
    spool.put_artifact(tmp_path / "gone", None)
    assert "gone: not kept with the run: " in caplog.text and not spool._copies


def test_points_of_repeated_steps_are_read_once(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.5), (2, 3.5)):
        tracker.log_metrics({"train/loss": loss}, step)
    tracker.log_metrics({"eval/knn_top1": 0.5}, 3)
    tracker.finish("FINISHED")
    tracker.log_metrics({"train/loss": 9.0}, 9)
    points = [(point["step"], point["metrics"]) for point in read_points(tmp_path)]
    assert points == [
        (1, {"train/loss": 4.0}),
        (2, {"train/loss": 3.5}),
        (3, {"train/loss": 2.5, "eval/knn_top1": 0.5}),
    ]


def test_what_takes_the_place_of_lines_that_a_power_cut_took_is_sent(tmp_path: Path) -> None:
    """The note of what was sent had reached the disk, the end of the file had not."""
    spool = Spool(tmp_path, "name")
    spool.adopt("run-1")
    for step in range(1, 11):
        spool.metrics.append({"step": step})
    spool.confirm(spool.metrics, spool.metrics.num_bytes)
    spool.close()
    lines = spool.metrics.path.read_text().splitlines(keepends=True)
    spool.metrics.path.write_text("".join(lines[:5]) + lines[5][:4])
    again = Spool(tmp_path, "name")
    for step in range(9, 20):
        again.metrics.append({"step": step})
    again.close()  # the store was away all the while
    third = Spool(tmp_path, "name")
    for spool in (again, third):
        assert [record["step"] for record in spool.unshipped(spool.metrics, 100)[0]] == list(range(9, 20))


def test_after_a_sync_all_that_was_put_in_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_out = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: written_out.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    spool = Spool(tmp_path, "name")
    spool.metrics.append({"step": 1})
    assert not written_out  # a line costs no wait for the disk
    spool.sync()
    queues = (spool.metrics, spool.records, spool.system)
    assert sorted(written_out) == sorted(str(journal.path.resolve()) for journal in queues)


def test_a_run_is_at_rest_once_it_is_finished_and_all_has_arrived(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.adopt("1")
    spool.metrics.append({"step": 1})

    def arrives() -> None:
        for journal in (spool.metrics, spool.records):
            spool.confirm(journal, journal.num_bytes)

    for status in ("RUNNING", "FAILED", "FINISHED"):
        spool.put("status", status=status)
        assert not is_at_rest(tmp_path)
        arrives()
        assert is_at_rest(tmp_path) == (status == "FINISHED")
    spool.system.append({"step": 1})
    assert not is_at_rest(tmp_path)
    spool.close()
