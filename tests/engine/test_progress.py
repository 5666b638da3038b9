"""The bar of a terminal: there while it trains, and gone with all that it changed."""

import io
import logging
import sys

import pytest

from dmt_ds.engine.progress import ProgressView


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What takes the bar, and the root's lines as `dmt-ds` prints them; no fixture, as pytest captures after it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    root, handler = logging.getLogger(), logging.StreamHandler(stream)
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)
    return stream


def train(steps: int) -> ProgressView:
    view = ProgressView("tiny", 8, visible=True)
    view.start(8 - steps)
    for step in range(8 - steps, 8):
        view.advance()
        view.report(step + 1, {"train/loss": 1.5})
    return view


def test_lines_after_the_bar_stand_on_their_own_and_a_second_run_prints_its_own_bar(monkeypatch) -> None:
    terminal = terminal_of(monkeypatch)
    for _ in range(2):
        view = train(3)
        assert "step 8/8" not in terminal.getvalue(), "the bar stands for it"
        view.close()
        logging.getLogger("dmt_ds").info("finished")
        assert terminal.getvalue().splitlines()[-1] == "finished"
        assert "8/8" in terminal.getvalue().splitlines()[-2] and "loss 1.5" in terminal.getvalue().splitlines()[-2]
        assert logging.getLogger().handlers[0].filters == []
    view.close()


def test_without_a_terminal_there_are_lines_and_no_bar(capsys, caplog) -> None:
    with caplog.at_level(logging.INFO):
        train(2).close()
    assert [line.split("  ")[0] for line in caplog.messages] == ["step 7/8", "step 8/8"]
    assert "%" not in capsys.readouterr().err


FIGURES = {
    "train/loss": 1.75, "train/loss_tfd": 1.5, "train/loss_sfd": 0.25, "train/kl_tfd_student_teacher": 1.50001,
    "train/kl_tfd_teacher_student": 1.6, "train/lr": 0.001, "train/images_seen": 16.0, "train/grad_norm": 2.0,
    "perf/images_per_second": 20.0, "perf/memory_gib": 0.5,
}  # fmt: skip


def test_the_bar_has_losses_learning_rate_and_speed_and_no_number_twice(monkeypatch) -> None:
    terminal = terminal_of(monkeypatch)
    view = ProgressView("tiny", 8, visible=True)
    view.start(0)
    view.advance()
    view.report(1, FIGURES)
    view.close()
    last = terminal.getvalue().splitlines()[-1]
    assert "loss 1.75  lr 0.001  images_per_second 20  loss_tfd 1.5  loss_sfd 0.25]" in last
    view = ProgressView("tiny", 8, visible=True)
    view.start(0)
    view.report(1, {"train/loss": 1.5, "train/loss_reconstruction": 1.5, "train/lr": 0.001})
    view.close()
    assert "loss 1.5  lr 0.001]" in terminal.getvalue().splitlines()[-1]


def test_a_line_has_all_figures_once_and_the_time_that_is_left(monkeypatch, caplog) -> None:
    clock = iter([100.0, 110.0, 130.0, 140.0])
    monkeypatch.setattr("dmt_ds.engine.progress.time.monotonic", lambda: next(clock))
    view = ProgressView("tiny", 1000, visible=True)
    with caplog.at_level(logging.INFO):
        for step in (20, 40, 60, 1000):
            view.report(step, FIGURES)
    first, second, third, last = caplog.messages
    assert (
        first
        == last.replace("1000/", "20/", 1)
        == (
            "step 20/1000  loss 1.75  loss_tfd 1.5  loss_sfd 0.25  kl_tfd_teacher_student 1.6  lr 0.001  grad_norm 2  "
            "images_per_second 20  memory_gib 0.5"
        )
    )
    assert second.endswith("  ETA 0:08:00") and third.endswith("  ETA 0:11:45")
