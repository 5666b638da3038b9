"""What `dmt-ds quickstart` says before it starts, and while it waits."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from dmt_ds.cli import main
from dmt_ds.commands import quickstart
from dmt_ds.commands.quickstart import say_newest_step


def test_a_line_of_progress_has_step_loss_and_speed_whole(tmp_path: Path) -> None:
    figures = "loss 5.9  loss_class 4.53  loss_patch 1.373  teacher_entropy_each 2.973  teacher_entropy_mean 4.808"
    line = f"2026-11-27 01:44:21,627 INFO step {{}}/250  {figures}  lr 6e-08  images_per_second 368.2  memory_gib 1.0\n"
    log, said = tmp_path / "train.log", list[str]()
    say_newest_step(log, said.append)
    assert said == []
    log.write_text(line.format(100) + line.format(125) + "2026-11-27 01:44:22,000 INFO saved\n")
    say_newest_step(log, said.append)
    assert said == ["      step 125/250  loss 5.9  images_per_second 368.2"]


@pytest.mark.parametrize("processes", [3, 128])
def test_processes_that_cannot_share_a_batch_are_told_before_the_first_training(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "_run_training", lambda training, *_: pytest.fail(f"trains {training.name}"))
    result = CliRunner().invoke(main, ["quickstart", "-o", str(tmp_path / "out"), "--processes", str(processes)])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert line.startswith(f"dmt-ds: error: --processes {processes}: can't share the 64 images of an update evenly: ")
    assert line.endswith("take 1, 2, 4, 8, 16, 32, 64")
