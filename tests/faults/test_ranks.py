"""Harm to running ranks: killed, stopped, starved; whoever is left ends by itself, in time, and says why."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dmt_ds.engine.ranks.stopping import HANG_EXIT_CODE
from tests import processes, tiny_run
from tests.faults.rounds import helpers_of, still_alive
from tests.processes import errors
from tests.tiny_run import wait_for_step

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_was_stopped_ends_the_job_in_time_with_the_stacks_of_all(tmp_path: Path, victim: int) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 5000, "hang_timeout_seconds": 8})
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        wait_for_step(tmp_path / "run", 3)
        os.kill(ranks.pids[victim], signal.SIGSTOP)
        codes = ranks.wait(8 + 40)  # the time set, and what a busy machine takes for the stacks
    assert codes[1 - victim] == HANG_EXIT_CODE and all(codes)
    log = ranks.log
    assert re.search(rf"rank {1 - victim}: no progress for \d+ s at step \d+", log)
    assert f"rank {1 - victim}: rank {victim} (pid {ranks.pids[victim]}) was stopped by a signal" in log
    # Each rank's own loop is in its own stacks: both were in it.
    assert len(re.findall(r'trainer\.py", line \d+ in fit', log)) >= 2


def test_a_job_that_is_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 40, "hang_timeout_seconds": 10})
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        wait_for_step(tmp_path / "run", 3)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in ranks.pids:
                os.kill(pid, number)
            time.sleep(20 if number == signal.SIGSTOP else 0)
        assert ranks.wait() == [0, 0]
    assert (tmp_path / "run" / "DONE").read_text() == "40\n"


def test_a_run_whose_store_is_away_at_its_end_is_finished_on_all_ranks_however_long_it_is_waited_for(
    tmp_path: Path,
) -> None:
    """By itself a collective waits for 10 s here, and rank 0 for its store for 16."""
    tracking = {"enabled": True, "uri": "http://127.0.0.1:9", "drain_seconds": 16, "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 2, "hang_timeout_seconds": 30}, tracking=tracking)
    hurry = ("tests.faults.harm.hurry_collectives", [-20.0])
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log", harm=hurry) as ranks:
        assert ranks.wait() == [0, 0], ranks.log
    assert "not all has arrived" in ranks.log and errors(ranks.log) == []
    assert (tmp_path / "run" / "DONE").read_text() == "2\n"


def test_a_running_rank_prints_its_stacks_when_it_is_asked(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 12})
    with processes.launched(tiny_run.pretrain(recipe), 1, tmp_path / "log") as ranks:
        wait_for_step(tmp_path / "run", 3)
        os.kill(ranks.pids[0], signal.SIGUSR2)
        assert ranks.wait() == [0]
    assert "Current thread" in ranks.log or "Thread 0x" in ranks.log


def test_a_killed_loader_process_ends_the_run_in_one_line_and_nothing_stays_behind(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 5000}, data={"num_workers": 1})
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        wait_for_step(tmp_path / "run", 3)
        helpers = helpers_of(ranks.pids)
        # A loader process is the child of the server that makes them, which is the rank's.
        loaders = [helper for helper in helpers_of(ranks.pids[:1]) if helper.ppid() != ranks.pids[0]]
        assert len(loaders) == 1 and len(helpers) >= 4
        loaders[0].kill()
        assert ranks.wait() == [2, 1]
    (line,) = errors(ranks.log)
    assert "a loader process of this rank was killed" in line and "set data.num_workers below 1" in line
    assert still_alive(helpers) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_was_killed_is_named_in_one_line_by_the_one_that_is_left(tmp_path: Path, victim: int) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 5000})
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        wait_for_step(tmp_path / "run", 3)
        os.kill(ranks.pids[victim], signal.SIGKILL)
        codes = ranks.wait(60)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
    (line,) = [line for line in ranks.log.splitlines() if "died without a message" in line]
    assert f"rank {victim} (pid {ranks.pids[victim]})" in line and "resume from the newest checkpoint" in line
    assert "Traceback" not in ranks.log


@pytest.mark.parametrize("victim", [0, 1])
def test_out_of_memory_on_one_rank_says_what_to_lower(tmp_path: Path, victim: int) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 5000, "micro_batch_size": 16})
    harm = ("tests.faults.harm.limit_memory", [victim, str(tmp_path / "mark"), 1])
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log", harm=harm) as ranks:
        wait_for_step(tmp_path / "run", 3)
        (tmp_path / "mark").touch()
        codes = ranks.wait(60)
    (line,) = set(errors(ranks.log))  # rank 0 may repeat what its peer said
    assert "out of memory" in line and "lower train.micro_batch_size (now 16; accumulation follows" in line
    assert line.startswith("dmt-ds: error: rank 1:") == (victim == 1)
    assert codes[victim] == 2 and codes[1 - victim] == 1 and "Traceback" not in ranks.log


def test_a_job_on_the_port_of_another_one_ends_in_one_line_and_does_it_no_harm(tmp_path: Path) -> None:
    port = processes.free_port()
    harm = ("tests.faults.harm.meet_at", [port])
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    recipe, run = tiny_run.write_recipe(tmp_path / "first", train={"steps": 5000}), tmp_path / "first" / "run"
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "first.log", harm=harm) as first:
        wait_for_step(run, 3)
        late = tiny_run.pretrain(tiny_run.write_recipe(tmp_path / "second"))
        with processes.launched(late, 2, tmp_path / "second.log", harm=harm) as second:
            second.end_as_a_launcher_does(1)
            assert second.wait()[0] == 2, second.log
        (line,) = errors(second.log)
        assert f"127.0.0.1:{port}" in line and "MASTER_PORT" in line
        wait_for_step(run, max(tiny_run.losses(run)) + 3)
        os.kill(first.pids[0], signal.SIGTERM)
        assert first.wait() == [0, 0], first.log
    losses = tiny_run.losses(run)
    assert list(losses) == list(range(1, len(losses) + 1))
