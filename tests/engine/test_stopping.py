"""The watchdog's thread and the end of a process."""

import threading
import time

from dmt_ds.engine.peers import Peers
from dmt_ds.engine.stopping import Watchdog


def test_no_thread_that_holds_the_run_outlives_the_watch():
    """Tensors that such a thread frees while Python ends abort the process, after all was done."""
    for _ in range(20):  # a thread that nobody waits for may still be quick once
        watchdog = Watchdog(60, 0, Peers()).start()
        watchdog.stop()
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_what_may_take_longer_is_given_that_time_and_no_more():
    """A store that is away holds a run up at its end, on rank 0, while the others wait for that."""

    class Noting(Watchdog):
        ended_after = 0.0

        def _end_hanging(self) -> None:
            self.ended_after = time.monotonic() - began
            self._stopped.set()

    for seconds in (0.0, 1.0):
        watchdog, began = Noting(0.4, 0, Peers()).start(), time.monotonic()
        watchdog.beat("sending the last metrics", seconds)
        watchdog._stopped.wait(20)
        watchdog.stop()
        assert seconds + 0.4 <= watchdog.ended_after < seconds + 5
