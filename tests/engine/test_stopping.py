"""The watchdog's thread and the end of a process."""

import faulthandler
import logging
import subprocess
import sys
import threading
import time

import pytest

from dmt_ds.engine.ranks import stopping
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import HANG_EXIT_CODE, Watchdog


class Noting(Watchdog):
    """Notes how it would have ended the process."""

    ended = ""

    def _end_hanging(self) -> None:
        self.ended = "hanging"
        self._stopped.set()

    def _end_with_peer(self, reason: str) -> None:
        self.ended = reason
        self._stopped.set()


def noting(rank: int, reason: str | None = None, timeout_seconds: float = 0.4) -> Noting:
    """A watchdog of a rank whose peers have left that note."""
    peers = Peers()
    peers._reason = reason
    return Noting(timeout_seconds, rank, peers)


@pytest.mark.parametrize(("rank", "ends"), [(1, False), (0, True), (11, True)])
def test_another_ranks_note_ends_a_rank_and_its_own_does_not(rank: int, ends: bool) -> None:
    watchdog = noting(rank, "rank 1: truncated")
    watchdog._last += 1e9  # only then is it no hang
    watchdog._thread.start()
    watchdog._stopped.wait(20 if ends else 1)
    watchdog.stop()
    assert watchdog.ended == ("rank 1: truncated" if ends else "")


def on_a_clock_that_leaps(
    monkeypatch: pytest.MonkeyPatch, timeout_seconds: float
) -> tuple[list[float], stopping.Watchdog]:
    """Seconds that the clock has leapt, to be set, and a watchdog of rank 0 that has started by it."""
    skipped, clock = [0.0], time.monotonic
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock() + skipped[0])
    watchdog = noting(0, timeout_seconds=timeout_seconds)
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.01)
    watchdog.start()
    return skipped, watchdog


def test_time_in_which_the_watchdog_itself_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped, watchdog = on_a_clock_that_leaps(monkeypatch, timeout_seconds=60)
    last = watchdog._last
    time.sleep(0.1)
    skipped[0] = 10_000.0
    while watchdog._last < last + 9_000 and not watchdog.ended:
        time.sleep(0.01)
    time.sleep(0.1)
    watchdog.stop()
    assert watchdog.ended == ""


def test_a_rank_hangs_once_its_time_is_over_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped, watchdog = on_a_clock_that_leaps(monkeypatch, timeout_seconds=600)
    time.sleep(0.1)
    monkeypatch.setattr(stopping, "POLL_SECONDS", 1e6)  # no leap of the clock is a standstill
    skipped[0] = 500.0
    time.sleep(0.1)
    assert watchdog.ended == ""
    skipped[0] = 700.0
    watchdog._stopped.wait(20)
    watchdog.stop()
    assert watchdog.ended == "hanging"


def test_a_failure_that_the_main_thread_ends_in_order_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(60, 0, Peers())
    monkeypatch.setattr(watchdog, "_end_surely", None)
    watchdog.stop()
    watchdog._end_with_peer("rank 1: truncated")


def test_a_rank_of_a_hanging_job_leaves_the_others_time_for_their_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(stopping.time, "sleep", done.append)
    monkeypatch.setattr(stopping.os, "_exit", done.append)
    watchdog = Watchdog(60, 0, Peers())
    watchdog.last_words = done.append
    watchdog._end_with_stacks("why")
    assert done == [stopping._LINGER_SECONDS, "why", HANG_EXIT_CODE]


def test_stacks_of_a_rank_whose_threads_are_stuck_come_later_than_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    set_for: list[float | None] = []

    def set_timer(seconds: float, file: object) -> None:
        assert file is sys.__stderr__, "also where a program has put something else in its place, as pytest does"
        set_for.append(seconds)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", set_timer)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: set_for.append(None))
    watchdog = Watchdog(60, 0, Peers()).start()
    watchdog.beat("a step")
    watchdog.beat("sending the last metrics", 100.0)
    watchdog.stop()
    assert set_for == [75.0, 75.0, 175.0, None]
    watchdog._ends, watchdog._thread = True, threading.current_thread()
    watchdog.beat("closing the record")
    assert set_for[4:] == [], "the timer is that of the end by now"


