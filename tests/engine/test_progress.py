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
