"""Training that waits for images says so once, with what helps."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmt_ds.engine.data_wait import DataWaitAlarm
from tests import tiny_run
from tests.processes import run


def said(
    caplog: pytest.LogCaptureFixture, shares: list[float], num_workers: int, cores: int, on_gpu: bool = True
) -> list[str]:
    alarm = DataWaitAlarm(num_workers, cores, on_gpu)
    for share in shares:
        alarm.look({"perf/data_wait_share": share, "perf/images_per_second": 812.4})
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_two_waiting_intervals_in_a_row_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = said(caplog, [0.9, 0.05, 0.4, 0.37, 0.5, 0.6, 0.01, 0.5, 0.5], num_workers=3, cores=4)
    assert message.startswith("training waits for images 37 % of the time: 812 images/s, 3 loader processes, 4 cores")
    assert "--cpus-per-task" in message and "dmt-ds shards make" in message


def test_idle_cores_are_offered_first(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = said(caplog, [0.5, 0.5], num_workers=2, cores=12)
    assert "set data.num_workers=auto (11 here)" in message


@pytest.mark.parametrize("shares", [[], [0.9], [0.9, 0.1, 0.9, 0.1], [0.09] * 20])
def test_a_slow_start_and_short_waits_are_not_told(shares: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, shares, num_workers=3, cores=4) == []


def test_a_process_that_decodes_for_itself_waits_only_beside_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, [0.5, 0.5], num_workers=0, cores=2, on_gpu=False) == []
    assert len(said(caplog, [0.5, 0.5], num_workers=0, cores=2)) == 1


@pytest.mark.distributed
def test_a_run_whose_photographs_are_too_large_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / "photos" / "train" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (900, 900, 3), dtype=np.uint8)).save(path)
    data = {"source": "folder", "path": str(tmp_path / "photos"), "num_workers": "auto"}
    recipe = tiny_run.write_recipe(tmp_path, data=data, train={"micro_batch_size": 16})
    done = run(tiny_run.pretrain(recipe, "train.steps=6"))
    assert done.stderr.count("training waits for images") == 1
