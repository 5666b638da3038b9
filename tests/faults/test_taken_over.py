"""An attempt that stood still while another one took its run over writes nothing when it goes on, and says why."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from dmt_ds.engine.checkpoints.fence import Fence
from tests import processes, tiny_run
from tests.processes import errors
from tests.tiny_run import wait_for_step
from tests.tracking.stores import tracking_in

pytestmark = pytest.mark.distributed


def what_counts(run: Path) -> dict[str, object]:
    """Points, checkpoints by their names, states of the record, and what is published."""
    records = [json.loads(line) for line in (run / "tracking" / "records.jsonl").read_text().splitlines()]
    return {
        "points": (run / "metrics.jsonl").read_text(),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("[!.]*")),
        "states": [record["status"] for record in records if record["kind"] == "status"],
        "published": [(run / name).exists() for name in ("DONE", "backbone", "pictures")],
        "claim": (run / "attempt.json").read_text(),
    }


def ranks_stand_still(run: Path, ranks: processes.Launched, moment: str) -> None:
    """Stop all ranks between two saves, or in one."""
    wait_for_step(run, 12)
    while bool(list((run / "checkpoints").glob(".tmp-step*"))) != (moment == "save"):
        assert ranks.codes() == [None, None], ranks.log
    for pid in ranks.pids:
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("moment", ["step", "save"])
def test_an_attempt_that_comes_back_writes_nothing_and_names_the_newer_one(tmp_path: Path, moment: str) -> None:
    recipe = tiny_run.write_recipe(
        tmp_path, train={"steps": 5000, "save_every_steps": 5}, tracking=tracking_in(tmp_path)
    )
    run = tmp_path / "run"
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        ranks_stand_still(run, ranks, moment)
        time.sleep(0.5)  # a signal takes effect, and a write that was begun ends
        Fence.claim(run)
        before = what_counts(run)
        for pid in ranks.pids:
            os.kill(pid, signal.SIGCONT)
        assert ranks.wait(60) == [2, 1], ranks.log
    assert what_counts(run) == before
    (line,) = errors(ranks.log)
    assert "attempt 2 (" in line and "has taken this run over; attempt 1 ends here" in line


def test_an_attempt_that_comes_back_after_its_last_step_publishes_nothing(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path, tracking=tracking_in(tmp_path))
    run = tmp_path / "run"
    harm = ("tests.faults.harm.lose_the_run_after_the_last_step", [str(run)])
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log", harm=harm) as ranks:
        assert ranks.wait() == [2, 1], ranks.log
    left = what_counts(run)
    assert left["states"] == ["RUNNING"] and left["published"] == [False, False, False]
    (line,) = errors(ranks.log)
    assert "has taken this run over" in line and "Traceback" not in ranks.log


def test_an_attempt_whose_claim_can_not_be_read_ends_with_a_code_that_a_job_tries_again(tmp_path: Path) -> None:
    """The kernel refuses to read a folder as it does a file whose server is away."""
    recipe = tiny_run.write_recipe(
        tmp_path, train={"steps": 5000, "save_every_steps": 5}, tracking=tracking_in(tmp_path)
    )
    claim = tmp_path / "run" / "attempt.json"
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        wait_for_step(tmp_path / "run", 12)
        claim.rename(tmp_path / "claim")
        claim.mkdir()
        assert ranks.wait(90) == [75, 1], ranks.log
    (line,) = errors(ranks.log)
    assert f"{claim}: can't be read (Is a directory) for 5 s" in line and "taken" not in ranks.log
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()
