"""Disks that fill up, folders that can't be written any more, two jobs in one folder, a clock that jumps."""

import json
import os
import re
import shutil
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.faults import places
from tests.processes import errors
from tests.tiny_run import wait_for_step
from tests.tracking.stores import mlflow_runs, tracking_in

pytestmark = pytest.mark.distributed


def steps_in_mlflow(folder: Path) -> list[int]:
    client, (run,) = mlflow_runs(folder)
    return sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))


def test_a_disk_that_is_full_for_a_while_costs_no_point_and_no_step(tmp_path: Path) -> None:
    places.needs_mount()
    (small := tmp_path / "small").mkdir()
    with places.small_disk(small, mib=4):
        recipe = tiny_run.write_recipe(
            tmp_path, output_dir=str(small / "run"), train={"steps": 25}, tracking=tracking_in(tmp_path)
        )
        with processes.launched(tiny_run.pretrain(recipe), 1, tmp_path / "log") as ranks:
            wait_for_step(small / "run", 3)
            places.fill(small / "ballast")
            while "can't be written" not in ranks.log:
                assert ranks.codes() == [None], ranks.log
            full_at = max(map(int, re.findall(r"step (\d+)/25", ranks.log)))
            while f"step {full_at + 8}/25" not in ranks.log:
                assert ranks.codes() == [None], ranks.log
            (small / "ballast").unlink()
            assert ranks.wait() == [0], ranks.log
        assert list(tiny_run.losses(small / "run")) == list(range(1, 26))
        assert steps_in_mlflow(tmp_path) == list(range(1, 26))
        assert "Traceback" not in ranks.log and "Logging error" not in ranks.log


def test_a_start_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    places.needs_mount()
    (small := tmp_path / "small").mkdir()
    with places.small_disk(small, mib=1):
        places.fill(small / "ballast")
        recipe = tiny_run.write_recipe(tmp_path, output_dir=str(small / "run"))
        done = processes.run(tiny_run.pretrain(recipe), check=False)
    (line,) = errors(done.stderr)
    assert done.returncode == 2 and "No space left on device" in line and str(small / "run") in line


def test_a_folder_that_becomes_read_only_keeps_its_checkpoints_and_the_run_goes_on_later(tmp_path: Path) -> None:
    places.needs_mount()
    recipe = tiny_run.write_recipe(tmp_path, train={"save_every_steps": 4, "steps": 12})
    run = tmp_path / "run"
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        wait_for_step(run, 4)
        while not (run / "checkpoints" / "latest").exists():
            assert None in ranks.codes(), ranks.log
        with places.read_only(run):
            codes = ranks.wait()
    (line,) = set(errors(ranks.log))
    assert codes == [2, 1] and "not saved (rank 0): Read-only file system" in line and "is step00000004" in line
    done = processes.run(tiny_run.pretrain(recipe), processes=2)
    assert "resuming from" in done.stderr and list(tiny_run.losses(run)) == list(range(1, 13))


def test_of_two_jobs_in_one_folder_the_newer_goes_on_and_the_older_ends_with_its_name(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 5000, "save_every_steps": 2})
    run = tmp_path / "run"
    with processes.launched(tiny_run.pretrain(recipe), 1, tmp_path / "older") as older:
        wait_for_step(run, 3)
        with processes.launched(tiny_run.pretrain(recipe), 1, tmp_path / "newer") as newer:
            assert older.wait() == [2]
            (line,) = errors(older.log)
            assert "attempt 2 (" in line and f"pid {newer.pids[0]}" in line and "has taken this run over" in line
            wait_for_step(run, max(tiny_run.losses(run)) + 3)
            os.kill(newer.pids[0], signal.SIGTERM)
            assert newer.wait() == [0]
    last = max(tiny_run.losses(run))
    assert (run / "checkpoints" / "latest").read_text() == f"step{last:08d}"
    assert list(tiny_run.losses(run)) == list(range(1, last + 1))


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, now);
    if (id == CLOCK_REALTIME) {
        long seconds = 0;
        FILE *file = fopen(getenv("CLOCK_OFFSET"), "r");
        if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
        now->tv_sec += seconds;
    }
    return result;
}
"""


def test_a_clock_that_jumps_a_day_ahead_and_two_back_costs_nothing(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to make a clock that jumps")
    (tmp_path / "clock.c").write_text(CLOCK)
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    recipe = tiny_run.write_recipe(
        tmp_path, train={"steps": 30, "hang_timeout_seconds": 60}, tracking=tracking_in(tmp_path)
    )
    clock = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    trainer = processes.start(tiny_run.pretrain(recipe), log=tmp_path / "log", **clock)
    for step, seconds in ((5, 86400), (12, -172800)):
        wait_for_step(tmp_path / "run", step)
        offset.write_text(str(seconds))
    assert trainer.wait(120) == 0, (tmp_path / "log").read_text()
    points = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    jumps = [after["time_ms"] - before["time_ms"] for before, after in pairwise(points)]
    assert max(jumps) > 80_000_000 and min(jumps) < -200_000_000
    assert steps_in_mlflow(tmp_path) == list(range(1, 31))
    assert all(0 < point["metrics"]["perf/images_per_second"] < 1e5 for point in points)
