"""The watchdog's thread and the end of a process."""

import subprocess
import sys
import threading
import time

from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import Watchdog


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


HANGS = """
import fcntl, logging, os, sys, time
from pathlib import Path
from dmt_ds.engine.ranks import stopping
from dmt_ds.engine.ranks.peers import Peers

class Hanging(logging.Handler):
    def emit(self, record):
        time.sleep(1000)

def log_hangs(watchdog):
    logging.getLogger("dmt_ds").addHandler(Hanging())

def last_words_hang(watchdog):
    watchdog.last_words = lambda reason: time.sleep(1000)

def terminal_hangs(watchdog):  # a pipe that nobody empties: stacks can't be printed
    logging.getLogger("dmt_ds").addHandler(logging.NullHandler())
    _, pipe = os.pipe()
    os.set_blocking(pipe, False)
    try:
        while os.write(pipe, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(pipe, True)
    os.dup2(pipe, 2)

stopping._SAYING_SECONDS, stopping._LINGER_SECONDS, stopping._SURE_SECONDS = 0.2, 0.1, 4.0
children = {}
for hangs in (log_hangs, last_words_hang, terminal_hangs):
    if (child := os.fork()) == 0:
        watchdog = stopping.Watchdog(0.2, 0, Peers())
        hangs(watchdog)
        watchdog.start()
        time.sleep(1000)
    children[child] = hangs.__name__
while children:
    child, status = os.wait()
    print(children.pop(child), os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_log_a_terminal_or_a_record_that_hangs_does_not_keep_a_hanging_process_alive():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes.pop("terminal_hangs") in ("1", "75")  # 1 by the timer in C, which knows no other code
    assert codes == {"log_hangs": "75", "last_words_hang": "75"}
    assert done.stderr.count("rank 0: no progress for") == 2 and "in <module>" in done.stderr


GOES_ON = """
import time
from dmt_ds.engine.ranks import stopping
from dmt_ds.engine.ranks.peers import Peers

stopping._LINGER_SECONDS = 0.5
watchdog = stopping.Watchdog(0.2, 0, Peers())

def last_words(reason):
    watchdog.beat("closing the record")  # in its own thread
    print("closed", flush=True)

watchdog.last_words = last_words
watchdog.start()
time.sleep(0.6)  # the hang; a peer that was stopped is woken for its stacks, and then all could go on
watchdog.beat("a step")
print("saves what its closed record no longer takes", flush=True)
time.sleep(1000)
"""


def test_a_job_that_ends_as_hanging_makes_no_step_any_more_though_it_could():
    done = subprocess.run([sys.executable, "-c", GOES_ON], capture_output=True, text=True, timeout=120)
    assert done.returncode == 75 and done.stdout == "closed\n"
