"""Ending well: signals become a flag that the trainer reads, and a rank that hangs ends the job; knows no training."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from dmt_ds.engine.peers import POLL_SECONDS, Peers

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
        # Asked once is enough. Ignored signals stay ignored while Python shuts down; handled ones would kill it there.
        for other in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
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
    """Ends the process when a peer has failed, or when `beat` was not called for long: a rank in a collective can't.

    Attributes:
        last_words: called before the process ends, in the watchdog's thread: closes the run's record.
    """

    def __init__(self, timeout_seconds: float, rank: int, peers: Peers) -> None:
        self.last_words: Callable[[], None] = lambda: None
        self._timeout = timeout_seconds
        self._rank = rank
        self._peers = peers
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
        while not self._stopped.wait(min(POLL_SECONDS, self._timeout / 4)):
            reason = self._peers.reason()
            if reason is not None and not reason.startswith(f"rank {self._rank}:"):
                self._end_with_peer(reason)
            if time.monotonic() - self._last > self._timeout:
                self._end_hanging()

    def _end_with_peer(self, reason: str) -> None:
        # The main thread may see the same by itself and end in order; it gets the time for it.
        if self._stopped.wait(2 * POLL_SECONDS):
            return
        if self._rank == 0:
            logger.error("the job ends: %s", reason)
        self.last_words()
        os._exit(1)  # less than any code of the rank that failed: srun gives the highest

    def _end_hanging(self) -> None:
        logger.error(
            "rank %d: no progress for %.0f s at %s: stacks follow, the job ends with code %d. "
            "Start again to go on from the newest checkpoint; raise train.hang_timeout_seconds if it was slow",
            self._rank,
            time.monotonic() - self._last,
            self._doing,
            HANG_EXIT_CODE,
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        self.last_words()
        os._exit(HANG_EXIT_CODE)
