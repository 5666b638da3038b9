"""The watchdog's thread and the end of a process."""

import threading

from dmt_ds.engine.peers import Peers
from dmt_ds.engine.stopping import Watchdog


def test_no_thread_that_holds_the_run_outlives_the_watch():
    """Tensors that such a thread frees while Python ends abort the process, after all was done."""
    for _ in range(20):  # a thread that nobody waits for may still be quick once
        watchdog = Watchdog(60, 0, Peers()).start()
        watchdog.stop()
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]
