"""Ending well: signals become a flag that the trainer reads, and a rank that hangs ends the job; knows no training."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

logger = logging.getLogger(__name__)

HANG_EXIT_CODE = 75  # EX_TEMPFAIL: worth another try


class StopRequest:
    """USR1 (a time limit comes), TERM (preemption) and a first Ctrl-C ask for a save and a clean end."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def install(self) -> "StopRequest":
        """Listen; call in the main thread, before what takes long."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        # A second Ctrl-C means it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def requested(self) -> bool:
        """Whether this rank was asked."""
        return self._signal is not None

    @property
    def name(self) -> str:
        """The signal's name, or `another rank's signal`."""
        return signal.Signals(self._signal).name if self._signal is not None else "another rank's signal"


class Watchdog:
    """Ends the process when `beat` was not called for long: a lost rank leaves the others in a collective for ever."""

    def __init__(self, timeout_seconds: float, rank: int) -> None:
        self._timeout = timeout_seconds
        self._rank = rank
        self._last = time.monotonic()
        self._doing = "starting"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> "Watchdog":
        """Begin to watch."""
        self._thread.start()
        return self

    def beat(self, doing: str) -> None:
        """The rank lives; `doing` says at what, for the message."""
        self._last = time.monotonic()
        self._doing = doing

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(5.0, self._timeout / 4)):
            silent = time.monotonic() - self._last
            if silent > self._timeout:
                logger.error(
                    "rank %d: no progress for %.0f s at %s: stacks follow, the job ends with code %d. "
                    "Start again to go on from the newest checkpoint; raise train.hang_timeout_seconds if it was slow",
                    self._rank,
                    silent,
                    self._doing,
                    HANG_EXIT_CODE,
                )
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                os._exit(HANG_EXIT_CODE)
