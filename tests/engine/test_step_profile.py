"""Updates that are looked at closely: how a look ends that the run does not finish."""

import json
import logging
import time
from pathlib import Path

import torch

from dmt_ds.engine.step_profile import StepProfile
from dmt_ds.tracking.spans import SpanClock, span
from tests import processes

CPU = torch.device("cpu")


def look(profile: StepProfile, first: int, last: int) -> bool:
    written = False
    for step in range(first, last + 1):
        profile.before(step)
        with span("student forward"):
            torch.ones(8).sum()
        written = profile.after(step)
    return written


def test_steps_that_are_not_all_made_leave_a_word_and_no_files_and_another_look_is_free(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    cut_short = StepProfile((2, 4), 8, tmp_path / "cut_short", CPU)
    assert not look(cut_short, 1, 3)
    cut_short.close(3)
    cut_short.close(3)
    (line,) = caplog.messages
    assert line.startswith("train.profile_steps [2, 4] is not written: training ended after step 3")
    assert not cut_short.folder.exists()
    other = StepProfile((5, 6), 8, tmp_path / "other", CPU)
    assert look(other, 5, 6) and (other.folder / "steps.json").is_file()
    other.close(6)
    assert len(caplog.messages) == 1


def test_what_happens_between_two_updates_is_in_no_part(tmp_path: Path) -> None:
    profile = StepProfile((1, 2), 8, tmp_path, CPU)
    began = time.perf_counter()
    look(profile, 1, 1)
    with span("student forward"):  # of an evaluation
        time.sleep(0.3)
    time.sleep(0.3)  # a save
    look(profile, 2, 2)
    whole = time.perf_counter() - began
    table = json.loads((tmp_path / "steps.json").read_text())
    assert 0 < 2 * sum(table["parts"].values()) < whole - 0.6
    assert table["seconds_per_step"] == sum(table["parts"].values())


def test_an_update_that_an_error_ends_leaves_no_clock_behind(tmp_path: Path) -> None:
    broken = StepProfile((1, 2), 8, tmp_path, CPU)
    broken.before(1)
    broken.close(0)
    with SpanClock(CPU).listening():  # only one can
        pass


def test_a_process_whose_look_was_closed_ends_as_it_would_without(tmp_path: Path) -> None:
    program = (
        "import pathlib, torch; from dmt_ds.engine.step_profile import StepProfile; "
        f"look = StepProfile((2, 4), 8, pathlib.Path({str(tmp_path)!r}), torch.device('cpu')); "
        "look.before(2); look.after(2); look.before(3); look.close(2)"
    )
    assert processes.run(["-c", program], check=False).returncode == 0