def test_a_watch_that_never_began_can_be_stopped() -> None:
    Watchdog(60, 0, Peers()).stop()


def test_what_is_printed_past_a_log_that_hangs_has_no_secrets(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    goes_on = threading.Event()

    class Hanging(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            goes_on.wait(60)

    monkeypatch.setattr(stopping, "_SAYING_SECONDS", 0.1)
    stopping.logger.addHandler(hanging := Hanging())
    try:
        stopping._say("rank 1: http://me:abc123@store/ is away")
    finally:
        goes_on.set()
        stopping.logger.removeHandler(hanging)
    printed = capfd.readouterr().err
    assert "rank 1: http://" in printed and "abc123" not in printed
    stopping._say("rank 1: done")
    assert "done" not in capfd.readouterr().err  # the log has it


def test_no_thread_that_holds_the_run_outlives_the_watch():
    """Tensors that such a thread frees while Python ends abort the process, after all was done."""
    for _ in range(20):  # a thread that nobody waits for may still be quick once
        watchdog = Watchdog(60, 0, Peers()).start()
        watchdog.stop()
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_what_may_take_longer_is_given_that_time_and_no_more():
    """A store that is away holds a run up at its end, on rank 0, while the others wait for that."""

    class Timing(Watchdog):
        ended_after = 0.0

        def _end_hanging(self) -> None:
            self.ended_after = time.monotonic() - began
            self._stopped.set()

    for seconds in (0.0, 1.0):
        watchdog, began = Timing(0.4, 0, Peers()).start(), time.monotonic()
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


PEER_FAILS = """
import logging, os, sys, time
from dmt_ds.engine.ranks import stopping
from dmt_ds.engine.ranks.peers import Peers

class Told(Peers):
    def reason(self):
        return self._reason

def last_words_hang(reason):
    time.sleep(1000)

stopping.POLL_SECONDS, stopping._LINGER_SECONDS, stopping._SURE_SECONDS = 0.1, 0.1, 2.0
cases = {
    "main": (0, "rank 1: truncated"),
    "other": (2, "rank 1: truncated"),
    "hang": (0, "rank 1: no progress for 9 s at step 3"),
    "stuck": (0, "rank 1: truncated"),
}
children = {}
for name, (rank, reason) in cases.items():
    if (child := os.fork()) == 0:
        logging.basicConfig(format=name + " says: %(message)s")
        peers = Told()
        peers._reason = reason
        watchdog = stopping.Watchdog(600, rank, peers)
        closed = lambda reason: print(name, "closed:", reason, flush=True)
        watchdog.last_words = last_words_hang if name == "stuck" else closed
        watchdog.start()
        time.sleep(1000)
    children[child] = name
while children:
    child, status = os.wait()
    print(children.pop(child), "code:", os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_rank_ends_with_a_peer_that_failed_or_hangs_and_closes_its_record():
    done = subprocess.run([sys.executable, "-c", PEER_FAILS], capture_output=True, text=True, timeout=120)
    hang = "rank 1: no progress for 9 s at step 3"
    assert sorted(done.stdout.splitlines()) == [
        "hang closed: " + hang,
        "hang code: 75",
        "main closed: rank 1: truncated",
        "main code: 1",
        "other closed: rank 1: truncated",
        "other code: 1",
        "stuck code: 1",
    ]
    said = [line for line in done.stderr.splitlines() if " says: " in line]
    assert sorted(said) == [
        "hang says: rank 0 was at starting when that happened: stacks follow",
        "main says: the job ends: rank 1: truncated",  # no other rank repeats it
        "stuck says: the job ends: rank 1: truncated",
    ]
    assert "in <module>" in done.stderr
