"""What a person sees during training: a bar on a terminal, plain lines in a log; rank 0 only."""

import logging
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

logger = logging.getLogger(__name__)


class ProgressView:
    """One line per log step; on a terminal also a bar with the newest figures, from `start` to `close`."""

    def __init__(self, name: str, total_steps: int, *, visible: bool) -> None:
        self._name = name
        self._total = total_steps
        self._visible = visible
        self._bar: Any = None
        self._first: tuple[int, float] | None = None
        """Step and clock of the first report: what came before it, such as compiling, says nothing about the rest."""
        self._without_bar: list[logging.Handler] = []  # whose lines of figures the bar stands for

    def start(self, step: int) -> None:
        """Start the bar at this step, 0 or that of a resumed run; its speed counts from here."""
        if not self._visible or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        self._bar = tqdm(initial=step, total=self._total, desc=self._name, unit="step", dynamic_ncols=True)
        self._without_bar = list(logging.getLogger().handlers)  # the log file belongs to our own logger
        for handler in self._without_bar:
            handler.addFilter(_is_no_figure)

    def advance(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, metrics: Mapping[str, float], of: str = "") -> None:
        """Show a log step's figures; `of` says whose they are, among several."""
        if not self._visible:
            return
        who = f"{of}  " if of else ""
        if self._bar is not None:
            self._bar.set_postfix_str(who + _told(metrics, _for_the_bar(metrics)), refresh=False)
        logger.info("step %d/%d  %s%s%s", step, self._total, who, _told(metrics, _figures(metrics)), self._left(step))

    def _left(self, step: int) -> str:
        """Estimated time left, from the speed since the first report."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first, then = self._first
        if not first < step < self._total:
            return ""
        seconds = (now - then) / (step - first) * (self._total - step)
        return f"  ETA {timedelta(seconds=round(seconds))}"

    def close(self) -> None:
        """Leave the bar as it is, on a line of its own; plain lines follow again."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for handler in self._without_bar:
            handler.removeFilter(_is_no_figure)
        self._without_bar = []


def _is_no_figure(record: logging.LogRecord) -> bool:
    return record.name != __name__


def _figures(metrics: Mapping[str, float]) -> list[str]:
    """Names in order: losses first and speed last, without what the step says and what repeats a loss."""
    shown = [name for name in metrics if name.startswith(("train/", "perf/")) and name != "train/images_seen"]
    shown.sort(key=lambda name: (name.startswith("perf/"), not name.startswith("train/loss")))
    kept: list[str] = []
    losses: set[str] = set()
    for name in shown:
        if name.startswith(("train/loss", "train/kl_")) and metrics[name]:
            text = f"{metrics[name]:.4g}"
            if text in losses:
                continue
            losses.add(text)
        kept.append(name)
    return kept


def _for_the_bar(metrics: Mapping[str, float]) -> list[str]:
    """The loss, the learning rate and the speed; then the other losses, which a narrow terminal cuts off."""
    shown = _figures(metrics)
    first = [name for name in ("train/loss", "train/lr", "perf/images_per_second") if name in shown]
    return first + [name for name in shown if name.startswith("train/loss") and name not in first]


def _told(metrics: Mapping[str, float], names: list[str]) -> str:
    """`loss 1.234  loss_tfd 1.1 ...`."""
    return "  ".join(f"{name.split('/', 1)[1]} {metrics[name]:.4g}" for name in names)
