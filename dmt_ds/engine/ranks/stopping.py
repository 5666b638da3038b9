"""Ending well: signals become a flag that the trainer reads, and a rank that hangs ends the job; knows no training."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TextIO

from dmt_ds.engine.ranks.neighbours import STACKS_SIGNAL
from dmt_ds.engine.ranks.peers import POLL_SECONDS, Peers
from dmt_ds.redact import masked

logger = logging.getLogger(__name__)

HANG_EXIT_CODE = 75  # EX_TEMPFAIL: worth another try
_LINGER_SECONDS = 3 * POLL_SECONDS  # the others find the same, and print their stacks before a launcher ends them
_LOCKED_SECONDS = 15.0  # how much later the timer in C prints the stacks of a rank whose threads can't run at all
_SAYING_SECONDS = 2.0  # for a line to reach a log whose file may lie on a server that hangs
_SURE_SECONDS = 10.0  # beyond all that is waited for: then the process ends, whatever hangs
_NO_PROGRESS = "no progress"
_STANDSTILL = threading.Event()  # never set


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
    """Ends the process when a peer has failed or `beat` was not called for too long: a rank in a collective can't.

    When one rank hangs, all print their stacks. A rank of this node that a signal has stopped is woken to print them;
    one that holds Python's lock does it by a timer in C. Time during which the watchdog itself was stopped, as the
    whole job is when a scheduler suspends it, does not count.

    Nothing that hangs keeps the process from its end: neither its log, nor its terminal, nor `last_words`.

    Attributes:
        last_words: called with the reason before the process ends, in the watchdog's thread: closes the run's record.
        last_words_seconds: how long they may take.
    """

    def __init__(self, timeout_seconds: float, rank: int, peers: Peers) -> None:
        self.last_words: Callable[[str], None] = lambda reason: None
        self.last_words_seconds = 0.0
        self._timeout = timeout_seconds
        self._rank = rank
        self._peers = peers
        self._last = time.monotonic()
        self._doing = "starting"
        self._stopped = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> "Watchdog":
        """Begin to watch; from now on `kill -USR2` has the rank print its stacks and go on."""
        faulthandler.register(STACKS_SIGNAL, file=_stderr(), all_threads=True)
        self.beat(self._doing)
        self._thread.start()
        return self

    def beat(self, doing: str, seconds: float = 0.0) -> None:
        """Report that the rank is alive.

        Args:
            doing: what, for the message.
            seconds: how long that may take beyond the usual, on this rank or on one that this one waits for.
        """
        if self._ends and threading.current_thread() is not self._thread:
            _STANDSTILL.wait()  # the record is being closed: what is trained from here on would not be in it
        self._last = time.monotonic() + seconds
        self._doing = doing
        if not self._ends:
            with suppress(RuntimeError):  # no thread starts where memory is out, which must stay the reported error
                faulthandler.dump_traceback_later(self._timeout + seconds + _LOCKED_SECONDS, file=_stderr())

    def stop(self) -> None:
        """Watch no longer; the thread has ended when this returns.

        It holds, through `last_words`, all that was trained: freed by a thread while Python ends, tensors abort the
        process.
        """
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        interval = min(POLL_SECONDS, self._timeout / 4)
        looked = time.monotonic()
        while not self._stopped.wait(interval):
            now = time.monotonic()
            if now - looked > 10 * POLL_SECONDS + interval:
                self._last += now - looked
            looked = now
            reason = self._peers.reason()
            if reason is not None and not reason.startswith(f"rank {self._rank}:"):
                self._end_with_peer(reason)
            if now - self._last > self._timeout:
                self._end_hanging()

    def _end_with_peer(self, reason: str) -> None:
        if _NO_PROGRESS in reason:
            self._end_surely(HANG_EXIT_CODE)
            _say(f"rank {self._rank} was at {self._doing} when that happened: stacks follow")
            self._end_with_stacks(reason)
        # The main thread may see the same by itself and end in order; it gets the time for it.
        if self._stopped.wait(2 * POLL_SECONDS):
            return
        self._end_surely(1)
        if self._rank == 0:
            _say(f"the job ends: {reason}")
        self.last_words(reason)
        os._exit(1)  # less than any code of the rank that failed: srun gives the highest

    def _end_hanging(self) -> None:
        self._end_surely(HANG_EXIT_CODE)
        found = f"{_NO_PROGRESS} for {time.monotonic() - self._last:.0f} s at {self._doing}"
        _say(
            f"rank {self._rank}: {found}: stacks follow, the job ends with code {HANG_EXIT_CODE}. "
            "Start again to resume from the newest checkpoint; raise train.hang_timeout_seconds if it was only slow"
        )
        # In a thread of its own: where the rank that hosts the peers' note was stopped, leaving one never ends.
        threading.Thread(target=self._peers.announce, args=(found,), daemon=True).start()
        self._end_with_stacks(f"rank {self._rank}: {found}")

    def _end_surely(self, code: int) -> None:
        """Set a time for the end that nothing after this can put off."""
        self._ends = True
        seconds = _LINGER_SECONDS + self.last_words_seconds + _SURE_SECONDS
        end = threading.Timer(seconds, os._exit, (code,))
        end.daemon = True
        end.start()
        # Stacks are printed with Python's lock held. Where that blocks only the timer in C still runs; its code is 1.
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115 - the timer writes there, for as long as the process lives
        faulthandler.dump_traceback_later(seconds + _SURE_SECONDS, file=self._nowhere, exit=True)

    def _end_with_stacks(self, reason: str) -> None:
        faulthandler.dump_traceback(file=_stderr(), all_threads=True)
        for place in self._peers.places:
            if place.is_stopped_beside(self._peers.here):
                _say(f"rank {self._rank}: rank {place.rank} (pid {place.pid}) was stopped by a signal")
                with suppress(OSError):
                    place.show_stacks_and_go_on()
        time.sleep(_LINGER_SECONDS)
        self.last_words(reason)
        os._exit(HANG_EXIT_CODE)


def _say(line: str) -> None:
    """Log an error; if logging blocks, print it."""
    logs = threading.Thread(target=logger.error, args=("%s", line), daemon=True)
    logs.start()
    logs.join(_SAYING_SECONDS)
    if logs.is_alive():
        os.write(2, f"{masked(line)}\n".encode())


def _stderr() -> TextIO | int:
    """A file of the process's own, whatever a program has put in the place of `sys.stderr`."""
    return sys.__stderr__ or 2
